//! Weights that outlive their worker and their daemon: real workers on copies of the bundled model, and a service manager
//! that keeps descriptors as systemd does.

use super::harness::{Daemon, alive, kill, wait_for};
use super::real::{MODEL, SETTINGS, start};
use nix::sys::signal::Signal;
use omni_inferd::sys::{arena, pass};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

/// A directory with a copy of the model and a configuration that loads it at the start.
fn directory(more: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::copy(MODEL, directory.path().join("m.gguf")).unwrap();
    let model = "[[model]]\nid = \"m\"\npath = \"m.gguf\"\nthreads = 1\ncontext = 512\npreload = true\n";
    std::fs::write(directory.path().join("config.toml"), format!("{SETTINGS}{more}\n{model}")).unwrap();
    directory
}

fn daemon(more: &str) -> Daemon {
    start(&["--config", "config.toml"], directory(more))
}

fn text(daemon: &Daemon) -> String {
    let body = json!({"model": "m", "prompt": "Once upon a time", "max_tokens": 24, "temperature": 0});
    let answer = daemon.post("/v1/completions", &body).json();
    answer["choices"][0]["text"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
}

fn images(daemon: &Daemon) -> Vec<Value> {
    daemon.get("/control/v1/vault").json()["images"].as_array().unwrap().clone()
}

fn wait_kept(daemon: &Daemon) -> Value {
    daemon.wait_state("m", "ready");
    wait_for("the weights in the vault", || images(daemon).len() == 1);
    images(daemon).remove(0)
}

/// Kills the worker and waits for the next one; answers how it came by its weights.
fn next_worker(daemon: &Daemon) -> String {
    let old = daemon.pid("m");
    kill(old, Signal::SIGKILL);
    wait_for("the next worker", || {
        let status = daemon.status("m");
        status["pid"].as_i64().is_some_and(|pid| pid != i64::from(old)) && status["state"] == "ready"
    });
    read_by(daemon)
}

fn read_by(daemon: &Daemon) -> String {
    daemon.status("m")["info"]["read_by"].as_str().unwrap().to_owned()
}

#[test]
fn a_killed_workers_weights_are_found_without_the_file() {
    let daemon = daemon("");
    let image = wait_kept(&daemon);
    assert_eq!((&image["models"], &image["stored"]), (&json!(["m"]), &json!(false)));
    assert_ne!(read_by(&daemon), "the vault");
    let before = text(&daemon);
    std::fs::rename(daemon.directory.path().join("m.gguf"), daemon.directory.path().join("away")).unwrap();
    for _ in 0..3 {
        assert_eq!(next_worker(&daemon), "the vault");
        assert_eq!(text(&daemon), before);
    }
    assert!(daemon.log().contains("m.gguf is gone; the model is served from the weights that were kept"));
    // A restart does not wait for them to be counted.
    let pages = || daemon.status("m")["info"]["pages"].as_array().unwrap().clone();
    wait_for("its pages", || !pages().is_empty());
    let on_pages: u64 = pages().iter().map(|on| on["bytes"].as_u64().unwrap()).sum();
    assert_eq!(on_pages, image["bytes"].as_u64().unwrap(), "{:?}", pages());
    assert_eq!(images(&daemon)[0]["id"], image["id"]);
}

/// A daemon with one descriptor left, which the request takes.
#[test]
fn weights_that_cannot_be_verified_now_are_not_called_sound() {
    let daemon = daemon("");
    wait_kept(&daemon);
    let pid = daemon.child.id();
    let limit = |soft: u64| {
        let status = Command::new("prlimit").args(["--pid", &pid.to_string(), &format!("--nofile={soft}:")]).status();
        assert!(status.unwrap().success(), "prlimit of util-linux");
    };
    let open: BTreeSet<u64> = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap())
        .collect();
    limit((0..).find(|number| !open.contains(number)).unwrap() + 1);
    let answer = daemon.post("/control/v1/vault/verify", &Value::Null);
    limit(1024);
    assert_eq!(answer.status, 503, "{}", answer.body);
    assert!(answer.body.contains("cannot be verified now: Too many open files"), "{}", answer.body);
    assert_eq!(daemon.post("/control/v1/vault/verify", &Value::Null).status, 200);
}

