//! The server loop: HTTP/1.1 and HTTP/2 (prior knowledge) on one listener, within limits, until told to stop.
//!
//! `Upgrade: h2c` is ignored (RFC 9113, section 3.1): the request is answered over HTTP/1.1. A connection that sends no
//! whole request header in time, lies idle or takes nothing of its answer for too long, is closed; one beyond the limit
//! is answered 503, and while there are so many, idle ones make room; a handler that panics costs its own request a 500
//! and nothing else.

use super::super::error::ApiError;
use super::Body;
use super::activity::{Activity, Running, Tracked, Watched};
use crate::transport::headers::unmet_expectation;
use crate::transport::{Version, begin};
use futures_util::FutureExt;
use http::{HeaderValue, Request, Response, header};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulConnection;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Bytes a connection may hold of an unread header, and of an unsent answer.
const BUFFER_BYTES: usize = 64 << 10;
/// Requests at once on one HTTP/2 connection.
const MAX_STREAMS: u32 = 256;
/// Connections beyond the limit that are told so; beyond these the kernel's backlog holds them.
const OVERFLOW: usize = 64;
/// While there are as many connections as may be, one without a request in flight is closed after.
const IDLE_IN_A_CROWD: Duration = Duration::from_secs(1);
/// Before a client that takes nothing is cut, it is looked at again after.
const SECOND_LOOK: Duration = Duration::from_millis(500);
/// Refused connections are logged at most so often, however long descriptors are short.
const ACCEPT_WARNING_PAUSE: Duration = Duration::from_secs(10);

/// What one server grants its clients.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Connections at once; further ones are answered 503.
    pub max_connections: usize,
    /// A request's header must arrive within.
    pub header_timeout: Duration,
    /// A connection without a request in flight is closed after.
    pub idle_timeout: Duration,
    /// A client that takes nothing of its answer for so long has gone.
    pub write_timeout: Duration,
    /// After the stop: how long running answers may go on. `None`: until they end.
    pub drain_timeout: Option<Duration>,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_connections: 4096,
            header_timeout: Duration::from_secs(15),
            idle_timeout: Duration::from_secs(120),
            write_timeout: Duration::from_secs(60),
            drain_timeout: None,
        }
    }
}

/// Where connections come from. What it knows of the other side goes into each request's extensions.
pub trait Listener: Send {
    /// A connection.
    type Io: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    /// Who is on its other side.
    type Peer: Clone + Send + Sync + 'static;

    /// The next connection.
    fn accept(&mut self) -> impl Future<Output = std::io::Result<(Self::Io, Self::Peer)>> + Send;
}

/// Credentials of a process on a Unix socket, as the kernel saw them when it connected (`SO_PEERCRED`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// User.
    pub uid: u32,
    /// Its primary group.
    pub gid: u32,
    /// Process.
    pub pid: Option<i32>,
}

impl Listener for tokio::net::UnixListener {
    type Io = tokio::net::UnixStream;
    type Peer = Peer;

    async fn accept(&mut self) -> std::io::Result<(Self::Io, Peer)> {
        let (stream, _) = tokio::net::UnixListener::accept(self).await?;
        let credentials = stream.peer_cred()?;
        let peer = Peer { uid: credentials.uid(), gid: credentials.gid(), pid: credentials.pid() };
        Ok((stream, peer))
    }
}

