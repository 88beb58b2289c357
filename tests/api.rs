//! The worker's endpoints on a real socket with the bundled model behind them: what the scripted engine of the unit tests
//! cannot show.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use omni_inferd::api::backend::unix_seconds;
use omni_inferd::api::control::ModelInfo;
use omni_inferd::api::http::{Limits, serve};
use omni_inferd::api::{RequestLimits, Served, router};
use omni_inferd::engine::{self, EngineOptions, Handle};
use omni_inferd::text::{ChatTemplate, OutputFormat, Tokenizer};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

const COMPLETIONS: &str = "/v1/completions";
const PROMPT: &str = "Once upon a time";

struct Server {
    dir: tempfile::TempDir,
    engine: Handle,
}

impl Server {
    /// The bundled model, two sequences at once, two that may wait.
    fn start() -> Self {
        Self::with_context(512)
    }

    fn with_context(context: usize) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/omni-stories-q8_0.gguf");
        let options = EngineOptions {
            context: Some(context),
            parallel: 2,
            queue: 2,
            threads: Some(1),
            pin: false,
            prefill_chunk: 32,
            ..EngineOptions::default()
        };
        let opened = engine::open(&path, &options, &mut |_| {}).unwrap();
        let template = ChatTemplate::from_metadata(&opened.metadata).unwrap();
        let served = Served {
            id: "stories".into(),
            aliases: vec![],
            created: unix_seconds(),
            info: ModelInfo { parallel: 2, ..ModelInfo::default() },
            tokenizer: Arc::new(Tokenizer::from_metadata(&opened.metadata).unwrap()),
            format: template.as_ref().map(|t| OutputFormat::detect(t.source())).unwrap_or_default(),
            template,
            backend: Box::new(opened.handle.clone()),
            limits: RequestLimits { max_body_bytes: 10_000, ..RequestLimits::default() },
        };
        let served = Arc::new(served);
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("s")).unwrap();
        let handler = move |request| router::handle(served.clone(), request);
        tokio::spawn(serve(listener, handler, Limits::default(), std::future::pending()));
        Server { dir, engine: opened.handle }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    /// One request on a connection of its own, which ends with the answer's body.
    async fn send(&self, path: &str, body: &Value) -> Response<Incoming> {
        let io = TokioIo::new(UnixStream::connect(self.path()).await.unwrap());
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        let request = Request::post(path).header("host", "x").body(Full::new(Bytes::from(body.to_string()))).unwrap();
        sender.send_request(request).await.unwrap()
    }

    async fn ok(&self, path: &str, body: Value) -> Value {
        let response = self.send(path, &body).await;
        let status = response.status();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&bytes));
        serde_json::from_slice(&bytes).unwrap()
    }

    /// The data events of a stream, `[DONE]` taken off.
    async fn stream(&self, path: &str, body: Value) -> Vec<Value> {
        let bytes = self.send(path, &body).await.into_body().collect().await.unwrap().to_bytes();
        let text = std::str::from_utf8(&bytes).unwrap();
        let mut data: Vec<&str> = text.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).collect();
        assert_eq!(data.pop(), Some("[DONE]"));
        data.iter().map(|data| serde_json::from_str(data).unwrap()).collect()
    }

    async fn wait(&self, what: &str, done: impl Fn(&engine::Stats) -> bool) {
        let begin = Instant::now();
        while !done(&self.engine.stats()) {
            assert!(begin.elapsed() < Duration::from_secs(20), "{what}: {:?}", self.engine.stats());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn golden(prompt: &str) -> Vec<u64> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/omni-stories.golden.json");
    let golden: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    golden["prompts"][prompt]["q8_0"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect()
}

fn text_of(events: &[Value]) -> String {
    events.iter().filter_map(|event| event["choices"][0]["text"].as_str()).collect()
}

#[tokio::test]
async fn greedy_text_streams_as_the_golden_file_has_it() {
    let server = Server::start();
    let body = json!({"prompt": PROMPT, "max_tokens": 24, "temperature": 0, "return_token_ids": true});
    let whole = server.ok(COMPLETIONS, body.clone()).await;
    let ids: Vec<u64> =
        whole["choices"][0]["token_ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
    assert_eq!(ids, golden(PROMPT)[..24]);
    assert_eq!((&whole["usage"]["prompt_tokens"], &whole["usage"]["completion_tokens"]), (&json!(4), &json!(24)));
    assert_eq!(whole["choices"][0]["finish_reason"], "length");
    assert!(whole["timings"]["predicted_per_second"].as_f64().unwrap() > 0.0);
    let mut streaming = body;
    streaming["stream"] = true.into();
    streaming["stream_options"] = json!({"include_usage": true});
    let events = server.stream(COMPLETIONS, streaming).await;
    assert_eq!(text_of(&events), whole["choices"][0]["text"].as_str().unwrap());
    assert!(events.len() > 10 && events.last().unwrap()["usage"]["completion_tokens"] == 24);
    // Token ids in, the same text out.
    let detokenized = server.ok("/detokenize", json!({"tokens": ids})).await;
    assert_eq!(detokenized["content"].as_str().unwrap().trim_start(), text_of(&events).trim_start());
    let tokens = server.ok("/tokenize", json!({"content": PROMPT})).await["tokens"].clone();
    let by_ids = server.ok(COMPLETIONS, json!({"prompt": tokens, "max_tokens": 24, "temperature": 0})).await;
    assert_eq!(by_ids["choices"][0]["text"], whole["choices"][0]["text"]);
}

#[tokio::test]
async fn a_stop_string_across_tokens_cuts_the_text_and_frees_the_slot() {
    let server = Server::start();
    let body = json!({"prompt": PROMPT, "max_tokens": 40, "temperature": 0});
    let whole = server.ok(COMPLETIONS, body.clone()).await["choices"][0]["text"].as_str().unwrap().to_owned();
    // From the middle of one word to the middle of the next but one.
    let from = whole.len() / 2;
    let stop = &whole[from..from + 7];
    let want = &whole[..whole.find(stop).unwrap()];
    let mut stopped = body;
    stopped["stop"] = json!(["never there", stop]);
    let answer = server.ok(COMPLETIONS, stopped.clone()).await;
    assert_eq!((&answer["choices"][0]["text"], &answer["choices"][0]["finish_reason"]), (&json!(want), &json!("stop")));
    stopped["stream"] = true.into();
    assert_eq!(text_of(&server.stream(COMPLETIONS, stopped).await), want);
    server.wait("slots are freed", |stats| stats.running == 0 && stats.kv_blocks_used == 0).await;
}

#[tokio::test]
async fn a_seed_gives_the_same_texts_alone_and_together() {
    let server = Server::start();
    let body = json!({"prompt": PROMPT, "max_tokens": 12, "seed": 7, "n": 3, "temperature": 1.2});
    let texts = |answer: Value| -> Vec<Value> {
        answer["choices"].as_array().unwrap().iter().map(|choice| choice["text"].clone()).collect()
    };
    let (first, second) = tokio::join!(server.ok(COMPLETIONS, body.clone()), server.ok(COMPLETIONS, body.clone()));
    let (first, second) = (texts(first), texts(second));
    assert_eq!(first, second);
    assert!(first[0] != first[1] && first[1] != first[2]);
    let mut single = body;
    (single["n"], single["seed"]) = (1.into(), 9.into());
    assert_eq!(texts(server.ok(COMPLETIONS, single).await)[0], first[2], "choice i takes seed + i");
}

#[tokio::test]
async fn echo_with_logprobs_scores_the_prompt() {
    let server = Server::start();
    let body = json!({"prompt": PROMPT, "max_tokens": 2, "temperature": 0, "echo": true, "logprobs": 2});
    let choice = server.ok(COMPLETIONS, body).await["choices"][0].clone();
    let text = choice["text"].as_str().unwrap();
    assert!(text.starts_with(PROMPT));
    let logprobs = &choice["logprobs"];
    let tokens = logprobs["tokens"].as_array().unwrap();
    assert_eq!(tokens.len(), 6);
    let each = logprobs["token_logprobs"].as_array().unwrap();
    assert!(each[0].is_null() && each[1..].iter().all(|value| value.as_f64().unwrap() <= 0.0));
    let offsets = logprobs["text_offset"].as_array().unwrap();
    for (token, offset) in tokens.iter().zip(offsets) {
        let (token, at) = (token.as_str().unwrap(), offset.as_u64().unwrap() as usize);
        assert!(text[at..].trim_start().starts_with(token.trim_start()), "{token:?} at {at} of {text:?}");
    }
    // Greedy: the token is the best of the best.
    let best = logprobs["top_logprobs"][4].as_object().unwrap().values().map(|value| value.as_f64().unwrap());
    assert_eq!(best.fold(f64::MIN, f64::max), each[4].as_f64().unwrap());
}

#[tokio::test]
async fn chat_streams_and_counts_cached_tokens() {
    let server = Server::start();
    let long = format!("{PROMPT}, {}", "there was a little girl who had a big red ball. ".repeat(8));
    let body = json!({"messages": [{"role": "user", "content": long}], "max_tokens": 8, "temperature": 0});
    let first = server.ok("/v1/chat/completions", body.clone()).await;
    assert!(!first["choices"][0]["message"]["content"].as_str().unwrap().is_empty());
    let again = server.ok("/v1/chat/completions", body.clone()).await;
    assert_eq!(again["choices"], first["choices"]);
    assert!(again["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap() > 0, "{}", again["usage"]);
    let mut streaming = body;
    (streaming["stream"], streaming["cache_prompt"]) = (true.into(), false.into());
    let response = server.send("/v1/chat/completions", &streaming).await;
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    assert!(text.contains(": prefill 32/"), "{text}");
    assert!(text.contains(r#""delta":{"role":"assistant","content":""}"#) && text.ends_with("data: [DONE]\n\n"));
}

#[tokio::test]
async fn a_cut_connection_frees_its_blocks() {
    let server = Server::start();
    for streaming in [true, false] {
        let before = server.engine.stats().cancelled_total;
        let body = json!({"prompt": PROMPT, "max_tokens": 500, "ignore_eos": true, "n": 2, "stream": streaming});
        let io = TokioIo::new(UnixStream::connect(server.path()).await.unwrap());
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        let connection = tokio::spawn(connection);
        let request = Request::post(COMPLETIONS).body(Full::new(Bytes::from(body.to_string()))).unwrap();
        let answer = tokio::spawn(sender.send_request(request));
        server.wait("both run", |stats| stats.running == 2).await;
        connection.abort();
        answer.abort();
        server.wait("both are cancelled", |stats| stats.cancelled_total == before + 2).await;
        server.wait("blocks are freed", |stats| stats.running == 0 && stats.kv_blocks_used == 0).await;
    }
}

#[tokio::test]
async fn a_full_queue_and_bad_requests_are_refused() {
    let server = Server::start();
    let endless = json!({"prompt": PROMPT, "max_tokens": 500, "ignore_eos": true, "stream": true});
    let mut streams = Vec::new();
    let refused = loop {
        let response = server.send(COMPLETIONS, &endless).await;
        if response.status() != 200 {
            break response;
        }
        streams.push(response);
        assert!(streams.len() < 64, "the queue never fills");
    };
    assert_eq!(refused.status(), 429);
    assert!(refused.headers()["retry-after"].to_str().unwrap().parse::<u32>().unwrap() >= 1);
    drop(streams);
    for (body, status) in [
        (json!({"prompt": "x".repeat(20_000)}), 413),
        (json!({"prompt": "word ".repeat(1500)}), 400),
        (json!({"prompt": [99_999]}), 400),
        (json!({"prompt": PROMPT, "temperature": -1}), 400),
        (json!({}), 400),
    ] {
        assert_eq!(server.send(COMPLETIONS, &body).await.status(), status, "{body}");
    }
    server.wait("all is freed", |stats| stats.running + stats.waiting + stats.kv_blocks_used == 0).await;
}

/// Everything between the engine and a reader that reads nothing fills up; then its sequence rests, the others do not.
#[tokio::test]
async fn a_slow_reader_rests_and_does_not_hold_up_others() {
    const TOKENS: u64 = 4000;
    let server = Server::with_context(4096);
    let long = json!({"prompt": PROMPT, "max_tokens": TOKENS, "ignore_eos": true, "stream": true, "logprobs": 20,
        "stream_options": {"include_usage": true}});
    // A bare socket: an HTTP client would read ahead.
    let mut slow = UnixStream::connect(server.path()).await.unwrap();
    let body = long.to_string();
    let head = format!("POST {COMPLETIONS} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}", body.len());
    slow.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).await.unwrap();
    let made = || server.engine.stats().completion_tokens_total;
    let begin = Instant::now();
    loop {
        let before = made();
        tokio::time::sleep(Duration::from_millis(500)).await;
        if before > 0 && made() == before {
            break;
        }
        assert!(begin.elapsed() < Duration::from_secs(60), "the sequence never rests");
    }
    let rested = made();
    assert!(rested < TOKENS, "all {TOKENS} tokens went into buffers");
    let answer = server.ok(COMPLETIONS, json!({"prompt": PROMPT, "max_tokens": 30, "ignore_eos": true})).await;
    assert_eq!(answer["usage"]["completion_tokens"], 30);
    assert_eq!(made(), rested + 30, "it still rests");
    let mut answer = String::new();
    slow.read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains("data: [DONE]\n\n"), "the slow one is complete in the end");
    assert!(answer.contains(&format!("\"completion_tokens\":{TOKENS}")));
}

/// A stop string ends the choice in the api, not in the engine; its figures are the engine's all the same.
#[tokio::test]
async fn a_stop_string_leaves_honest_figures() {
    let server = Server::with_context(512);
    let body = json!({"prompt": PROMPT, "max_tokens": 200, "temperature": 0, "ignore_eos": true, "stop": ["."]});
    let answer = server.ok(COMPLETIONS, body).await;
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert_eq!(answer["usage"]["prompt_tokens_details"]["cached_tokens"], 0, "the first of its kind");
    let count = answer["usage"]["completion_tokens"].as_u64().unwrap();
    let took = answer["timings"]["predicted_ms"].as_f64().unwrap();
    assert!(count > 2 && took > 0.02 * (count - 1) as f64, "{count} tokens in {took} ms");
}
