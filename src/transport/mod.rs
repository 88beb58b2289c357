//! What every HTTP connection here has in common, whoever serves it: which version the client speaks, and which header
//! fields end at a connection. Knows no endpoint and no configuration; used by `api`'s server, the daemon and the proxy.

pub mod headers;
mod version;

pub use version::{Begun, Version, begin};