/// Serves `listener` until `stop` resolves; then takes no further connection, lets running answers finish (bounded by
/// `limits.drain_timeout`) and returns.
pub async fn serve<L, H, F>(mut listener: L, handler: H, limits: Limits, stop: impl Future<Output = ()>)
where
    L: Listener,
    H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let (stopping, stopped) = watch::channel(false);
    let (crowding, crowded) = watch::channel(false);
    // It is over when there is some room again, not at the first one that leaves.
    let enough = limits.max_connections - limits.max_connections / 8;
    let mut connections = JoinSet::new();
    let mut stop = pin!(stop);
    let mut warned: Option<Instant> = None;
    loop {
        let may_accept = connections.len() < limits.max_connections.saturating_add(OVERFLOW);
        tokio::select! {
            () = &mut stop => break,
            accepted = listener.accept(), if may_accept => match accepted {
                Ok((io, peer)) => {
                    while connections.try_join_next().is_some() {}
                    let full = connections.len() >= limits.max_connections;
                    if full {
                        crowding.send_if_modified(|crowded| !std::mem::replace(crowded, true));
                    }
                    let connection = Connection { limits, full, crowded: crowded.clone(), activity: Arc::default() };
                    connections.spawn(connection.run(io, peer, handler.clone(), stopped.clone()));
                }
                Err(error) => {
                    // Out of descriptors, or a peer that left at once: neither may stop or spin the server.
                    if warned.is_none_or(|at| at.elapsed() >= ACCEPT_WARNING_PAUSE) {
                        tracing::warn!(%error, "a connection could not be accepted; raise LimitNOFILE if this lasts");
                        warned = Some(Instant::now());
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            },
            Some(_) = connections.join_next() => {
                if connections.len() < enough {
                    crowding.send_if_modified(|crowded| std::mem::replace(crowded, false));
                }
            }
        }
    }
    drop(listener);
    let _ = stopping.send(true);
    let finish = async { while connections.join_next().await.is_some() {} };
    match limits.drain_timeout {
        Some(timeout) => drop(tokio::time::timeout(timeout, finish).await),
        None => finish.await,
    }
}

struct Connection {
    limits: Limits,
    /// Over the limit: every request is answered 503.
    full: bool,
    /// As many connections as may be are there: idle ones make room.
    crowded: watch::Receiver<bool>,
    activity: Arc<Activity>,
}

impl Connection {
    async fn run<I, P, H, F>(self, io: I, peer: P, handler: H, mut stopped: watch::Receiver<bool>)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        P: Clone + Send + Sync + 'static,
        H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        let activity = self.activity.clone();
        let full = self.full;
        let service = service_fn(move |mut request: Request<Incoming>| {
            let running = Running::new(&activity);
            request.extensions_mut().insert(peer.clone());
            let answer = match (full, unmet_expectation(request.headers())) {
                (true, _) => Err(overloaded()),
                (_, true) => Err(ApiError::expectation_failed().into_response()),
                _ => Ok(AssertUnwindSafe(handler(request)).catch_unwind()),
            };
            async move {
                let response = match answer {
                    Ok(answer) => answer.await.unwrap_or_else(|_| panicked()),
                    Err(refusal) => refusal,
                };
                Ok::<_, std::convert::Infallible>(response.map(|body| Tracked::new(body, running)))
            }
        });
        let asked = async { drop(stopped.wait_for(|stop| *stop).await) };
        let begun = tokio::select! {
            begun = begin(io, asked) => begun,
            () = self.idle() => return,
        };
        // One that ended, or was stopped, before it asked anything.
        let Ok((version, io)) = begun else { return };
        let io = TokioIo::new(Watched::new(io, version, self.activity.clone()));
        let ended = match version {
            Version::Http1 => self.drive(self.http1().serve_connection(io, service), stopped).await,
            Version::Http2 => self.drive(self.http2().serve_connection(io, service), stopped).await,
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection ended early");
        }
    }

    /// Runs a connection until its end, its idleness, or the end of what it does when the server stops.
    async fn drive<C: GracefulConnection<Error = hyper::Error>>(
        &self,
        connection: C,
        mut stopped: watch::Receiver<bool>,
    ) -> Result<(), hyper::Error> {
        let mut connection = pin!(connection);
        let mut idle = pin!(self.idle());
        let mut stop_seen = false;
        loop {
            tokio::select! {
                ended = connection.as_mut() => return ended,
                () = &mut idle => return Ok(()),
                // An error means that the server itself was dropped; its tasks are then being aborted anyway.
                _ = stopped.wait_for(|stop| *stop), if !stop_seen => {
                    stop_seen = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }

    fn http1(&self) -> http1::Builder {
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.header_timeout)
            .max_header_size(BUFFER_BYTES)
            .max_buf_size(BUFFER_BYTES);
        builder
    }

    fn http2(&self) -> http2::Builder<TokioExecutor> {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(BUFFER_BYTES as u32)
            .max_send_buf_size(BUFFER_BYTES)
            .keep_alive_interval(self.limits.idle_timeout)
            .keep_alive_timeout(self.limits.header_timeout);
        builder
    }

    /// Resolves when the connection deserves to be closed: no first request within the header's time, none in flight for
    /// the idle time, or an answer that the client does not take. Covers what hyper does not time: the bytes that tell
    /// HTTP/1 from HTTP/2, and writing.
    async fn idle(&self) {
        let limits = &self.limits;
        let mut crowded = self.crowded.clone();
        let mut overdue = false;
        loop {
            let mut allowed = if self.activity.any() { limits.idle_timeout } else { limits.header_timeout };
            let crowd = *crowded.borrow_and_update();
            // Who is slow to take an answer is not idle.
            if crowd && !self.activity.blocked() {
                allowed = allowed.min(IDLE_IN_A_CROWD);
            }
            let (quiet, stuck) = (self.activity.quiet_for(), self.activity.stuck_for());
            if quiet >= allowed || (overdue && stuck >= limits.write_timeout) {
                return;
            }
            // A second look, for it may be the server that stood still, and its client is only now offered more.
            overdue = stuck >= limits.write_timeout;
            let patience = if overdue { SECOND_LOOK } else { limits.write_timeout - stuck };
            let patience = if crowd { patience.min(IDLE_IN_A_CROWD) } else { patience };
            tokio::select! {
                () = tokio::time::sleep(patience.min(allowed - quiet)) => {}
                Ok(()) = crowded.changed() => {}
            }
        }
    }
}

fn panicked() -> Response<Body> {
    tracing::error!("a request handler panicked; its request was answered 500");
    ApiError::internal("an internal error occurred; the server's log has the details").into_response()
}

fn overloaded() -> Response<Body> {
    let mut response = ApiError::unavailable("too many connections", Duration::from_secs(1)).into_response();
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

#[cfg(test)]
mod tests;
