//! One client connection: finds out the HTTP version, lets hyper speak it, and ends it when the client is late or the
//! proxy stops. Called by `server` with each admitted socket.

use super::forward::{self, Shared};
use super::watch::{Limits, Watch};
use crate::transport::{Begun, Version, begin};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulConnection;
use std::convert::Infallible;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch::Receiver;

/// hyper's write buffer at most, and the least it works well with; bytes.
const BUFFER: usize = 64 << 10;
/// HTTP/2: requests at once per connection.
const MAX_STREAMS: u32 = 128;
/// HTTP/2: a silent client is asked whether it is alive so often, and given so long to answer.
const PING: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(20));

/// Serves a connection until its end. Turning `stop` to true lets running answers finish and no request begin.
pub async fn serve(stream: TcpStream, peer: SocketAddr, shared: Arc<Shared>, mut stop: Receiver<bool>) {
    let config = &shared.config;
    let limits = Limits { header: config.header_timeout, idle: config.idle_timeout, write: config.write_timeout };
    let watch = Watch::new(limits);
    let stopped = async { drop(stop.wait_for(|stop| *stop).await) };
    let (version, stream) = match tokio::time::timeout(limits.header, begin(stream, stopped)).await {
        Ok(Ok(begun)) => begun,
        Ok(Err(_)) => return,
        Err(_) => return tracing::debug!(%peer, "closed: sent nothing"),
    };
    let io = TokioIo::new(Io { stream, watch: watch.clone() });
    let service = {
        let (shared, watch) = (shared.clone(), watch.clone());
        service_fn(move |request| {
            let answer = forward::answer(shared.clone(), watch.clone(), peer, request);
            async { Ok::<_, Infallible>(answer.await) }
        })
    };
    let ended = if version == Version::Http2 {
        watch.is_http2();
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(PING.0)
            .keep_alive_timeout(PING.1)
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(u32::try_from(config.max_header_bytes).unwrap_or(u32::MAX))
            .max_send_buf_size(BUFFER)
            .serve_connection(io, service);
        drive(connection, &watch, stop).await
    } else {
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(None)
            .max_header_size(config.max_header_bytes)
            .max_buf_size(config.max_header_bytes.max(BUFFER))
            .serve_connection(io, service);
        drive(connection, &watch, stop).await
    };
    if let Err(reason) = ended {
        tracing::debug!(%peer, "closed: {reason}");
    }
}

/// Runs a connection beside its deadlines.
async fn drive<C>(connection: C, watch: &Watch, mut stop: Receiver<bool>) -> Result<(), String>
where
    C: GracefulConnection,
    C::Error: std::fmt::Display,
{
    let mut connection = pin!(connection);
    let mut stopping = false;
    loop {
        tokio::select! {
            ended = connection.as_mut() => return ended.map_err(|error| error.to_string()),
            _ = stop.wait_for(|stop| *stop), if !stopping => {
                stopping = true;
                connection.as_mut().graceful_shutdown();
            }
            () = watch.changed.notified() => {}
            () = tokio::time::sleep_until(watch.next_look()) => {
                if let Some(what) = watch.overdue() {
                    return Err(format!("the client {what} in time"));
                }
            }
        }
    }
}

/// The client's socket, which tells the watch what it sees.
struct Io {
    stream: Begun<TcpStream>,
    watch: Arc<Watch>,
}

impl AsyncRead for Io {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.watch.read();
        }
        polled
    }
}

impl AsyncWrite for Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.watch.wrote(polled.is_pending());
        polled
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.watch.wrote(polled.is_pending());
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
