//! What the supervisor does with workers that crash, freeze, refuse or will not go.

use super::harness::{QUICK, Setup, alive, daemon, kill, wait_for};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

#[test]
fn a_crash_loop_ends_in_failed_with_the_reason_and_load_tries_again() {
    let quick = QUICK.replace("restart_limit = 1000", "restart_limit = 4");
    let daemon = Setup::new(&quick, &[("oracle", "crash", ""), ("other", "", "")]).start();
    let answer = daemon.post("/v1/completions", &json!({"model": "oracle"}));
    let error = &answer.json()["error"];
    assert_eq!((answer.status, error["code"].as_str()), (503, Some("model_failed")), "{error}");
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("exit status 3") && message.contains("death 4 in a row"), "{message}");
    assert_eq!(daemon.status("oracle")["restarts"], 3);
    assert_eq!(daemon.post("/v1/completions", &json!({"model": "other"})).status, 200);
    let logs = daemon.get("/control/v1/logs?model=oracle&lines=5").body;
    assert_eq!(logs.lines().count(), 5);
    assert!(logs.contains("INFO  loading /") && logs.contains("ERROR failed: "), "{logs}");
    assert!(logs.contains("WARN  thread 'main' panicked: as told") && logs.contains("INFO  fake worker"), "{logs}");
    std::fs::write(daemon.directory.path().join("oracle.gguf"), "").unwrap();
    assert_eq!(daemon.load("oracle")["state"], "ready");
}

#[test]
fn a_frozen_worker_and_a_frozen_engine_are_killed_and_replaced() {
    let daemon = daemon(&[("oracle", "", "preload = true"), ("other", "", "preload = true"), ("engine", "frozen", "")]);
    daemon.wait_state("oracle", "ready");
    let (frozen, other) = (daemon.pid("oracle"), daemon.pid("other"));
    let mut reading = daemon.complete(json!({"model": "oracle", "stream": true, "tokens": 100_000, "delay_ms": 10}));
    reading.chunk().unwrap();
    kill(frozen, Signal::SIGSTOP);
    let answer = reading.finish();
    assert!(answer.body.contains("worker_died"), "the stream ends with an error event");
    wait_for("a new worker", || daemon.status("oracle")["pid"].as_i64().is_some_and(|pid| pid as i32 != frozen));
    daemon.wait_state("oracle", "ready");
    assert!(!alive(frozen));
    assert_eq!(daemon.pid("other"), other);
    assert!(daemon.log().contains("no heartbeat for 0.7 s"), "{}", daemon.log());
    daemon.load("engine");
    wait_for("the engine's restart", || daemon.status("engine")["restarts"].as_u64() > Some(0));
    assert!(daemon.log().contains("engine stood still for 60.0 s"));
}

#[test]
fn a_refusal_is_final_and_shown() {
    let daemon = daemon(&[("oracle", "refuse", "preload = true")]);
    daemon.wait_state("oracle", "failed");
    assert_eq!(daemon.status("oracle")["error"], "the file is a joke; take a serious one");
    let answer = daemon.post("/v1/completions", &json!({"model": "oracle"}));
    assert_eq!(answer.status, 503);
    assert!(answer.body.contains("the file is a joke"), "{answer:?}");
    assert_eq!(daemon.status("oracle")["restarts"], 0);
    assert_eq!(daemon.load("oracle")["state"], "failed");
}

#[test]
fn a_refusal_for_want_of_memory_is_tried_again_by_a_later_request() {
    let daemon = daemon(&[("oracle", "refuse short", "preload = true")]);
    daemon.wait_state("oracle", "failed");
    let refused = daemon.post("/v1/completions", &json!({"model": "oracle"}));
    assert_eq!((refused.status, refused.json()["error"]["code"].as_str()), (503, Some("model_failed")));
    assert!(refused.header("retry-after").is_some_and(|seconds| seconds.parse::<u64>().unwrap() < 60));
    std::fs::write(daemon.directory.path().join("oracle.gguf"), "").unwrap();
    // After the longest pause, a tenth of a second here.
    wait_for("the next attempt", || daemon.post("/v1/completions", &json!({"model": "oracle"})).status == 200);
    assert_eq!(daemon.status("oracle")["error"], Value::Null);
}

#[test]
fn idle_models_go_unless_pinned() {
    let daemon = daemon(&[("idle", "", "idle_ttl = \"400ms\""), ("kept", "", "pinned = true")]);
    daemon.load("kept");
    let mut reading = daemon.complete(json!({"model": "idle", "stream": true, "tokens": 80, "delay_ms": 10}));
    reading.chunk().unwrap();
    std::thread::sleep(Duration::from_millis(600));
    assert_eq!(daemon.state("idle"), "ready", "a running stream keeps it");
    assert!(reading.finish().body.ends_with("[DONE]\n\n"));
    daemon.wait_state("idle", "unloaded");
    assert_eq!(daemon.state("kept"), "ready");
    assert_eq!(daemon.post("/v1/completions", &json!({"model": "idle"})).status, 200, "and it comes back on demand");
}

#[test]
fn unload_waits_for_streams_and_force_cuts_them() {
    let daemon = daemon(&[("oracle", "", "preload = true"), ("stubborn", "stubborn", "preload = true")]);
    daemon.wait_state("oracle", "ready");
    let reading = daemon.complete(json!({"model": "oracle", "stream": true, "tokens": 50, "delay_ms": 10}));
    let start = Instant::now();
    let answer = daemon.post("/control/v1/models/oracle/unload", &Value::Null);
    assert_eq!(answer.json()["state"], "unloaded");
    assert!(start.elapsed() > Duration::from_millis(300), "it waited");
    assert!(reading.finish().body.ends_with("[DONE]\n\n"));

    daemon.load("oracle");
    let mut reading = daemon.complete(json!({"model": "oracle", "stream": true, "tokens": 100_000, "delay_ms": 10}));
    reading.chunk().unwrap();
    let answer = daemon.post("/control/v1/models/oracle/unload?force=true", &Value::Null);
    assert_eq!(answer.json()["state"], "unloaded");
    assert!(reading.finish().body.contains("\"error\""));

    // Told to go, it stays: killed after the grace.
    let pid = daemon.pid("stubborn");
    let answer = daemon.post("/control/v1/models/stubborn/unload", &Value::Null);
    assert_eq!(answer.json()["state"], "unloaded");
    assert!(!alive(pid));
}
