//! What the endpoints need of a loaded model: the engine behind a small trait, tokenizer, chat template, limits.

use super::control::ModelInfo;
use super::sse::Pace;
use super::wire::models::ModelCard;
use crate::engine::{Event, Handle, Request, Stats, SubmitError};
use crate::text::{ChatTemplate, OutputFormat, Tokenizer};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc::Receiver;

/// An engine as the endpoints see it; see [`Handle`] for the meaning of each method.
pub trait Backend: Send + Sync {
    /// Queues a request; dropping the receiver cancels it.
    fn submit(&self, request: Request) -> Result<Receiver<Event>, SubmitError>;
    /// Figures now.
    fn stats(&self) -> Stats;
    /// Context per sequence in tokens.
    fn context(&self) -> usize;
}

impl Backend for Handle {
    fn submit(&self, request: Request) -> Result<Receiver<Event>, SubmitError> {
        Handle::submit(self, request)
    }

    fn stats(&self) -> Stats {
        Handle::stats(self)
    }

    fn context(&self) -> usize {
        Handle::context(self)
    }
}

/// What a client may ask of one model at most.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RequestLimits {
    /// Bytes of a request's body.
    pub max_body_bytes: usize,
    /// A body must arrive within.
    pub body_timeout: Duration,
    /// How streams behave towards their readers.
    pub pace: Pace,
}

impl Default for RequestLimits {
    fn default() -> Self {
        RequestLimits { max_body_bytes: 16 << 20, body_timeout: Duration::from_secs(60), pace: Pace::default() }
    }
}

/// One loaded model, ready to answer; shared by all requests.
pub struct Served {
    /// Id under which it answers.
    pub id: String,
    /// Further ids.
    pub aliases: Vec<String>,
    /// When it was loaded, Unix seconds.
    pub created: u64,
    /// Facts.
    pub info: ModelInfo,
    /// Text to ids and back.
    pub tokenizer: Arc<Tokenizer>,
    /// The file's chat template, or its replacement; without one there is no chat.
    pub template: Option<ChatTemplate>,
    /// How its answers mark reasoning and tool calls.
    pub format: OutputFormat,
    /// The engine.
    pub backend: Box<dyn Backend>,
    /// Limits.
    pub limits: RequestLimits,
}

impl Served {
    /// Its entry in `/v1/models`.
    pub fn card(&self) -> ModelCard {
        ModelCard::new(&self.id, &self.aliases, self.created, Some(self.backend.context()))
    }

    /// Tokens of a prompt's text: control tokens' literals become those tokens, and BOS comes first where the model asks
    /// for it and the text does not begin with it already (chat templates often write it).
    pub fn prompt_tokens(&self, text: &str) -> Vec<u32> {
        let mut ids = self.tokenizer.encode(text, false, true);
        if let Some(bos) = self.tokenizer.bos().filter(|_| self.tokenizer.add_bos())
            && ids.first() != Some(&bos)
        {
            ids.insert(0, bos);
        }
        ids
    }

    /// A token's text, or its bytes when they are no text by themselves.
    pub fn piece(&self, id: u32) -> Result<&str, &[u8]> {
        let bytes = self.tokenizer.token_bytes(id).unwrap_or_default();
        std::str::from_utf8(bytes).map_err(|_| bytes)
    }
}

/// Unix time in seconds.
pub fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// 64 bits nobody can foresee without effort: seeds and ids. Not for secrets.
pub fn random() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    // `RandomState` is keyed by the operating system; the counter makes each value another.
    RandomState::new().hash_one(COUNTER.fetch_add(1, Ordering::Relaxed))
}

/// A new id, e.g. `chatcmpl-` and 32 hexadecimal digits.
pub fn fresh_id(prefix: &str) -> String {
    format!("{prefix}{:016x}{:016x}", random(), random())
}
