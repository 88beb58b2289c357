//! The endpoints against a scripted engine: every parameter, every error, every shape.

mod chat;
mod completions;
mod fake;
mod openapi;
mod robustness;
mod tokens;

use super::http::Body;
use super::router::handle;
use super::{RequestLimits, Served};
use bytes::Bytes;
use fake::Fake;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use serde_json::Value;
use std::sync::Arc;

/// Sends one request to the router.
async fn send(served: &Arc<Served>, method: &str, path: &str, body: impl Into<Bytes>) -> Response<Body> {
    let request = Request::builder().method(method).uri(path).body(Full::new(body.into())).unwrap();
    handle(served.clone(), request).await
}

async fn bytes(response: Response<Body>) -> Bytes {
    response.into_body().collect().await.unwrap().to_bytes()
}

/// Posts JSON and reads the answer's status and JSON.
async fn post(served: &Arc<Served>, path: &str, body: &Value) -> (u16, Value) {
    let response = send(served, "POST", path, body.to_string()).await;
    let status = response.status().as_u16();
    assert_eq!(response.headers()["content-type"], "application/json");
    (status, serde_json::from_slice(&bytes(response).await).unwrap())
}

/// Posts JSON, expects 200.
async fn ok(served: &Arc<Served>, path: &str, body: Value) -> Value {
    let (status, answer) = post(served, path, &body).await;
    assert_eq!(status, 200, "{body}: {answer}");
    answer
}

/// Posts JSON, expects 400 that names `param`; returns the message.
async fn refused(served: &Arc<Served>, path: &str, body: Value, param: &str) -> String {
    let (status, answer) = post(served, path, &body).await;
    assert_eq!(status, 400, "{body}: {answer}");
    assert_eq!(answer["error"]["param"], param, "{answer}");
    assert_eq!(answer["error"]["type"], "invalid_request_error");
    answer["error"]["message"].as_str().unwrap().to_owned()
}

/// Posts JSON with `stream`, and reads the events: comments as strings, data as JSON.
async fn stream(served: &Arc<Served>, path: &str, mut body: Value) -> Vec<Value> {
    body["stream"] = true.into();
    let response = send(served, "POST", path, body.to_string()).await;
    assert_eq!(response.status(), 200);
    events(&bytes(response).await)
}

fn events(bytes: &[u8]) -> Vec<Value> {
    let text = std::str::from_utf8(bytes).unwrap();
    let event = |event: &str| match event.strip_prefix("data: ") {
        Some("[DONE]") => Value::from("[DONE]"),
        Some(data) => serde_json::from_str(data).unwrap(),
        None => Value::from(event),
    };
    text.split_terminator("\n\n").map(event).collect()
}
