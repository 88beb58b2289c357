//! One worker process from spawn to exit: its descriptors, its control channel, its standard error. Tells what happens
//! as [`WorkerEvent`]s; decides nothing (that is `lifecycle`'s job). Called by `supervisor`.

use super::lines::next_line;
use super::logs::{LINE_BYTES, Logs};
use super::model::Shared;
use super::vault;
use crate::sys::inherit::COUNT;
use crate::sys::{notify, pass, process};
use crate::worker::protocol::{Command as ControlCommand, Report, Spec};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream as StdUnixStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::Child;
use tokio::sync::{Notify, mpsc, oneshot};

/// Longest line of the control channel.
const REPORT_BYTES: usize = 1 << 20;
/// A worker that closed its control channel, or whose streams others keep open, gets so long.
const LINGER: Duration = Duration::from_secs(2);
/// Reports that wait for the supervisor.
const QUEUE: usize = 64;

/// What is started for each worker: `PATH worker --log FILTER ID` (the id is there to be seen in `ps`).
#[derive(Clone, Debug)]
pub struct Program {
    /// Executable, normally this very one.
    pub path: PathBuf,
    /// The worker's log filter.
    pub log: String,
}

impl Program {
    /// This executable.
    pub fn this(log: &str) -> Self {
        // Replaced by an upgrade while it runs, the file's path leads nowhere; the link in /proc still does.
        let path = std::env::current_exe().ok().filter(|path| path.exists());
        Self { path: path.unwrap_or_else(|| "/proc/self/exe".into()), log: log.into() }
    }
}

/// What a worker does.
#[derive(Debug)]
pub enum WorkerEvent {
    /// It says something.
    Report(Report),
    /// Its process is gone; nothing follows.
    Exited(String),
}

/// A running worker. Dropping it kills the process.
#[derive(Debug)]
pub struct Worker {
    /// Process.
    pub pid: u32,
    /// Of its socket; as the vault knows it.
    pub number: u64,
    /// Where it serves HTTP.
    pub socket: PathBuf,
    events: mpsc::Receiver<WorkerEvent>,
    commands: mpsc::Sender<ControlCommand>,
    kill: Arc<Notify>,
}

impl Worker {
    /// The next event; after [`WorkerEvent::Exited`] nothing.
    pub async fn next(&mut self) -> WorkerEvent {
        let gone = || WorkerEvent::Exited("its supervision ended".into());
        self.events.recv().await.unwrap_or_else(gone)
    }

    /// Tells the worker something; a worker that does not read is left to its heartbeat.
    pub fn tell(&self, command: ControlCommand) {
        let _ = self.commands.try_send(command);
    }

    /// Kills the process and what it started.
    pub fn kill(&self) {
        self.kill.notify_one();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.kill.notify_one();
        let _ = std::fs::remove_file(&self.socket);
    }
}

type Spawned = oneshot::Sender<io::Result<Child>>;

/// The thread that forks. Children get a signal when the thread that forked them ends, so it lives as long as the daemon.
#[derive(Clone, Debug)]
pub struct Spawner {
    queue: std::sync::mpsc::Sender<(Command, Spawned)>,
}

impl Spawner {
    /// Starts the thread; it ends with the last clone, and with it every worker. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// Out of threads.
    pub fn start() -> io::Result<Self> {
        let (queue, jobs) = std::sync::mpsc::channel::<(Command, Spawned)>();
        let runtime = tokio::runtime::Handle::current();
        std::thread::Builder::new().name("spawner".into()).spawn(move || {
            let _context = runtime.enter();
            for (command, answer) in jobs {
                let child = process::occupy_low_descriptors().and_then(|_low| {
                    let mut command = tokio::process::Command::from(command);
                    command.kill_on_drop(true).spawn()
                });
                let _ = answer.send(child);
            }
        })?;
        Ok(Self { queue })
    }

    async fn spawn(&self, command: Command) -> io::Result<Child> {
        let (answer, child) = oneshot::channel();
        let gone = || io::Error::other("the spawning thread has ended");
        self.queue.send((command, answer)).map_err(|_| gone())?;
        child.await.map_err(|_| gone())?
    }
}

