//! An engine that answers by script, and a vocabulary of single bytes with a few control tokens.

use super::*;
use crate::api::backend::Backend;
use crate::api::control::ModelInfo;
use crate::engine::{Event, FinishReason, Stats, SubmitError, Usage};
use crate::gguf::{Array, Metadata, Value};
use crate::sample::Logprobs;
use crate::text::{ChatTemplate, OutputFormat, Tokenizer};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

pub const END: u32 = 256;
pub const BOS: u32 = 259;
pub const CONTEXT: usize = 100;
const TEMPLATE: &str = "<s>{% for m in messages %}<|user|>{{ m.role }}:{{ m.content }}\n{% endfor %}\
    {% if tools %}[{{ tools[0].function.name }}]{% endif %}{% if enable_thinking is defined %}[{{ enable_thinking }}]\
    {% endif %}{% if add_generation_prompt %}<|assistant|>{% endif %}";

/// What the scripted engine did.
#[derive(Default)]
pub struct Fake {
    /// Texts answered in turn; the last one again and again.
    pub replies: Vec<&'static str>,
    /// Refuses to queue more than so many at once.
    pub queue: Option<usize>,
    /// Never sends more than so many tokens, but waits instead.
    pub hang_after: Option<usize>,
    /// Fails with this after the text.
    pub error: Option<&'static str>,
    /// Requests submitted.
    pub seen: Mutex<Vec<crate::engine::Request>>,
    /// Requests whose channels are open.
    pub live: Arc<AtomicUsize>,
    /// Most of them at once.
    pub most: AtomicUsize,
}

impl Fake {
    /// A model that answers `replies`.
    pub fn replying(replies: &[&'static str]) -> Self {
        Fake { replies: replies.to_vec(), ..Fake::default() }
    }

    /// Puts it behind the endpoints, four sequences at once.
    pub fn serve(self) -> (Arc<Served>, Arc<Fake>) {
        let fake = Arc::new(self);
        (Arc::new(served(Box::new(fake.clone()))), fake)
    }
}

/// Endpoints over any backend.
pub fn served(backend: Box<dyn Backend>) -> Served {
    Served {
        id: "fake".into(),
        aliases: vec!["other/name".into()],
        created: 1,
        info: ModelInfo { parallel: 4, ..ModelInfo::default() },
        tokenizer: Arc::new(Tokenizer::from_metadata(&vocabulary()).unwrap()),
        template: Some(ChatTemplate::new(TEMPLATE, "<s>", "<|end|>").unwrap()),
        format: OutputFormat::default(),
        backend,
        limits: RequestLimits { max_body_bytes: 100_000, ..RequestLimits::default() },
    }
}

/// Ids 0 to 255 are bytes; `<|end|>`, `<|user|>`, `<|assistant|>`, `<s>` follow, and the pair `he`.
fn vocabulary() -> Metadata {
    let printable = |byte: &u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 0x100..;
    let mut spell = |byte: u8| {
        let code = if printable(&byte) { u32::from(byte) } else { next.next().unwrap() };
        char::from_u32(code).unwrap().to_string().into_bytes()
    };
    let mut tokens: Vec<Vec<u8>> = (0..=255).map(&mut spell).collect();
    let special = ["<|end|>", "<|user|>", "<|assistant|>", "<s>"];
    tokens.extend(special.map(|text| text.as_bytes().to_vec()));
    tokens.push(b"he".to_vec());
    let kinds = (0..tokens.len()).map(|id| if (256..260).contains(&id) { 3 } else { 1 }).collect();
    let entries = [
        ("tokenizer.ggml.model", Value::String("gpt2".into())),
        ("tokenizer.ggml.pre", Value::String("gpt-2".into())),
        ("tokenizer.ggml.tokens", Value::Array(Array::String(tokens.into_iter().collect()))),
        ("tokenizer.ggml.token_type", Value::Array(Array::I32(kinds))),
        ("tokenizer.ggml.merges", Value::Array(Array::String(["h e"].into_iter().collect()))),
        ("tokenizer.ggml.bos_token_id", Value::U32(BOS)),
        ("tokenizer.ggml.eos_token_id", Value::U32(END)),
        ("tokenizer.ggml.add_bos_token", Value::Bool(true)),
    ];
    Metadata { entries: entries.map(|(key, value)| (key.to_owned(), value)).into() }
}

impl Backend for Arc<Fake> {
    fn submit(&self, request: crate::engine::Request) -> Result<mpsc::Receiver<Event>, SubmitError> {
        let live = self.live.load(Ordering::SeqCst);
        if let Some(limit) = self.queue.filter(|limit| live >= *limit) {
            return Err(SubmitError::QueueFull { limit, retry_after: Duration::from_secs(3) });
        }
        self.live.fetch_add(1, Ordering::SeqCst);
        self.most.fetch_max(live + 1, Ordering::SeqCst);
        let mut seen = self.seen.lock().unwrap();
        let reply = self.replies[seen.len().min(self.replies.len() - 1)];
        seen.push(request.clone());
        let (sender, receiver) = mpsc::channel(4);
        tokio::spawn(play(self.clone(), request, reply, sender));
        Ok(receiver)
    }

    fn stats(&self) -> Stats {
        Stats::default()
    }

    fn context(&self) -> usize {
        CONTEXT
    }
}

async fn play(fake: Arc<Fake>, request: crate::engine::Request, reply: &str, sender: mpsc::Sender<Event>) {
    let script = script(&fake, &request, reply);
    for (i, event) in script.into_iter().enumerate() {
        let sent = tokio::select! {
            sent = sender.send(event) => sent.is_ok(),
            () = sender.closed() => false,
        };
        if !sent {
            break;
        }
        if fake.hang_after.is_some_and(|after| i >= after) {
            sender.closed().await;
            break;
        }
    }
    fake.live.fetch_sub(1, Ordering::SeqCst);
}

fn script(fake: &Fake, request: &crate::engine::Request, reply: &str) -> Vec<Event> {
    let total = request.prompt.len();
    let logprobs = |n: usize, id: u32| Logprobs {
        chosen: -0.5,
        top: (0..n as u32).map(|i| ((id + i) % 256, -0.5 - i as f32)).collect(),
    };
    let mut events = vec![Event::Prefill { done: total / 2, total }, Event::Prefill { done: total, total }];
    if let Some(n) = request.prompt_logprobs {
        let each = request.prompt.iter().enumerate();
        events.push(Event::PromptLogprobs(each.map(|(i, id)| (i > 0).then(|| logprobs(n, *id))).collect()));
    }
    let tokens: Vec<u32> = reply.bytes().map(u32::from).take(request.max_tokens).collect();
    let stopped = tokens.len() == reply.len() && reply.len() < request.max_tokens;
    let completion_tokens = tokens.len();
    let with = |id| request.sampling.logprobs.map(|n| logprobs(n, id));
    events.extend(tokens.into_iter().map(|id| Event::Token { id, logprobs: with(id), at: Instant::now() }));
    let ms = Duration::from_millis;
    let usage = Usage {
        prompt_tokens: total,
        cached_tokens: 2,
        completion_tokens,
        queued: ms(1),
        prefill: ms(10),
        decode: ms(20),
    };
    let reason = if stopped { FinishReason::Stop(END) } else { FinishReason::Length };
    events.push(match fake.error {
        Some(message) => Event::Error(message.into()),
        None => Event::Done { reason, usage },
    });
    events
}
