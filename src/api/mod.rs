//! Wire types and endpoints: OpenAI's shapes, SSE, errors as OpenAI clients expect them. Never sees a tensor.
//!
//! ```text
//! router ─▶ completions | chat ─▶ params, conversation ─▶ generate ─▶ engine
//!                                     answer ◀─ split ◀──────┘
//! ```
//!
//! The endpoints are served by a worker; the daemon picks the model and passes requests on byte for byte. [`http`],
//! [`sse`], [`error`] and [`wire`] are shared with the daemon, the last also with omnictl.

// Shared with the daemon.
pub mod control;
pub mod error;
pub mod http;
pub mod openapi;
pub mod sse;
pub mod wire;

// Endpoints of a worker.
pub mod chat;
pub mod completions;
pub mod models;
pub mod router;
pub mod tokens;

// From a request to the engine and back.
pub mod answer;
pub mod backend;
pub mod conversation;
pub mod generate;
mod logprobs;
pub mod params;
pub mod split;
pub mod unsupported;

pub use backend::{Backend, RequestLimits, Served};
pub use error::ApiError;
pub use http::Body;

#[cfg(test)]
mod tests;
