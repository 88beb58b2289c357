//! Server-sent events: a response body fed through a bounded channel. While nothing is sent, comment pings keep proxies
//! and clients from giving up; a reader that stalls for too long ends its stream, and so the work behind it.

use super::error::ApiError;
use super::http::{Body, BoxError};
use bytes::Bytes;
use http::{HeaderValue, Response, header};
use http_body_util::BodyExt;
use hyper::body::Frame;
use serde::Serialize;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep};

/// Events that wait for a slow reader before the writer waits too.
const QUEUE: usize = 32;

/// How a stream behaves towards its reader.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// A `: ping` comment after so long without an event.
    pub ping: Duration,
    /// A reader that takes nothing for so long has gone.
    pub stall: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Pace { ping: Duration::from_secs(10), stall: Duration::from_secs(120) }
    }
}

/// The reader is gone or stalls; stop the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the client has gone")]
pub struct Gone;

/// Writing end of a stream. Dropping it ends the stream.
#[derive(Clone, Debug)]
pub struct Sender {
    queue: mpsc::Sender<Bytes>,
    stall: Duration,
}

/// A stream: its writing end and the answer to hand to the server.
pub fn channel(pace: Pace) -> (Sender, Response<Body>) {
    let (queue, receiver) = mpsc::channel(QUEUE);
    let stream = EventStream { receiver, ping: pace.ping, idle: Box::pin(tokio::time::sleep(pace.ping)) };
    let mut response = Response::new(stream.boxed());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    (Sender { queue, stall: pace.stall }, response)
}

impl Sender {
    /// `data: JSON`.
    pub async fn data(&self, value: &impl Serialize) -> Result<(), Gone> {
        self.send(data_event(value)).await
    }

    /// `event: NAME` with `data: JSON`; `name` has no line break.
    pub async fn named(&self, name: &str, value: &impl Serialize) -> Result<(), Gone> {
        let mut event = format!("event: {name}\n").into_bytes();
        event.extend_from_slice(&data_event(value));
        self.send(event.into()).await
    }

    /// `: TEXT`, which clients skip; `text` has no line break.
    pub async fn comment(&self, text: &str) -> Result<(), Gone> {
        self.send(Bytes::from(format!(": {text}\n\n"))).await
    }

    /// `data: {"error": …}`: the stream failed; nothing should follow.
    pub async fn error(&self, error: &ApiError) -> Result<(), Gone> {
        self.send(error_event(error)).await
    }

    /// `data: [DONE]`: the stream is complete.
    pub async fn done(&self) -> Result<(), Gone> {
        self.send(Bytes::from_static(b"data: [DONE]\n\n")).await
    }

    /// Resolves when the reader has gone.
    pub async fn closed(&self) {
        self.queue.closed().await;
    }

    async fn send(&self, event: Bytes) -> Result<(), Gone> {
        self.queue.send_timeout(event, self.stall).await.map_err(|_| Gone)
    }
}

/// One `data:` event as bytes. JSON has no raw line break, so one line is enough.
pub fn data_event(value: &impl Serialize) -> Bytes {
    let mut event = b"data: ".to_vec();
    if let Err(error) = serde_json::to_writer(&mut event, value) {
        return error_event(&ApiError::internal(format!("an event could not be written: {error}")));
    }
    event.extend_from_slice(b"\n\n");
    event.into()
}

/// The event that tells a client of a failure in the midst of a stream.
pub fn error_event(error: &ApiError) -> Bytes {
    data_event(&error.body())
}

struct EventStream {
    receiver: mpsc::Receiver<Bytes>,
    ping: Duration,
    idle: Pin<Box<Sleep>>,
}

impl hyper::body::Body for EventStream {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let bytes = match self.receiver.poll_recv(cx) {
            Poll::Ready(Some(bytes)) => bytes,
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Pending => {
                std::task::ready!(self.idle.as_mut().poll(cx));
                Bytes::from_static(b": ping\n\n")
            }
        };
        let next = Instant::now() + self.ping;
        self.idle.as_mut().reset(next);
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    async fn text(response: Response<Body>) -> String {
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    #[tokio::test]
    async fn writes_the_event_stream_format() {
        let (sender, response) = channel(Pace::default());
        assert_eq!(response.headers()["content-type"], "text/event-stream; charset=utf-8");
        sender.comment("prefill 1/2").await.unwrap();
        sender.data(&json!({"a": "x\ny"})).await.unwrap();
        sender.named("status", &json!(1)).await.unwrap();
        sender.done().await.unwrap();
        drop(sender);
        let want = ": prefill 1/2\n\ndata: {\"a\":\"x\\ny\"}\n\nevent: status\ndata: 1\n\ndata: [DONE]\n\n";
        assert_eq!(text(response).await, want);
    }

    #[tokio::test]
    async fn pings_while_idle() {
        let (sender, response) = channel(Pace { ping: Duration::from_millis(40), ..Pace::default() });
        let writer = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(100)).await;
            sender.data(&json!(1)).await
        });
        let text = text(response).await;
        assert!(text.starts_with(": ping\n\n") && text.ends_with(": ping\n\ndata: 1\n\n"), "{text}");
        assert_eq!(writer.await.unwrap(), Ok(()));
    }

    #[tokio::test]
    async fn a_stalled_or_gone_reader_ends_the_work() {
        let (sender, response) = channel(Pace { stall: Duration::from_millis(20), ..Pace::default() });
        for _ in 0..QUEUE {
            sender.data(&json!(1)).await.unwrap();
        }
        assert_eq!(sender.data(&json!(1)).await, Err(Gone));
        drop(response);
        sender.closed().await;
        assert_eq!(sender.done().await, Err(Gone));
    }
}
