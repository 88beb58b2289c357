//! The shapes clients send and read, as types: OpenAI's, with the additions that llama.cpp's and vLLM's users know.
//! Plain data; [`super::params`] and the endpoints give it meaning. Used by worker, daemon and omnictl.
//!
//! Every request field has a default (absent and `null` mean the same) and unknown fields are ignored; the ones that would
//! change the result are collected in `other` and refused by [`super::unsupported`].

pub mod chat;
pub mod completions;
pub mod models;
pub mod tokens;

use serde::{Deserialize, Serialize};
use serde_json::Number;
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// What `/v1/completions` and `/v1/chat/completions` have in common.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Sampling {
    /// 0 to 5; 0 is greedy. Default 1.
    #[schema(minimum = 0, maximum = 5)]
    pub temperature: Option<f64>,
    /// 0 to 1; 1 is off.
    #[schema(minimum = 0, maximum = 1)]
    pub top_p: Option<f64>,
    /// -1 and 0 are off.
    #[schema(minimum = -1)]
    pub top_k: Option<i64>,
    /// 0 to 1; 0 is off.
    #[schema(minimum = 0, maximum = 1)]
    pub min_p: Option<f64>,
    /// Above 0, to 1; 1 is off.
    #[schema(exclusive_minimum = 0, maximum = 1)]
    pub typical_p: Option<f64>,
    /// Above 0, to 10; 1 is off.
    #[schema(exclusive_minimum = 0, maximum = 10)]
    pub repetition_penalty: Option<f64>,
    /// llama.cpp's name for `repetition_penalty`.
    #[schema(exclusive_minimum = 0, maximum = 10)]
    pub repeat_penalty: Option<f64>,
    /// Tokens the repetition penalty looks back, default 64; -1: all of the context.
    #[schema(minimum = -1)]
    pub repeat_last_n: Option<i64>,
    /// -2 to 2.
    #[schema(minimum = -2, maximum = 2)]
    pub frequency_penalty: Option<f64>,
    /// -2 to 2.
    #[schema(minimum = -2, maximum = 2)]
    pub presence_penalty: Option<f64>,
    /// Token id to an addition of -100 to 100 to its logit.
    pub logit_bias: Option<BTreeMap<String, f64>>,
    /// Same seed, same text. Choice `i` of several takes `seed + i`. Random when absent.
    #[schema(value_type = Option<i64>)]
    pub seed: Option<Number>,
    /// One or up to 16 strings that end the text; not part of it.
    pub stop: Option<Stop>,
    /// Token ids that end the text.
    pub stop_token_ids: Option<Vec<u32>>,
    /// The model's own end tokens do not end the text.
    pub ignore_eos: Option<bool>,
    /// Answers to make for each prompt, default 1.
    #[schema(minimum = 1, maximum = 128)]
    pub n: Option<i64>,
    /// Answer with server-sent events.
    pub stream: Option<bool>,
    /// How to stream.
    pub stream_options: Option<StreamOptions>,
    /// Answer with `token_ids` and `prompt_token_ids` too.
    pub return_token_ids: Option<bool>,
    /// `false`: neither use nor leave behind cached prefixes.
    pub cache_prompt: Option<bool>,
}

/// One or several stop strings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a string or an array of strings")]
pub enum Stop {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

/// `stream_options`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct StreamOptions {
    /// A last chunk without choices carries `usage`.
    pub include_usage: Option<bool>,
}

/// Why a choice ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model's end, a stop token or a stop string.
    Stop,
    /// `max_tokens` or the end of the context.
    Length,
    /// The model asks for tools to be called.
    ToolCalls,
}

/// Tokens counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Usage {
    /// Of the prompts, each counted once however many choices were made of it.
    pub prompt_tokens: usize,
    /// Generated, over all choices.
    pub completion_tokens: usize,
    /// Both.
    pub total_tokens: usize,
    /// More about the prompt's.
    pub prompt_tokens_details: PromptTokensDetails,
}

/// More about prompt tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PromptTokensDetails {
    /// Taken from the prefix cache.
    pub cached_tokens: usize,
}

/// Where the time went; llama.cpp's names. With several choices the longest of each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Timings {
    /// Waiting for a slot.
    pub queue_ms: f64,
    /// Prompt tokens taken from the cache.
    pub cache_n: usize,
    /// Prompt tokens evaluated.
    pub prompt_n: usize,
    /// Evaluating them.
    pub prompt_ms: f64,
    /// `prompt_n` over `prompt_ms`.
    pub prompt_per_second: f64,
    /// Tokens generated.
    pub predicted_n: usize,
    /// Generating them.
    pub predicted_ms: f64,
    /// `predicted_n` over `predicted_ms`.
    pub predicted_per_second: f64,
}
