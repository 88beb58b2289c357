//! HTTP as daemon and worker share it: the body type, JSON answers, reading bodies within limits, the server loop.
//! Knows no endpoint and no model.

mod activity;
mod body;
mod server;

pub use body::{Bodies, Share, parse_json, read_body, read_shared};
pub use server::{Limits, Listener, Peer, serve};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use serde::Serialize;

/// Whatever a body's source may fail with.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The one response body type: JSON, an event stream, or a worker's answer passed through.
pub type Body = BoxBody<Bytes, BoxError>;

/// A body of bytes that are there already.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed()
}

/// An answer of type `application/json`.
pub fn json(status: StatusCode, value: &impl Serialize) -> Response<Body> {
    // Serialising our own wire types fails only on a map with non-string keys, which none has; a client still gets JSON.
    let (status, bytes) = match serde_json::to_vec(value) {
        Ok(bytes) => (status, bytes),
        Err(error) => {
            tracing::error!(%error, "an answer could not be written as JSON");
            let text = r#"{"error":{"message":"the answer could not be written","type":"server_error","param":null,"code":null}}"#;
            (StatusCode::INTERNAL_SERVER_ERROR, text.into())
        }
    };
    with_type(status, "application/json", bytes)
}

/// An answer of type `text/plain`.
pub fn text(status: StatusCode, text: impl Into<String>) -> Response<Body> {
    with_type(status, "text/plain; charset=utf-8", text.into())
}

/// An answer of any type.
pub fn with_type(status: StatusCode, content_type: &'static str, bytes: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(full(bytes));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