#[test]
fn a_file_that_changed_is_read_again() {
    let daemon = daemon("");
    let image = wait_kept(&daemon);
    let (file, before) = (daemon.directory.path().join("m.gguf"), text(&daemon));
    File::options().append(true).open(&file).unwrap().set_modified(std::time::SystemTime::now()).unwrap();
    assert_ne!(next_worker(&daemon), "the vault");
    assert!(daemon.log().contains("m.gguf has changed since"), "{}", daemon.log());
    assert_eq!(text(&daemon), before);
    wait_for("the new image", || images(&daemon).iter().any(|kept| kept["id"] != image["id"]));
    assert_eq!((next_worker(&daemon).as_str(), images(&daemon).len()), ("the vault", 1));
    // Another layout of the same file is another image.
    let config = daemon.directory.path().join("config.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text + "disable_isa = [\"avx512\", \"avx512vnni\", \"avx2\"]\n").unwrap();
    daemon.post("/control/v1/reload", &Value::Null);
    assert_ne!((next_worker(&daemon).as_str(), daemon.status("m")["info"]["isa"].as_str()), ("the vault", Some("")));
}

#[test]
fn weights_that_nobody_uses_are_let_go() {
    let daemon = daemon("vault_ttl = \"2s\"");
    wait_kept(&daemon);
    daemon.post("/control/v1/models/m/unload", &Value::Null);
    wait_for("the weights to be unused", || images(&daemon)[0]["models"] == json!([]));
    assert_eq!(daemon.load("m")["state"], "ready");
    assert_eq!(read_by(&daemon), "the vault");
    daemon.post("/control/v1/models/m/unload", &Value::Null);
    wait_for("the end of vault_ttl", || images(&daemon).is_empty());
    daemon.load("m");
    assert_ne!(read_by(&daemon), "the vault");
    let id = wait_kept(&daemon)["id"].as_str().unwrap().to_owned();
    assert_eq!(daemon.post("/control/v1/vault/verify", &Value::Null).json()["images"][0]["id"], id);
    assert_eq!(daemon.post("/control/v1/vault/evict", &Value::Null).json()["images"], json!([]), "it is in use");
    assert_eq!(daemon.post("/control/v1/vault/evict?id=none", &Value::Null).status, 404);
    let gone = daemon.post(&format!("/control/v1/vault/evict?id={id}"), &Value::Null).json();
    assert_eq!((gone["images"][0]["models"].clone(), images(&daemon).len()), (json!(["m"]), 0));
    assert!(!text(&daemon).is_empty(), "its worker goes on");
}

#[test]
fn without_a_vault_nothing_is_kept() {
    let daemon = daemon("vault = false");
    daemon.wait_state("m", "ready");
    assert_ne!(next_worker(&daemon), "the vault");
    assert!(images(&daemon).is_empty());
}

/// A service manager's descriptor store.
struct Manager {
    notify: PathBuf,
    stored: Arc<Mutex<BTreeMap<String, OwnedFd>>>,
}

impl Manager {
    fn new(directory: &Path) -> Self {
        let notify = directory.join("notify");
        let socket = UnixDatagram::bind(&notify).unwrap();
        let stored: Arc<Mutex<BTreeMap<String, OwnedFd>>> = Arc::default();
        let store = stored.clone();
        std::thread::spawn(move || {
            while let Ok(Some((message, descriptors))) = pass::receive(socket.as_fd(), 4096) {
                let message = String::from_utf8(message).unwrap();
                let field =
                    |key| message.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default().to_owned();
                let mut store = store.lock().unwrap();
                if field("FDSTORE=") == "1" {
                    assert_eq!((field("FDPOLL=").as_str(), descriptors.len()), ("0", 1));
                    store.extend(descriptors.into_iter().map(|descriptor| (field("FDNAME="), descriptor)));
                } else if field("FDSTOREREMOVE=") == "1" {
                    store.remove(&field("FDNAME="));
                }
            }
        });
        Self { notify, stored }
    }

    fn names(&self) -> Vec<String> {
        self.stored.lock().unwrap().keys().cloned().collect()
    }

    /// Starts the daemon as systemd does, with everything that is stored.
    fn start(&self, directory: tempfile::TempDir) -> Daemon {
        let stored = self.stored.lock().unwrap();
        let this = std::process::id();
        let opened: String = (3..)
            .zip(stored.values())
            .map(|(number, descriptor)| format!(" {number}</proc/{this}/fd/{}", descriptor.as_raw_fd()))
            .collect();
        let script = format!("LISTEN_PID=$$ exec '{}' --config config.toml{opened}", env!("CARGO_BIN_EXE_omni-inferd"));
        let mut command = Command::new("/bin/sh");
        command.current_dir(directory.path()).args(["-c", &script]).stdin(Stdio::null());
        command.stderr(File::options().create(true).append(true).open(directory.path().join("log")).unwrap());
        command.env("NOTIFY_SOCKET", &self.notify).env("LISTEN_FDS", stored.len().to_string());
        command.env("LISTEN_FDNAMES", stored.keys().cloned().collect::<Vec<_>>().join(":"));
        let child = command.spawn().unwrap();
        let daemon = Daemon { child, socket: directory.path().join("omni.sock"), directory };
        wait_for("the socket", || std::os::unix::net::UnixStream::connect(&daemon.socket).is_ok());
        drop(stored);
        daemon
    }

    /// Ends a daemon, its worker with it, and starts the next one on the same directory.
    fn restart(&self, mut daemon: Daemon, signal: Signal) -> Daemon {
        let worker = daemon.pid("m");
        daemon.signal(signal);
        daemon.wait();
        wait_for("the worker's end", || !alive(worker));
        let _ = std::fs::remove_file(&daemon.socket);
        let directory = std::mem::replace(&mut daemon.directory, tempfile::tempdir().unwrap());
        drop(daemon);
        self.start(directory)
    }
}

#[test]
fn weights_outlive_the_daemon_and_the_file_is_not_read() {
    let directory = directory("");
    let file = directory.path().join("m.gguf");
    let manager = Manager::new(directory.path());
    let daemon = manager.start(directory);
    let image = wait_kept(&daemon);
    wait_for("the store", || manager.names().len() == 2);
    assert_eq!(image["stored"], true);
    let before = text(&daemon);
    // The same file by every mark, but nothing in it: whoever read it would notice.
    let open = File::options().write(true).open(&file).unwrap();
    let meta = open.metadata().unwrap();
    open.write_all_at(&vec![0; meta.len() as usize], 0).unwrap();
    open.set_modified(meta.modified().unwrap()).unwrap();
    let mut daemon = manager.restart(daemon, Signal::SIGTERM);
    for round in 0..2 {
        daemon.wait_state("m", "ready");
        assert_eq!(read_by(&daemon), "the vault", "{}", daemon.log());
        assert_eq!((text(&daemon), images(&daemon)[0]["id"].clone()), (before.clone(), image["id"].clone()));
        let seconds = daemon.status("m")["load_seconds"].as_f64().unwrap();
        assert!(seconds < 5.0, "round {round}: {seconds} s from spawn to ready, unoptimised and on a busy host");
        if round == 0 {
            daemon = manager.restart(daemon, Signal::SIGKILL);
        }
    }
    wait_for("the checksums", || images(&daemon)[0]["verified_seconds"].is_f64());
    daemon.post("/control/v1/models/m/unload", &Value::Null);
    daemon.post("/control/v1/vault/evict", &Value::Null);
    wait_for("the manager to let go, too", || manager.names().is_empty());
}

#[test]
fn a_damaged_image_is_let_go_and_the_file_read() {
    let directory = directory("");
    let manager = Manager::new(directory.path());
    let daemon = manager.start(directory);
    wait_kept(&daemon);
    let before = text(&daemon);
    wait_for("the store", || manager.names().len() == 2);
    {
        let mut stored = manager.stored.lock().unwrap();
        let (_, segment) = stored.iter_mut().last().unwrap();
        let file = File::from(segment.try_clone().unwrap());
        let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 4;
        *segment = arena::sealed_file(&bytes).unwrap();
    }
    let daemon = manager.restart(daemon, Signal::SIGTERM);
    wait_for("the damage to be seen", || daemon.log().contains("in memory are damaged: tensor "));
    wait_for("the model from its file", || daemon.state("m") == "ready" && read_by(&daemon) != "the vault");
    assert_eq!(text(&daemon), before);
    assert_eq!(wait_kept(&daemon)["stored"], true);
    assert_eq!(daemon.post("/control/v1/vault/verify", &Value::Null).json()["damaged"], json!([]));
}
