//! The server loop on a real Unix socket: limits, timeouts, upgrades, draining.

use super::super::{Bodies, full, read_body, read_shared, text};
use super::*;
use bytes::Bytes;
use http::StatusCode;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

struct Server {
    dir: tempfile::TempDir,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Server {
    fn start(limits: Limits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("s")).unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(serve(listener, handle, limits, async move { drop(stopped.await) }));
        Server { dir, stop: Some(stop), task }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("s")
    }
}

async fn handle(request: Request<Incoming>) -> Response<Body> {
    let uid = request.extensions().get::<Peer>().unwrap().uid;
    match request.uri().path() {
        "/panic" => panic!("as asked"),
        "/slow" => {
            tokio::time::sleep(Duration::from_millis(150)).await;
            text(StatusCode::OK, "slow")
        }
        "/echo" => match read_body(request.into_body(), 1000, Duration::from_secs(1)).await {
            Ok(bytes) => Response::new(full(bytes)),
            Err(error) => error.into_response(),
        },
        "/shared" => {
            static BODIES: LazyLock<Arc<Bodies>> = LazyLock::new(Arc::default);
            let limits = (200_000, Duration::from_secs(5));
            match read_shared(request.into_body(), false, limits, (&BODIES, 300_000)).await {
                Ok((bytes, _share)) => {
                    tokio::time::sleep(Duration::from_millis(300)).await;
                    text(StatusCode::OK, format!("read {}", bytes.len()))
                }
                Err(error) => error.into_response(),
            }
        }
        "/flood" => parts(Duration::ZERO, usize::MAX),
        "/pause" => parts(Duration::from_millis(400), 3),
        _ => text(StatusCode::OK, format!("uid {uid}")),
    }
}

/// An answer in parts of 64 KiB with a pause before each.
fn parts(pause: Duration, count: usize) -> Response<Body> {
    let stream = futures_util::stream::unfold(0, move |at| async move {
        tokio::time::sleep(pause).await;
        (at < count).then(|| (Ok(Frame::data(Bytes::from_static(&[b'x'; 64 << 10]))), at + 1))
    });
    Response::new(BodyExt::boxed(StreamBody::new(Box::pin(stream))))
}

/// Sends bytes as they are and reads until the server closes; what it left unread is a reset then, and no fault.
async fn raw(path: &Path, bytes: &str) -> String {
    let mut stream = UnixStream::connect(path).await.unwrap();
    // A refusal may come, and the connection end, before everything is written.
    let _ = stream.write_all(bytes.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(3), stream.read_to_end(&mut answer)).await;
    String::from_utf8(answer).unwrap()
}

const CLOSE: &str = "Host: x\r\nConnection: close\r\n\r\n";

#[tokio::test]
async fn serves_keep_alive_pipelining_and_credentials() {
    let server = Server::start(Limits::default());
    let two = format!("GET / HTTP/1.1\r\nHost: x\r\n\r\nGET /slow HTTP/1.1\r\n{CLOSE}");
    let answer = raw(&server.path(), &two).await;
    assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 2, "{answer}");
    assert!(answer.contains("uid ") && answer.ends_with("slow"), "{answer}");
}

#[tokio::test]
async fn malformed_requests_are_told_so() {
    let server = Server::start(Limits::default());
    let many: String = (0..5000).map(|number| format!("x-{number}: 1\r\n")).collect();
    let long = format!("x-long: {}\r\n", "y".repeat(BUFFER_BYTES));
    let cases = [
        ("G@T / HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "400"),
        ("GET / HTTP/9.7\r\nHost: x\r\n\r\n".to_owned(), "400"),
        ("\x16\x03\x01 what is this?\r\n\r\n".to_owned(), "400"),
        ("POST /echo HTTP/1.1\r\nContent-Length: x\r\n\r\n".to_owned(), "400"),
        ("POST /echo HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nab".to_owned(), "400"),
        (format!("POST /echo HTTP/1.1\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n{CLOSE}xy"), "400"),
        (format!("GET / HTTP/1.1\r\n{many}\r\n"), "431"),
        (format!("GET / HTTP/1.1\r\n{long}\r\n"), "431"),
        (format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(70_000)), "4"),
        (format!("POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n{CLOSE}zz\r\nhi\r\n"), "400"),
        (format!("POST /echo HTTP/1.1\r\nContent-Length: 5\r\nExpect: the-worst\r\n{CLOSE}hello"), "417"),
    ];
    for (request, status) in cases {
        let answer = raw(&server.path(), &request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{:.80}: {answer}", request);
    }
    let answer = raw(&server.path(), &format!("GET / HTTP/1.1\r\n{CLOSE}")).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "and it goes on: {answer}");
}

