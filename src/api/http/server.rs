//! The server loop: HTTP/1.1 and HTTP/2 (prior knowledge) on one listener, within limits, until told to stop.
//!
//! `Upgrade: h2c` is ignored (RFC 9113, section 3.1): the request is answered over HTTP/1.1. A connection that sends no
//! whole request header in time, or lies idle for too long, is closed; one beyond the limit is answered 503; a handler
//! that panics costs its own request a 500 and nothing else.

use super::super::error::ApiError;
use super::{Body, BoxError};
use crate::transport::headers::unmet_expectation;
use crate::transport::{Version, begin};
use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderValue, Request, Response, header};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulConnection;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
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
    /// After the stop: how long running answers may go on. `None`: until they end.
    pub drain_timeout: Option<Duration>,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_connections: 4096,
            header_timeout: Duration::from_secs(15),
            idle_timeout: Duration::from_secs(120),
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
                    let connection = Connection { limits, full, activity: Arc::default() };
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
            Some(_) = connections.join_next() => {}
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
                Ok::<_, std::convert::Infallible>(response.map(|body| Tracked { body, _running: running }))
            }
        });
        let asked = async { drop(stopped.wait_for(|stop| *stop).await) };
        let begun = tokio::select! {
            begun = begin(io, asked) => begun,
            () = self.idle() => return,
        };
        // One that ended, or was stopped, before it asked anything.
        let Ok((version, io)) = begun else { return };
        let io = TokioIo::new(io);
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

    /// Resolves when the connection deserves to be closed: no first request within the header's time, or none in
    /// flight for the idle time. Covers what hyper does not time: the bytes that tell HTTP/1 from HTTP/2.
    async fn idle(&self) {
        loop {
            let allowed = if self.activity.any.load(Ordering::Relaxed) {
                self.limits.idle_timeout
            } else {
                self.limits.header_timeout
            };
            let quiet = self.activity.quiet_for();
            if quiet >= allowed {
                return;
            }
            tokio::time::sleep(allowed - quiet).await;
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

/// What happens on one connection; shared by its requests and its idle timer.
struct Activity {
    start: Instant,
    in_flight: AtomicUsize,
    /// A request has arrived.
    any: AtomicBool,
    /// When the last request ended, milliseconds from `start`.
    last: AtomicU64,
}

impl Default for Activity {
    fn default() -> Self {
        let (in_flight, any, last) = (AtomicUsize::new(0), AtomicBool::new(false), AtomicU64::new(0));
        Activity { start: Instant::now(), in_flight, any, last }
    }
}

impl Activity {
    fn quiet_for(&self) -> Duration {
        if self.in_flight.load(Ordering::Acquire) > 0 {
            return Duration::ZERO;
        }
        self.start.elapsed().saturating_sub(Duration::from_millis(self.last.load(Ordering::Acquire)))
    }
}

/// A request from its header to the end of its answer's body.
struct Running(Arc<Activity>);

impl Running {
    fn new(activity: &Arc<Activity>) -> Self {
        activity.any.store(true, Ordering::Relaxed);
        activity.in_flight.fetch_add(1, Ordering::AcqRel);
        Running(activity.clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let now = u64::try_from(self.0.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.last.store(now, Ordering::Release);
        self.0.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A response body that counts as activity until it is sent or dropped.
struct Tracked {
    body: Body,
    _running: Running,
}

impl hyper::body::Body for Tracked {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests;
