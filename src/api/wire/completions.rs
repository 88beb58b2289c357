//! `/v1/completions`: request, answer and stream chunk.

use super::{FinishReason, Sampling, Timings, Usage};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// What to complete.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct CompletionRequest {
    /// Model id, alias, or `auto`.
    pub model: Option<String>,
    /// Text, texts, token ids, or arrays of token ids.
    #[schema(required, value_type = Prompt)]
    pub prompt: Option<Prompt>,
    /// Most tokens to generate, default 16; 0 only evaluates the prompt.
    #[schema(minimum = 0)]
    pub max_tokens: Option<i64>,
    /// The answer begins with the prompt.
    pub echo: Option<bool>,
    /// Log-probabilities of each token and of the best so many, 0 to 20.
    #[schema(minimum = 0, maximum = 20)]
    pub logprobs: Option<i64>,
    /// Only `n` itself is supported.
    pub best_of: Option<i64>,
    /// Sampling, stopping, streaming.
    #[serde(flatten)]
    pub sampling: Sampling,
    /// Fields this server does not know.
    #[serde(flatten)]
    #[schema(ignore)]
    pub other: Map<String, Value>,
}

/// A prompt in one of four forms.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(
    untagged,
    expecting = "expected a string, an array of strings, an array of token ids, or an array of arrays of token ids"
)]
pub enum Prompt {
    /// One text.
    Text(String),
    /// One sequence of token ids.
    Tokens(Vec<u32>),
    /// Several texts.
    Texts(Vec<String>),
    /// Several sequences of token ids.
    TokenLists(Vec<Vec<u32>>),
}

/// An answer, or one chunk of a stream.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CompletionResponse {
    /// `cmpl-…`.
    pub id: String,
    /// `text_completion`.
    pub object: String,
    /// Unix seconds.
    pub created: u64,
    /// The model that answered.
    pub model: String,
    /// One per prompt and `n`, prompts first.
    pub choices: Vec<CompletionChoice>,
    /// Tokens; in a stream only in its last chunk, when asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// Times; in a stream with the last chunk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timings: Option<Timings>,
}

/// One completion.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CompletionChoice {
    /// Its place: prompt times `n` plus the choice.
    pub index: usize,
    /// The text.
    pub text: String,
    /// When asked for.
    pub logprobs: Option<TextLogprobs>,
    /// `null` while the stream runs.
    pub finish_reason: Option<FinishReason>,
    /// Ids of the generated tokens, when asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
    /// Ids of the prompt, when asked for; in a stream with the first chunk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<Vec<u32>>,
}

/// Log-probabilities in the shape of the older endpoint: one entry per token in each array.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TextLogprobs {
    /// Token texts; `bytes:\xE2\x82` for what is no text by itself.
    pub tokens: Vec<String>,
    /// Natural logarithms; `null` for the first token of a prompt.
    pub token_logprobs: Vec<Option<f32>>,
    /// The best tokens and the one itself, by text.
    pub top_logprobs: Vec<Option<BTreeMap<String, f32>>>,
    /// Where each token begins in the choice's text, in Unicode characters.
    pub text_offset: Vec<usize>,
}
