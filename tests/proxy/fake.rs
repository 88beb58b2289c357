//! A daemon as the proxy sees it, on a temporary Unix socket, and the client side of the tests.

use bytes::Bytes;
use futures_util::stream;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use omni_inferd::config::proxy::Proxy;
use omni_inferd::proxy::{Handle, Server};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixListener};

/// What the fake daemon saw.
#[derive(Default)]
pub struct Seen {
    pub connections: AtomicUsize,
    /// Streams begun and not ended.
    pub running: AtomicUsize,
}

pub struct Fake {
    pub seen: Arc<Seen>,
    pub socket: PathBuf,
    _dir: tempfile::TempDir,
}

type Body = BoxBody<Bytes, io::Error>;

impl Fake {
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("omni.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let seen = Arc::new(Seen::default());
        let shared = seen.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                shared.connections.fetch_add(1, Ordering::SeqCst);
                let seen = shared.clone();
                let service = service_fn(move |request| answer(seen.clone(), request));
                tokio::spawn(async move {
                    _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Fake { seen, socket, _dir: dir }
    }

    /// Settings for a proxy in front of this daemon, on a free port.
    pub fn settings(&self) -> Proxy {
        Proxy { socket: self.socket.clone(), listen: vec!["127.0.0.1:0".parse().unwrap()], ..Proxy::default() }
    }

    /// Waits until no stream runs.
    pub async fn quiet(&self) {
        wait_for(|| self.seen.running.load(Ordering::SeqCst) == 0, "the daemon's streams to end").await;
    }
}

/// Counts a stream while it lives.
struct Running(Arc<Seen>);

impl Running {
    fn new(seen: &Arc<Seen>) -> Self {
        seen.running.fetch_add(1, Ordering::SeqCst);
        Running(seen.clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

fn query(request: &Request<Incoming>, name: &str, default: u64) -> u64 {
    let query = request.uri().query().unwrap_or_default();
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.find(|(key, _)| *key == name).map_or(default, |(_, value)| value.parse().unwrap())
}

async fn answer(seen: Arc<Seen>, request: Request<Incoming>) -> Result<Response<Body>, io::Error> {
    let (n, ms) = (query(&request, "n", 3), query(&request, "ms", 0));
    match request.uri().path() {
        "/v1/echo" => Ok(Response::new(request.into_body().map_err(io::Error::other).boxed())),
        "/v1/sse" => Ok(events(events_of(&seen, n, ms, false))),
        "/v1/die" => Ok(events(events_of(&seen, n, ms, true))),
        "/v1/cut" => {
            let mut response = events(events_of(&seen, n, ms, true));
            response.headers_mut().insert("content-type", "application/json".parse().unwrap());
            Ok(response)
        }
        "/v1/late" => {
            tokio::time::sleep(Duration::from_millis(ms)).await;
            Ok(describe(request).await)
        }
        "/v1/flood" => Ok(Response::new(flood(&seen, n))),
        "/v1/vanish" => Err(io::Error::other("gone")),
        _ => Ok(describe(request).await),
    }
}

/// The request as JSON.
async fn describe(request: Request<Incoming>) -> Response<Body> {
    let (head, body) = request.into_parts();
    let size = body.collect().await.map_or(0, |body| body.to_bytes().len());
    let fields = head.headers.iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap().into()));
    let headers = fields.collect::<serde_json::Map<_, _>>();
    let value = serde_json::json!({
        "method": head.method.as_str(), "target": head.uri.to_string(), "headers": headers, "size": size,
    });
    let mut response = Response::new(Full::from(value.to_string()).map_err(|never| match never {}).boxed());
    response.headers_mut().insert("connection", "x-private".parse().unwrap());
    response.headers_mut().insert("x-private", "1".parse().unwrap());
    response
}

fn events(body: Body) -> Response<Body> {
    Response::builder().header("content-type", "text/event-stream").body(body).unwrap()
}

/// `n` events with pauses, then `[DONE]` or a broken connection.
fn events_of(seen: &Arc<Seen>, n: u64, ms: u64, dies: bool) -> Body {
    let steps = stream::unfold((0, Running::new(seen)), move |(i, running)| async move {
        if ms > 0 {
            tokio::time::sleep(Duration::from_millis(ms)).await;
        }
        let text = match i {
            i if i < n => format!("data: {{\"i\":{i}}}\n\n"),
            i if i == n && !dies => "data: [DONE]\n\n".into(),
            i if i == n => return Some((Err(io::Error::other("died")), (i + 1, running))),
            _ => return None,
        };
        Some((Ok(Frame::data(Bytes::from(text))), (i + 1, running)))
    });
    BodyExt::boxed(SyncStream::wrap(StreamBody::new(steps)))
}

/// `n` MiB as fast as they are taken.
fn flood(seen: &Arc<Seen>, n: u64) -> Body {
    let piece = Bytes::from(vec![b'x'; 1 << 20]);
    let steps = stream::unfold((0, Running::new(seen)), move |(i, running)| {
        let piece = piece.clone();
        async move { (i < n).then(|| (Ok(Frame::data(piece)), (i + 1, running))) }
    });
    BodyExt::boxed(SyncStream::wrap(StreamBody::new(steps)))
}

/// `BoxBody` wants `Sync`, which a body that is only ever polled by one owner need not have: a mutex gives it.
struct SyncStream<B>(std::sync::Mutex<std::pin::Pin<Box<B>>>);

impl<B> SyncStream<B> {
    fn wrap(body: B) -> Self {
        SyncStream(std::sync::Mutex::new(Box::pin(body)))
    }
}

impl<B: hyper::body::Body> hyper::body::Body for SyncStream<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        self.0.lock().unwrap().as_mut().poll_frame(cx)
    }
}

/// A proxy running in this process.
pub struct Front {
    pub handle: Handle,
    pub task: tokio::task::JoinHandle<usize>,
}

impl Front {
    pub fn start(settings: Proxy) -> Self {
        let server = Server::bind(settings, Vec::new()).unwrap();
        let handle = server.handle();
        Front { handle, task: tokio::spawn(server.run()) }
    }

    pub fn address(&self) -> SocketAddr {
        self.handle.addresses()[0]
    }

    pub async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address()).await.unwrap()
    }

    /// Sends raw bytes on a connection of their own and returns all that comes back until it is closed.
    pub async fn raw(&self, bytes: impl AsRef<[u8]>) -> String {
        let mut stream = self.connect().await;
        _ = stream.write_all(bytes.as_ref()).await;
        read_all(&mut stream).await
    }

    /// `GET path` with further header lines.
    pub async fn get(&self, path: &str, fields: &str) -> String {
        self.raw(format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{fields}\r\n")).await
    }
}

/// Everything until the connection is closed, with a limit on the wait.
pub async fn read_all(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut bytes)).await;
    read.expect("the connection is closed in time").ok();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The status of a response's text.
pub fn status(response: &str) -> u16 {
    response.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_else(|| panic!("no status in {response:?}"))
}

/// The JSON body of a response with a known length.
pub fn json(response: &str) -> serde_json::Value {
    let body = response.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no body in {response:?}")).1;
    serde_json::from_str(body).unwrap_or_else(|error| panic!("{error} in {response:?}"))
}

pub async fn wait_for(done: impl Fn() -> bool, what: &str) {
    for _ in 0..1000 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("waited in vain for {what}");
}
