//! Bodies on their way through, one piece at a time and never held: the request's with its limits, the response's with
//! its end. Back-pressure is hyper's: a piece is only asked for once the other side took the one before.

use super::reply;
use super::upstream::Lease;
use super::watch::InFlight;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep};

/// What went wrong with a request's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// More than the limit.
    #[error("the request's body is over the limit")]
    TooLarge,
    /// A pause longer than the limit.
    #[error("the request's body stopped coming")]
    Timeout,
    /// The client went away or sent nonsense.
    #[error("the request's body is broken")]
    Broken,
}

/// Where a request's body leaves word of its end for the one who answers: the fault, and the unread rest.
#[derive(Clone, Default)]
pub struct Report(Arc<Mutex<Option<(Fault, Incoming)>>>);

impl Report {
    /// The fault with what was not read, if there was one.
    pub fn take(&self) -> Option<(Fault, Incoming)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A client's body within its limits. Trailers end here.
pub struct RequestBody {
    inner: Option<Incoming>,
    left: u64,
    pause: Duration,
    /// Runs while the client is waited for.
    timer: Pin<Box<Sleep>>,
    waiting: bool,
    report: Report,
}

impl RequestBody {
    /// At most `limit` bytes, with pauses of at most `pause`.
    pub fn new(inner: Incoming, limit: u64, pause: Duration, report: Report) -> Self {
        let timer = Box::pin(tokio::time::sleep(pause));
        RequestBody { inner: Some(inner), left: limit, pause, timer, waiting: false, report }
    }

    fn fail(&mut self, fault: Fault) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        let rest = self.inner.take().map(|inner| (fault, inner));
        *self.report.0.lock().unwrap_or_else(PoisonError::into_inner) = rest;
        Poll::Ready(Some(Err(fault)))
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Fault;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        let this = &mut *self;
        loop {
            let Some(inner) = this.inner.as_mut() else { return Poll::Ready(None) };
            let frame = match Pin::new(inner).poll_frame(cx) {
                Poll::Ready(frame) => frame,
                Poll::Pending => {
                    if !std::mem::replace(&mut this.waiting, true) {
                        this.timer.as_mut().reset(Instant::now() + this.pause);
                    }
                    ready!(this.timer.as_mut().poll(cx));
                    return this.fail(Fault::Timeout);
                }
            };
            this.waiting = false;
            match frame {
                None => return Poll::Ready(None),
                Some(Err(_)) => return this.fail(Fault::Broken),
                Some(Ok(frame)) => {
                    let Ok(data) = frame.into_data() else { continue };
                    let Some(left) = this.left.checked_sub(data.len() as u64) else {
                        return this.fail(Fault::TooLarge);
                    };
                    this.left = left;
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(SizeHint::default, Body::size_hint)
    }
}

/// Reads and forgets the rest of a refused body, so that a client that reads only after it has written sees the
/// refusal instead of a reset connection. Bounded by bytes and time.
pub async fn drain(mut body: Incoming, most: u64, time: Duration) {
    let all = async {
        let mut left = most;
        while let Some(Ok(frame)) = body.frame().await {
            let size = frame.data_ref().map_or(0, Bytes::len) as u64;
            match left.checked_sub(size) {
                Some(rest) => left = rest,
                None => break,
            }
        }
    };
    _ = tokio::time::timeout(time, all).await;
}

/// An answer to a client: the daemon's or the proxy's own.
pub struct ResponseBody {
    source: Source,
    in_flight: InFlight,
}

enum Source {
    Own(Full<Bytes>),
    Daemon(Box<Passing>),
}

/// The daemon's answer while it passes.
struct Passing {
    inner: Incoming,
    /// Present until the answer's end.
    lease: Option<Lease>,
    /// Counts towards the limit of requests.
    _permit: OwnedSemaphorePermit,
    /// Server-sent events: a break can be told inside of the stream.
    events: bool,
    /// The last bytes passed did not end an event.
    line_open: bool,
    broken: bool,
}

impl ResponseBody {
    /// The proxy's own answer.
    pub fn own(body: Bytes, in_flight: InFlight) -> Self {
        ResponseBody { source: Source::Own(Full::new(body)), in_flight }
    }

    /// The daemon's answer; `events` when it is a stream of server-sent events.
    pub fn passing(
        inner: Incoming,
        lease: Lease,
        permit: OwnedSemaphorePermit,
        events: bool,
        in_flight: InFlight,
    ) -> Self {
        let passing = Passing { inner, lease: Some(lease), _permit: permit, events, line_open: false, broken: false };
        ResponseBody { source: Source::Daemon(Box::new(passing)), in_flight }
    }
}

impl Passing {
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, hyper::Error>>> {
        if self.broken {
            return Poll::Ready(None);
        }
        loop {
            match ready!(Pin::new(&mut self.inner).poll_frame(cx)) {
                None => {
                    self.lease.take().into_iter().for_each(Lease::release);
                    return Poll::Ready(None);
                }
                Some(Ok(frame)) => {
                    // Trailers end here.
                    let Ok(data) = frame.into_data() else { continue };
                    if !data.is_empty() {
                        self.line_open = !data.ends_with(b"\n");
                    }
                    return Poll::Ready(Some(Ok(data)));
                }
                Some(Err(error)) => {
                    self.broken = true;
                    self.lease = None;
                    tracing::warn!("the daemon broke off an answer: {error}");
                    let last = if self.events { Ok(reply::broken_stream_event(self.line_open)) } else { Err(error) };
                    return Poll::Ready(Some(last));
                }
            }
        }
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        // With a known length hyper does not ask once more after the last byte.
        if self.inner.is_end_stream() && !self.broken {
            self.lease.take().into_iter().for_each(Lease::release);
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = &mut *self;
        this.in_flight.asked_for();
        let frame = match &mut this.source {
            Source::Own(body) => {
                ready!(Pin::new(body).poll_frame(cx)).map(|frame| frame.map_err(|never| match never {}))
            }
            Source::Daemon(passing) => ready!(passing.poll_data(cx)).map(|data| data.map(Frame::data)),
        };
        if frame.is_some() {
            this.in_flight.handed_out();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Own(body) => body.is_end_stream(),
            Source::Daemon(passing) => passing.broken || passing.inner.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Own(body) => body.size_hint(),
            Source::Daemon(passing) => passing.inner.size_hint(),
        }
    }
}
