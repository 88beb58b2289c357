//! Errors in OpenAI's JSON shape, each with the status and headers that belong to it.
//!
//! Every error a client can see is built here: what happened, why, and what to do. Used by the worker's endpoints and by
//! the daemon's router and control API.

use super::http::{Body, json};
use http::{HeaderValue, Response, StatusCode, header};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::time::Duration;
use utoipa::ToSchema;

/// A refusal or failure on its way to a client.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// HTTP status.
    pub status: StatusCode,
    /// What happened, why, what to do.
    pub message: String,
    /// OpenAI's error type, e.g. `invalid_request_error`.
    pub kind: &'static str,
    /// The request's field at fault.
    pub param: Option<String>,
    /// Short and stable, for programs, e.g. `context_length_exceeded`.
    pub code: Option<&'static str>,
    /// Sent as `Retry-After`, rounded up to whole seconds.
    pub retry_after: Option<Duration>,
    /// Methods that the path knows, sent as `Allow` with 405.
    pub allow: Option<&'static str>,
}

/// The body of every error answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// The error.
    pub error: ErrorObject,
}

/// OpenAI's error object.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ErrorObject {
    /// What happened, why, what to do.
    pub message: String,
    /// Class of error.
    #[serde(rename = "type")]
    pub kind: String,
    /// The request's field at fault.
    pub param: Option<String>,
    /// Short and stable, for programs.
    pub code: Option<String>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        ApiError { status, message: message.into(), kind, param: None, code: None, retry_after: None, allow: None }
    }

    /// 400: the request itself is wrong; sending it again changes nothing.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    /// 400 for a value of the field `param`; the message starts with the field's name.
    pub fn invalid(param: &str, why: impl std::fmt::Display) -> Self {
        Self::bad_request(format!("{param}: {why}")).param(param)
    }

    /// 400 for a field that would change the result and that this server does not have.
    pub fn unsupported(param: &str, remedy: impl std::fmt::Display) -> Self {
        Self::bad_request(format!("{param} is not supported: {remedy}")).param(param).code("unsupported_parameter")
    }

    /// 401: no key, or a wrong one.
    pub fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "authentication_error", message).code("invalid_api_key")
    }

    /// 403: known, but not allowed.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "permission_error", message)
    }

    /// 404: no such path or thing.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found_error", message)
    }

    /// 404 for an unknown model; `known` are the ids that exist.
    pub fn model_not_found(model: &str, known: &[String]) -> Self {
        let known =
            if known.is_empty() { "no model is configured".into() } else { format!("have {}", known.join(", ")) };
        let model = excerpt(model);
        Self::not_found(format!("the model '{model}' does not exist ({known})")).param("model").code("model_not_found")
    }

    /// 405: the path knows only `allow`, e.g. `GET, HEAD`.
    pub fn method_not_allowed(path: &str, allow: &'static str) -> Self {
        let message = format!("{path} answers {allow} only");
        let mut error = Self::new(StatusCode::METHOD_NOT_ALLOWED, "invalid_request_error", message);
        error.allow = Some(allow);
        error
    }

    /// 408: the client was too slow to send its request.
    pub fn timeout(message: impl Into<String>) -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "invalid_request_error", message)
    }

    /// 409: not in the present state.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "conflict_error", message)
    }

    /// 413: a body of more than `limit` bytes.
    pub fn too_large(limit: usize) -> Self {
        let message = format!("the request's body exceeds {limit} bytes; shorten it or raise max_body_bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid_request_error", message).code("request_too_large")
    }

    /// 413: an answer of more than `limit` bytes.
    pub fn too_long(limit: usize) -> Self {
        let message = format!("the answer would exceed {limit} bytes; send the request in parts");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid_request_error", message).code("answer_too_large")
    }

    /// 415: the body's encoding cannot be read.
    pub fn unsupported_media(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "invalid_request_error", message)
    }

    /// 417: `Expect` asks for what no server here does.
    pub fn expectation_failed() -> Self {
        let message = "the only expectation that can be met is `Expect: 100-continue`; leave the field out";
        Self::new(StatusCode::EXPECTATION_FAILED, "invalid_request_error", message).code("expectation_failed")
    }

    /// 429: too much at once; the same request may succeed after `retry_after`.
    pub fn too_many(message: impl Into<String>, retry_after: Duration) -> Self {
        let mut error = Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message).code("queue_full");
        error.retry_after = Some(retry_after);
        error
    }

    /// 500: our fault.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
    }

    /// 503: not now (loading, draining, restarting); try again after `retry_after`.
    pub fn unavailable(message: impl Into<String>, retry_after: Duration) -> Self {
        let mut error = Self::new(StatusCode::SERVICE_UNAVAILABLE, "service_unavailable_error", message);
        error.retry_after = Some(retry_after);
        error
    }

    /// Names the field at fault.
    #[must_use]
    pub fn param(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    /// Sets the code for programs.
    #[must_use]
    pub fn code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    /// The JSON object clients read.
    pub fn body(&self) -> ErrorBody {
        let error = ErrorObject {
            message: self.message.clone(),
            kind: self.kind.into(),
            param: self.param.clone(),
            code: self.code.map(Into::into),
        };
        ErrorBody { error }
    }

    /// The whole answer: status, `Retry-After`, `Allow`, `WWW-Authenticate` where they belong, JSON body.
    pub fn into_response(self) -> Response<Body> {
        let mut response = json(self.status, &self.body());
        let headers = response.headers_mut();
        if let Some(after) = self.retry_after {
            let seconds = after.as_millis().div_ceil(1000).max(1);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(u64::try_from(seconds).unwrap_or(u64::MAX)));
        }
        if let Some(allow) = self.allow {
            headers.insert(header::ALLOW, HeaderValue::from_static(allow));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// Characters of a client's own words that an error repeats.
const EXCERPT: usize = 100;

/// A client's words as an error repeats them: cut where they are long, so that an answer (and the log) stays short
/// whatever was sent.
pub fn excerpt(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(EXCERPT) {
        Some((end, _)) => format!("{}…", &text[..end]).into(),
        None => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn carries_status_shape_and_headers() {
        let response = ApiError::too_many("full", Duration::from_millis(1200)).into_response();
        assert_eq!(response.status(), 429);
        assert_eq!(response.headers()["retry-after"], "2");
        let response = ApiError::unavailable("loading", Duration::ZERO).into_response();
        assert_eq!((response.status().as_u16(), &response.headers()["retry-after"]), (503, &HeaderValue::from(1)));
        let response = ApiError::method_not_allowed("/health", "GET, HEAD").into_response();
        assert_eq!(
            (response.status().as_u16(), &response.headers()["allow"]),
            (405, &HeaderValue::from_static("GET, HEAD"))
        );
        let text = serde_json::to_string(&ApiError::invalid("top_p", "0 to 1, not 7").body()).unwrap();
        assert_eq!(
            text,
            r#"{"error":{"message":"top_p: 0 to 1, not 7","type":"invalid_request_error","param":"top_p","code":null}}"#
        );
    }

    #[test]
    fn an_unknown_model_names_the_known_ones() {
        let error = ApiError::model_not_found("gpt-9", &["a".into(), "b".into()]);
        assert_eq!(error.status, 404);
        assert!(error.message.contains("gpt-9") && error.message.contains("a, b"), "{error}");
        let long = ApiError::model_not_found(&"é".repeat(100_000), &[]).message;
        assert!(long.contains("é…'") && long.len() < 400, "{long}");
    }
}
