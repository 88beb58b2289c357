//! Arbitrary bytes as the body of each endpoint: answered or refused, never a panic, never a 500.
//!
//! The first byte picks the endpoint. Behind the endpoints is an engine that echoes part of its prompt, so that the way
//! back (detokenizing, stop strings, streaming, log-probabilities) is walked too.

#![no_main]

use http_body_util::{BodyExt, Full};
use libfuzzer_sys::fuzz_target;
use omni_inferd::api::control::ModelInfo;
use omni_inferd::api::{Backend, RequestLimits, Served, router};
use omni_inferd::engine::{Event, FinishReason, Request, Stats, SubmitError, Usage};
use omni_inferd::gguf::{Array, Metadata, Strings, Value};
use omni_inferd::sample::Logprobs;
use omni_inferd::text::{ChatTemplate, OutputFormat, Tokenizer};
use std::sync::{Arc, LazyLock};
use tokio::runtime::Runtime;
use tokio::sync::mpsc::{Receiver, channel};

struct Echo;

impl Backend for Echo {
    fn submit(&self, request: Request) -> Result<Receiver<Event>, SubmitError> {
        let (sender, receiver) = channel(64);
        let total = request.prompt.len();
        let score = |n: usize, id: u32| Logprobs { chosen: -1.0, top: (0..n as u32).map(|i| (id ^ i, -1.0)).collect() };
        let mut events = vec![Event::Prefill { done: total, total }];
        if let Some(n) = request.prompt_logprobs {
            events.push(Event::PromptLogprobs(request.prompt.iter().map(|id| Some(score(n, *id))).collect()));
        }
        for id in request.prompt.iter().take(request.max_tokens.min(32)) {
            let logprobs = request.sampling.logprobs.map(|n| score(n, *id));
            events.push(Event::Token { id: *id, logprobs, at: std::time::Instant::now() });
        }
        events.push(Event::Done { reason: FinishReason::Length, usage: Usage::default() });
        for event in events {
            assert!(sender.try_send(event).is_ok());
        }
        Ok(receiver)
    }

    fn stats(&self) -> Stats {
        Stats::default()
    }

    fn context(&self) -> usize {
        4096
    }
}

/// Ids 0 to 255 are bytes, then two control tokens.
fn vocabulary() -> Metadata {
    let mut next = 0x100..;
    let mut spell = |byte: u8| {
        let printable = matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
        let code = if printable { u32::from(byte) } else { next.next().unwrap_or_default() };
        char::from_u32(code).unwrap_or_default().to_string().into_bytes()
    };
    let mut tokens: Vec<Vec<u8>> = (0..=255).map(&mut spell).collect();
    tokens.extend([b"<|end|>".to_vec(), b"<|user|>".to_vec()]);
    let kinds = (0..tokens.len()).map(|id| if id < 256 { 1 } else { 3 }).collect();
    let entries = [
        ("tokenizer.ggml.model", Value::String("gpt2".into())),
        ("tokenizer.ggml.pre", Value::String("gpt-2".into())),
        ("tokenizer.ggml.tokens", Value::Array(Array::String(tokens.into_iter().collect()))),
        ("tokenizer.ggml.token_type", Value::Array(Array::I32(kinds))),
        ("tokenizer.ggml.merges", Value::Array(Array::String(Strings::default()))),
        ("tokenizer.ggml.eos_token_id", Value::U32(256)),
    ];
    Metadata { entries: entries.map(|(key, value)| (key.to_owned(), value)).into() }
}

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
});

static SERVED: LazyLock<Arc<Served>> = LazyLock::new(|| {
    let template = "{% for m in messages %}<|user|>{{ m.role }}{{ m.content }}{% endfor %}{{ tools }}";
    Arc::new(Served {
        id: "echo".into(),
        aliases: vec![],
        created: 0,
        info: ModelInfo { parallel: 2, ..ModelInfo::default() },
        tokenizer: Arc::new(Tokenizer::from_metadata(&vocabulary()).expect("a vocabulary")),
        template: Some(ChatTemplate::new(template, "", "<|end|>").expect("a template")),
        format: OutputFormat::default(),
        backend: Box::new(Echo),
        limits: RequestLimits { max_body_bytes: 1 << 16, ..RequestLimits::default() },
    })
});

fuzz_target!(|data: &[u8]| {
    let Some((endpoint, body)) = data.split_first() else { return };
    let path = ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"][usize::from(endpoint % 4)];
    RUNTIME.block_on(async {
        let request = http::Request::post(path).body(Full::new(bytes::Bytes::copy_from_slice(body))).expect("valid");
        let response = router::handle(SERVED.clone(), request).await;
        assert!(response.status().as_u16() < 500);
        response.into_body().collect().await.expect("our bodies do not fail");
    });
});
