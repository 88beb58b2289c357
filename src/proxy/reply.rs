//! The proxy's own answers: refusals in OpenAI's error shape, so that clients handle them like the daemon's. Used by
//! `gate`, `forward` and `body`.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::json;

/// Why the proxy answers instead of the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Not a path that passes.
    NotFound,
    /// No key, or an unknown one.
    BadKey,
    /// The address is not in the allow-list.
    Forbidden,
    /// The body is over the limit.
    TooLarge {
        /// The limit in bytes.
        limit: u64,
    },
    /// `Expect` asks for something else than `100-continue`.
    Expectation,
    /// The body stopped coming.
    BodyTimeout,
    /// The body was cut off or is malformed.
    BadBody,
    /// One address holds too many connections.
    TooManyConnections,
    /// The proxy is full.
    Busy,
    /// The daemon cannot be reached.
    Unavailable,
    /// The daemon went away before it answered.
    Dropped,
    /// The daemon is there and answers nothing.
    Stuck,
}

impl Refusal {
    /// Status, OpenAI error type, code and message.
    fn facts(self) -> (StatusCode, &'static str, &'static str, String) {
        let text = |text: &str| text.to_string();
        match self {
            Refusal::NotFound => (
                StatusCode::NOT_FOUND,
                "invalid_request_error",
                "not_found",
                text("unknown path; the API is under /v1/, probes are /health and /ready"),
            ),
            Refusal::BadKey => (
                StatusCode::UNAUTHORIZED,
                "authentication_error",
                "invalid_api_key",
                text("missing or unknown API key; send one as `Authorization: Bearer KEY` or `x-api-key: KEY`"),
            ),
            Refusal::Forbidden => (
                StatusCode::FORBIDDEN,
                "permission_error",
                "address_not_allowed",
                text("this address may not connect; ask the operator to add it to the proxy's allow-list"),
            ),
            Refusal::TooLarge { limit } => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "invalid_request_error",
                "request_too_large",
                format!("the request's body is over the limit of {limit} bytes; send a smaller one"),
            ),
            Refusal::Expectation => (
                StatusCode::EXPECTATION_FAILED,
                "invalid_request_error",
                "expectation_failed",
                text("the only expectation that can be met is `Expect: 100-continue`; leave the field out"),
            ),
            Refusal::BodyTimeout => (
                StatusCode::REQUEST_TIMEOUT,
                "invalid_request_error",
                "request_timeout",
                text("the request's body stopped coming; send it without long pauses"),
            ),
            Refusal::BadBody => (
                StatusCode::BAD_REQUEST,
                "invalid_request_error",
                "bad_body",
                text("the request's body ended early or is malformed; send it whole"),
            ),
            Refusal::TooManyConnections => (
                StatusCode::TOO_MANY_REQUESTS,
                "rate_limit_error",
                "too_many_connections",
                text("too many connections from this address; reuse or close some"),
            ),
            Refusal::Busy => (
                StatusCode::SERVICE_UNAVAILABLE,
                "server_error",
                "overloaded",
                text("the proxy is at its limit; try again shortly"),
            ),
            Refusal::Unavailable => (
                StatusCode::SERVICE_UNAVAILABLE,
                "server_error",
                "upstream_unavailable",
                text("the inference daemon cannot be reached; try again shortly, or ask the operator to start it"),
            ),
            Refusal::Dropped => (
                StatusCode::BAD_GATEWAY,
                "server_error",
                "upstream_failed",
                text("the inference daemon closed the connection before it answered; try again"),
            ),
            Refusal::Stuck => (
                StatusCode::GATEWAY_TIMEOUT,
                "server_error",
                "upstream_timeout",
                text("the inference daemon does not answer; try again later, or ask the operator to look at it"),
            ),
        }
    }

    /// Seconds after which to try again, for those where that helps.
    fn retry_after(self) -> Option<&'static str> {
        match self {
            Refusal::TooManyConnections | Refusal::Busy => Some("1"),
            Refusal::Unavailable => Some("2"),
            _ => None,
        }
    }

    /// The error object's JSON text.
    fn json(self) -> (StatusCode, String) {
        let (status, kind, code, message) = self.facts();
        (status, json!({"error": {"message": message, "type": kind, "param": null, "code": code}}).to_string())
    }

    /// As a response over HTTP.
    pub fn response(self) -> Response<Bytes> {
        let (status, text) = self.json();
        let mut response = Response::new(Bytes::from(text));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(seconds) = self.retry_after() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static(seconds));
        }
        if self == Refusal::BadKey {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"omni-inferd\""));
        }
        response
    }

    /// As HTTP/1.1 bytes, for a connection that is closed before anything is read from it.
    pub fn raw(self) -> Vec<u8> {
        let (status, text) = self.json();
        let retry = self.retry_after().map_or(String::new(), |seconds| format!("retry-after: {seconds}\r\n"));
        let length = text.len();
        format!(
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n{retry}connection: close\r\n\r\n{text}"
        )
        .into_bytes()
    }
}

/// The event that ends a stream whose upstream died; `line_open`: the bytes before it ended inside an event.
pub fn broken_stream_event(line_open: bool) -> Bytes {
    let error = json!({"error": {
        "message": "the inference daemon closed the connection in the middle of the answer; try again",
        "type": "server_error", "param": null, "code": "upstream_failed",
    }});
    let start = if line_open { "\n\n" } else { "" };
    Bytes::from(format!("{start}data: {error}\n\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speaks_openais_error_shape() {
        let response = Refusal::TooLarge { limit: 7 }.response();
        assert_eq!(response.status(), 413);
        let value: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
        assert_eq!(value["error"]["code"], "request_too_large");
        assert!(value["error"]["message"].as_str().unwrap().contains("7 bytes"));
        assert!(Refusal::BadKey.response().headers().contains_key("www-authenticate"));
        assert_eq!(Refusal::Unavailable.response().headers()["retry-after"], "2");
        let raw = String::from_utf8(Refusal::Busy.raw()).unwrap();
        assert!(
            raw.starts_with("HTTP/1.1 503 Service Unavailable\r\n") && raw.contains("\r\nretry-after: 1\r\n"),
            "{raw}"
        );
    }
}
