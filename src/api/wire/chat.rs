//! `/v1/chat/completions`: request, answer and stream chunk.

use super::{FinishReason, Sampling, Timings, Usage};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// What to answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct ChatRequest {
    /// Model id, alias, or `auto`.
    pub model: Option<String>,
    /// The conversation, at least one message.
    #[schema(required, min_items = 1, value_type = Vec<ChatMessage>)]
    pub messages: Option<Vec<ChatMessage>>,
    /// Most tokens to generate; default: all that the context still holds.
    #[schema(minimum = 1)]
    pub max_tokens: Option<i64>,
    /// The newer name of `max_tokens`; wins over it.
    #[schema(minimum = 1)]
    pub max_completion_tokens: Option<i64>,
    /// Log-probabilities of the answer's tokens.
    pub logprobs: Option<bool>,
    /// With `logprobs`: and of the best so many, 0 to 20.
    #[schema(minimum = 0, maximum = 20)]
    pub top_logprobs: Option<i64>,
    /// Functions the model may ask to be called; given to the chat template.
    pub tools: Option<Vec<Tool>>,
    /// `auto` or `none`.
    #[schema(value_type = Option<String>, pattern = "^(auto|none)$")]
    pub tool_choice: Option<Value>,
    /// `false`: at most one tool call in an answer.
    pub parallel_tool_calls: Option<bool>,
    /// Only `{"type": "text"}`.
    pub response_format: Option<ResponseFormat>,
    /// Given to the chat template.
    pub reasoning_effort: Option<String>,
    /// Given to the chat template.
    pub enable_thinking: Option<bool>,
    /// Variables for the chat template.
    pub chat_template_kwargs: Option<Map<String, Value>>,
    /// `none` leaves the reasoning in the content; `auto` and `deepseek` split it off.
    #[schema(pattern = "^(none|auto|deepseek)$")]
    pub reasoning_format: Option<String>,
    /// The prompt ends with the opening of the answer, default true.
    pub add_generation_prompt: Option<bool>,
    /// The last message is the answer's beginning, to be continued.
    pub continue_final_message: Option<bool>,
    /// Sampling, stopping, streaming.
    #[serde(flatten)]
    pub sampling: Sampling,
    /// Fields this server does not know.
    #[serde(flatten)]
    #[schema(ignore)]
    pub other: Map<String, Value>,
}

/// One message of a conversation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct ChatMessage {
    /// `system`, `developer`, `user`, `assistant` or `tool`.
    #[schema(required, pattern = "^(system|developer|user|assistant|tool)$")]
    pub role: String,
    /// Its text; may be absent when an assistant only calls tools.
    pub content: Option<Content>,
    /// Who speaks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What an assistant asked to be called.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<ToolCall>>)]
    pub tool_calls: Option<Vec<Value>>,
    /// Which call a tool answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// Whatever else the template may read, e.g. `reasoning_content`.
    #[serde(flatten)]
    #[schema(ignore)]
    pub other: Map<String, Value>,
}

/// A message's content.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a string or an array of parts with a type")]
pub enum Content {
    /// Text.
    Text(String),
    /// Parts, of which this server reads text.
    Parts(Vec<ContentPart>),
}

/// A part of a message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ContentPart {
    /// `text`.
    #[serde(rename = "type")]
    #[schema(pattern = "^text$")]
    pub kind: String,
    /// The text.
    #[serde(default)]
    pub text: Option<String>,
}

/// A tool offered to the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Tool {
    /// `function`.
    #[serde(rename = "type")]
    #[schema(pattern = "^function$")]
    pub kind: String,
    /// Name, description, JSON schema of the parameters.
    pub function: Map<String, Value>,
}

/// `response_format`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ResponseFormat {
    /// `text`.
    #[serde(rename = "type")]
    #[schema(pattern = "^text$")]
    pub kind: String,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ChatResponse {
    /// `chatcmpl-…`.
    pub id: String,
    /// `chat.completion`.
    pub object: String,
    /// Unix seconds.
    pub created: u64,
    /// The model that answered.
    pub model: String,
    /// `n` of them.
    pub choices: Vec<ChatChoice>,
    /// Tokens.
    pub usage: Usage,
    /// Times.
    pub timings: Timings,
}

/// One answer of `n`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ChatChoice {
    /// Its place.
    pub index: usize,
    /// What the assistant says.
    pub message: AssistantMessage,
    /// When asked for.
    pub logprobs: Option<ChatLogprobs>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Ids of the generated tokens, when asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
    /// Ids of the prompt, when asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<Vec<u32>>,
}

/// The assistant's message.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AssistantMessage {
    /// `assistant`.
    pub role: String,
    /// Its text; `null` when it only calls tools.
    pub content: Option<String>,
    /// Always `null`: this server does not refuse in the model's name.
    pub refusal: Option<String>,
    /// What the model thought before, when it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// Calls it asks for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
}

/// A call the model asks for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ToolCall {
    /// Place among the calls; only in streams.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<usize>,
    /// `call_…`, or the model's own.
    pub id: String,
    /// `function`.
    #[serde(rename = "type")]
    pub kind: String,
    /// What to call.
    pub function: FunctionCall,
}

/// Name and arguments of a call.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FunctionCall {
    /// Function.
    pub name: String,
    /// Arguments as JSON text.
    pub arguments: String,
}

/// Log-probabilities of an answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ChatLogprobs {
    /// One entry per token.
    pub content: Vec<TokenLogprob>,
    /// Always `null`.
    pub refusal: Option<Vec<TokenLogprob>>,
}

/// One token with its log-probability.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TokenLogprob {
    /// Text; U+FFFD where its bytes are no text by themselves.
    pub token: String,
    /// Natural logarithm.
    pub logprob: f32,
    /// The text's bytes.
    pub bytes: Vec<u8>,
    /// The best tokens in its place, descending.
    pub top_logprobs: Vec<TopLogprob>,
}

/// One of the best tokens in a place.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TopLogprob {
    /// Text; U+FFFD where its bytes are no text by themselves.
    pub token: String,
    /// Natural logarithm.
    pub logprob: f32,
    /// The text's bytes.
    pub bytes: Vec<u8>,
}

/// One chunk of a stream.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ChatChunk {
    /// `chatcmpl-…`, the same in all chunks.
    pub id: String,
    /// `chat.completion.chunk`.
    pub object: String,
    /// Unix seconds.
    pub created: u64,
    /// The model that answers.
    pub model: String,
    /// One choice's news; empty in the usage chunk.
    pub choices: Vec<ChunkChoice>,
    /// Tokens; only in the last chunk, when asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// Times; with the last chunk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timings: Option<Timings>,
}

/// News of one choice.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ChunkChoice {
    /// Its place.
    pub index: usize,
    /// What is new.
    pub delta: Delta,
    /// Of the new tokens, when asked for.
    pub logprobs: Option<ChatLogprobs>,
    /// In the choice's last chunk.
    pub finish_reason: Option<FinishReason>,
    /// Ids of the new tokens, when asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
    /// Ids of the prompt, when asked for, with the first chunk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<Vec<u32>>,
}

/// What is new in a choice.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Delta {
    /// `assistant`, in the first chunk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// More text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// More reasoning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// Whole calls.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
}
