//! Limits of address, count, size and time.

use super::fake::{Fake, Front, json, read_all, status};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn strangers_are_turned_away_unread() {
    let fake = Fake::start();
    let mut settings = fake.settings();
    settings.allow = vec!["10.0.0.0/8".parse().unwrap()];
    let proxy = Front::start(settings);
    let answer = read_all(&mut proxy.connect().await).await;
    assert_eq!((status(&answer), json(&answer)["error"]["code"].as_str()), (403, Some("address_not_allowed")));
}

#[tokio::test]
async fn connections_and_requests_are_counted() {
    let fake = Fake::start();
    let mut settings = fake.settings();
    (settings.max_connections, settings.max_connections_per_address) = (3, 2);
    let proxy = Front::start(settings);
    let held = [proxy.connect().await, proxy.connect().await];
    let answer = read_all(&mut proxy.connect().await).await;
    assert_eq!((status(&answer), json(&answer)["error"]["code"].as_str()), (429, Some("too_many_connections")));
    assert!(answer.contains("retry-after"), "{answer}");
    drop(held);
    super::fake::wait_for(|| proxy.handle.connections() == 0, "the connections to be forgotten").await;
    assert_eq!(status(&proxy.get("/health", "").await), 200);

    let mut settings = fake.settings();
    settings.max_requests = 1;
    let proxy = Front::start(settings);
    let mut running = proxy.connect().await;
    running.write_all(b"GET /v1/sse?n=1000&ms=10 HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    running.read_u8().await.unwrap();
    let answer = proxy.get("/v1/models", "").await;
    assert_eq!((status(&answer), json(&answer)["error"]["code"].as_str()), (503, Some("overloaded")));
    drop(running);
    fake.quiet().await;
}

#[tokio::test]
async fn headers_have_a_size_and_a_time() {
    let fake = Fake::start();
    let mut settings = fake.settings();
    settings.max_header_bytes = 8192;
    settings.header_timeout = Duration::from_millis(300);
    settings.idle_timeout = Duration::from_millis(900);
    let proxy = Front::start(settings);
    let long = "y".repeat(9000);
    assert_eq!(status(&proxy.get("/v1/models", &format!("x-long: {long}\r\n")).await), 431);

    let begin = Instant::now();
    assert_eq!(read_all(&mut proxy.connect().await).await, "", "a silent connection is closed");
    assert!(begin.elapsed() < Duration::from_millis(800), "{:?}", begin.elapsed());

    let mut stream = proxy.connect().await;
    let begin = Instant::now();
    for byte in b"GET /v1/models HTTP/1.1\r\nhost: x\r\n".iter().cycle() {
        if stream.write_all(&[*byte]).await.is_err() || begin.elapsed() > Duration::from_secs(5) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(begin.elapsed() < Duration::from_millis(1200), "one byte now and then: {:?}", begin.elapsed());

    let mut stream = proxy.connect().await;
    stream.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let begin = Instant::now();
    assert_eq!(status(&read_all(&mut stream).await), 200);
    let idle = begin.elapsed();
    assert!((Duration::from_millis(800)..Duration::from_millis(2000)).contains(&idle), "{idle:?}");
}

#[tokio::test]
async fn an_answer_may_be_slower_than_every_timeout() {
    let fake = Fake::start();
    let mut settings = fake.settings();
    let short = Duration::from_millis(150);
    (settings.header_timeout, settings.idle_timeout, settings.body_timeout, settings.write_timeout) =
        (short, short, short, short);
    settings.upstream_timeout = short;
    let proxy = Front::start(settings);
    let answer = proxy.get("/v1/sse?n=2&ms=400", "").await;
    assert!(answer.contains("[DONE]"), "{answer}");
    let answer = proxy.get("/v1/late?ms=800", "").await;
    assert_eq!(status(&answer), 200, "the daemon is well, so its answer is waited for: {answer}");
}

#[tokio::test]
async fn a_daemon_that_answers_nothing_is_told_from_a_slow_one() {
    let directory = tempfile::tempdir().unwrap();
    // As a stopped process: the kernel takes connections into the backlog, nobody takes them out.
    let socket = directory.path().join("omni.sock");
    let _stopped = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let mut settings = Fake::start().settings();
    (settings.socket, settings.upstream_timeout) = (socket, Duration::from_millis(200));
    let proxy = Front::start(settings);
    let begin = Instant::now();
    let (one, two) = tokio::join!(proxy.get("/v1/models", ""), proxy.get("/health", ""));
    for answer in [one, two] {
        assert_eq!((status(&answer), json(&answer)["error"]["code"].as_str()), (504, Some("upstream_timeout")));
    }
    assert!(begin.elapsed() < Duration::from_millis(1500), "{:?}", begin.elapsed());
}

#[tokio::test]
async fn bodies_have_a_size_and_a_pace() {
    let fake = Fake::start();
    let mut settings = fake.settings();
    settings.max_body_bytes = 100_000;
    settings.body_timeout = Duration::from_millis(300);
    let proxy = Front::start(settings);
    let post = |fields: &str, body: &str| {
        format!("POST /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{fields}\r\n{body}")
    };
    let most = "z".repeat(100_000);
    let fits = proxy.raw(post("content-length: 100000\r\n", &most)).await;
    assert_eq!((status(&fits), json(&fits)["size"].as_u64()), (200, Some(100_000)));
    let over = proxy.raw(post("content-length: 100001\r\n", &format!("{most}z"))).await;
    assert_eq!((status(&over), json(&over)["error"]["code"].as_str()), (413, Some("request_too_large")));
    let begin = Instant::now();
    let asks = proxy.raw(post("content-length: 100001\r\nexpect: 100-continue\r\n", "")).await;
    assert!(status(&asks) == 413 && begin.elapsed() < Duration::from_millis(250), "no body is waited for: {asks}");
    let chunked = proxy.raw(post("transfer-encoding: chunked\r\n", &format!("186a1\r\n{most}z\r\n0\r\n\r\n"))).await;
    assert_eq!(status(&chunked), 413, "{chunked}");
    let chunked = proxy.raw(post("transfer-encoding: chunked\r\n", &format!("186a0\r\n{most}\r\n0\r\n\r\n"))).await;
    assert_eq!(json(&chunked.replace("\r\n0\r\n\r\n", ""))["size"].as_u64(), Some(100_000), "{chunked}");
    let begin = Instant::now();
    let mut stalled = proxy.connect().await;
    stalled.write_all(post("content-length: 100001\r\n", "only this").as_bytes()).await.unwrap();
    let mut first = [0; 12];
    stalled.read_exact(&mut first).await.unwrap();
    assert!(&first == b"HTTP/1.1 413" && begin.elapsed() < Duration::from_millis(250), "{:?}", begin.elapsed());
    let picky = proxy.raw(post("content-length: 3\r\nexpect: the-worst\r\n", "abc")).await;
    assert_eq!((status(&picky), json(&picky)["error"]["code"].as_str()), (417, Some("expectation_failed")));
    let slow = proxy.raw(post("content-length: 10\r\n", "abc")).await;
    assert_eq!((status(&slow), json(&slow)["error"]["code"].as_str()), (408, Some("request_timeout")));
}

#[tokio::test]
async fn a_client_that_stops_reading_is_cut() {
    let fake = Fake::start();
    let mut settings = fake.settings();
    settings.write_timeout = Duration::from_millis(400);
    let proxy = Front::start(settings);
    let mut stuck = proxy.connect().await;
    stuck.write_all(b"GET /v1/flood?n=100000 HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    stuck.read_u8().await.unwrap();
    fake.quiet().await;
    super::fake::wait_for(|| proxy.handle.connections() == 0, "the stuck connection to be closed").await;
}

#[tokio::test]
async fn a_stuck_http2_stream_is_cut() {
    use http_body_util::{BodyExt, Empty};
    let fake = Fake::start();
    let mut settings = fake.settings();
    settings.write_timeout = Duration::from_millis(400);
    let proxy = Front::start(settings);
    let io = hyper_util::rt::TokioIo::new(proxy.connect().await);
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
    tokio::spawn(connection);
    let request = hyper::Request::get("http://any/v1/flood?n=100000").body(Empty::<bytes::Bytes>::new()).unwrap();
    let mut body = sender.send_request(request).await.unwrap().into_body();
    assert!(body.frame().await.unwrap().is_ok());
    fake.quiet().await;
}
