//! A whole worker on a socket pair: load, serve, beat, drain, refuse.

use super::*;
use protocol::Command;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

struct Worker {
    dir: tempfile::TempDir,
    thread: JoinHandle<i32>,
    reports: BufReader<UnixStream>,
}

fn spec(path: &Path) -> Spec {
    Spec {
        id: "stories".into(),
        aliases: vec![],
        path: path.into(),
        context: Some(256),
        parallel: 2,
        queue: 4,
        threads: Some(1),
        cpus: None,
        kv_type: "f16".into(),
        prefill_chunk: 64,
        place: vec![],
        disable_isa: vec![],
        chat_template: None,
        max_body_bytes: 1 << 20,
        numa: "interleave".into(),
        vault: true,
    }
}

/// A body that the settings allow does not end its worker.
#[test]
fn memory_for_requests_follows_what_a_body_may_hold() {
    assert_eq!([1 << 10, 32 << 20, 1 << 30].map(growth), [4 << 30, 4 << 30, 128 << 30]);
}

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/omni-stories-q8_0.gguf")
}

impl Worker {
    fn start(first_line: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("s")).unwrap();
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(first_line.as_bytes()).unwrap();
        let thread = std::thread::spawn(move || run_on(listener, theirs));
        Worker { dir, thread, reports: BufReader::new(ours) }
    }

    fn load(spec: &Spec) -> Self {
        Self::start(&(serde_json::to_string(spec).unwrap() + "\n"))
    }

    fn report(&mut self) -> Report {
        let mut line = String::new();
        self.reports.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    /// The status, and the channel kept open: its end would end the process of a worker that still runs.
    fn end(self) -> i32 {
        self.thread.join().unwrap()
    }
}

#[test]
fn loads_serves_beats_and_drains() {
    let mut worker = Worker::load(&spec(&model()));
    let mut bytes = 0;
    let info = loop {
        match worker.report() {
            Report::Loading { progress } => bytes = progress.bytes_done,
            Report::Ready { info } => break info,
            other => panic!("{other:?}"),
        }
    };
    assert!(bytes > 0 && (info.context, info.parallel, info.threads) == (256, 2, 1), "{info:?}");
    assert!(matches!(worker.report(), Report::Heartbeat { .. }));
    let mut client = UnixStream::connect(worker.dir.path().join("s")).unwrap();
    let body = r#"{"prompt":"Once upon a time","max_tokens":4,"temperature":0}"#;
    let length = body.len();
    write!(client, "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}").unwrap();
    let mut answer = [0; 12];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    assert!(matches!(worker.report(), Report::Heartbeat { .. }));
    let drain = serde_json::to_string(&Command::Drain).unwrap();
    worker.reports.get_mut().write_all(format!("nonsense\n{drain}\n").as_bytes()).unwrap();
    assert_eq!(worker.end(), EXIT_OK);
}

#[test]
fn what_cannot_be_loaded_is_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let template = dir.path().join("broken.jinja");
    std::fs::write(&template, "{% if %}").unwrap();
    let missing = spec(Path::new("/nowhere/model.gguf"));
    let kv_type = Spec { kv_type: "q9".into(), ..spec(&model()) };
    let broken = Spec { chat_template: Some(template), ..spec(&model()) };
    for (spec, why) in [(missing, "/nowhere/model.gguf"), (kv_type, "q9"), (broken, "broken.jinja")] {
        let mut worker = Worker::load(&spec);
        let error = loop {
            match worker.report() {
                Report::Loading { .. } => {}
                Report::Refused { error, .. } => break error,
                other => panic!("{other:?}"),
            }
        };
        assert!(error.contains(why), "{error}");
        assert_eq!(worker.end(), EXIT_REFUSED);
    }
}

#[test]
fn a_channel_without_a_model_fails() {
    assert_eq!(Worker::start("{}\n").end(), EXIT_FAILED);
}
