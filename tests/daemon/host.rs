//! The daemon and its host: sockets, signals, the service manager, users.

use super::harness::{PATIENCE, QUICK, Setup, daemon, send, wait_for};
use nix::sys::signal::Signal;
use serde_json::json;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const NOBODY: u32 = 65_534;

fn root() -> bool {
    nix::unistd::geteuid().is_root()
}

#[test]
fn sigterm_lets_streams_finish_and_refuses_new_requests() {
    let mut daemon = daemon(&[("oracle", "", "preload = true")]);
    daemon.wait_state("oracle", "ready");
    let mut stream = daemon.complete(json!({"stream": true, "tokens": 60, "delay_ms": 10}));
    stream.chunk().unwrap();
    daemon.signal(Signal::SIGTERM);
    wait_for("draining", || daemon.get("/health").json()["status"] == "draining");
    let refused = daemon.post("/v1/completions", &json!({}));
    assert_eq!((refused.status, refused.json()["error"]["code"].as_str()), (503, Some("shutting_down")));
    assert!(refused.header("retry-after").is_some());
    assert_eq!(daemon.get("/ready").status, 503);
    let answer = stream.finish();
    assert!(answer.body.ends_with("data: [DONE]\n\n"), "{answer:?}");
    assert_eq!(daemon.wait().code(), Some(0));
    assert!(!daemon.socket.exists());
    assert!(!daemon.directory.path().join("omni.sock.d").exists());
}

#[test]
fn streams_that_outlast_the_drain_are_cut_and_a_second_signal_ends_at_once() {
    let quick = QUICK.replace("drain_timeout = \"5s\"", "drain_timeout = \"300ms\"");
    let mut daemon = Setup::new(&quick, &[("oracle", "", "")]).start();
    let mut stream = daemon.complete(json!({"stream": true, "tokens": 100_000, "delay_ms": 10}));
    stream.chunk().unwrap();
    daemon.signal(Signal::SIGTERM);
    assert!(stream.finish().body.contains("\"error\""));
    assert_eq!(daemon.wait().code(), Some(0));

    let mut daemon = super::harness::daemon(&[("oracle", "", "")]);
    let mut stream = daemon.complete(json!({"stream": true, "tokens": 100_000, "delay_ms": 10}));
    stream.chunk().unwrap();
    daemon.signal(Signal::SIGINT);
    daemon.signal(Signal::SIGINT);
    wait_for("draining", || daemon.get("/health").json()["status"] == "draining");
    std::thread::sleep(Duration::from_millis(150));
    assert!(stream.chunk().is_some(), "two at once are one order");
    let start = Instant::now();
    daemon.signal(Signal::SIGINT);
    assert_eq!(daemon.wait().code(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(4));
}

#[test]
fn one_daemon_per_socket_and_stale_files_do_not_matter() {
    let mut first = daemon(&[]);
    let mut again = Command::new(env!("CARGO_BIN_EXE_omni-inferd"));
    again.arg("--config").arg(first.directory.path().join("config.toml")).stderr(Stdio::piped());
    let output = again.output().unwrap();
    assert_eq!(output.status.code(), Some(75));
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(message.contains("is served by another process"), "{message}");
    assert_eq!(first.get("/health").status, 200);
    // Killed, it leaves its file behind.
    first.child.kill().unwrap();
    first.wait();
    assert!(first.socket.exists());
    let mut second = again.stderr(Stdio::null()).spawn().unwrap();
    wait_for("the successor", || {
        std::os::unix::net::UnixStream::connect(&first.socket).is_ok()
            && send(&first.socket, "GET", "/health", None).finish().status == 200
    });
    second.kill().unwrap();
    second.wait().unwrap();
}

/// The service manager's side of the notification socket.
struct Manager {
    socket: UnixDatagram,
    heard: String,
}

impl Manager {
    fn wait(&mut self, line: &str) {
        let start = Instant::now();
        let mut buffer = [0; 4096];
        while !self.heard.lines().any(|heard| heard.starts_with(line)) {
            assert!(start.elapsed() < PATIENCE, "no {line} in:\n{}", self.heard);
            if let Ok(length) = self.socket.recv(&mut buffer) {
                self.heard += std::str::from_utf8(&buffer[..length]).unwrap();
            }
        }
    }
}

#[test]
fn the_service_manager_is_kept_informed() {
    let setup = Setup::new(QUICK, &[("oracle", "", "preload = true")]);
    let socket = UnixDatagram::bind(setup.path("notify")).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let mut manager = Manager { socket, heard: String::new() };
    let mut command = setup.command();
    command.env("NOTIFY_SOCKET", setup.path("notify")).env("WATCHDOG_USEC", "600000");
    let mut daemon = setup.start_as(command);
    manager.wait("READY=1");
    manager.wait("WATCHDOG=1");
    manager.wait("STATUS=oracle ready");
    manager.heard.clear();
    daemon.signal(Signal::SIGHUP);
    manager.wait("RELOADING=1");
    manager.wait("MONOTONIC_USEC=");
    manager.wait("READY=1");
    manager.heard.clear();
    manager.wait("WATCHDOG=1");
    daemon.signal(Signal::SIGTERM);
    manager.wait("STOPPING=1");
    assert_eq!(daemon.wait().code(), Some(0));
}

/// Starts the daemon as systemd does with socket activation: the listener is descriptor 3.
fn activated(setup: &Setup, mode: u32) -> (UnixListener, Command) {
    let path = setup.path("omni.sock");
    let listener = UnixListener::bind(&path).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    let mut command = Command::new("/bin/sh");
    let daemon = format!(
        "LISTEN_PID=$$ LISTEN_FDS=1 exec '{}' --config '{}' --worker-program '{}' 3<&0 </dev/null",
        env!("CARGO_BIN_EXE_omni-inferd"),
        setup.path("config.toml").display(),
        setup.path("worker.sh").display()
    );
    command.arg("-c").arg(daemon).stdin(Stdio::from(std::os::fd::OwnedFd::from(listener.try_clone().unwrap())));
    command.stderr(File::create(setup.path("log")).unwrap());
    (listener, command)
}

#[test]
fn an_inherited_socket_is_served_and_left_in_place() {
    let setup = Setup::new(QUICK, &[("oracle", "", "")]);
    let (_listener, command) = activated(&setup, 0o600);
    let mut daemon = setup.start_as(command);
    assert_eq!(daemon.post("/v1/completions", &json!({})).status, 200);
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait().code(), Some(0));
    assert!(daemon.socket.exists(), "it belongs to the service manager");
}

