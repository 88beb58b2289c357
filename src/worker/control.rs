//! The worker's end of the control channel: what to load, then commands in and reports out.
//!
//! A thread of its own reads commands, so that `stop` and the daemon's death end the process at once, whatever else it
//! does (loading may block for minutes).

use super::protocol::{Command, Report, Spec};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// Longest line of the channel.
const LINE_BYTES: u64 = 1 << 20;
/// A daemon that reads nothing for so long has gone, whatever the channel says.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// Writes reports, one JSON object per line.
#[derive(Debug)]
pub(super) struct Reporter {
    stream: Mutex<UnixStream>,
}

impl Reporter {
    /// Sends a report. One that cannot be sent is logged only: the reading end decides when the worker ends.
    pub(super) fn send(&self, report: &Report) {
        let result = serde_json::to_vec(report).map_err(io::Error::other).and_then(|mut line| {
            line.push(b'\n');
            self.stream.lock().unwrap_or_else(PoisonError::into_inner).write_all(&line)
        });
        if let Err(error) = result {
            tracing::warn!(%error, "a report did not reach the daemon");
        }
    }
}

/// What the daemon has told so far. Dropping it means that the worker's work is over: the channel's end is then nothing
/// to react to.
#[derive(Debug)]
pub(super) struct Control {
    drain: watch::Receiver<bool>,
    over: Arc<AtomicBool>,
}

impl Control {
    /// Resolves when the worker is to finish what it does and end.
    pub(super) async fn drained(mut self) {
        // An error: the reading thread is gone, and the process with it.
        let _ = self.drain.wait_for(|drain| *drain).await;
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
    }
}

/// Reads what to load and starts to listen for commands.
///
/// # Errors
/// The channel ended or its first line is no [`Spec`].
pub(super) fn begin(stream: UnixStream) -> io::Result<(Spec, Reporter, Control)> {
    stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
    let mut lines = BufReader::new(stream.try_clone()?);
    let line = next_line(&mut lines)?.ok_or(io::ErrorKind::UnexpectedEof)?;
    let spec = serde_json::from_slice(&line).map_err(io::Error::other)?;
    let (sender, drain) = watch::channel(false);
    let over = Arc::new(AtomicBool::new(false));
    let control = Control { drain, over: over.clone() };
    std::thread::Builder::new().name("control".into()).spawn(move || listen(lines, &sender, &over))?;
    Ok((spec, Reporter { stream: Mutex::new(stream) }, control))
}

fn listen(mut lines: BufReader<UnixStream>, drain: &watch::Sender<bool>, over: &AtomicBool) {
    let status = loop {
        let line = match next_line(&mut lines) {
            Ok(Some(line)) => line,
            // The daemon is gone: nobody will ever connect again.
            Ok(None) => break super::EXIT_OK,
            Err(error) => {
                tracing::error!(%error, "the control channel failed");
                break super::EXIT_FAILED;
            }
        };
        match serde_json::from_slice(&line) {
            Ok(Command::Drain) => drop(drain.send(true)),
            Ok(Command::Stop) => break super::EXIT_OK,
            Err(error) => tracing::warn!(%error, "a command of the daemon was not understood"),
        }
    };
    if !over.load(Ordering::SeqCst) {
        std::process::exit(status);
    }
}

/// The next line without its end; `None` at the end of the channel.
fn next_line(lines: &mut BufReader<UnixStream>) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    lines.take(LINE_BYTES).read_until(b'\n', &mut line)?;
    match line.pop() {
        None => Ok(None),
        Some(b'\n') => Ok(Some(line)),
        Some(_) if line.len() as u64 + 1 >= LINE_BYTES => {
            Err(io::Error::other(format!("a line of more than {LINE_BYTES} bytes")))
        }
        // Half a line and then the end: the writer died.
        Some(_) => Ok(None),
    }
}
