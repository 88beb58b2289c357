//! A daemon in a directory of its own, and a client for it: HTTP/1.1 over the Unix socket, nothing hidden.

use serde_json::Value;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Settings that make a test quick.
pub const QUICK: &str = "[daemon]\nheartbeat_timeout = \"700ms\"\nrestart_backoff = \"20ms\"\n\
    restart_backoff_max = \"100ms\"\nrestart_limit = 1000\ndrain_timeout = \"5s\"\nload_timeout = \"5s\"\nlog = \"debug\"\n";

/// Nothing here takes so long unless it hangs.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub struct Daemon {
    pub child: Child,
    pub socket: PathBuf,
    pub directory: tempfile::TempDir,
}

/// A directory with a configuration, model files and the wrapper that starts fake workers.
pub struct Setup {
    pub directory: tempfile::TempDir,
}

impl Setup {
    /// `models`: id, behaviour, further lines of its block.
    pub fn new(daemon: &str, models: &[(&str, &str, &str)]) -> Self {
        let setup = Self { directory: tempfile::tempdir().unwrap() };
        let wrapper = setup.path("worker.sh");
        let this = std::env::current_exe().unwrap();
        let script = format!(
            "#!/bin/sh\n{}=1 exec '{}' --exact fake::fake_worker --nocapture >/dev/null\n",
            super::fake::ROLE,
            this.display()
        );
        std::fs::write(&wrapper, script).unwrap();
        std::fs::set_permissions(&wrapper, std::fs::Permissions::from_mode(0o755)).unwrap();
        setup.configure(daemon, models);
        setup
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn configure(&self, daemon: &str, models: &[(&str, &str, &str)]) {
        configure(self.directory.path(), daemon, models);
    }

    pub fn command(&self) -> Command {
        command(self.directory.path())
    }

    pub fn start(self) -> Daemon {
        let command = self.command();
        self.start_as(command)
    }

    pub fn start_as(self, mut command: Command) -> Daemon {
        let child = command.spawn().unwrap();
        let mut daemon = Daemon { child, socket: self.path("omni.sock"), directory: self.directory };
        wait_for("the socket", || {
            assert!(daemon.child.try_wait().unwrap().is_none(), "the daemon ended:\n{}", daemon.log());
            UnixStream::connect(&daemon.socket).is_ok()
        });
        daemon
    }
}

/// The daemon on a directory that a [`Setup`] made.
pub fn command(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_omni-inferd"));
    command.arg("--config").arg(directory.join("config.toml"));
    command.arg("--worker-program").arg(directory.join("worker.sh"));
    command.stderr(File::options().create(true).append(true).open(directory.join("log")).unwrap());
    command.stdin(Stdio::null());
    command
}

pub fn configure(directory: &Path, daemon: &str, models: &[(&str, &str, &str)]) {
    let mut text = format!("{daemon}socket = \"omni.sock\"\n");
    for (id, behaviour, more) in models {
        std::fs::write(directory.join(format!("{id}.gguf")), behaviour).unwrap();
        text += &format!("[[model]]\nid = \"{id}\"\npath = \"{id}.gguf\"\n{more}\n");
    }
    std::fs::write(directory.join("config.toml"), text).unwrap();
}

/// A quick daemon with these models.
pub fn daemon(models: &[(&str, &str, &str)]) -> Daemon {
    Setup::new(QUICK, models).start()
}

pub fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// An answer read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// As received.
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().skip(1);
        lines.filter_map(|line| line.split_once(": ")).find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, v)| v)
    }
}

/// An answer that is being read.
pub struct Reading {
    reader: BufReader<UnixStream>,
    pub status: u16,
    head: String,
    chunked: bool,
}

impl Reading {
    fn begin(stream: UnixStream) -> Self {
        let mut reader = BufReader::new(stream);
        let mut head = String::new();
        while reader.read_line(&mut head).unwrap_or(0) > 2 {}
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
        Self { reader, status, head, chunked }
    }

    /// One chunk of a chunked body; `None` at its proper end or when it breaks off.
    pub fn chunk(&mut self) -> Option<String> {
        let mut size = String::new();
        self.reader.read_line(&mut size).ok().filter(|read| *read > 0)?;
        let size = usize::from_str_radix(size.trim(), 16).ok()?;
        let mut chunk = vec![0; size + 2];
        self.reader.read_exact(&mut chunk).ok()?;
        chunk.truncate(size);
        (size > 0).then(|| String::from_utf8(chunk).unwrap())
    }

    pub fn finish(mut self) -> Answer {
        let mut body = String::new();
        if self.chunked {
            while let Some(chunk) = self.chunk() {
                body += &chunk;
            }
        } else {
            self.reader.read_to_string(&mut body).unwrap();
        }
        Answer { status: self.status, head: self.head, body }
    }
}

pub fn send(socket: &Path, method: &str, path: &str, body: Option<&Value>) -> Reading {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let body = body.map(Value::to_string).unwrap_or_default();
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    );
    stream.write_all((head + &body).as_bytes()).unwrap();
    Reading::begin(stream)
}

impl Daemon {
    pub fn get(&self, path: &str) -> Answer {
        send(&self.socket, "GET", path, None).finish()
    }

    pub fn post(&self, path: &str, body: &Value) -> Answer {
        send(&self.socket, "POST", path, Some(body)).finish()
    }

    /// A request for a completion, being answered.
    pub fn complete(&self, body: Value) -> Reading {
        send(&self.socket, "POST", "/v1/chat/completions", Some(&body))
    }

    pub fn status(&self, model: &str) -> Value {
        self.get(&format!("/control/v1/models/{model}")).json()
    }

    pub fn state(&self, model: &str) -> String {
        self.status(model)["state"].as_str().unwrap().to_owned()
    }

    pub fn wait_state(&self, model: &str, state: &str) {
        wait_for(&format!("{model} to be {state}; it is {}\n{}", self.state(model), self.log()), || {
            self.state(model) == state
        });
    }

    pub fn load(&self, model: &str) -> Value {
        self.post(&format!("/control/v1/models/{model}/load?wait=true"), &Value::Null).json()
    }

    pub fn pid(&self, model: &str) -> i32 {
        self.status(model)["pid"].as_i64().unwrap() as i32
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        kill(self.child.id() as i32, signal);
    }

    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        wait_for("the daemon's end", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

pub fn kill(pid: i32, signal: nix::sys::signal::Signal) {
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal);
}

pub fn alive(pid: i32) -> bool {
    // A zombie is dead, too.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("the daemon's log:\n{}", self.log());
        }
    }
}
