//! What happens on one connection: requests in flight, and whether the client takes its answers. Written by each request
//! and by the connection's socket, read by the timer of `server`.

use super::{Body, BoxError};
use crate::transport::Version;
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Shared by a connection's requests, its socket and its timer. Times are in milliseconds from `start`.
pub(super) struct Activity {
    start: Instant,
    in_flight: AtomicUsize,
    /// A request has arrived.
    any: AtomicBool,
    /// When the last request ended.
    ended: AtomicU64,
    /// Answers of which the client was given a part and has not asked for the next.
    offered: AtomicUsize,
    /// When it last took bytes of them, or was first offered some.
    taken: AtomicU64,
    /// The socket takes no more for now: a part of an answer is still to be sent.
    blocked: AtomicBool,
}

impl Default for Activity {
    fn default() -> Self {
        let zero = || AtomicU64::new(0);
        let (in_flight, offered) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let (any, blocked) = (AtomicBool::new(false), AtomicBool::new(false));
        Activity { start: Instant::now(), in_flight, any, ended: zero(), offered, taken: zero(), blocked }
    }
}

impl Activity {
    /// Whether a request has arrived.
    pub(super) fn any(&self) -> bool {
        self.any.load(Ordering::Relaxed)
    }

    /// Since when no request is in flight, and nothing of what an answer left in the socket's buffer is taken.
    pub(super) fn quiet_for(&self) -> Duration {
        match self.in_flight.load(Ordering::Acquire) {
            0 => self.since(&self.ended).min(self.since(&self.taken)),
            _ => Duration::ZERO,
        }
    }

    /// Since when the client takes nothing of what it is offered.
    pub(super) fn stuck_for(&self) -> Duration {
        if self.offered.load(Ordering::Acquire) == 0 { Duration::ZERO } else { self.since(&self.taken) }
    }

    /// Whether something is still to be sent, and the socket takes nothing.
    pub(super) fn blocked(&self) -> bool {
        self.blocked.load(Ordering::Acquire)
    }

    fn since(&self, then: &AtomicU64) -> Duration {
        self.start.elapsed().saturating_sub(Duration::from_millis(then.load(Ordering::Acquire)))
    }

    fn mark(&self, when: &AtomicU64) {
        when.store(u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX), Ordering::Release);
    }

    fn offer(&self) {
        if self.offered.fetch_add(1, Ordering::AcqRel) == 0 {
            self.mark(&self.taken);
        }
    }

    fn asked(&self) {
        self.offered.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A request from its header to the end of its answer's body.
pub(super) struct Running(Arc<Activity>);

impl Running {
    pub(super) fn new(activity: &Arc<Activity>) -> Self {
        activity.any.store(true, Ordering::Relaxed);
        activity.in_flight.fetch_add(1, Ordering::AcqRel);
        Running(activity.clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.mark(&self.0.ended);
        self.0.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

/// An answer's body, which counts as activity until it is sent or dropped.
pub(super) struct Tracked {
    body: Body,
    running: Running,
    /// A part was given and the next one not asked for: it is the client's turn.
    offered: bool,
}

impl Tracked {
    pub(super) fn new(body: Body, running: Running) -> Self {
        Tracked { body, running, offered: false }
    }

    fn turn(&mut self, offered: bool) {
        if std::mem::replace(&mut self.offered, offered) != offered {
            if offered { self.running.0.offer() } else { self.running.0.asked() }
        }
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        self.turn(false);
    }
}

impl hyper::body::Body for Tracked {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        self.turn(matches!(frame, Poll::Ready(Some(Ok(_)))));
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A connection's socket, which notes when the client takes bytes: over HTTP/2 those of answers' bodies alone, for a client
/// that gives its streams no window takes settings and answers to its pings all the same.
pub(super) struct Watched<I> {
    io: I,
    activity: Arc<Activity>,
    frames: Option<Frames>,
}

impl<I> Watched<I> {
    pub(super) fn new(io: I, version: Version, activity: Arc<Activity>) -> Self {
        Watched { io, activity, frames: (version == Version::Http2).then(Frames::default) }
    }

    /// Notes what became of a write of `slices`.
    fn note(&mut self, written: Poll<io::Result<usize>>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(mut bytes)) = written {
            let taken = match &mut self.frames {
                None => bytes > 0,
                Some(frames) => slices.iter().fold(false, |taken, slice| {
                    let part = bytes.min(slice.len());
                    bytes -= part;
                    frames.hold_data(&slice[..part]) || taken
                }),
            };
            if taken {
                self.activity.mark(&self.activity.taken);
            }
        }
        self.activity.blocked.store(written.is_pending(), Ordering::Release);
        written
    }
}

/// Where in its frames an HTTP/2 server's side of a connection is (RFC 9113, section 4.1).
#[derive(Default)]
struct Frames {
    header: [u8; FRAME_HEADER],
    /// Bytes of the header that have passed.
    passed: usize,
    /// Bytes of the frame that are still to come behind its header.
    left: usize,
}

const FRAME_HEADER: usize = 9;
const FRAME_DATA: u8 = 0;

impl Frames {
    /// Goes on by `bytes`; whether some of them are a body's.
    fn hold_data(&mut self, mut bytes: &[u8]) -> bool {
        let mut data = false;
        while !bytes.is_empty() {
            if self.left > 0 {
                let part = self.left.min(bytes.len());
                data |= self.header[3] == FRAME_DATA;
                self.left -= part;
                bytes = &bytes[part..];
                continue;
            }
            let part = (FRAME_HEADER - self.passed).min(bytes.len());
            self.header[self.passed..self.passed + part].copy_from_slice(&bytes[..part]);
            self.passed += part;
            bytes = &bytes[part..];
            if self.passed == FRAME_HEADER {
                let [a, b, c, ..] = self.header;
                (self.passed, self.left) = (0, u32::from_be_bytes([0, a, b, c]) as usize);
            }
        }
        data
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Watched<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Watched<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.note(written, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, slices);
        self.note(written, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Settings, an answer's header, six bytes of a body, a ping's answer, an empty end: cut anywhere, the body's bytes count
    /// and nothing else does.
    #[test]
    fn only_bodies_bytes_count() {
        let frame = |kind: u8, payload: &[u8]| [&[0, 0, payload.len() as u8, kind, 0, 0, 0, 0, 1], payload].concat();
        let sent = [frame(4, &[1; 12]), frame(1, &[0; 30]), frame(0, b"answer"), frame(6, &[0; 8]), frame(0, b"")];
        let body = sent[..2].concat().len() + FRAME_HEADER..sent[..3].concat().len();
        let sent = sent.concat();
        let mut frames = Frames::default();
        for (at, byte) in sent.iter().enumerate() {
            assert_eq!(frames.hold_data(&[*byte]), body.contains(&at), "byte {at}");
        }
        for cut in 0..sent.len() {
            let mut frames = Frames::default();
            let found = [&sent[..cut], &sent[cut..]].map(|part| frames.hold_data(part));
            assert_eq!(found, [cut > body.start, cut < body.end], "cut at {cut}");
        }
    }
}
