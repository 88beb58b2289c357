//! A worker without a model. The daemon starts this very test binary for it (see `harness::Daemon`), and what stands in
//! the "GGUF file" says how it behaves: `refuse` (with `short` only for now), `crash`, `slow`, `frozen`, `stubborn`.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use omni_inferd::api::control::{ModelInfo, Progress};
use omni_inferd::api::http::{Body, Limits, json, serve};
use omni_inferd::api::sse;
use omni_inferd::engine::Stats;
use omni_inferd::worker::protocol::{Command, Report, Spec};
use serde_json::{Value, json};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

/// Set by the wrapper script that the daemon starts.
pub const ROLE: &str = "OMNI_TEST_FAKE_WORKER";

/// Runs as a worker when started as one; as an ordinary test it has nothing to do.
#[test]
fn fake_worker() {
    if std::env::var_os(ROLE).is_some() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(run());
        std::process::exit(0);
    }
}

#[derive(Default)]
struct Fake {
    model: String,
    running: AtomicU64,
    tokens: AtomicU64,
    cancelled: AtomicU64,
}

async fn run() {
    let [listener, control, _vault] = omni_inferd::sys::inherit::take().unwrap();
    let (listener, control) = (UnixListener::from(listener), UnixStream::from(control));
    listener.set_nonblocking(true).unwrap();
    control.set_nonblocking(true).unwrap();
    let listener = tokio::net::UnixListener::from_std(listener).unwrap();
    let (read, mut write) = tokio::net::UnixStream::from_std(control).unwrap().into_split();
    let mut lines = BufReader::new(read).lines();
    let spec: Spec = serde_json::from_str(&lines.next_line().await.unwrap().unwrap()).unwrap();
    let behaviour = std::fs::read_to_string(&spec.path).unwrap();
    let is = |word: &str| behaviour.split_whitespace().any(|w| w == word);
    let mut send = async |report: Report| {
        let line = serde_json::to_string(&report).unwrap() + "\n";
        if write.write_all(line.as_bytes()).await.is_err() {
            std::process::exit(0);
        }
    };
    eprintln!("<6>fake worker of {}", spec.id);
    if is("refuse") {
        send(Report::Refused { error: "the file is a joke; take a serious one".into(), for_now: is("short") }).await;
        return;
    }
    if is("crash") {
        eprintln!("thread 'main' panicked: as told");
        std::process::exit(3);
    }
    for step in 1..=4u64 {
        let progress = Progress { bytes_done: step * 25, bytes_total: 100, bytes_per_second: 1e3 };
        send(Report::Loading { progress }).await;
        tokio::time::sleep(Duration::from_millis(if is("slow") { 400 } else { 5 })).await;
    }
    let fake = Arc::new(Fake { model: spec.id.clone(), ..Fake::default() });
    let info = ModelInfo {
        architecture: "fake".into(),
        context: spec.context.unwrap_or(128),
        parallel: spec.parallel,
        ..ModelInfo::default()
    };
    let handler = {
        let fake = fake.clone();
        move |request| answer(fake.clone(), request)
    };
    tokio::spawn(serve(listener, handler, Limits::default(), std::future::pending()));
    send(Report::Ready { info: Box::new(info) }).await;
    let mut beats = tokio::time::interval(Duration::from_millis(100));
    loop {
        tokio::select! {
            line = lines.next_line() => match line.ok().flatten().map(|line| serde_json::from_str(&line).unwrap()) {
                Some(Command::Drain) if is("stubborn") => {}
                Some(Command::Drain | Command::Stop) | None => return,
            },
            _ = beats.tick() => {
                let stats = Stats {
                    running: fake.running.load(Ordering::Relaxed) as usize,
                    completion_tokens_total: fake.tokens.load(Ordering::Relaxed),
                    cancelled_total: fake.cancelled.load(Ordering::Relaxed),
                    beat_age_ms: if is("frozen") { 60_000 } else { 0 },
                    ..Stats::default()
                };
                send(Report::Heartbeat { stats }).await;
            }
        }
    }
}

/// `{"stream": bool, "tokens": N, "delay_ms": N, "die": bool}`.
async fn answer(fake: Arc<Fake>, request: Request<Incoming>) -> Response<Body> {
    let headers: Vec<String> = request.headers().keys().map(ToString::to_string).collect();
    let path = request.uri().path().to_owned();
    let body: Bytes = request.into_body().collect().await.unwrap().to_bytes();
    let body: Value = serde_json::from_slice(&body).unwrap();
    if body["die"] == true {
        std::process::abort();
    }
    let (tokens, delay) = (body["tokens"].as_u64().unwrap_or(1), body["delay_ms"].as_u64().unwrap_or(0));
    let guard = Guard::new(fake.clone());
    if body["stream"] != true {
        tokio::time::sleep(Duration::from_millis(delay * tokens)).await;
        guard.finish();
        let answer = json!({"model": fake.model, "pid": std::process::id(), "path": path, "headers": headers});
        return json(http::StatusCode::OK, &answer);
    }
    let (sender, response) = sse::channel(sse::Pace::default());
    tokio::spawn(async move {
        for number in 0..tokens {
            let gone = tokio::select! {
                () = sender.closed() => true,
                () = tokio::time::sleep(Duration::from_millis(delay)) => false,
            };
            if gone || sender.data(&json!({"model": fake.model, "number": number})).await.is_err() {
                return;
            }
            fake.tokens.fetch_add(1, Ordering::Relaxed);
        }
        let _ = sender.done().await;
        guard.finish();
    });
    response
}

/// A running request; one that is not finished when it is dropped was cancelled.
struct Guard {
    fake: Arc<Fake>,
    finished: bool,
}

impl Guard {
    fn new(fake: Arc<Fake>) -> Self {
        fake.running.fetch_add(1, Ordering::Relaxed);
        Self { fake, finished: false }
    }

    fn finish(mut self) {
        self.finished = true;
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.fake.running.fetch_sub(1, Ordering::Relaxed);
        if !self.finished {
            self.fake.cancelled.fetch_add(1, Ordering::Relaxed);
        }
    }
}
