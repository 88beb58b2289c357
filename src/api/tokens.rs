//! `POST /tokenize` and `POST /detokenize`, in llama.cpp's shape.

use super::answer::offload;
use super::backend::Served;
use super::error::ApiError;
use super::http::{Body, json, parse_json};
use super::wire::tokens::{
    DetokenizeRequest, DetokenizeResponse, Piece, PieceText, TokenItem, TokenizeRequest, TokenizeResponse,
};
use bytes::Bytes;
use http::{Response, StatusCode};
use std::sync::Arc;

/// Text to tokens.
#[utoipa::path(post, path = "/tokenize", tag = "tokens", request_body = TokenizeRequest, responses(
    (status = 200, description = "The tokens", body = TokenizeResponse), super::openapi::Refusals
))]
pub async fn tokenize(served: Arc<Served>, body: Bytes) -> Result<Response<Body>, ApiError> {
    let response = offload(body.len(), move || tokens_of(&served, &parse_json(&body)?)).await?;
    Ok(json(StatusCode::OK, &response))
}

fn tokens_of(served: &Served, request: &TokenizeRequest) -> Result<TokenizeResponse, ApiError> {
    let content = request.content.as_deref().ok_or_else(|| ApiError::invalid("content", "is missing; send a text"))?;
    let add_special = request.add_special.unwrap_or(false);
    let ids = served.tokenizer.encode(content, add_special, request.parse_special.unwrap_or(true));
    if !request.with_pieces.unwrap_or(false) {
        return Ok(TokenizeResponse { tokens: ids.into_iter().map(TokenItem::Id).collect() });
    }
    let piece = |id| {
        let piece = match served.piece(id) {
            Ok(text) => PieceText::Text(text.to_owned()),
            Err(bytes) => PieceText::Bytes(bytes.to_vec()),
        };
        TokenItem::Piece(Piece { id, piece })
    };
    Ok(TokenizeResponse { tokens: ids.into_iter().map(piece).collect() })
}

/// Tokens to text, control tokens shown by their literals.
#[utoipa::path(post, path = "/detokenize", tag = "tokens", request_body = DetokenizeRequest, responses(
    (status = 200, description = "The text", body = DetokenizeResponse), super::openapi::Refusals
))]
pub async fn detokenize(served: Arc<Served>, body: Bytes) -> Result<Response<Body>, ApiError> {
    let response = offload(body.len(), move || text_of(&served, &parse_json(&body)?)).await?;
    Ok(json(StatusCode::OK, &response))
}

fn text_of(served: &Served, request: &DetokenizeRequest) -> Result<DetokenizeResponse, ApiError> {
    let ids = request.tokens.as_deref().ok_or_else(|| ApiError::invalid("tokens", "is missing; send token ids"))?;
    let vocab = served.tokenizer.vocab_size();
    if let Some(id) = ids.iter().find(|id| **id as usize >= vocab) {
        return Err(ApiError::invalid("tokens", format!("token id {id} is outside of the vocabulary of {vocab}")));
    }
    let bytes = served.tokenizer.decode(ids, true);
    Ok(DetokenizeResponse { content: String::from_utf8_lossy(&bytes).into_owned() })
}
