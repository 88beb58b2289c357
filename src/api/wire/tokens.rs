//! `/tokenize` and `/detokenize`, in llama.cpp's shape.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Text to turn into tokens.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct TokenizeRequest {
    /// Model id, alias, or `auto`.
    pub model: Option<String>,
    /// The text.
    #[schema(required, value_type = String)]
    pub content: Option<String>,
    /// Add the beginning and end tokens the model asks for, default false.
    pub add_special: Option<bool>,
    /// Literals of control tokens become those tokens, default true.
    pub parse_special: Option<bool>,
    /// Answer with each token's text too, default false.
    pub with_pieces: Option<bool>,
}

/// The tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TokenizeResponse {
    /// In order: ids alone, or with their text.
    pub tokens: Vec<TokenItem>,
}

/// A token alone, or with its text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum TokenItem {
    /// Its id.
    Id(u32),
    /// Id and text.
    Piece(Piece),
}

/// A token with its text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Piece {
    /// Its id.
    pub id: u32,
    /// Its text, or its bytes when they are no text by themselves.
    pub piece: PieceText,
}

/// Text, or bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum PieceText {
    /// Text.
    Text(String),
    /// Bytes.
    Bytes(Vec<u8>),
}

/// Tokens to turn into text.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct DetokenizeRequest {
    /// Model id, alias, or `auto`.
    pub model: Option<String>,
    /// Ids.
    #[schema(required, value_type = Vec<u32>)]
    pub tokens: Option<Vec<u32>>,
}

/// The text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DetokenizeResponse {
    /// Text; U+FFFD where bytes are no text.
    pub content: String,
}
