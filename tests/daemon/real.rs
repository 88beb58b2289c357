//! The same daemon with its own worker and the bundled model.

use super::harness::{Daemon, PATIENCE, Reading, alive, kill, wait_for};
use nix::sys::signal::Signal;
use omni_inferd::sys::topology::Topology;
use serde_json::{Value, json};
use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

pub const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/omni-stories-q8_0.gguf");

/// Settings for a real worker.
pub const SETTINGS: &str = "[daemon]\nsocket = \"omni.sock\"\nheartbeat_timeout = \"4s\"\nrestart_backoff = \"20ms\"\n\
    restart_backoff_max = \"100ms\"\nrestart_limit = 1000\nlog = \"info\"\n";

pub fn start(arguments: &[&str], directory: tempfile::TempDir) -> Daemon {
    let mut command = Command::new(env!("CARGO_BIN_EXE_omni-inferd"));
    command.current_dir(directory.path()).args(arguments).stdin(Stdio::null());
    command.stderr(File::create(directory.path().join("log")).unwrap());
    let child = command.spawn().unwrap();
    let daemon = Daemon { child, socket: directory.path().join("omni.sock"), directory };
    wait_for("the socket", || std::os::unix::net::UnixStream::connect(&daemon.socket).is_ok());
    daemon
}

fn configured(models: &str) -> Daemon {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("config.toml"), format!("{SETTINGS}{models}")).unwrap();
    start(&["--config", "config.toml"], directory)
}

fn block(id: &str, more: &str) -> String {
    format!("[[model]]\nid = \"{id}\"\npath = \"{MODEL}\"\nthreads = 1\ncontext = 512\n{more}\n")
}

pub fn story(daemon: &Daemon, model: &str, tokens: u32) -> Reading {
    let body = json!({"model": model, "prompt": "Once upon a time", "max_tokens": tokens, "temperature": 0,
        "ignore_eos": true, "stream": true});
    super::harness::send(&daemon.socket, "POST", "/v1/completions", Some(&body))
}

#[test]
fn one_file_is_served_without_configuration() {
    let arguments = ["serve", MODEL, "--socket", "omni.sock", "--ctx", "256", "--threads", "1", "--id", "stories"];
    let mut daemon = start(&arguments, tempfile::tempdir().unwrap());
    daemon.wait_state("stories", "ready");
    let status = daemon.status("stories");
    assert_eq!(status["pinned"], true);
    assert_eq!(
        (&status["info"]["architecture"], &status["info"]["context"]),
        (&json!("qwen3"), &json!(256)),
        "{status}"
    );
    let body = json!({"model": "auto", "prompt": "Once upon a time", "max_tokens": 8, "temperature": 0});
    let answer = daemon.post("/v1/completions", &body);
    assert_eq!((answer.status, answer.header("x-omni-model")), (200, Some("stories")), "{answer:?}");
    assert!(!answer.json()["choices"][0]["text"].as_str().unwrap().is_empty());
    let pieces = daemon.post("/tokenize", &json!({"content": "Once upon a time"})).json();
    let text = daemon.post("/detokenize", &json!({"tokens": pieces["tokens"]})).json();
    assert_eq!(text["content"], "Once upon a time");
    assert_eq!(daemon.post("/control/v1/reload", &Value::Null).status, 409);
    let pid = daemon.pid("stories");
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait().code(), Some(0));
    assert!(!alive(pid));
}

#[test]
fn a_real_worker_dies_freezes_and_comes_back() {
    let daemon = configured(&(block("victim", "preload = true") + &block("other", "preload = true")));
    daemon.wait_state("victim", "ready");
    daemon.wait_state("other", "ready");
    let untouched = daemon.pid("other");
    for round in 0..5 {
        let mut reading = story(&daemon, "victim", 400);
        assert_eq!(reading.status, 200, "round {round}");
        reading.chunk().unwrap();
        kill(daemon.pid("victim"), Signal::SIGKILL);
        let answer = reading.finish();
        assert!(answer.body.contains("worker_died") && !answer.body.contains("[DONE]"), "round {round}");
    }
    assert!(story(&daemon, "other", 16).finish().body.ends_with("data: [DONE]\n\n"));
    assert!(story(&daemon, "victim", 16).finish().body.ends_with("data: [DONE]\n\n"), "it is back");
    let frozen = daemon.pid("victim");
    kill(frozen, Signal::SIGSTOP);
    let start = Instant::now();
    wait_for("the restart", || daemon.status("victim")["pid"].as_i64().is_some_and(|pid| pid as i32 != frozen));
    assert!(start.elapsed() >= Duration::from_secs(2) && start.elapsed() < PATIENCE);
    daemon.wait_state("victim", "ready");
    assert_eq!(daemon.pid("other"), untouched);
}

#[test]
fn a_client_that_leaves_frees_the_engine() {
    let daemon = configured(&block("stories", "preload = true\nparallel = 1"));
    daemon.wait_state("stories", "ready");
    let mut reading = story(&daemon, "stories", 450);
    reading.chunk().unwrap();
    drop(reading);
    wait_for("the engine's rest", || daemon.status("stories")["active_requests"] == 0);
    wait_for("the cancellation", || daemon.status("stories")["stats"]["cancelled_total"].as_u64() > Some(0));
}

