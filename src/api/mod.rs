//! Wire types and endpoints: OpenAI's shapes, SSE, errors as OpenAI clients expect them. Never sees a tensor.
//!
//! [`http`], [`sse`] and [`error`] are shared with the daemon, which routes requests to workers byte for byte; the
//! endpoints themselves are served by a worker.

pub mod control;
pub mod backend;
pub mod error;
pub mod generate;
pub mod http;
pub mod params;
pub mod sse;
pub mod unsupported;
pub mod wire;

pub use error::ApiError;
pub use http::Body;
