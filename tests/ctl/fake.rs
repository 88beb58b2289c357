//! A daemon as omnictl sees it, on a temporary Unix socket, and the tool itself as a child process.

use bytes::Bytes;
use futures_util::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use omni_inferd::api::control::{
    Event, Evicted, LoadFile, ModelInfo, ModelState, ModelStatus, PageBytes, Progress, Reloaded, Status, VaultImage,
    VaultImages,
};
use omni_inferd::engine::Stats;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::UnixListener;

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// The fake daemon; requests it got are kept as `METHOD target body`.
pub struct Fake {
    pub socket: PathBuf,
    pub requests: Arc<Mutex<Vec<String>>>,
    _dir: tempfile::TempDir,
}

impl Fake {
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("omni.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let shared = requests.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let requests = shared.clone();
                let service = service_fn(move |request| answer(requests.clone(), request));
                tokio::spawn(async move {
                    _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Fake { socket, requests, _dir: dir }
    }

    /// Runs `omnictl` against this daemon.
    pub async fn run(&self, args: &[&str]) -> Done {
        run(&self.socket, args, "").await
    }

    /// Whether a request beginning with `start` came.
    pub fn got(&self, start: &str) -> bool {
        self.requests.lock().unwrap().iter().any(|request| request.starts_with(start))
    }
}

/// What a run of `omnictl` gave.
#[derive(Debug)]
pub struct Done {
    pub code: i32,
    pub out: String,
    pub err: String,
}

/// Runs `omnictl --socket SOCKET ARGS` with `input`, away from any terminal.
pub async fn run(socket: &Path, args: &[&str], input: &str) -> Done {
    let mut command = Command::new(env!("CARGO_BIN_EXE_omnictl"));
    command.arg("--socket").arg(socket).args(args);
    let input = input.to_string();
    tokio::task::spawn_blocking(move || finish(command, &input)).await.unwrap()
}

/// Runs a command to its end.
pub fn finish(mut command: Command, input: &str) -> Done {
    use std::io::Write;
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Done { code: status.code().unwrap_or(-1), out: text(stdout), err: text(stderr) }
}

fn model(id: &str, state: ModelState) -> ModelStatus {
    ModelStatus {
        id: id.into(),
        aliases: Vec::new(),
        path: format!("/models/{id}.gguf"),
        state,
        pinned: false,
        error: None,
        progress: None,
        pid: None,
        restarts: 0,
        uptime_seconds: None,
        load_seconds: None,
        active_requests: 0,
        info: None,
        stats: None,
    }
}

fn image() -> VaultImage {
    VaultImage {
        id: "0123456789abcdef".into(),
        path: "/m/oracle.gguf".into(),
        bytes: 3 << 20,
        models: vec!["oracle".into()],
        stored: true,
        ..VaultImage::default()
    }
}

fn ready(id: &str) -> ModelStatus {
    let info = ModelInfo {
        architecture: "qwen3".into(),
        name: id.into(),
        parameters: 2_900_000,
        weight_bytes: 3 << 20,
        kv_bytes: 1 << 20,
        state_bytes: 0,
        context: 2048,
        trained_context: 2048,
        parallel: 4,
        threads: 2,
        isa: "avx2".into(),
        vocab: 2048,
        kv_type: "f16".into(),
        read_by: "io_uring, direct".into(),
        huge_page_bytes: 2 << 20,
        pages: vec![PageBytes { page: 4 << 10, bytes: 1 << 20 }, PageBytes { page: 2 << 20, bytes: 2 << 20 }],
        nodes: vec![],
    };
    let stats = Stats {
        running: 1,
        requests_total: 12,
        completion_tokens_total: 5000,
        decode_seconds_total: 10.0,
        ..Stats::default()
    };
    ModelStatus {
        pid: Some(4242),
        uptime_seconds: Some(61.0),
        load_seconds: Some(0.5),
        active_requests: 1,
        info: Some(info),
        stats: Some(stats),
        ..model(id, ModelState::Ready)
    }
}

fn failed(id: &str) -> ModelStatus {
    let error = Some("needs 30 GiB, 24 GiB are free; choose a smaller context".into());
    ModelStatus { error, ..model(id, ModelState::Failed) }
}

fn status() -> Status {
    let progress = Progress { bytes_done: 1 << 30, bytes_total: 4 << 30, bytes_per_second: (1u64 << 30) as f64 };
    let mut oracle = ready("oracle");
    (oracle.aliases, oracle.pinned) = (vec!["r1".into()], true);
    let loading = ModelStatus { progress: Some(progress), pid: Some(7), ..model("coder", ModelState::Loading) };
    Status {
        version: "9.9.9".into(),
        pid: 4000,
        uptime_seconds: 7261.0,
        socket: "/run/test.sock".into(),
        config: Some("/etc/test.toml".into()),
        draining: false,
        memory_total: 24 << 30,
        memory_available: 12 << 30,
        models: vec![oracle, loading, failed("huge"), model("spare", ModelState::Unloaded)],
    }
}

fn json_answer(code: u16, value: &impl serde::Serialize) -> Response<Body> {
    let body = Full::from(serde_json::to_string(value).unwrap()).map_err(|never| match never {}).boxed_unsync();
    Response::builder().status(code).header("content-type", "application/json").body(body).unwrap()
}

fn refusal(code: u16, message: &str) -> Response<Body> {
    json_answer(code, &json!({"error": {"message": message, "type": "t", "param": null, "code": null}}))
}

/// Pieces of a body with pauses between them.
fn pieces(kind: &str, pieces: Vec<(u64, String)>) -> Response<Body> {
    let steps = stream::unfold(pieces.into_iter(), |mut rest| async move {
        let (pause, text) = rest.next()?;
        tokio::time::sleep(Duration::from_millis(pause)).await;
        let frame = if text == "DIE" { Err(std::io::Error::other("died")) } else { Ok(Frame::data(Bytes::from(text))) };
        Some((frame, rest))
    });
    Response::builder().header("content-type", kind).body(BodyExt::boxed_unsync(StreamBody::new(steps))).unwrap()
}

fn events(list: Vec<(u64, Value)>) -> Response<Body> {
    let text = |value: Value| if value == "DIE" { "DIE".into() } else { format!("data: {value}\n\n") };
    let mut list: Vec<_> = list.into_iter().map(|(pause, value)| (pause, text(value))).collect();
    list.push((0, "data: [DONE]\n\n".into()));
    pieces("text/event-stream", list)
}

fn control_events() -> Response<Body> {
    let loading = |done: u64| {
        let progress = Progress { bytes_done: done, bytes_total: 100 << 20, bytes_per_second: 1e8 };
        Event::Status {
            model: Box::new(ModelStatus { progress: Some(progress), ..model("spare", ModelState::Loading) }),
        }
    };
    let changes = Reloaded { added: vec!["new".into()], ..Reloaded::default() };
    let list = [
        Event::Status { model: Box::new(failed("huge")) },
        loading(0),
        loading(50 << 20),
        Event::Status { model: Box::new(ready("spare")) },
        Event::Reloaded { changes },
        Event::Stopping,
    ];
    let text = |event| (20, format!("event: x\ndata: {}\n\n", serde_json::to_string(event).unwrap()));
    pieces("text/event-stream", list.iter().map(text).collect())
}

fn chat(request: &Value) -> Response<Body> {
    let said = request["messages"].as_array().unwrap().last().unwrap()["content"].as_str().unwrap();
    if request["model"] == "base" {
        return refusal(400, "base has no chat template; use /v1/completions, or set chat_template for it");
    }
    let chunk = |delta: Value| json!({"id": "c", "object": "o", "created": 1, "model": "oracle", "choices": [{"index": 0, "delta": delta, "logprobs": null, "finish_reason": null}]});
    let mut list = vec![(0, chunk(json!({"role": "assistant"}))), (0, chunk(json!({"reasoning_content": "hmm"})))];
    match said {
        "endless" => list.extend((0..1000).map(|_| (20, chunk(json!({"content": "more "}))))),
        "die" => list.extend([(0, chunk(json!({"content": "par"}))), (20, json!("DIE"))]),
        "fail" => list.push((
            0,
            json!({"error": {"message": "the worker died; try again", "type": "t", "param": null, "code": null}}),
        )),
        said => list.extend(["You said ", said, "."].map(|text| (5, chunk(json!({"content": text}))))),
    }
    events(list)
}

async fn answer(requests: Arc<Mutex<Vec<String>>>, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let target = head.uri.to_string();
    requests.lock().unwrap().push(format!("{} {target} {}", head.method, String::from_utf8_lossy(&body)));
    let value: Value = serde_json::from_slice(&body).unwrap_or_default();
    Ok(match (head.method.as_str(), target.as_str()) {
        ("GET", "/control/v1/status") => json_answer(200, &status()),
        ("GET", "/control/v1/events") => control_events(),
        ("POST", "/control/v1/models/spare/load?wait=true") => {
            tokio::time::sleep(Duration::from_millis(150)).await;
            json_answer(200, &ready("spare"))
        }
        ("POST", "/control/v1/models/huge/load?wait=true") => json_answer(200, &failed("huge")),
        ("POST", "/control/v1/models/slow/load?wait=true") => json_answer(202, &model("slow", ModelState::Loading)),
        ("GET", "/control/v1/models/oracle") => json_answer(200, &ready("oracle")),
        ("GET", "/control/v1/models/spare") | ("POST", "/control/v1/models/spare/unload") => {
            json_answer(200, &model("spare", ModelState::Unloaded))
        }
        ("GET", "/control/v1/models/slow") => json_answer(200, &ready("slow")),
        ("POST", "/control/v1/models/odd/load?wait=true") => json_answer(200, &json!({"surprise": 1})),
        ("POST", "/control/v1/models?wait=true") => {
            let file: LoadFile = serde_json::from_value(value).unwrap();
            json_answer(200, &ready(&file.id.unwrap_or_else(|| "from-file".into())))
        }
        ("POST", path) if path.starts_with("/control/v1/models/oracle/unload") => {
            json_answer(200, &model("oracle", ModelState::Unloaded))
        }
        ("GET", "/control/v1/vault") => json_answer(200, &VaultImages { images: vec![image()], damaged: vec![] }),
        ("POST", "/control/v1/vault/verify") => {
            json_answer(200, &VaultImages { images: vec![image()], damaged: vec![] })
        }
        ("POST", "/control/v1/vault/verify?id=bad") => {
            json_answer(200, &VaultImages { images: vec![], damaged: vec!["tensor x is damaged".into()] })
        }
        ("POST", "/control/v1/vault/evict") => json_answer(200, &Evicted { images: vec![image()], bytes: 3 << 20 }),
        ("POST", "/control/v1/reload") => json_answer(
            200,
            &Reloaded { added: vec!["new".into()], needs_restart: vec!["daemon.socket".into()], ..Reloaded::default() },
        ),
        ("GET", path) if path.starts_with("/control/v1/logs?") => {
            pieces("text/plain", vec![(0, "first line\nsec".into()), (20, "ond lin\u{fc}".into()), (0, "\n".into())])
        }
        ("POST", "/v1/chat/completions") => chat(&value),
        ("POST", "/v1/completions") if value["stream"] == true => {
            let chunk = |text: &str| json!({"id": "c", "object": "o", "created": 1, "model": "oracle", "choices": [{"index": 0, "text": text, "logprobs": null, "finish_reason": null}]});
            events(vec![(0, chunk(" a time")), (0, chunk(" there was"))])
        }
        ("POST", "/v1/completions") => json_answer(
            200,
            &json!({"id": "c", "object": "o", "created": 1, "model": "oracle", "choices": [{"index": 0, "text": " whole", "logprobs": null, "finish_reason": "stop"}]}),
        ),
        ("GET", "/health") => json_answer(200, &json!({"status": "ok"})),
        ("GET", "/ready") => refusal(503, "the daemon is stopping"),
        _ => refusal(404, &format!("unknown: {target}; known models: oracle, spare")),
    })
}
