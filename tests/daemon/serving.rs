//! What a client sees: routing by name, loading on demand, streams, a worker's death in the midst of one.

use super::harness::{QUICK, Setup, alive, daemon, kill, send, wait_for};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

#[test]
fn requests_find_their_model_by_id_alias_and_auto() {
    let daemon = daemon(&[("oracle", "", "aliases = [\"gpt-4o\", \"org/big\"]"), ("executor", "", "")]);
    for (asked, answers) in [("executor", "executor"), ("gpt-4o", "oracle"), ("org/big", "oracle")] {
        let answer = daemon.post("/v1/chat/completions", &json!({"model": asked}));
        assert_eq!((answer.status, answer.header("x-omni-model")), (200, Some(answers)), "{answer:?}");
        assert!(answer.header("x-request-id").unwrap().starts_with("req-"));
        assert_eq!(answer.json()["model"], answers);
    }
    // Only the executor is loaded now: `auto` and silence prefer it.
    let unload = daemon.post("/control/v1/models/oracle/unload", &Value::Null);
    assert_eq!((unload.status, unload.json()["state"].as_str()), (200, Some("unloaded")));
    for body in [json!({"model": "auto"}), json!({}), json!({"model": null}), json!({"model": ""})] {
        assert_eq!(daemon.post("/tokenize", &body).json()["model"], "executor", "{body}");
    }
    assert_eq!(daemon.state("oracle"), "unloaded");
}

#[test]
fn what_cannot_be_routed_is_refused_in_openais_shape() {
    let daemon = Setup::new(&format!("{QUICK}max_body_bytes = 1024\n"), &[("oracle", "", "")]).start();
    let answer = daemon.post("/v1/completions", &json!({"model": "gpt-9"}));
    let error = &answer.json()["error"];
    assert_eq!((answer.status, error["code"].as_str()), (404, Some("model_not_found")));
    assert!(error["message"].as_str().unwrap().contains("oracle"), "{error}");
    assert_eq!(daemon.post("/v1/completions", &json!([1])).status, 400);
    assert_eq!(daemon.post("/v1/completions", &json!({"prompt": "x".repeat(2000)})).status, 413);
    assert_eq!(daemon.post("/v1/completions", &json!({"model": 7})).status, 400);
    let answer = daemon.get("/v1/completions");
    assert_eq!((answer.status, answer.header("allow")), (405, Some("POST")));
    for path in ["/v1/nothing", "/", "/control/v2/status", "/control"] {
        assert_eq!(daemon.get(path).status, 404, "{path}");
    }
    assert_eq!(daemon.state("oracle"), "unloaded", "nothing of this loads a model");
}

#[test]
fn models_health_ready_and_metrics() {
    let daemon = daemon(&[("oracle", "slow", "preload = true\naliases = [\"o\"]"), ("other", "", "")]);
    assert_eq!(daemon.get("/health").status, 200);
    let ready = daemon.get("/ready");
    assert_eq!(ready.status, 503, "{ready:?}");
    assert!(ready.header("retry-after").is_some() && ready.body.contains("oracle is loading"), "{ready:?}");
    wait_for("progress", || daemon.status("oracle")["progress"]["bytes_done"].as_u64() > Some(25));
    daemon.wait_state("oracle", "ready");
    assert_eq!(daemon.get("/ready").status, 200);
    let list = daemon.get("/v1/models").json();
    assert_eq!(list["data"][0]["id"], "oracle");
    assert_eq!((&list["data"][0]["state"], &list["data"][1]["state"]), (&json!("ready"), &json!("unloaded")));
    assert_eq!(daemon.get("/v1/models/o").json()["id"], "oracle");
    assert_eq!(daemon.get("/v1/models/x").status, 404);
    assert_eq!(daemon.get("/v1/models/").status, 404);
    let head = send(&daemon.socket, "HEAD", "/v1/models", None).finish();
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    daemon.complete(json!({"model": "oracle", "stream": true, "tokens": 7})).finish();
    wait_for("the token count", || {
        daemon.get("/metrics").body.contains("omni_model_completion_tokens_total{model=\"oracle\"} 7")
    });
    let metrics = daemon.get("/metrics").body;
    assert!(metrics.contains("omni_model_state{model=\"oracle\",state=\"ready\"} 1"), "{metrics}");
    assert!(
        metrics.contains("omni_model_requests_total{model=\"oracle\"} 1") && metrics.ends_with("# EOF\n"),
        "{metrics}"
    );
}

