//! What the world does to a daemon: kills at the worst moment, files that vanish, clients that hang, logs nobody takes.

use super::harness::{QUICK, Setup, alive, command, daemon, kill, send, wait_for};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::fs::File;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

#[test]
fn workers_may_be_killed_in_every_state() {
    let quick = QUICK.replace("restart_backoff = \"20ms\"", "restart_backoff = \"300ms\"");
    let quick = quick.replace("restart_backoff_max = \"100ms\"", "restart_backoff_max = \"300ms\"");
    let daemon = Setup::new(&quick, &[("oracle", "slow", ""), ("other", "", "preload = true")]).start();
    let state = |state: &str| wait_for(state, || daemon.state("oracle") == state);
    daemon.wait_state("other", "ready");
    let other = daemon.pid("other");
    // Loading: it is tried again after a pause, in which there is nothing to kill, and a request waits for it.
    daemon.post("/control/v1/models/oracle/load", &Value::Null);
    wait_for("progress", || daemon.status("oracle")["progress"]["bytes_done"].as_u64() > Some(0));
    kill(daemon.pid("oracle"), Signal::SIGKILL);
    state("restarting");
    assert_eq!(daemon.status("oracle")["pid"], Value::Null);
    assert!(daemon.status("oracle")["error"].as_str().unwrap().contains("died while loading: signal 9"));
    assert_eq!(daemon.post("/v1/completions", &json!({"model": "oracle"})).status, 200);
    // Draining: its stream ends with an error, and the model is unloaded, not started again.
    let mut stream = daemon.complete(json!({"model": "oracle", "stream": true, "tokens": 100_000, "delay_ms": 5}));
    stream.chunk().unwrap();
    std::thread::scope(|scope| {
        let unload = scope.spawn(|| daemon.post("/control/v1/models/oracle/unload", &Value::Null));
        state("draining");
        kill(daemon.pid("oracle"), Signal::SIGKILL);
        assert_eq!(unload.join().unwrap().json()["state"], "unloaded");
    });
    assert!(stream.finish().body.contains("worker_died"));
    // Restarting, told to unload meanwhile.
    daemon.load("oracle");
    kill(daemon.pid("oracle"), Signal::SIGKILL);
    state("restarting");
    assert_eq!(daemon.post("/control/v1/models/oracle/unload", &Value::Null).json()["state"], "unloaded");
    assert_eq!(daemon.pid("other"), other, "all this time nobody else was touched");
}

#[test]
fn a_killed_daemon_takes_its_workers_along_and_the_next_one_starts_at_once() {
    let mut first = daemon(&[("oracle", "", "preload = true"), ("slow", "slow", "preload = true")]);
    first.wait_state("oracle", "ready");
    let workers = [first.pid("oracle"), first.pid("slow")];
    let mut stream = first.complete(json!({"model": "oracle", "stream": true, "tokens": 100_000, "delay_ms": 5}));
    stream.chunk().unwrap();
    let begin = Instant::now();
    first.child.kill().unwrap();
    first.wait();
    wait_for("the workers' end", || !workers.iter().any(|pid| alive(*pid)));
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    stream.finish();
    let begin = Instant::now();
    first.child = command(first.directory.path()).spawn().unwrap();
    wait_for("the successor", || UnixStream::connect(&first.socket).is_ok());
    assert_eq!(first.get("/health").status, 200);
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    first.wait_state("oracle", "ready");
}

#[test]
fn a_client_that_reads_nothing_does_not_hold_up_the_end() {
    let quick = QUICK.replace("drain_timeout = \"5s\"", "drain_timeout = \"300ms\"");
    let mut daemon = Setup::new(&quick, &[("oracle", "", "preload = true")]).start();
    daemon.wait_state("oracle", "ready");
    // One that asked for a flood and reads nothing, one that sends half a request, one that sends nothing.
    let body = json!({"stream": true, "tokens": 10_000_000}).to_string();
    let head = format!("POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
    let stuck: Vec<UnixStream> = [format!("{head}{body}"), head, String::new()]
        .iter()
        .map(|bytes| {
            let mut stream = UnixStream::connect(&daemon.socket).unwrap();
            stream.write_all(bytes.as_bytes()).unwrap();
            stream
        })
        .collect();
    wait_for("the flood", || daemon.status("oracle")["active_requests"] == 1);
    let begin = Instant::now();
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait().code(), Some(0));
    // The drain, the worker's end, two seconds for what is written to be taken.
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    drop(stuck);
}

