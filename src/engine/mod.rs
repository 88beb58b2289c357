//! One thread owns all model state. In: bounded queue of [`Request`]s. Out: one bounded channel of [`Event`]s per
//! request. The engine speaks token ids only.
//!
//! [`open()`] goes from a path to a running engine. [`Handle`] is all that the outside holds: it never waits for the
//! thread, and the thread never waits for a reader. A sequence runs only while its channel has room for all that one
//! step may send, so a slow reader stalls itself, and one place is always left for the last event. Called by `worker`.

mod handle;
mod open;
mod options;
mod origin;
pub mod planning;
mod room;
mod run;
mod shared;
mod stream;
#[cfg(test)]
mod tests;

pub use handle::Handle;
pub use open::{ModelFacts, OpenError, Opened, Remedy, open, open_kept};
pub use options::EngineOptions;

use crate::sample::{Logprobs, Params};
use std::time::{Duration, Instant};

/// One validated request: all that crosses from HTTP to the engine.
#[derive(Clone, Debug)]
pub struct Request {
    /// Prompt, at least one token, shorter than the context.
    pub prompt: Vec<u32>,
    /// Most tokens to generate; 0 only evaluates the prompt.
    pub max_tokens: usize,
    /// Sampling.
    pub sampling: Params,
    /// Tokens that end the text (end-of-generation ids unless `ignore_eos`, `stop_token_ids`); not emitted.
    pub stop_tokens: Vec<u32>,
    /// `Some(n)`: log-probabilities of the prompt's own tokens with the `n` best each (`echo` with `logprobs`).
    pub prompt_logprobs: Option<usize>,
    /// May reuse and leave behind cached prefix blocks.
    pub cache: bool,
}

/// What a request's channel carries, in this order: `Prefill`*, `PromptLogprobs`?, `Token`*, then one `Done` or `Error`.
#[derive(Clone, Debug)]
pub enum Event {
    /// Prompt tokens evaluated so far (cached ones counted), of all. The first comes before the first chunk is evaluated
    /// and tells how many the cache held; then one after each chunk.
    Prefill {
        /// Evaluated.
        done: usize,
        /// Of the prompt.
        total: usize,
    },
    /// One entry per prompt token; the first has none.
    PromptLogprobs(Vec<Option<Logprobs>>),
    /// A generated token.
    Token {
        /// Its id.
        id: u32,
        /// When asked for.
        logprobs: Option<Logprobs>,
        /// When it was drawn; a reader may come by much later.
        at: Instant,
    },
    /// The end.
    Done {
        /// Why.
        reason: FinishReason,
        /// Counts and times.
        usage: Usage,
    },
    /// The request failed; nothing follows.
    Error(String),
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop token was drawn (its id).
    Stop(u32),
    /// `max_tokens` or the context's end.
    Length,
}

/// Counts and times of a finished request.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Of these, taken from the prefix cache.
    pub cached_tokens: usize,
    /// Tokens generated (a stop token not counted).
    pub completion_tokens: usize,
    /// Waiting for a slot.
    pub queued: Duration,
    /// Evaluating the prompt.
    pub prefill: Duration,
    /// Generating.
    pub decode: Duration,
}

/// Why a request was not taken.
#[derive(Clone, Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum SubmitError {
    #[error("the queue is full ({limit} waiting); try again in {retry_after:?}")]
    QueueFull { limit: usize, retry_after: Duration },
    #[error(
        "the prompt has {prompt} tokens, the context is {context}; shorten it or load the model with a larger context"
    )]
    TooLong { prompt: usize, context: usize },
    #[error("the prompt is empty")]
    Empty,
    #[error("token id {id} is outside of the vocabulary of {vocab}")]
    BadToken { id: u32, vocab: usize },
    #[error("the model is shutting down")]
    Closing,
}

/// What the engine is doing, for heartbeat, status and metrics. Counters only grow.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct Stats {
    pub running: usize,
    pub waiting: usize,
    pub kv_blocks_total: usize,
    pub kv_blocks_used: usize,
    /// Unused blocks that hold a prefix for reuse.
    pub kv_blocks_cached: usize,
    /// Snapshots of recurrent state that are held for reuse.
    pub state_snapshots: usize,
    pub prompt_tokens_total: u64,
    pub cached_tokens_total: u64,
    pub completion_tokens_total: u64,
    /// Bytes of the step buffers as they are now: those planned, for as long as the engine runs.
    pub scratch_bytes: u64,
    pub requests_total: u64,
    pub cancelled_total: u64,
    pub steps_total: u64,
    pub prefill_seconds_total: f64,
    pub decode_seconds_total: f64,
    /// Milliseconds since the engine thread last came round its loop.
    pub beat_age_ms: u64,
}