#[test]
fn streams_pass_unchanged_and_a_client_that_leaves_cancels() {
    let daemon = daemon(&[("oracle", "", "preload = true")]);
    let answer = daemon.complete(json!({"stream": true, "tokens": 3})).finish();
    let event = |n| format!("data: {{\"model\":\"oracle\",\"number\":{n}}}\n\n");
    assert_eq!(answer.body, event(0) + &event(1) + &event(2) + "data: [DONE]\n\n");
    assert!(answer.header("content-type").unwrap().starts_with("text/event-stream"));

    let mut reading = daemon.complete(json!({"stream": true, "tokens": 100_000, "delay_ms": 5}));
    reading.chunk().unwrap();
    assert_eq!(daemon.status("oracle")["active_requests"], 1);
    drop(reading);
    wait_for("the stream's cancellation", || daemon.status("oracle")["stats"]["cancelled_total"] == 1);
    assert_eq!(daemon.status("oracle")["active_requests"], 0);

    // A client that leaves before there is an answer.
    let waiting = std::thread::scope(|_| {
        use std::io::Write;
        let mut stream = std::os::unix::net::UnixStream::connect(&daemon.socket).unwrap();
        let body = json!({"tokens": 1, "delay_ms": 60_000}).to_string();
        let length = body.len();
        write!(stream, "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n{body}").unwrap();
        stream
    });
    wait_for("the request's start", || daemon.status("oracle")["stats"]["running"] == 1);
    drop(waiting);
    wait_for("the request's cancellation", || daemon.status("oracle")["stats"]["cancelled_total"] == 2);
    wait_for("the lease's return", || daemon.status("oracle")["active_requests"] == 0);
}

#[test]
fn a_model_that_takes_too_long_is_answered_503() {
    let quick = QUICK.replace("load_timeout = \"5s\"", "load_timeout = \"300ms\"");
    let daemon = Setup::new(&quick, &[("oracle", "slow", "")]).start();
    let answer = daemon.post("/v1/completions", &json!({"model": "oracle"}));
    assert_eq!((answer.status, answer.json()["error"]["code"].as_str()), (503, Some("model_loading")));
    assert!(answer.header("retry-after").is_some());
    daemon.wait_state("oracle", "ready");
    assert_eq!(daemon.post("/v1/completions", &json!({"model": "oracle"})).status, 200);
}

#[test]
fn a_worker_killed_mid_stream_fifty_times_hurts_nobody_else() {
    let daemon = daemon(&[("victim", "", "preload = true"), ("other", "", "preload = true")]);
    daemon.wait_state("victim", "ready");
    daemon.wait_state("other", "ready");
    let other = daemon.pid("other");
    let mut bystander = daemon.complete(json!({"model": "other", "stream": true, "tokens": 1_000_000, "delay_ms": 2}));
    for round in 0..50 {
        let mut reading =
            daemon.complete(json!({"model": "victim", "stream": true, "tokens": 1_000_000, "delay_ms": 1}));
        assert_eq!(reading.status, 200, "round {round}");
        reading.chunk().unwrap();
        kill(daemon.pid("victim"), Signal::SIGKILL);
        let answer = reading.finish();
        let last = answer.body.trim_end().rsplit("\n\n").next().unwrap();
        let error: Value = serde_json::from_str(last.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(error["error"]["code"], "worker_died", "round {round}: {last}");
        assert!(bystander.chunk().is_some());
        assert_eq!(daemon.get("/health").status, 200);
    }
    assert_eq!(daemon.pid("other"), other);
    wait_for("the last restart", || daemon.status("victim")["restarts"].as_u64() == Some(50));
    for _ in 0..20 {
        assert!(bystander.chunk().unwrap().starts_with("data: "));
    }
}

#[test]
fn a_worker_that_dies_over_a_request_costs_a_503() {
    let daemon = daemon(&[("oracle", "", "")]);
    let start = Instant::now();
    let answer = daemon.post("/v1/chat/completions", &json!({"die": true}));
    assert_eq!((answer.status, answer.json()["error"]["code"].as_str()), (503, Some("worker_died")), "{answer:?}");
    assert!(answer.header("retry-after").is_some());
    assert_eq!(daemon.post("/v1/chat/completions", &json!({})).status, 200, "it is back");
    assert!(start.elapsed() < Duration::from_secs(5));
    assert!(daemon.log().contains("SIGABRT"), "the reason is logged");
}

#[test]
fn workers_die_with_the_daemon() {
    let mut daemon = daemon(&[("oracle", "", "preload = true")]);
    daemon.wait_state("oracle", "ready");
    let pid = daemon.pid("oracle");
    daemon.child.kill().unwrap();
    daemon.wait();
    wait_for("the worker's end", || !alive(pid));
}