/// Starts a worker: binds its private socket, numbered, passes it with the channels, sends the specification.
///
/// # Errors
/// The socket cannot be bound or the process cannot be started.
pub async fn start(shared: &Shared, program: &Program, spec: &Spec, number: u64, logs: &Logs) -> io::Result<Worker> {
    let socket = &shared.run_directory.join(format!("{number}.sock"));
    let _ = std::fs::remove_file(socket);
    if let Some(directory) = socket.parent() {
        // Made at the start; somebody may have cleaned up.
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    let listener = UnixListener::bind(socket)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", socket.display())))?;
    let (ours, theirs) = StdUnixStream::pair()?;
    let (vault, its_end) = pass::pair()?;
    let command = command(program, &spec.id, [listener.into(), theirs.into(), its_end]);
    let mut child = shared.spawner.spawn(command).await.map_err(|error| {
        let _ = std::fs::remove_file(socket);
        io::Error::new(error.kind(), format!("{}: {error}", program.path.display()))
    })?;
    vault::attend(shared.vault.clone(), vault, number, spec.id.clone())?;
    let pid = child.id().unwrap_or_default();
    ours.set_nonblocking(true)?;
    let (read, write) = UnixStream::from_std(ours)?.into_split();

    let (commands, queued) = mpsc::channel(8);
    let mut first = serde_json::to_vec(spec).map_err(io::Error::other)?;
    first.push(b'\n');
    tokio::spawn(write_commands(write, first, queued));
    for pipe in [child.stdout.take().map(Pipe::Out), child.stderr.take().map(Pipe::Err)].into_iter().flatten() {
        tokio::spawn(forward(pipe, spec.id.clone(), logs.clone()));
    }
    let (sender, events) = mpsc::channel(QUEUE);
    let kill = Arc::new(Notify::new());
    tokio::spawn(attend(child, read, sender, kill.clone()));
    Ok(Worker { pid, number, socket: socket.clone(), events, commands, kill })
}

fn command(program: &Program, id: &str, descriptors: [OwnedFd; COUNT]) -> Command {
    let mut command = Command::new(&program.path);
    command.args(["worker", "--log", &program.log, id]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    for variable in notify::VARIABLES {
        command.env_remove(variable);
    }
    process::make_worker(&mut command, descriptors);
    command
}

async fn write_commands(mut write: OwnedWriteHalf, first: Vec<u8>, mut queued: mpsc::Receiver<ControlCommand>) {
    // An error means that the worker is gone; whoever waits for its exit will hear of it.
    if write.write_all(&first).await.is_err() {
        return;
    }
    while let Some(command) = queued.recv().await {
        let Ok(mut line) = serde_json::to_vec(&command) else { continue };
        line.push(b'\n');
        if write.write_all(&line).await.is_err() {
            return;
        }
    }
}

/// Follows the process until it is gone, with every report it managed to send.
async fn attend(mut child: Child, read: OwnedReadHalf, events: mpsc::Sender<WorkerEvent>, kill: Arc<Notify>) {
    let pid = child.id().unwrap_or_default();
    let mut reader = BufReader::new(read);
    let mut open = true;
    let status = loop {
        tokio::select! {
            status = child.wait() => break status,
            () = kill.notified() => process::kill_group(pid),
            line = next_line(&mut reader, REPORT_BYTES), if open => match line {
                Some(line) => report(&line, &events).await,
                None => {
                    open = false;
                    let kill = kill.clone();
                    tokio::spawn(async move {
                        tokio::time::sleep(LINGER).await;
                        kill.notify_one();
                    });
                }
            },
        }
    };
    // What it said last, a refusal for instance, may still lie in the channel; its children may hold that open.
    let rest = async {
        while let Some(line) = next_line(&mut reader, REPORT_BYTES).await {
            report(&line, &events).await;
        }
    };
    if open {
        let _ = tokio::time::timeout(LINGER, rest).await;
    }
    let how = match status {
        Ok(status) => process::describe_exit(status),
        Err(error) => format!("its exit status is unknown: {error}"),
    };
    let _ = events.send(WorkerEvent::Exited(how)).await;
}

async fn report(line: &str, events: &mpsc::Sender<WorkerEvent>) {
    match serde_json::from_str(line) {
        Ok(report) => drop(events.send(WorkerEvent::Report(report)).await),
        Err(error) => tracing::warn!(%error, "a worker's report cannot be read and is ignored"),
    }
}

enum Pipe {
    Out(tokio::process::ChildStdout),
    Err(tokio::process::ChildStderr),
}

/// A worker's output, line by line, into its ring and the daemon's own log.
async fn forward(pipe: Pipe, id: String, logs: Logs) {
    match pipe {
        Pipe::Out(pipe) => forward_lines(BufReader::new(pipe), &id, &logs).await,
        Pipe::Err(pipe) => forward_lines(BufReader::new(pipe), &id, &logs).await,
    }
}

async fn forward_lines(mut reader: impl tokio::io::AsyncBufRead + Unpin, id: &str, logs: &Logs) {
    while let Some(line) = next_line(&mut reader, LINE_BYTES).await {
        let (level, text) = super::log::split_priority(&line);
        super::log::worker_line(level, id, text, logs);
    }
}
