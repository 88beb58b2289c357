//! One request's way to a worker and its answer's way back, byte for byte. The connection ends when the client goes, so
//! the worker stops its work; when the worker goes instead, the client gets an error it can read. Called by `router`.

use super::model::Lease;
use crate::api::error::ApiError;
use crate::api::http::{Body, BoxError, full};
use crate::api::sse::error_event;
use crate::transport::headers::{is_event_stream, strip_hop_by_hop};
use bytes::{Bytes, BytesMut};
use http::{HeaderName, HeaderValue, Request, Response, header, request};
use http_body_util::{BodyExt, Full};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tracing::Level;

/// Names the model that answered.
pub const MODEL_HEADER: HeaderName = HeaderName::from_static("x-omni-model");
/// Names the request, in the client's words or ours.
pub const REQUEST_HEADER: HeaderName = HeaderName::from_static("x-request-id");

/// An event of the worker's that is longer is passed on in parts.
const EVENT_BYTES: usize = 1 << 20;

/// Why a worker gave no answer.
pub enum Failure {
    /// It never saw the request; another attempt is safe.
    NotSent,
    /// It died over it.
    Died(ApiError),
}

/// Sends a request to the lease's worker; answers with the head of what comes back and a body that holds the lease.
///
/// # Errors
/// See [`Failure`].
pub async fn forward(
    lease: Lease,
    head: &request::Parts,
    body: Bytes,
    request_id: &HeaderValue,
) -> Result<Response<Body>, Failure> {
    let Ok(stream) = UnixStream::connect(&lease.endpoint).await else { return Err(Failure::NotSent) };
    let Ok((mut sender, connection)) = http1::handshake::<_, Full<Bytes>>(TokioIo::new(stream)).await else {
        return Err(Failure::NotSent);
    };
    // Aborted with the request: a client that leaves before the answer's head must not leave work behind.
    let connection = AbortOnDrop(tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a worker's connection ended early");
        }
    }));
    let answer = match sender.send_request(to_worker(head, body, request_id)).await {
        Ok(answer) => answer,
        Err(error) => {
            lease.model.suspect(&lease.endpoint);
            // A Unix socket whose other side closed with the request unread reports a reset; only a clean end of file
            // means that the worker had taken it (unix(7)).
            if !error.is_incomplete_message() {
                return Err(Failure::NotSent);
            }
            lease.model.cut.fetch_add(1, Ordering::Relaxed);
            lease.model.say(Level::WARN, &format!("the worker died before it answered a request: {error}"));
            return Err(Failure::Died(worker_died(&lease)));
        }
    };
    let (mut head, body) = answer.into_parts();
    strip_hop_by_hop(&mut head.headers);
    if let Ok(id) = HeaderValue::from_str(&lease.model.id()) {
        head.headers.insert(MODEL_HEADER, id);
    }
    let held = is_event_stream(&head.headers).then(BytesMut::new);
    let passing = Passing { upstream: body, held, lease: Some(lease), _connection: connection };
    Ok(Response::from_parts(head, passing.boxed()))
}

fn to_worker(head: &request::Parts, body: Bytes, request_id: &HeaderValue) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = head.method.clone();
    // The path alone: a request over HTTP/2 carries its authority in the URI.
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
    *request.uri_mut() = path.parse().unwrap_or_else(|_| http::Uri::from_static("/"));
    let headers = request.headers_mut();
    *headers = head.headers.clone();
    strip_hop_by_hop(headers);
    // The worker trusts the daemon; a client's key is nobody's business beyond the proxy.
    for name in [header::AUTHORIZATION, header::COOKIE, header::CONTENT_LENGTH, header::EXPECT] {
        headers.remove(name);
    }
    headers.insert(header::HOST, HeaderValue::from_static("worker"));
    headers.insert(REQUEST_HEADER, request_id.clone());
    request
}

fn worker_died(lease: &Lease) -> ApiError {
    let message = format!(
        "the worker of model '{}' died while it handled this request; it is being started again",
        lease.model.id()
    );
    ApiError::unavailable(message, lease.model.retry_after().max(Duration::from_secs(1))).code("worker_died")
}

struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A worker's answer on its way to the client. Of an event stream whole events are passed on, so that an error event
/// can follow whatever was sent when the worker dies.
struct Passing {
    upstream: Incoming,
    /// The begun event, for event streams only.
    held: Option<BytesMut>,
    /// Until the end.
    lease: Option<Lease>,
    _connection: AbortOnDrop,
}

impl Passing {
    /// The worker broke off.
    fn broken(&mut self, error: hyper::Error) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Some(lease) = self.lease.take() else { return Poll::Ready(None) };
        lease.model.suspect(&lease.endpoint);
        lease.model.cut.fetch_add(1, Ordering::Relaxed);
        lease.model.say(Level::WARN, &format!("the worker died in the midst of an answer: {error}"));
        Poll::Ready(Some(match self.held.take() {
            Some(_) => Ok(Frame::data(error_event(&worker_died(&lease)))),
            None => Err(error.into()),
        }))
    }

    fn end(&mut self) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.lease = None;
        let rest = self.held.take().filter(|held| !held.is_empty());
        Poll::Ready(rest.map(|rest| Ok(Frame::data(rest.freeze()))))
    }
}

impl hyper::body::Body for Passing {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        loop {
            if self.lease.is_none() {
                return Poll::Ready(None);
            }
            let frame = match std::task::ready!(Pin::new(&mut self.upstream).poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                Some(Err(error)) => return self.broken(error),
                None => return self.end(),
            };
            let Some(held) = &mut self.held else { return Poll::Ready(Some(Ok(frame))) };
            let Ok(data) = frame.into_data() else { continue };
            if let Some(whole) = whole_events(held, data) {
                return Poll::Ready(Some(Ok(Frame::data(whole))));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.lease.is_none() || (self.held.is_none() && self.upstream.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        // An event stream may get an event more.
        if self.held.is_some() { SizeHint::default() } else { self.upstream.size_hint() }
    }
}

/// Adds what arrived to what is held and takes out everything up to the last event's end.
fn whole_events(held: &mut BytesMut, data: Bytes) -> Option<Bytes> {
    if held.is_empty() && data.ends_with(b"\n\n") {
        return Some(data);
    }
    held.extend_from_slice(&data);
    let end = held.windows(2).rposition(|pair| pair == b"\n\n").map(|at| at + 2);
    match end {
        Some(end) => Some(held.split_to(end).freeze()),
        None if held.len() > EVENT_BYTES => Some(held.split().freeze()),
        None => None,
    }
}

/// An answer without a body for `HEAD`.
pub fn headless(response: Response<Body>) -> Response<Body> {
    response.map(|_| full(Bytes::new()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_passed_on_whole() {
        let mut held = BytesMut::new();
        let mut pass = |text: &'static str| whole_events(&mut held, Bytes::from_static(text.as_bytes()));
        assert_eq!(pass("data: 1\n\n").unwrap(), "data: 1\n\n");
        assert_eq!(pass("data: 2\n\ndata"), Some(Bytes::from("data: 2\n\n")));
        assert_eq!(pass(": 3\n"), None);
        assert_eq!(pass("\n"), Some(Bytes::from("data: 3\n\n")));
        assert_eq!(pass(": ping\n\n"), Some(Bytes::from(": ping\n\n")));
    }

    #[test]
    fn headers_of_one_connection_stay_there() {
        let (mut head, ()) = Request::post("/v1/completions?x=1").body(()).unwrap().into_parts();
        for (name, value) in [
            ("connection", "keep-alive, x-mine"),
            ("x-mine", "1"),
            ("authorization", "Bearer secret"),
            ("transfer-encoding", "chunked"),
            ("content-type", "application/json"),
        ] {
            head.headers.insert(name, HeaderValue::from_static(value));
        }
        let request = to_worker(&head, Bytes::from("{}"), &HeaderValue::from_static("r1"));
        let mut names: Vec<&str> = request.headers().keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["content-type", "host", "x-request-id"]);
        assert_eq!(request.uri(), "/v1/completions?x=1");
    }
}
