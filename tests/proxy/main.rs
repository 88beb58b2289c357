//! The proxy against a fake daemon: what passes, what is refused, what is cut, and that nothing is left behind.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod binary;
mod crowd;
mod fake;
mod limits;

use bytes::Bytes;
use fake::{Fake, Front, json, read_all, status};
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper_util::rt::{TokioExecutor, TokioIo};
use omni_inferd::proxy::keys;
use std::sync::atomic::Ordering;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn only_the_api_and_probes_pass() {
    let (fake, mut answers) = (Fake::start(), Vec::new());
    let proxy = Front::start(fake.settings());
    for path in ["/v1/models?x=1&y=%2e%2e", "/health", "/ready", "http://any.host/v1/models"] {
        answers.push(proxy.get(path, "").await);
    }
    assert!(answers.iter().all(|answer| status(answer) == 200), "{answers:?}");
    assert_eq!(json(&answers[0])["target"], "/v1/models?x=1&y=%2e%2e");
    assert_eq!(json(&answers[3])["target"], "/v1/models");
    let refused =
        ["/", "/control/v1/status", "//control", "/v1/../control/v1/status", "/v1/%2e%2e/control", "/metrics", "*"];
    for path in refused {
        let answer = proxy.get(path, "").await;
        assert_eq!(status(&answer), 404, "{path}");
        assert_eq!(json(&answer)["error"]["code"], "not_found", "{path}");
    }
    assert_eq!(status(&proxy.raw("CONNECT x:80 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await) / 100, 4);
}

#[tokio::test]
async fn keys_open_and_stay_here() {
    let fake = Fake::start();
    let file = fake.socket.with_file_name("keys");
    std::fs::write(&file, keys::line("k-alice", "alice")).unwrap();
    let mut settings = fake.settings();
    settings.keys = Some(file.clone());
    let proxy = Front::start(settings);

    for fields in ["", "authorization: Bearer wrong\r\n", "authorization: Basic k-alice\r\n", "x-api-key: \r\n"] {
        let answer = proxy.get("/v1/models", fields).await;
        assert_eq!(status(&answer), 401, "{fields}");
        assert!(answer.contains("www-authenticate: Bearer"), "{answer}");
        assert_eq!(json(&answer)["error"]["code"], "invalid_api_key");
    }
    let spoof = "x-omni-client: root\r\nx-omni-role: admin\r\n";
    for fields in ["authorization: Bearer k-alice\r\n", "x-api-key: k-alice\r\n"] {
        let answer = json(&proxy.get("/v1/models", &format!("{fields}{spoof}")).await);
        assert_eq!(answer["headers"]["x-omni-client"], "alice");
        assert!(!answer.to_string().contains("k-alice") && answer["headers"]["x-omni-role"].is_null(), "{answer}");
    }
    assert_eq!(status(&proxy.get("/health", "").await), 200, "probes need no key");

    std::fs::write(&file, "nonsense").unwrap();
    assert!(proxy.handle.reload_keys().unwrap_err().to_string().contains("keys:1:"));
    assert_eq!(status(&proxy.get("/v1/models", "x-api-key: k-alice\r\n").await), 200, "a broken file changes nothing");
    std::fs::write(&file, keys::line("k-bob", "bob")).unwrap();
    assert_eq!(proxy.handle.reload_keys().unwrap(), 1);
    assert_eq!(status(&proxy.get("/v1/models", "x-api-key: k-alice\r\n").await), 401);
    assert_eq!(status(&proxy.get("/v1/models", "x-api-key: k-bob\r\n").await), 200);
}

#[tokio::test]
async fn keep_alive_and_pipelining_keep_the_order() {
    let fake = Fake::start();
    let proxy = Front::start(fake.settings());
    let mut text = String::new();
    for i in 0..20 {
        text += &format!("POST /v1/p{i} HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhello");
    }
    text += "GET /v1/last HTTP/1.1\r\nhost: x\r\nconnection: close\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n\r\n";
    let answers = proxy.raw(text).await;
    let mut rest = answers.as_str();
    for i in 0..20 {
        let at = rest.find(&format!("\"target\":\"/v1/p{i}\"")).unwrap_or_else(|| panic!("{i} is missing: {answers}"));
        rest = &rest[at..];
    }
    assert!(rest.contains("/v1/last") && !rest.contains("h2c"), "{rest}");
    assert_eq!(answers.matches("HTTP/1.1 200").count(), 21);
    assert!(!answers.contains("x-private"), "hop-by-hop fields end at the proxy");
    assert_eq!(fake.seen.connections.load(Ordering::SeqCst), 1, "one connection to the daemon serves them all");
}

#[tokio::test]
async fn http2_by_prior_knowledge_runs_streams_side_by_side() {
    let fake = Fake::start();
    let proxy = Front::start(fake.settings());
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(proxy.connect().await)).await.unwrap();
    tokio::spawn(connection);
    let mut tasks = Vec::new();
    for _ in 0..50 {
        let request = Request::get("http://any/v1/sse?n=20&ms=5").body(Empty::<Bytes>::new()).unwrap();
        sender.ready().await.unwrap();
        let response = sender.send_request(request);
        tasks.push(tokio::spawn(async move { response.await.unwrap().collect().await.unwrap().to_bytes() }));
    }
    for task in tasks {
        let text = String::from_utf8(task.await.unwrap().to_vec()).unwrap();
        assert_eq!(text.matches("data: ").count(), 21, "{text}");
        assert!(text.ends_with("data: [DONE]\n\n"));
    }
    let request = Request::get("http://any/control").body(Empty::<Bytes>::new()).unwrap();
    assert_eq!(sender.send_request(request).await.unwrap().status(), 404);
}

#[tokio::test]
async fn http2_preface_may_come_byte_by_byte() {
    let fake = Fake::start();
    let proxy = Front::start(fake.settings());
    let mut stream = proxy.connect().await;
    for byte in b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0" {
        stream.write_all(&[*byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    let mut frame = [0; 9];
    stream.read_exact(&mut frame).await.unwrap();
    assert_eq!(frame[3], 4, "a SETTINGS frame answers");
    let mut stream = proxy.connect().await;
    for byte in b"POST /v1/x HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n" {
        stream.write_all(&[*byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    assert_eq!(status(&read_all(&mut stream).await), 200, "P alone is not HTTP/2");
}

#[tokio::test]
async fn bodies_stream_both_ways() {
    let fake = Fake::start();
    let proxy = Front::start(fake.settings());
    let (mut reader, mut writer) = proxy.connect().await.into_split();
    const SIZE: usize = 20 << 20;
    let writing = tokio::spawn(async move {
        let head = format!("POST /v1/echo HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {SIZE}\r\n\r\n");
        writer.write_all(head.as_bytes()).await.unwrap();
        let piece = vec![b'y'; 1 << 16];
        for _ in 0..SIZE / piece.len() {
            writer.write_all(&piece).await.unwrap();
        }
        writer
    });
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).await.unwrap();
    writing.await.unwrap();
    assert_eq!(bytes.iter().filter(|&&byte| byte == b'y').count(), SIZE);
}

#[tokio::test]
async fn a_missing_daemon_is_503_and_a_dying_one_is_told() {
    let fake = Fake::start();
    let mut settings = fake.settings();
    settings.socket = fake.socket.with_file_name("nobody");
    let answer = Front::start(settings).get("/v1/models", "").await;
    assert_eq!((status(&answer), json(&answer)["error"]["code"].as_str()), (503, Some("upstream_unavailable")));
    assert!(answer.contains("retry-after: "), "{answer}");

    let proxy = Front::start(fake.settings());
    assert_eq!(status(&proxy.get("/v1/vanish", "").await), 502);
    let stream = proxy.get("/v1/die?n=2&ms=1", "").await;
    assert!(stream.contains("{\"i\":1}"), "{stream}");
    let last = stream.rsplit("data: ").next().unwrap().lines().next().unwrap();
    let error: serde_json::Value = serde_json::from_str(last).unwrap();
    assert_eq!(error["error"]["code"], "upstream_failed", "{stream}");
    let cut = proxy.get("/v1/cut?n=2&ms=1", "").await;
    assert!(
        !cut.contains("upstream_failed") && !cut.ends_with("0\r\n\r\n"),
        "a broken JSON answer is no whole one: {cut}"
    );
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_request() {
    let fake = Fake::start();
    let proxy = Front::start(fake.settings());
    for path in ["/v1/sse?n=100000&ms=20", "/v1/sse?n=1&ms=3600000"] {
        let mut stream = proxy.connect().await;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await.unwrap();
        stream.read_u8().await.unwrap();
        assert_eq!(fake.seen.running.load(Ordering::SeqCst), 1);
        drop(stream);
        fake.quiet().await;
    }
}

#[tokio::test]
async fn stopping_lets_answers_finish() {
    let fake = Fake::start();
    let proxy = Front::start(fake.settings());
    let _silent = proxy.connect().await;
    let mut kept = proxy.connect().await;
    kept.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    kept.read_u8().await.unwrap();
    let mut running = proxy.connect().await;
    running.write_all(b"GET /v1/sse?n=20&ms=20 HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    running.read_u8().await.unwrap();
    proxy.handle.stop();
    assert!(read_all(&mut running).await.contains("[DONE]"));
    read_all(&mut kept).await;
    assert_eq!(proxy.task.await.unwrap(), 0, "nothing had to be cut");

    let mut settings = fake.settings();
    settings.drain_timeout = std::time::Duration::from_millis(200);
    let proxy = Front::start(settings);
    let mut running = proxy.connect().await;
    running.write_all(b"GET /v1/sse?n=100000&ms=20 HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    running.read_u8().await.unwrap();
    proxy.handle.stop();
    assert_eq!(proxy.task.await.unwrap(), 1);
    fake.quiet().await;
}
