//! Connections to the daemon: HTTP/1.1 over its Unix socket, kept and used again. Called by `forward`.

use super::body::RequestBody;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// An idle connection older than this is closed: well before the daemon would, so that no request meets a closing one.
/// A new one costs some microseconds.
const IDLE: Duration = Duration::from_secs(2);
/// Idle connections kept at most.
const MAX_IDLE: usize = 256;
/// How long a full backlog is waited for.
const CONNECT: Duration = Duration::from_secs(3);
/// Read and write buffer of a connection at most, bytes.
const BUFFER: usize = 64 << 10;

/// Why the daemon did not answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection.
    #[error("cannot connect to {}: {source}; is omni-inferd running, and may this user open its socket?", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// It takes connections and answers nothing: stopped, or wedged.
    #[error("the daemon does not answer, nor a question for its health within {within:?}; is it stopped?")]
    Stuck {
        /// What it was given.
        within: Duration,
    },
    /// The connection ended before an answer, or the request's body failed.
    #[error("the daemon gave no answer: {0}")]
    Failed(#[from] hyper::Error),
}

/// The daemon's socket and the idle connections to it, the most recently used last.
pub struct Upstream {
    path: PathBuf,
    idle: Mutex<Vec<(Connection, Instant)>>,
    /// Whether the last attempt to connect failed; each change is logged once.
    down: AtomicBool,
    /// See [`Upstream::stuck`].
    patience: Duration,
    /// When the daemon was last asked for its health, and whether it answered.
    asked: tokio::sync::Mutex<Option<(Instant, bool)>>,
}

impl Upstream {
    /// Connects to nothing yet. `patience`: see [`Upstream::send`].
    pub fn new(path: PathBuf, patience: Duration) -> Arc<Self> {
        let (idle, down, asked) = (Mutex::default(), AtomicBool::new(false), tokio::sync::Mutex::default());
        Arc::new(Upstream { path, idle, down, patience, asked })
    }

    /// Sends a request. An answer may take its time, for a model has to be loaded or a text to be written; but a daemon
    /// that has not begun one within the patience must then answer, within as long again, whether it is well.
    pub async fn send(self: &Arc<Self>, request: Request<RequestBody>) -> Result<(Response<Incoming>, Lease), Error> {
        tokio::select! {
            result = self.exchange(request) => result,
            () = self.stuck() => Err(Error::Stuck { within: self.patience }),
        }
    }

    /// Ends when the daemon turns out to answer nothing.
    async fn stuck(&self) {
        loop {
            tokio::time::sleep(self.patience).await;
            // One question serves all who wait.
            let mut asked = self.asked.lock().await;
            let fresh = asked.filter(|(when, _)| when.elapsed() < self.patience);
            let alive = match fresh {
                Some((_, alive)) => alive,
                None => tokio::time::timeout(self.patience, self.ask()).await.is_ok_and(|answer| answer.is_ok()),
            };
            if fresh.is_none() {
                *asked = Some((Instant::now(), alive));
            }
            if !alive {
                return;
            }
        }
    }

    /// Whatever the daemon says of its health, it answers.
    async fn ask(&self) -> io::Result<()> {
        let mut stream = self.open().await?;
        stream.write_all(b"GET /health HTTP/1.1\r\nHost: omni-inferd\r\nConnection: close\r\n\r\n").await?;
        stream.read_u8().await.map(drop)
    }

    /// Sends a request on an idle connection or a new one. Dropping the future or the [`Lease`] before the answer's end closes the connection, by which
    /// the daemon learns that nobody waits any more.
    async fn exchange(
        self: &Arc<Self>,
        mut request: Request<RequestBody>,
    ) -> Result<(Response<Incoming>, Lease), Error> {
        while let Some(mut connection) = self.take_idle() {
            match connection.sender.try_send_request(request).await {
                Ok(response) => return Ok((response, Lease { connection, pool: self.clone() })),
                // The daemon closed the idle connection before it took the request: nothing is lost, use another.
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(error.into_error().into()),
                },
            }
        }
        let mut connection = self.connect().await?;
        let response = connection.sender.send_request(request).await?;
        Ok((response, Lease { connection, pool: self.clone() }))
    }

    /// Closes connections that were idle too long.
    pub fn prune(&self) {
        self.idle().retain(|(connection, since)| since.elapsed() < IDLE && !connection.sender.is_closed());
    }

    fn idle(&self) -> MutexGuard<'_, Vec<(Connection, Instant)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The most recent idle connection that can take a request now.
    fn take_idle(&self) -> Option<Connection> {
        let mut idle = self.idle();
        let index = idle.iter().rposition(|(connection, since)| {
            since.elapsed() < IDLE && connection.sender.is_ready() && !connection.sender.is_closed()
        })?;
        Some(idle.remove(index).0)
    }

    async fn connect(&self) -> Result<Connection, Error> {
        match self.open().await {
            Ok(stream) => {
                if self.down.swap(false, Ordering::Relaxed) {
                    tracing::info!("the daemon at {} answers again", self.path.display());
                }
                let (sender, driver) =
                    http1::Builder::new().max_buf_size(BUFFER).handshake(TokioIo::new(stream)).await?;
                let task = tokio::spawn(async move {
                    if let Err(error) = driver.await {
                        tracing::debug!("connection to the daemon ended: {error}");
                    }
                });
                Ok(Connection { sender, task })
            }
            Err(source) => {
                let error = Error::Connect { path: self.path.clone(), source };
                if !self.down.swap(true, Ordering::Relaxed) {
                    tracing::error!("{error}");
                }
                Err(error)
            }
        }
    }

    /// A full backlog of a Unix socket is an error at once instead of a wait, so the wait is made here.
    async fn open(&self) -> io::Result<UnixStream> {
        let until = Instant::now() + CONNECT;
        loop {
            match UnixStream::connect(&self.path).await {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < until => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                result => return result,
            }
        }
    }
}

/// One connection. Dropping it closes the socket at once, even in the middle of an answer.
struct Connection {
    sender: SendRequest<RequestBody>,
    task: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A connection in use by one answer.
pub struct Lease {
    connection: Connection,
    pool: Arc<Upstream>,
}

impl Lease {
    /// The answer is complete: the connection may serve the next request.
    pub fn release(self) {
        let Lease { connection, pool } = self;
        let mut idle = pool.idle();
        if idle.len() < MAX_IDLE && !connection.sender.is_closed() {
            idle.push((connection, Instant::now()));
        }
    }
}
