//! Wire types and endpoints: OpenAI's shapes, SSE, errors as OpenAI clients expect them. Never sees a tensor.
//!
//! [`http`], [`sse`] and [`error`] are shared with the daemon, which routes requests to workers byte for byte; the
//! endpoints themselves are served by a worker.

pub mod control;
pub mod error;
pub mod http;
pub mod sse;

pub use error::ApiError;
pub use http::Body;
