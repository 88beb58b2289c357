//! `omnictl` as a program against a fake daemon: what it shows, what it asks for, how it ends.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod documents;
mod fake;

use fake::{Done, Fake, run};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

fn json(done: &Done) -> Value {
    serde_json::from_str(&done.out).unwrap_or_else(|error| panic!("{error}: {done:?}"))
}

/// No colours and no cursor movements away from a terminal.
fn plain(done: &Done) -> bool {
    !done.out.contains('\u{1b}') && !done.err.contains('\u{1b}') && !done.out.contains('\r')
}

#[tokio::test(flavor = "multi_thread")]
async fn status_and_ps() {
    let fake = Fake::start();
    let done = fake.run(&["status"]).await;
    assert!(done.code == 0 && plain(&done), "{done:?}");
    let wanted = [
        "omni-inferd 9.9.9, pid 4000, up 2h 1m, 12.0 GiB of 24.0 GiB memory free\n",
        "socket /run/test.sock  configuration /etc/test.toml\n",
        "oracle (r1) *  ready     qwen3",
        "2.9M  3.00 MiB  4 x 2048         1   1m 1s  /models/oracle.gguf",
        "spare          unloaded  -",
        "\ncoder: 1.00 GiB of 4.00 GiB  25%  1.00 GiB/s  3.0s left",
        "\nhuge: needs 30 GiB, 24 GiB are free; choose a smaller context\n",
    ];
    for text in wanted {
        assert!(done.out.contains(text), "{text:?} is missing in\n{}", done.out);
    }
    assert_eq!(json(&fake.run(&["status", "--json"]).await)["models"][0]["state"], "ready");

    let done = fake.run(&["ps"]).await;
    assert!(done.code == 0 && plain(&done), "{done:?}");
    let lines: Vec<Vec<&str>> = done.out.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[1], ["oracle", "ready", "4242", "4.00", "MiB", "500.0", "1", "0", "12", "5.0K", "0"]);
    assert_eq!((lines.len(), lines[2][0]), (3, "coder"), "only models with a process: {}", done.out);
    assert_eq!(json(&fake.run(&["--json", "ps"]).await).as_array().unwrap().len(), 2);
    let colored = fake.run(&["status", "--color", "always"]).await;
    assert!(colored.out.contains('\u{1b}'), "{colored:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn selftest_is_a_line_per_check_and_an_exit_status() {
    let nowhere = Path::new("/nonexistent/omni.sock");
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/models/omni-stories-q8_0.gguf");
    let done = run(nowhere, &["selftest", model, "-t", "1", "--long", "256"], "").await;
    assert!(done.code == 0 && plain(&done), "{done:?}");
    let lines: Vec<&str> = done.out.lines().collect();
    assert!(lines.len() >= 7 && lines.iter().all(|line| line.starts_with("ok  ")), "{done:?}");
    assert!(lines[0].contains("reference") && lines[0].contains("NMSE") && lines[0].contains("at most"), "{done:?}");
    assert!(lines[2].contains("the same bits, no bit may differ"), "{done:?}");
    let done = run(nowhere, &["selftest", model, "-t", "1", "--long", "256", "--json"], "").await;
    let report = json(&done);
    assert_eq!((&report["ok"], &report["architecture"]), (&Value::Bool(true), &Value::from("qwen3")), "{done:?}");
    assert_eq!(report["checks"].as_array().unwrap().len(), lines.len());
    assert!(report["checks"][0]["difference"].as_f64().unwrap() < report["checks"][0]["bound"].as_f64().unwrap());
    // A model's id is asked of the daemon, a path is a file.
    assert_eq!(run(nowhere, &["selftest", "oracle"], "").await.code, 3);
    // It computes as it was loaded; what would say otherwise is refused, not left aside.
    let others: [&[&str]; 6] = [
        &["--isa", "avx2"],
        &["--kv", "f16"],
        &["-t", "1"],
        &["--cpus", "0"],
        &["--all"],
        &["--all", "--isa", "scalar"],
    ];
    for options in others {
        let done = run(nowhere, &[&["selftest", "oracle"], options].concat(), "").await;
        let mut names = options
            .iter()
            .filter(|word| word.starts_with('-'))
            .map(|word| if *word == "-t" { "--threads" } else { word });
        assert!(names.all(|name| done.err.contains(name)), "{options:?}: {done:?}");
        assert!(done.code == 2 && done.err.contains("'oracle'"), "{options:?}: {done:?}");
    }
    assert_eq!(run(nowhere, &["selftest", "oracle", "--long", "300"], "").await.code, 3);
    let done = run(nowhere, &["selftest", "./oracle"], "").await;
    assert!(done.code == 4 && done.err.contains("oracle"), "{done:?}");
    assert_eq!(run(nowhere, &["selftest", model, "--long", "12"], "").await.code, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn plans_need_no_daemon() {
    let nowhere = Path::new("/nonexistent/omni.sock");
    let host = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/hosts/host-b.toml");
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/models/omni-stories-q8_0.gguf");
    let done = run(nowhere, &["plan", model, "--host", host], "").await;
    assert!(done.code == 0 && plain(&done), "{done:?}");
    for part in ["host: Host B", "layers 0-2 ", "tok/s", "headroom", "\nwhy: "] {
        assert!(done.out.contains(part), "{part} is not in {done:?}");
    }
    let json = json(&run(nowhere, &["plan", model, "--host", host, "--json"], "").await);
    let plan = &json["plans"][0];
    assert_eq!((plan["layout"]["layers"].as_array().unwrap().len(), &json["refused"]), (3, &Value::Null));
    assert!(plan["devices"][0]["attention"].is_u64() && plan["decode"][0]["rate"].as_f64() > Some(1.0), "{plan}");
    let limits = ["--device-limit", "cpu=1MiB", "--device-limit", "gpu0=1MiB", "--device-limit", "gpu1=1MiB"];
    let tight = [&["plan", model, "--host", host][..], &limits].concat();
    let done = run(nowhere, &tight, "").await;
    assert!(done.code == 1 && done.err.contains("does not fit") && done.err.contains("available"), "{done:?}");
    let refused = run(nowhere, &[&tight[..], &["--json"]].concat(), "").await;
    let report: Value = serde_json::from_str(&refused.out).unwrap();
    assert!(refused.code == 1 && report["refused"]["missing"].as_u64() > Some(0), "{refused:?}");
    // Without a host file: this one, whose GPUs no build uses yet.
    let here = run(nowhere, &["plan", model], "").await;
    assert!(here.code == 0 && here.out.contains("no GPU backend") && here.out.contains("this host"), "{here:?}");
    let code = async |line: &[&str]| run(nowhere, line, "").await.code;
    assert_eq!(code(&["plan", "/nonexistent.gguf", "--host", host]).await, 4);
    assert_eq!(code(&["plan", model, "--host", "/nonexistent.toml"]).await, 4);
    assert_eq!(code(&["plan", model, "--kv", "q3"]).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_topology_needs_no_daemon() {
    let nowhere = Path::new("/nonexistent/omni.sock");
    let done = run(nowhere, &["status", "--topology"], "").await;
    assert!(done.code == 0 && plain(&done), "{done:?}");
    assert!(
        done.out.contains(" NUMA node") && done.out.contains("\nsocket ") && done.out.contains("cores "),
        "{done:?}"
    );
    let done = run(nowhere, &["status", "--topology", "--json"], "").await;
    let host = json(&done);
    assert!(host["sockets"].as_u64() > Some(0) && host["nodes"][0]["memory"].as_u64() > Some(0), "{host}");
    assert_eq!(host["cpus"][0]["node"], host["nodes"][0]["id"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_has_a_line_per_check_and_an_exit_status() {
    let (nowhere, root) = (Path::new("/nonexistent/omni.sock"), tempfile::tempdir().unwrap());
    let file = root.path().join("config.toml");
    let (root, config) = (root.path().to_str().unwrap(), file.to_str().unwrap());
    std::fs::write(&file, "").unwrap();
    let args = ["doctor", "--root", root, "--config", config];
    let done = run(nowhere, &args, "").await;
    assert!(done.code == 0 && plain(&done), "{done:?}");
    assert!(done.out.contains("ok    gpu-driver") && done.out.contains("no GPU: CPU only\n"), "{done:?}");
    let strict = run(nowhere, &[&args[..], &["--strict", "--json"]].concat(), "").await;
    let report = json(&strict);
    let warned = report["checks"].as_array().unwrap().iter().any(|check| check["level"] == "warn");
    assert!(warned && report["level"] == "warn" && strict.code == 1 && strict.err.is_empty(), "{strict:?}");
    std::fs::write(&file, "[daemon]\nsocket = 1\n").unwrap();
    let done = run(nowhere, &args, "").await;
    assert!(done.code == 1 && done.out.starts_with("fail  configuration"), "{done:?}");
    let host = run(nowhere, &["doctor", "--config", config, "--json"], "").await;
    assert!(json(&host)["checks"].as_array().unwrap().len() >= 18, "this host: {host:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tune_shows_applies_and_rolls_back() {
    let (nowhere, directory) = (Path::new("/nonexistent/omni.sock"), tempfile::tempdir().unwrap());
    let swappiness = directory.path().join("proc/sys/vm/swappiness");
    std::fs::create_dir_all(swappiness.parent().unwrap()).unwrap();
    std::fs::write(&swappiness, "60\n").unwrap();
    let value = || std::fs::read_to_string(&swappiness).unwrap().trim().to_string();
    let root = directory.path().to_str().unwrap();
    let tune = async |more: &[&str]| run(nowhere, &[&["tune", "--root", root], more].concat(), "").await;
    let done = tune(&[]).await;
    assert!(
        done.code == 0 && plain(&done) && done.out.contains("vm.swappiness: 60 -> 1  (Weights are read"),
        "{done:?}"
    );
    assert!(done.out.ends_with("nothing was changed; omnictl tune --apply does it\n") && value() == "60", "{done:?}");
    let done = tune(&["--apply", "--json"]).await;
    assert!(done.code == 0 && json(&done)["plan"]["changes"][0]["what"] == "vm.swappiness", "{done:?}");
    assert_eq!(value(), "1");
    assert_eq!(tune(&["--apply"]).await.out, "nothing to change\n");
    assert_eq!(tune(&["--rollback"]).await.out, "restored /etc/sysctl.d/60-omni-inferd.conf\nrestored vm.swappiness\n");
    assert_eq!(value(), "60");
    assert_eq!(tune(&["--rollback"]).await.out, "nothing was changed, nothing to take back\n");
    assert_eq!(tune(&["--apply", "--rollback"]).await.code, 2);
    let config = directory.path().join("wrong.toml");
    std::fs::write(&config, "x = 1").unwrap();
    assert_eq!(tune(&["--config", config.to_str().unwrap()]).await.code, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn load_waits_until_ready() {
    let fake = Fake::start();
    let done = fake.run(&["load", "spare"]).await;
    assert!(done.code == 0 && plain(&done), "{done:?}");
    let wanted = "spare is ready: qwen3 2.9M, 3.00 MiB of weights, context 4 x 2048, 2 threads, avx2, loaded in 0.5s\n";
    assert_eq!(done.out, wanted);
    assert_eq!(fake.run(&["load", "slow"]).await.code, 0, "an early answer is waited upon");

    let done = fake.run(&["load", "huge"]).await;
    assert_eq!((done.code, done.out.as_str()), (1, ""));
    assert!(done.err.contains("huge is not loaded: needs 30 GiB, 24 GiB are free"), "{done:?}");

    let file = fake.socket.with_file_name("Tiny.gguf");
    std::fs::write(&file, "").unwrap();
    let path = file.to_str().unwrap();
    let done = fake.run(&["load", path, "--ctx", "512", "--parallel", "2", "--id", "mine", "--json"]).await;
    assert_eq!((done.code, json(&done)["id"].as_str()), (0, Some("mine")), "{done:?}");
    let sent = fake.requests.lock().unwrap().iter().find(|line| line.starts_with("POST /control/v1/models?")).cloned();
    let sent: Value =
        serde_json::from_str(sent.unwrap().split_once(' ').unwrap().1.split_once(' ').unwrap().1).unwrap();
    assert_eq!((&sent["context"], &sent["parallel"], &sent["threads"]), (&512.into(), &2.into(), &Value::Null));
    assert!(Path::new(sent["path"].as_str().unwrap()).is_absolute());

    assert_eq!(fake.run(&["load", "spare", "--ctx", "5"]).await.code, 2);
    assert_eq!(fake.run(&["load", "/nonexistent/m.gguf"]).await.code, 4);
    let done = fake.run(&["load", "nobody"]).await;
    assert!(done.code == 4 && done.err.contains("known models: oracle, spare"), "{done:?}");
    let done = fake.run(&["load", "odd"]).await;
    assert!(done.code == 1 && done.err.contains("does not understand"), "{done:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn unload_and_reload() {
    let fake = Fake::start();
    let done = fake.run(&["unload", "oracle", "--force"]).await;
    assert_eq!((done.code, done.out.as_str()), (0, "oracle is unloaded\n"));
    assert!(fake.got("POST /control/v1/models/oracle/unload?force=true"));
    let done = fake.run(&["unload", "spare"]).await;
    assert_eq!((done.code, done.out.as_str()), (0, "spare was not loaded\n"));
    fake.run(&["unload", "oracle"]).await;
    assert!(fake.got("POST /control/v1/models/oracle/unload "));
    let done = fake.run(&["reload"]).await;
    assert_eq!(done.out, "added new\ntakes effect only after a restart of omni-inferd: daemon.socket\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn chat_in_one_shot() {
    let fake = Fake::start();
    let done = fake.run(&["chat", "oracle", "hello", "--system", "be kind", "--temperature", "0", "--seed", "3"]).await;
    assert!(done.code == 0 && plain(&done), "{done:?}");
    assert_eq!(done.out, "hmm\n\nYou said hello.\n");
    assert!(fake.got("POST /v1/chat/completions {\"temperature\":0.0,\"seed\":3,\"model\":\"oracle\",\"messages\":[{\"role\":\"system\",\"content\":\"be kind\"},{\"role\":\"user\",\"content\":\"hello\"}],\"stream\":true"), "{:?}", fake.requests);
    let done = run(&fake.socket, &["chat", "oracle"], "piped in\n").await;
    assert_eq!(done.out, "hmm\n\nYou said piped in.\n");
    assert_eq!(run(&fake.socket, &["chat", "oracle"], "").await.code, 2);

    let done = fake.run(&["chat", "base", "hello"]).await;
    assert!(done.code == 1 && done.err.contains("base has no chat template; use /v1/completions"), "{done:?}");
    let done = fake.run(&["chat", "oracle", "fail"]).await;
    assert!(done.code == 1 && done.err.contains("the worker died; try again"), "{done:?}");
    let done = fake.run(&["chat", "oracle", "die"]).await;
    assert!(done.code == 1 && done.out.contains("par\n") && done.err.contains("broke off"), "{done:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_ends_an_answer() {
    use std::io::Read;
    let fake = Fake::start();
    let mut child = Command::new(env!("CARGO_BIN_EXE_omnictl"))
        .arg("--socket")
        .arg(&fake.socket)
        .args(["chat", "oracle", "endless"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let code = tokio::task::spawn_blocking(move || {
        let mut out = child.stdout.take().unwrap();
        let mut begin = [0; 12];
        out.read_exact(&mut begin).unwrap();
        let pid = nix::unistd::Pid::from_raw(child.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
        child.wait().unwrap().code()
    });
    assert_eq!(code.await.unwrap(), Some(130));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demonstration_runs_to_its_end() {
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/models/omni-stories-q8_0.gguf");
    let nowhere = Path::new("/nonexistent/omni.sock");
    let done = run(nowhere, &["demo", "--model", model, "--max-tokens", "30", "Once upon a time"], "").await;
    assert!(done.code == 0 && plain(&done), "{done:?}");
    for text in ["1. Starting a daemon", "\nOnce upon a time", "tokens/s", "  ready  ", "It ended cleanly"] {
        assert!(done.out.contains(text), "{text:?} is missing in\n{}", done.out);
    }
    let done = run(nowhere, &["demo", "--model", "/nonexistent.gguf"], "").await;
    assert!(done.code != 0 && done.err.contains("/nonexistent.gguf"), "{done:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn complete_streams_or_waits() {
    let fake = Fake::start();
    assert_eq!(fake.run(&["complete", "oracle", "Once upon"]).await.out, " a time there was\n");
    assert_eq!(run(&fake.socket, &["complete", "oracle", "--no-stream"], "Once").await.out, " whole\n");
    assert_eq!(json(&fake.run(&["complete", "oracle", "x", "--json"]).await)["choices"][0]["text"], " whole");
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_and_events() {
    let fake = Fake::start();
    assert_eq!(fake.run(&["logs", "oracle", "-n", "5", "-f"]).await.out, "first line\nsecond linü\n");
    assert!(fake.got("GET /control/v1/logs?lines=5&model=oracle&follow=true"));
    let done = fake.run(&["events"]).await;
    assert_eq!(done.code, 0, "{done:?}");
    assert!(done.out.contains(" spare loading  50.0 MiB of 100 MiB  50%  95.4 MiB/s  0.5s left\n"), "{done:?}");
    assert!(
        done.out.contains(" configuration read: added new\n") && done.out.contains(" the daemon is stopping\n"),
        "{done:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_an_exit_status() {
    let fake = Fake::start();
    let done = fake.run(&["health"]).await;
    assert_eq!((done.code, done.out.as_str(), done.err.as_str()), (0, "ok\n", ""));
    let done = fake.run(&["health", "--ready"]).await;
    assert_eq!((done.code, done.out.as_str(), done.err.as_str()), (1, "failed: the daemon is stopping\n", ""));
    let done = run(Path::new("/nonexistent/omni.sock"), &["health"], "").await;
    assert_eq!((done.code, done.out.lines().count()), (1, 1), "{done:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn says_what_to_do_without_a_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let absent = dir.path().join("none.sock");
    let stale = dir.path().join("stale.sock");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    for (socket, args) in [
        (&absent, vec!["status"]),
        (&stale, vec!["ps"]),
        (&absent, vec!["load", "x"]),
        (&absent, vec!["chat", "x", "y"]),
    ] {
        let done = run(socket, &args, "").await;
        assert_eq!((done.code, done.out.as_str()), (3, ""), "{done:?}");
        assert!(
            done.err.contains("cannot reach omni-inferd at") && done.err.contains("is it running? start it with"),
            "{done:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_answers_are_no_panic() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let answers: [&[u8]; 5] = [
        b"",
        b"\x00\xff nonsense",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n{\"a\"",
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nnot json!",
        b"HTTP/1.1 500 Oops\r\ncontent-length: 5\r\n\r\n<html",
    ];
    for answer in answers {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("odd.sock");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                _ = stream.read(&mut [0; 4096]).await;
                _ = stream.write_all(answer).await;
            }
        });
        let done = run(&socket, &["status"], "").await;
        assert!(done.code == 1 && done.err.starts_with("omnictl: ") && !done.err.contains("panicked"), "{done:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_pipe_is_no_failure() {
    let fake = Fake::start();
    let mut command = Command::new("sh");
    command
        .args(["-c", "\"$0\" --socket \"$1\" status | true; echo \"$?\""])
        .arg(env!("CARGO_BIN_EXE_omnictl"))
        .arg(&fake.socket);
    let done = tokio::task::spawn_blocking(move || fake::finish(command, "")).await.unwrap();
    assert!(!done.err.contains("panicked") && done.err.is_empty(), "{done:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_on_files_need_no_daemon() {
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/models/omni-stories-q8_0.gguf");
    let nowhere = Path::new("/nonexistent/omni.sock");
    let done = run(nowhere, &["inspect", model, "--json"], "").await;
    assert!(done.code == 0 && json(&done).to_string().contains("qwen3"), "{done:?}");
    let ids = run(nowhere, &["tokenize", model], "Once upon a time").await;
    assert!(ids.code == 0 && json(&ids).as_array().is_some_and(|ids| !ids.is_empty()), "{ids:?}");
    let text = run(nowhere, &["detokenize", model], &ids.out).await;
    assert_eq!(text.out.trim_end_matches('\n'), "Once upon a time");
    let out = tempfile::tempdir().unwrap();
    let npy = out.path().join("logits.npy");
    let npy = npy.to_str().unwrap();
    let done = run(nowhere, &["logits", model, "--tokens", "1,2,3", "--output", npy], "").await;
    assert!(done.code == 0 && std::fs::metadata(npy).unwrap().len() > 3 * 2048 * 4, "{done:?}");
    assert!(done.out.starts_with(npy) && done.out.contains("float32 [3, "), "{done:?}");
    let done = run(nowhere, &["logits", model, "--tokens", "1,2", "--output", npy, "--json"], "").await;
    assert_eq!((&json(&done)["output"], &json(&done)["shape"][0]), (&npy.into(), &2.into()), "{done:?}");
    let absent = "/nonexistent.gguf";
    let logits = ["logits", absent, "--tokens", "1", "--output", npy];
    for args in [&["inspect", absent][..], &["tokenize", absent], &["bench", absent], &logits] {
        let done = run(nowhere, args, "").await;
        assert_eq!(done.code, 4, "{done:?}");
    }
    let done = run(nowhere, &["bench", model, "--load", "--json"], "").await;
    assert!(done.code == 0 && json(&done)["bytes"].as_u64() > Some(1 << 20), "{done:?}");
    assert!(json(&done)["peak_resident"].as_u64() >= json(&done)["bytes"].as_u64(), "{done:?}");
    let picture = out.path().join("speed.svg");
    let line =
        ["bench", "--shape", "tiny", "-p", "8", "-n", "2", "-r", "1", "--csv", "--plot", picture.to_str().unwrap()];
    let done = run(nowhere, &line, "").await;
    assert!(done.code == 0 && done.out.lines().count() == 3 && plain_csv(&done.out), "{done:?}");
    assert!(std::fs::read_to_string(picture).unwrap().starts_with("<svg "));
    let done = run(nowhere, &["bench", model, "-p", "0", "-n", "0"], "").await;
    assert!(done.code == 2 && done.err.contains("nothing to measure"), "{done:?}");
    assert_eq!(run(nowhere, &["--help"], "").await.out.matches("the daemon cannot be reached").count(), 1);
    assert_eq!(run(nowhere, &["nonsense"], "").await.code, 2);
}

/// Every line has as many fields as the head; the model's name is quoted for its comma.
fn plain_csv(text: &str) -> bool {
    let unquoted = |line: &str| line.split('"').step_by(2).collect::<String>().split(',').count();
    let mut lines = text.lines();
    let head = lines.next().map_or(0, unquoted);
    head > 15 && lines.all(|line| unquoted(line) == head && line.contains("\"tiny q4_k_m, random\""))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_vault_is_shown_verified_and_emptied() {
    let fake = Fake::start();
    let done = fake.run(&["vault"]).await;
    assert!(
        done.code == 0 && ["0123456789abcdef", "3.00 MiB", "oracle", "the daemon"].iter().all(|w| done.out.contains(w))
    );
    assert_eq!(json(&fake.run(&["vault", "list", "--json"]).await)["images"][0]["stored"], true);
    assert_eq!(fake.run(&["vault", "verify"]).await.out, "1 image sound, 0 damaged\n");
    let done = fake.run(&["vault", "verify", "bad"]).await;
    assert!(done.code == 1 && done.err.contains("tensor x is damaged"), "{done:?}");
    let done = fake.run(&["vault", "evict"]).await;
    assert_eq!(done.out, "let go of 1 image, 3.00 MiB; oracle keeps the memory until it is unloaded\n");
    assert_eq!(json(&fake.run(&["vault", "evict", "--json"]).await)["bytes"], 3 << 20);
}
