//! `demo`: the whole path in one command, for somebody who has just built the project: starts a daemon on a private
//! socket, waits for the model, streams a story, shows the status, stops the daemon and checks that it ended well.

use super::chat;
use super::client::Client;
use super::error::Error;
use super::models;
use super::output::Output;
use super::progress::Bar;
use crate::api::control::{ModelState, ModelStatus, Status};
use clap::Args;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use std::collections::VecDeque;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// The bundled model.
const MODEL: &str = "models/omni-stories-q8_0.gguf";
/// How long the daemon may take to start, the model to load, and both to stop.
const PATIENCE: Duration = Duration::from_secs(120);
/// Lines of the daemon's log that are kept to explain a failure.
const LOG_LINES: usize = 30;

/// Options of `demo`.
#[derive(Clone, Debug, Args)]
pub struct Demo {
    /// GGUF file to serve [default: the bundled story model]
    #[arg(long, value_name = "FILE")]
    pub model: Option<PathBuf>,
    /// Beginning of the story
    #[arg(default_value = "Once upon a time, there was a little robot")]
    pub prompt: String,
    /// Tokens to write at most
    #[arg(long, value_name = "N", default_value_t = 200)]
    pub max_tokens: u32,
}

/// Runs the demonstration.
pub async fn demo(args: Demo, out: Output) -> Result<(), Error> {
    let model = args.model.clone().map_or_else(bundled_model, Ok)?;
    let daemon = sibling("omni-inferd")?;
    let directory = PrivateDir::new()?;
    let client = Client::new(directory.0.join("omni.sock"));
    let step = |text: &str| out.line(&out.bold(text));

    step(&format!(
        "1. Starting a daemon: omni-inferd serve {} --socket {}",
        model.display(),
        client.socket().display()
    ))?;
    let mut running = Running::start(&daemon, &model, client.socket())?;
    let ready = tokio::select! {
        ready = wait_ready(&client, &mut running) => ready?,
        _ = tokio::signal::ctrl_c() => return Err(Error::Interrupted),
    };
    step(&format!("2. Model {} is ready; it continues: {:?}", ready.id, args.prompt))?;
    let body = json!({
        "model": ready.id, "prompt": args.prompt, "max_tokens": args.max_tokens, "temperature": 0.8, "top_p": 0.95,
        "seed": 7, "stream": true, "echo": true, "stream_options": {"include_usage": true},
    });
    let begin = Instant::now();
    let (pieces, timings) = tokio::select! {
        streamed = chat::stream_text(&client, &body, Output { json: false, ..out }) => streamed?,
        _ = tokio::signal::ctrl_c() => return Err(Error::Interrupted),
    };
    let speed = timings.map_or(pieces as f64 / begin.elapsed().as_secs_f64(), |timings| timings.predicted_per_second);
    out.line(&out.dim(&format!("{speed:.0} tokens/s")))?;

    step("3. omnictl status")?;
    models::status(&client, Output { json: false, ..out }).await?;
    step("4. Stopping the daemon")?;
    running.stop().await?;
    out.line("It ended cleanly. Next: omni-inferd serve YOUR.gguf, then omnictl chat auto")
}

/// The bundled model, seen from a checkout or from where the package puts it.
fn bundled_model() -> Result<PathBuf, Error> {
    let binary = std::env::current_exe()?;
    // target/debug/omnictl lies three below the checkout.
    let near = binary.ancestors().skip(1).take(4).map(|directory| directory.join(MODEL));
    let installed = Path::new("/usr/share/omni-inferd").join(MODEL);
    let found = std::iter::once(PathBuf::from(MODEL)).chain(near).chain([installed]).find(|path| path.is_file());
    found.ok_or_else(|| Error::NotFound(format!("the bundled model {MODEL} is not here; name a file with --model")))
}

