//! `omni-proxy`: TCP in front of the daemon's Unix socket. Lets through `/v1/*`, `/health` and `/ready`, checks
//! addresses, API keys, limits and times, and passes bodies on as they come, both ways, without holding them. It knows
//! no model, reads no model file and never reaches the control API. Called by `src/bin/omni-proxy.rs`.
//!
//! ```text
//! accept ─▶ gate (address, counts) ─▶ connection (version, time limits) ─▶ forward (path, key, headers)
//!        ─▶ request body (size, pauses) ─▶ upstream (pooled connections) ─▶ response body ─▶ client
//! ```

mod body; // request and response bodies on their way through
pub mod cli; // options, start, exit codes
mod connection; // one client connection: HTTP version, time limits, draining
mod forward; // one request: may it pass, and what is passed
mod gate; // who may connect, and how often
pub mod headers; // what is passed on of a header, and what is not
pub mod keys; // API keys, hashed
pub mod path; // which paths pass
mod reply; // the proxy's own answers, in OpenAI's error shape
mod server; // listening, signals, draining
mod upstream; // pooled connections to the daemon
mod watch; // what a connection is waiting for, and until when

pub use server::{Handle, Server};
