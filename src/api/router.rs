//! Path and method to endpoint, for one worker. Reads bodies within their limits and turns every refusal into its answer.

use super::backend::Served;
use super::error::ApiError;
use super::http::{Body, BoxError, read_body};
use super::{chat, completions, models, tokens};
use bytes::Bytes;
use http::{Method, Request, Response, header};
use hyper::body::Body as HttpBody;
use std::sync::Arc;

/// Answers one request.
pub async fn handle<B>(served: Arc<Served>, request: Request<B>) -> Response<Body>
where
    B: HttpBody<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    route(served, request).await.unwrap_or_else(ApiError::into_response)
}

async fn route<B>(served: Arc<Served>, request: Request<B>) -> Result<Response<Body>, ApiError>
where
    B: HttpBody<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let (head, body) = request.into_parts();
    let path = head.uri.path();
    match path {
        "/health" | "/v1/models" => {
            only(&head.method, path, &[Method::GET, Method::HEAD], "GET, HEAD")?;
            Ok(if path == "/health" { models::health() } else { models::models(&served) })
        }
        "/v1/completions" | "/v1/chat/completions" | "/tokenize" | "/detokenize" => {
            only(&head.method, path, &[Method::POST], "POST")?;
            plain(&head.headers)?;
            let body = read_body(body, served.limits.max_body_bytes, served.limits.body_timeout).await?;
            match path {
                "/v1/completions" => completions::completions(served, body).await,
                "/v1/chat/completions" => chat::chat_completions(served, body).await,
                "/tokenize" => tokens::tokenize(served, body).await,
                _ => tokens::detokenize(served, body).await,
            }
        }
        _ => match path.strip_prefix("/v1/models/") {
            Some(id) => {
                only(&head.method, path, &[Method::GET, Method::HEAD], "GET, HEAD")?;
                models::model(&served, &percent_decode(id))
            }
            None => Err(ApiError::not_found(format!("there is no {path}"))),
        },
    }
}

fn only(method: &Method, path: &str, allowed: &[Method], names: &'static str) -> Result<(), ApiError> {
    if allowed.contains(method) { Ok(()) } else { Err(ApiError::method_not_allowed(path, names)) }
}

/// A compressed body would be read as bad JSON; better to say what is wrong.
pub fn plain(headers: &http::HeaderMap) -> Result<(), ApiError> {
    match headers.get(header::CONTENT_ENCODING) {
        Some(encoding) if encoding != "identity" => {
            let encoding = String::from_utf8_lossy(encoding.as_bytes());
            Err(ApiError::unsupported_media(format!("bodies of encoding '{encoding}' are not read; send it plain")))
        }
        _ => Ok(()),
    }
}

/// `%2F` and the like in a path's segment. What is no valid escape stays as it is.
pub fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = |i: usize| bytes.get(i).and_then(|byte| char::from(*byte).to_digit(16));
        match (bytes[at], hex(at + 1), hex(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                at += 3;
            }
            (byte, ..) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}