/// Set for [`stranger`]: the socket to ask.
const ASK: &str = "OMNI_TEST_ASK_SOCKET";

/// Runs as another user when started as one; prints two statuses.
#[test]
fn stranger() {
    if let Some(socket) = std::env::var_os(ASK) {
        let ask = |path| send(socket.as_ref(), "GET", path, None).finish();
        eprintln!("{} {} {}", ask("/health").status, ask("/v1/models").status, ask("/control/v1/status").status);
    }
}

#[test]
fn strangers_may_only_ask_for_health() {
    if !root() {
        eprintln!("skipped: only root can be somebody else");
        return;
    }
    let ask = |groups: &str, daemon_settings: &str| {
        let setup = Setup::new(&format!("{QUICK}{daemon_settings}"), &[]);
        std::fs::set_permissions(setup.directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let (_listener, command) = activated(&setup, 0o666);
        let daemon = setup.start_as(command);
        // The test binary itself may lie where nobody may look.
        let copy = daemon.directory.path().join("stranger");
        std::fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
        std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut stranger = Command::new(&copy);
        stranger.args(["--exact", "host::stranger", "--nocapture"]).env(ASK, &daemon.socket);
        stranger.uid(NOBODY).gid(groups.parse().unwrap()).current_dir("/");
        let output = stranger.output().unwrap();
        String::from_utf8_lossy(&output.stderr).trim().to_owned()
    };
    let group = |name: &str| nix::unistd::Group::from_name(name).unwrap().map(|group| group.gid.to_string());
    assert_eq!(ask(&NOBODY.to_string(), ""), "200 403 403");
    if let (Some(games), Some(news)) = (group("games"), group("news")) {
        let settings = "group = \"games\"\nadmin_group = \"news\"\n";
        assert_eq!(ask(&games, settings), "200 200 403");
        assert_eq!(ask(&news, settings), "200 200 200");
    }
}

#[test]
fn an_ordinary_user_needs_no_configuration() {
    let directory = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_omni-inferd"));
    command.env_remove("RUNTIME_DIRECTORY").env("XDG_RUNTIME_DIR", directory.path()).stderr(Stdio::piped());
    if root() {
        let copy = directory.path().join("daemon");
        std::fs::copy(env!("CARGO_BIN_EXE_omni-inferd"), &copy).unwrap();
        std::os::unix::fs::chown(directory.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        let mut other = Command::new(copy);
        other.env_remove("RUNTIME_DIRECTORY").env("XDG_RUNTIME_DIR", directory.path()).stderr(Stdio::piped());
        other.uid(NOBODY).gid(NOBODY).current_dir("/");
        command = other;
    }
    let mut child = command.spawn().unwrap();
    let socket = directory.path().join("omni-inferd/omni.sock");
    wait_for("the socket", || socket.exists() && std::os::unix::net::UnixStream::connect(&socket).is_ok());
    assert_eq!(std::fs::metadata(&socket).unwrap().mode() & 0o777, 0o600);
    assert_eq!(send(&socket, "GET", "/v1/models", None).finish().json()["data"], json!([]));
    let answer = send(&socket, "POST", "/v1/completions", Some(&json!({}))).finish();
    assert_eq!(answer.status, 404, "{answer:?}");
    super::harness::kill(child.id() as i32, Signal::SIGTERM);
    let mut log = String::new();
    child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let line = format!("listens on {}", socket.display());
    assert_eq!(log.lines().filter(|logged| logged.contains(&line)).count(), 1, "{log}");
}

#[test]
fn check_prints_a_summary_or_the_mistakes() {
    let setup = Setup::new(QUICK, &[("oracle", "", "preload = true")]);
    let run = || setup.command().arg("--check").stderr(Stdio::piped()).output().unwrap();
    let output = run();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(text.starts_with("ok: ") && text.contains("oracle") && text.contains("loaded at start"), "{text}");
    std::fs::remove_file(setup.path("oracle.gguf")).unwrap();
    let output = run();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(78));
    assert!(text.contains("model[0].path:") && text.contains("No such file"), "{text}");
}

#[test]
fn a_socket_that_is_deleted_under_the_daemon_is_bound_again() {
    let mut daemon = daemon(&[("oracle", "", "preload = true")]);
    daemon.wait_state("oracle", "ready");
    let socket = daemon.socket.clone();
    let reachable = || reachable_at(&socket);
    let mut stream = daemon.complete(json!({"stream": true, "tokens": 100_000, "delay_ms": 5}));
    stream.chunk().unwrap();
    std::fs::remove_file(&daemon.socket).unwrap();
    wait_for("the socket", reachable);
    assert!(stream.chunk().is_some(), "what runs goes on");
    drop(stream);
    // Replaced by one that nobody serves, and the workers' directory with it.
    std::fs::remove_file(&daemon.socket).unwrap();
    drop(UnixListener::bind(&daemon.socket).unwrap());
    std::fs::remove_dir_all(daemon.directory.path().join("omni.sock.d")).unwrap();
    wait_for("the socket again", reachable);
    assert_eq!(daemon.post("/v1/chat/completions", &json!({})).status, 200);
    assert!(daemon.log().contains("is bound again"), "{}", daemon.log());
    // Another one serves there now: it keeps its place, also at the end.
    std::fs::remove_file(&daemon.socket).unwrap();
    let _other = UnixListener::bind(&daemon.socket).unwrap();
    wait_for("the refusal", || daemon.log().contains("cannot be bound again"));
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait().code(), Some(0));
    assert!(reachable_at(&daemon.socket), "the other's socket is left alone");
}

fn reachable_at(socket: &std::path::Path) -> bool {
    std::os::unix::net::UnixStream::connect(socket).is_ok()
}