/// A program in the directory of this one.
fn sibling(name: &str) -> Result<PathBuf, Error> {
    let path = std::env::current_exe()?.with_file_name(name);
    if path.is_file() {
        return Ok(path);
    }
    Err(Error::NotFound(format!("{} is not there; build it with cargo build, or install the package", path.display())))
}

/// A directory that only this user can enter, removed at the end.
struct PrivateDir(PathBuf);

impl PrivateDir {
    fn new() -> Result<Self, Error> {
        let path = crate::config::paths::temporary_dir().join(format!("omni-demo-{}", std::process::id()));
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(|error| Error::Failed(format!("cannot create {}: {error}", path.display())))?;
        Ok(PrivateDir(path))
    }
}

impl Drop for PrivateDir {
    fn drop(&mut self) {
        _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The daemon as a child. Dropping it kills the child.
struct Running {
    child: Child,
    log: Arc<Mutex<VecDeque<String>>>,
}

impl Running {
    fn start(daemon: &Path, model: &Path, socket: &Path) -> Result<Self, Error> {
        let mut child = Command::new(daemon)
            .arg("serve")
            .arg(model)
            .arg("--socket")
            .arg(socket)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // Ctrl-C is for the demonstration, which then stops the daemon in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| Error::Failed(format!("cannot start {}: {error}", daemon.display())))?;
        let log = Arc::new(Mutex::new(VecDeque::new()));
        if let Some(stderr) = child.stderr.take() {
            let log = log.clone();
            tokio::spawn(async move {
                let mut lines = BufReader::new(stderr).lines();
                while let Ok(Some(line)) = lines.next_line().await {
                    let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
                    log.push_back(line);
                    if log.len() > LOG_LINES {
                        log.pop_front();
                    }
                }
            });
        }
        Ok(Running { child, log })
    }

    /// An error with the last lines of the daemon's log.
    async fn failed(&self, what: &str) -> Error {
        // The last lines may still be on their way.
        tokio::time::sleep(Duration::from_millis(100)).await;
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let lines: String = log.iter().map(|line| format!("\n  {line}")).collect();
        Error::Failed(if lines.is_empty() { what.into() } else { format!("{what}; its last words:{lines}") })
    }

    /// Ends the daemon as a service manager would, and checks how it went.
    async fn stop(mut self) -> Result<(), Error> {
        if let Some(pid) = self.child.id().and_then(|pid| i32::try_from(pid).ok()) {
            kill(Pid::from_raw(pid), Signal::SIGTERM).map_err(std::io::Error::from)?;
        }
        match tokio::time::timeout(PATIENCE, self.child.wait()).await {
            Ok(status) if status.as_ref().is_ok_and(std::process::ExitStatus::success) => Ok(()),
            Ok(status) => Err(self.failed(&format!("the daemon ended badly: {}", status?)).await),
            Err(_) => Err(self.failed(&format!("the daemon did not end within {} s", PATIENCE.as_secs())).await),
        }
    }
}

/// Waits until the daemon serves its one model.
async fn wait_ready(client: &Client, running: &mut Running) -> Result<ModelStatus, Error> {
    let bar = Bar::new("loading");
    let begin = Instant::now();
    loop {
        if let Some(status) = running.child.try_wait()? {
            return Err(running.failed(&format!("the daemon ended early: {status}")).await);
        }
        let model = client.get::<Status>(models::STATUS).await.ok().and_then(|status| status.models.into_iter().next());
        match model {
            Some(model) if model.state == ModelState::Ready => {
                bar.finish();
                return Ok(model);
            }
            Some(model) if model.state == ModelState::Failed => {
                let reason = model.error.unwrap_or_default();
                return Err(running.failed(&format!("the model was not loaded: {reason}")).await);
            }
            Some(model) => bar.show(&model),
            None => {}
        }
        if begin.elapsed() > PATIENCE {
            return Err(running.failed(&format!("the model was not ready within {} s", PATIENCE.as_secs())).await);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