#[test]
fn what_is_no_model_is_refused_once() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("bad.gguf"), "GGUF but not really").unwrap();
    let config = format!("{SETTINGS}[[model]]\npath = \"bad.gguf\"\npreload = true\n");
    std::fs::write(directory.path().join("config.toml"), config).unwrap();
    let daemon = start(&["--config", "config.toml"], directory);
    daemon.wait_state("bad", "failed");
    let status = daemon.status("bad");
    assert_eq!(status["restarts"], 0, "{status}");
    assert!(status["error"].as_str().unwrap().contains("bad.gguf"), "{status}");
    assert!(Path::new(&status["path"].as_str().unwrap()).is_absolute());
    assert_eq!(daemon.get("/ready").status, 503);
}

#[test]
fn a_template_without_bound_costs_its_request_a_400_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let doubling =
        "{% set ns = namespace(s='x') %}{% for i in range(64) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}";
    std::fs::write(directory.path().join("double.jinja"), doubling).unwrap();
    let models = block("stories", "preload = true\nchat_template = \"double.jinja\"");
    std::fs::write(directory.path().join("config.toml"), format!("{SETTINGS}{models}")).unwrap();
    let daemon = start(&["--config", "config.toml"], directory);
    daemon.wait_state("stories", "ready");
    let (pid, stream) = (daemon.pid("stories"), story(&daemon, "stories", 400));
    for _ in 0..2 {
        let answer = daemon.post("/v1/chat/completions", &json!({"messages": [{"role": "user", "content": "Hello"}]}));
        let code = answer.json()["error"]["code"].clone();
        assert_eq!((answer.status, code), (400, json!("template_limit")), "{answer:?}");
    }
    assert!(stream.finish().body.ends_with("data: [DONE]\n\n"), "who streams meanwhile notices nothing");
    assert_eq!(daemon.pid("stories"), pid);
}

#[test]
fn large_requests_leave_a_worker_alive() {
    let daemon = configured(&block("stories", "preload = true"));
    daemon.wait_state("stories", "ready");
    let (daemon, pid) = (&daemon, daemon.pid("stories"));
    // Words of one letter that never ends take the most memory, and an answer with pieces is the longest.
    let text = "a".repeat(1 << 20);
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let post = |path, body: Value| scope.spawn(move || daemon.post(path, &body).status);
        let prompts = (0..4).map(|_| post("/v1/completions", json!({"model": "stories", "prompt": text})));
        let prompts: Vec<_> = prompts.collect();
        let pieces = post("/tokenize", json!({"model": "stories", "content": text, "with_pieces": true}));
        let mut statuses: Vec<u16> = prompts.into_iter().map(|thread| thread.join().unwrap()).collect();
        statuses.push(pieces.join().unwrap());
        statuses
    });
    assert_eq!(statuses, [400, 400, 400, 400, 200], "each prompt is longer than the context");
    assert_eq!(daemon.pid("stories"), pid);
}

#[test]
fn draining_lets_a_real_stream_finish() {
    let mut daemon = configured(&block("stories", "preload = true"));
    daemon.wait_state("stories", "ready");
    let mut reading = story(&daemon, "stories", 450);
    reading.chunk().unwrap();
    daemon.signal(Signal::SIGTERM);
    let answer = reading.finish();
    assert!(answer.body.ends_with("data: [DONE]\n\n"), "{}", answer.body);
    assert_eq!(daemon.wait().code(), Some(0));
}

/// CPUs that the kernel lets the computing threads of a worker run on, by thread.
fn compute_cpus(pid: i32) -> Vec<(String, String)> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let status = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("status")).ok());
    let field = |text: &str, key: &str| {
        text.lines().find_map(|line| line.strip_prefix(key)).map(|value| value.trim().to_owned()).unwrap_or_default()
    };
    let threads = status.map(|text| (field(&text, "Name:"), field(&text, "Cpus_allowed_list:")));
    let mut threads: Vec<_> = threads.filter(|(name, _)| name == "engine" || name.starts_with("compute-")).collect();
    threads.sort();
    threads
}

#[test]
fn models_keep_to_the_cpus_they_are_given() {
    let allowed = omni_inferd::sys::affinity::allowed();
    let (first, last) = (allowed[0], allowed[allowed.len() - 1]);
    let model = |id: &str, cpus: usize| {
        format!("[[model]]\nid = \"{id}\"\npath = \"{MODEL}\"\ncontext = 512\npreload = true\ncpus = \"{cpus}\"\n")
    };
    let daemon = configured(&(model("one", first) + &model("two", last)));
    for (id, cpu) in [("one", first), ("two", last)] {
        daemon.wait_state(id, "ready");
        assert_eq!(daemon.status(id)["info"]["threads"], 1, "a thread per CPU given");
        assert_eq!(compute_cpus(daemon.pid(id)), [("engine".to_owned(), cpu.to_string())], "{id}");
    }
    let cpus = omni_inferd::sys::affinity::format_list(&[first, last][..if first == last { 1 } else { 2 }]);
    let arguments = ["serve", MODEL, "--socket", "omni.sock", "--ctx", "256", "--cpus", &cpus, "--id", "stories"];
    let daemon = start(&arguments, tempfile::tempdir().unwrap());
    daemon.wait_state("stories", "ready");
    let host = Topology::detect().restricted(&[first, last]);
    let places = host.placement().into_iter().take(host.compute_threads()).enumerate();
    let name = |i| if i == 0 { "engine".to_owned() } else { format!("compute-{i}") };
    let mut expected: Vec<_> = places.map(|(i, cpu)| (name(i), cpu.to_string())).collect();
    expected.sort();
    assert_eq!(compute_cpus(daemon.pid("stories")), expected, "a CPU per thread");
}