#[tokio::test]
async fn a_body_is_asked_for_only_where_it_is_read() {
    let server = Server::start(Limits::default());
    for (path, asked) in [("/echo", true), ("/", false)] {
        let mut stream = UnixStream::connect(server.path()).await.unwrap();
        let head = format!("POST {path} HTTP/1.1\r\nContent-Length: 2\r\nExpect: 100-continue\r\n{CLOSE}");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut buffer = [0; 4096];
        let count = stream.read(&mut buffer).await.unwrap();
        assert_eq!(buffer[..count].starts_with(b"HTTP/1.1 100"), asked, "{}", String::from_utf8_lossy(&buffer));
    }
}

#[tokio::test]
async fn an_h2c_upgrade_is_ignored() {
    let server = Server::start(Limits::default());
    let upgrade = "POST /echo HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\
        HTTP2-Settings: AAMAAABkAAQAAP__\r\nContent-Length: 2\r\n\r\nhi";
    let mut stream = UnixStream::connect(server.path()).await.unwrap();
    let mut buffer = [0; 4096];
    for _ in 0..2 {
        // Twice on one connection: it stays usable.
        stream.write_all(upgrade.as_bytes()).await.unwrap();
        let mut answer = String::new();
        while !answer.ends_with("hi") {
            let n = stream.read(&mut buffer).await.unwrap();
            assert!(n > 0, "closed after {answer}");
            answer.push_str(std::str::from_utf8(&buffer[..n]).unwrap());
        }
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    }
}