#[test]
fn a_log_that_cannot_be_written_stops_nothing() {
    let setup = Setup::new(QUICK, &[("oracle", "", "preload = true")]);
    let mut command = setup.command();
    // As on a full disk: every write fails with ENOSPC.
    command.stderr(File::options().write(true).open("/dev/full").unwrap());
    let mut daemon = setup.start_as(command);
    daemon.wait_state("oracle", "ready");
    kill(daemon.pid("oracle"), Signal::SIGKILL);
    assert_eq!(daemon.post("/v1/completions", &json!({})).status, 200);
    assert!(daemon.get("/control/v1/logs").body.contains("starting again"), "its own ring has the lines");
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn a_model_file_may_vanish_and_come_back() {
    let daemon = daemon(&[("oracle", "", "preload = true")]);
    daemon.wait_state("oracle", "ready");
    let file = daemon.directory.path().join("oracle.gguf");
    std::fs::remove_file(&file).unwrap();
    assert_eq!(daemon.post("/v1/completions", &json!({})).status, 200, "what is loaded serves on");
    let reload = daemon.post("/control/v1/reload", &Value::Null);
    assert_eq!((reload.status, reload.json()["error"]["code"].as_str()), (400, Some("invalid_configuration")));
    assert_eq!(daemon.state("oracle"), "ready");
    std::fs::write(&file, "").unwrap();
    assert_eq!(daemon.post("/control/v1/reload", &Value::Null).status, 200);
}

#[test]
fn a_stopped_daemon_goes_on_where_it_stood() {
    let daemon = daemon(&[("oracle", "", "preload = true")]);
    daemon.wait_state("oracle", "ready");
    let pid = daemon.pid("oracle");
    daemon.signal(Signal::SIGSTOP);
    let waiting = std::thread::spawn({
        let socket = daemon.socket.clone();
        move || send(&socket, "POST", "/v1/completions", Some(&json!({}))).finish()
    });
    // Longer than a heartbeat may stay out.
    std::thread::sleep(Duration::from_millis(1000));
    daemon.signal(Signal::SIGCONT);
    assert_eq!(waiting.join().unwrap().status, 200);
    daemon.wait_state("oracle", "ready");
    assert_eq!(daemon.pid("oracle"), pid, "the worker beat all the time; the daemon only did not hear it");
}

#[test]
fn large_requests_take_no_more_memory_than_is_theirs() {
    let quick = QUICK.replace("[daemon]\n", "[daemon]\nmax_body_bytes = \"1MiB\"\n");
    let daemon = Setup::new(&quick, &[("oracle", "", "preload = true")]).start();
    daemon.wait_state("oracle", "ready");
    let body = json!({"model": "oracle", "tokens": 1, "delay_ms": 3000, "prompt": "x".repeat(1_000_000)});
    // Eight bodies of a megabyte fit at once; of three times as many each client hears what became of its own.
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let post = || {
            let answer = daemon.post("/v1/completions", &body);
            assert_eq!(answer.header("retry-after").is_some(), answer.status == 503, "{answer:?}");
            answer.status
        };
        let threads: Vec<_> = (0..24).map(|_| scope.spawn(post)).collect();
        // Small requests are let through all the while.
        let small = daemon.post("/v1/completions", &json!({"model": "oracle"}));
        assert_eq!(small.status, 200, "{small:?}");
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let of = |status| statuses.iter().filter(|each| **each == status).count();
    assert!(of(200) >= 8 && of(503) >= 1 && of(200) + of(503) == 24, "{statuses:?}");
    assert_eq!(daemon.post("/v1/completions", &body).status, 200);
}
