//! `POST /tokenize` and `POST /detokenize`, in llama.cpp's shape. An answer may be many times as large as its request, so
//! it is written into a limited buffer, and those that wait for their readers are limited together.

use super::answer::offload;
use super::backend::Served;
use super::error::ApiError;
use super::http::{Body, BoxError, full, parse_json, with_type};
use super::wire::tokens::{
    DetokenizeRequest, DetokenizeResponse, Piece, PieceText, TokenItem, TokenizeRequest, TokenizeResponse,
};
use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::{Frame, SizeHint};
use std::io::{self, Write};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit};

/// Bytes of one answer, and of all that wait for their readers.
const MAX_ANSWER: usize = 128 << 20;
/// An answer up to this does not count.
const SMALL: usize = 64 << 10;
/// In KiB. The process has one memory, whoever serves.
static ANSWERS: Semaphore = Semaphore::const_new(MAX_ANSWER >> 10);

/// Text to tokens.
#[utoipa::path(post, path = "/tokenize", tag = "tokens", request_body = TokenizeRequest, responses(
    (status = 200, description = "The tokens", body = TokenizeResponse), super::openapi::Refusals
))]
pub async fn tokenize(served: Arc<Served>, body: Bytes) -> Result<Response<Body>, ApiError> {
    answer(offload(body.len(), move || tokens_of(&served, &parse_json(&body)?)).await?)
}

fn tokens_of(served: &Served, request: &TokenizeRequest) -> Result<Vec<u8>, ApiError> {
    let content = request.content.as_deref().ok_or_else(|| ApiError::invalid("content", "is missing; send a text"))?;
    let add_special = request.add_special.unwrap_or(false);
    let ids = served.tokenizer.encode(content, add_special, request.parse_special.unwrap_or(true));
    let pieces = request.with_pieces.unwrap_or(false);
    let item = |id| {
        if !pieces {
            return TokenItem::Id(id);
        }
        let piece = match served.piece(id) {
            Ok(text) => PieceText::Text(text.to_owned()),
            Err(bytes) => PieceText::Bytes(bytes.to_vec()),
        };
        TokenItem::Piece(Piece { id, piece })
    };
    // As a `TokenizeResponse` would be written, without one token's text after the other being kept.
    let mut out = Limited::default();
    let written = out.write_all(b"{\"tokens\":[").and_then(|()| {
        for (at, id) in ids.into_iter().enumerate() {
            if at > 0 {
                out.write_all(b",")?;
            }
            serde_json::to_writer(&mut out, &item(id))?;
        }
        out.write_all(b"]}")
    });
    written.map_err(|_| too_long())?;
    Ok(out.0)
}

/// Tokens to text, control tokens shown by their literals.
#[utoipa::path(post, path = "/detokenize", tag = "tokens", request_body = DetokenizeRequest, responses(
    (status = 200, description = "The text", body = DetokenizeResponse), super::openapi::Refusals
))]
pub async fn detokenize(served: Arc<Served>, body: Bytes) -> Result<Response<Body>, ApiError> {
    answer(offload(body.len(), move || text_of(&served, &parse_json(&body)?)).await?)
}

fn text_of(served: &Served, request: &DetokenizeRequest) -> Result<Vec<u8>, ApiError> {
    let ids = request.tokens.as_deref().ok_or_else(|| ApiError::invalid("tokens", "is missing; send token ids"))?;
    let vocab = served.tokenizer.vocab_size();
    if let Some(id) = ids.iter().find(|id| **id as usize >= vocab) {
        return Err(ApiError::invalid("tokens", format!("token id {id} is outside of the vocabulary of {vocab}")));
    }
    let bytes = |id: &u32| served.tokenizer.token_bytes(*id).map_or(0, <[u8]>::len);
    if ids.iter().map(bytes).sum::<usize>() > MAX_ANSWER {
        return Err(too_long());
    }
    let content = String::from_utf8_lossy(&served.tokenizer.decode(ids, true)).into_owned();
    let mut out = Limited::default();
    serde_json::to_writer(&mut out, &DetokenizeResponse { content }).map_err(|_| too_long())?;
    Ok(out.0)
}

/// A buffer that takes [`MAX_ANSWER`] bytes.
#[derive(Default)]
struct Limited(Vec<u8>);

impl Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_ANSWER {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn too_long() -> ApiError {
    ApiError::too_long(MAX_ANSWER)
}

/// Answers with JSON; a large one takes its place among those that wait for their readers.
fn answer(json: Vec<u8>) -> Result<Response<Body>, ApiError> {
    let mut response = with_type(StatusCode::OK, "application/json", Bytes::new());
    if json.len() <= SMALL {
        *response.body_mut() = full(json);
        return Ok(response);
    }
    // Less than the limit, so the cast is exact.
    let place = ANSWERS.try_acquire_many(json.len().div_ceil(1 << 10) as u32).map_err(|_| {
        let message = format!("answers of {MAX_ANSWER} bytes wait for their readers already; try again");
        ApiError::unavailable(message, Duration::from_secs(1)).code("overloaded")
    })?;
    *response.body_mut() = Placed { rest: json.into(), _place: place }.boxed();
    Ok(response)
}

/// An answer with its place, which is free again when it is sent or dropped. It is handed over in parts, for whole it
/// would leave its place at once and wait in the connection's buffer.
struct Placed {
    rest: Bytes,
    _place: SemaphorePermit<'static>,
}

impl hyper::body::Body for Placed {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let part = self.rest.len().min(SMALL);
        Poll::Ready((part > 0).then(|| Ok(Frame::data(self.rest.split_to(part)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn answers_are_limited_alone_and_together() {
        let mut out = Limited::default();
        out.write_all(&vec![0; MAX_ANSWER]).unwrap();
        assert!(out.write_all(b"x").is_err());
        let waiting = answer(out.0).unwrap();
        let refused = answer(vec![0; SMALL + 1]).unwrap_err();
        assert_eq!(
            (refused.status, refused.retry_after),
            (StatusCode::SERVICE_UNAVAILABLE, Some(Duration::from_secs(1)))
        );
        assert!(answer(vec![0; SMALL]).is_ok(), "a small one always finds a place");
        drop(waiting);
        let numbers: Vec<u8> = (0..200_000).map(|n| n as u8).collect();
        let answer = answer(numbers.clone()).unwrap();
        assert_eq!(hyper::body::Body::size_hint(answer.body()).exact(), Some(200_000));
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), numbers);
    }
}