#[tokio::test]
async fn http2_with_prior_knowledge() {
    let server = Server::start(Limits::default());
    let io = TokioIo::new(UnixStream::connect(server.path()).await.unwrap());
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    let driver = tokio::spawn(connection);
    let request = |path: &str| Request::get(format!("http://x{path}")).body(full("")).unwrap();
    let (slow, quick) = (sender.send_request(request("/slow")), sender.clone().send_request(request("/panic")));
    let (slow, quick) = tokio::join!(slow, quick);
    assert_eq!(quick.unwrap().status(), 500, "a panic costs its own request only");
    assert_eq!(slow.unwrap().into_body().collect().await.unwrap().to_bytes(), "slow");
    drop(sender);
    driver.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_panic_is_a_500_and_the_connection_lives() {
    let server = Server::start(Limits::default());
    let answer = raw(&server.path(), &format!("GET /panic HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\n{CLOSE}")).await;
    assert!(answer.starts_with("HTTP/1.1 500") && answer.contains("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn slow_headers_and_idle_connections_are_closed() {
    let limits = Limits {
        header_timeout: Duration::from_millis(100),
        idle_timeout: Duration::from_millis(100),
        ..Limits::default()
    };
    let server = Server::start(limits);
    let begin = Instant::now();
    // Nothing at all; the first bytes of an HTTP/2 preface; half a header; a request and then silence.
    for start in ["", "PRI * HTTP", "GET / HTTP/1.1\r\nHos", "GET / HTTP/1.1\r\nHost: x\r\n\r\n"] {
        let answer = raw(&server.path(), start).await;
        assert!(answer.contains("200 OK") == start.ends_with("\r\n\r\n"), "{start:?}: {answer}");
    }
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    // A request in flight is no idleness.
    assert!(raw(&server.path(), &format!("GET /slow HTTP/1.1\r\n{CLOSE}")).await.ends_with("slow"));
}

#[tokio::test]
async fn connections_beyond_the_limit_get_503() {
    let server = Server::start(Limits { max_connections: 1, ..Limits::default() });
    let first = UnixStream::connect(server.path()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let answer = raw(&server.path(), "GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("retry-after: 1"), "{answer}");
    drop(first);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(raw(&server.path(), &format!("GET / HTTP/1.1\r\n{CLOSE}")).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn stopping_lets_answers_finish_and_then_cuts() {
    for (drain, whole) in [(None, true), (Some(Duration::from_millis(10)), false)] {
        let mut server = Server::start(Limits { drain_timeout: drain, ..Limits::default() });
        let path = server.path();
        let idle = UnixStream::connect(&path).await.unwrap();
        let client = tokio::spawn(async move { raw(&path, "GET /slow HTTP/1.1\r\nHost: x\r\n\r\n").await });
        tokio::time::sleep(Duration::from_millis(50)).await;
        drop(server.stop.take());
        tokio::time::timeout(Duration::from_secs(2), &mut server.task).await.unwrap().unwrap();
        assert_eq!(client.await.unwrap().ends_with("slow"), whole);
        assert!(UnixStream::connect(server.path()).await.is_err());
        drop(idle);
    }
}

#[tokio::test]
async fn an_answer_does_not_wait_for_the_bytes_behind_its_request() {
    let server = Server::start(Limits::default());
    // The beginning of a second request must not hold back the first one's answer.
    let mut stream = UnixStream::connect(server.path()).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HT").await.unwrap();
    let mut buffer = [0; 4096];
    let read = tokio::time::timeout(Duration::from_secs(3), stream.read(&mut buffer)).await;
    assert!(buffer[..read.expect("an answer in time").unwrap()].starts_with(b"HTTP/1.1 200 OK"));
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_cut_and_a_slow_one_is_not() {
    let server = Server::start(Limits { write_timeout: Duration::from_millis(250), ..Limits::default() });
    let flood = format!("GET /flood HTTP/1.1\r\n{CLOSE}");
    let mut stuck = UnixStream::connect(server.path()).await.unwrap();
    stuck.write_all(flood.as_bytes()).await.unwrap();
    let mut slow = UnixStream::connect(server.path()).await.unwrap();
    slow.write_all(flood.as_bytes()).await.unwrap();
    let mut buffer = vec![0; 300_000];
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        slow.read_exact(&mut buffer).await.expect("a reader that takes its time is served");
    }
    let mut rest = Vec::new();
    let end = tokio::time::timeout(Duration::from_secs(3), stuck.read_to_end(&mut rest)).await;
    assert!(end.is_ok() && rest.len() < 2 << 20, "cut, with what the socket held: {}", rest.len());
    // An answer that is slow to come is nobody's stall.
    let answer = raw(&server.path(), &format!("GET /pause HTTP/1.1\r\n{CLOSE}")).await;
    assert_eq!(answer.matches('x').count(), 3 * (64 << 10));
}

/// A window of which no more is opened, on a connection that is alive: its pings are answered.
#[tokio::test]
async fn an_http2_client_that_opens_no_window_is_cut_and_a_slow_one_is_not() {
    let server = Server::start(Limits { write_timeout: Duration::from_millis(250), ..Limits::default() });
    let connect = async || {
        let io = TokioIo::new(UnixStream::connect(server.path()).await.unwrap());
        let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        let pings = Duration::from_millis(20);
        builder.timer(TokioTimer::new()).initial_stream_window_size(Some(1 << 16)).keep_alive_interval(Some(pings));
        let (mut sender, connection) = builder.handshake(io).await.unwrap();
        let driver = tokio::spawn(connection);
        let flood = Request::get("http://x/flood").body(full("")).unwrap();
        let body = sender.send_request(flood).await.unwrap().into_body();
        (sender, driver, body)
    };
    let (_stuck, stuck_driver, _untouched) = connect().await;
    let (_slow, slow_driver, mut taken) = connect().await;
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        taken.frame().await.unwrap().expect("a reader that takes its time is served");
    }
    assert!(!slow_driver.is_finished());
    let end = tokio::time::timeout(Duration::from_secs(3), stuck_driver).await;
    assert!(end.is_ok(), "the one that takes nothing is cut");
}

#[tokio::test]
async fn idle_connections_make_room_in_a_crowd() {
    let server = Server::start(Limits { max_connections: 8, ..Limits::default() });
    let path = server.path();
    let busy = tokio::spawn(async move { raw(&path, &format!("GET /pause HTTP/1.1\r\n{CLOSE}")).await });
    let mut crowd = Vec::new();
    for _ in 0..100 {
        crowd.push(UnixStream::connect(server.path()).await.unwrap());
    }
    let begin = Instant::now();
    while !raw(&server.path(), &format!("GET / HTTP/1.1\r\n{CLOSE}")).await.starts_with("HTTP/1.1 200") {
        assert!(begin.elapsed() < Duration::from_secs(8), "long before the time for a header is over");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(busy.await.unwrap().ends_with("x\r\n0\r\n\r\n"), "a request in flight is not idle");
}

#[tokio::test]
async fn bodies_are_limited_together_and_refusals_are_seen() {
    let server = Server::start(Limits::default());
    // Writes all of a request before it reads anything.
    let post = async |bytes: usize| {
        let mut stream = UnixStream::connect(server.path()).await.unwrap();
        let head = format!("POST /shared HTTP/1.1\r\nContent-Length: {bytes}\r\n{CLOSE}");
        stream.write_all(&[head.into_bytes(), vec![b'x'; bytes]].concat()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    assert!(post(400_000).await.starts_with("HTTP/1.1 413"), "too large by itself");
    let (one, other, small) = tokio::join!(post(200_000), post(200_000), post(60_000));
    let (good, refused) = if one.starts_with("HTTP/1.1 200") { (one, other) } else { (other, one) };
    assert!(good.ends_with("read 200000"), "{good}");
    assert!(refused.starts_with("HTTP/1.1 503") && refused.contains("retry-after: 1"), "{refused}");
    assert!(small.ends_with("read 60000"), "{small}");
    assert!(post(200_000).await.ends_with("read 200000"), "once the others are done there is room again");
}
