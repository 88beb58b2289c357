//! Wrong paths, full queues, failing engines, clients that leave or stall, random fields.

use super::*;
use serde_json::json;
use std::sync::atomic::Ordering;
use std::time::Duration;

const PATH: &str = "/v1/completions";

async fn idle(fake: &Fake) {
    for _ in 0..100 {
        if fake.live.load(Ordering::SeqCst) == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{} requests were never cancelled", fake.live.load(Ordering::SeqCst));
}

#[tokio::test]
async fn paths_methods_and_bodies() {
    let (served, _) = Fake::replying(&["x"]).serve();
    let cases = [
        ("GET", "/nothing", "", 404),
        ("GET", "/v1/completions", "", 405),
        ("POST", "/v1/models", "{}", 405),
        ("DELETE", "/v1/models/fake", "", 405),
        ("HEAD", "/health", "", 200),
        ("POST", PATH, "", 400),
        ("POST", PATH, "{\"prompt\"", 400),
        ("POST", PATH, "[]", 400),
        ("POST", PATH, "null", 400),
    ];
    for (method, path, body, status) in cases {
        let response = send(&served, method, path, body).await;
        assert_eq!(response.status(), status, "{method} {path}");
        assert_eq!(response.headers().contains_key("allow"), status == 405);
        let answer: Value = serde_json::from_slice(&bytes(response).await).unwrap();
        assert!(status == 200 || answer["error"]["message"].is_string());
    }
    let large = json!({"prompt": "x".repeat(100_000)}).to_string();
    assert_eq!(send(&served, "POST", PATH, large).await.status(), 413);
    let request = Request::post(PATH).header("content-encoding", "gzip").body(Full::new(Bytes::new())).unwrap();
    assert_eq!(handle(served.clone(), request).await.status(), 415);
    let request = Request::post(PATH).header("content-type", "text/plain");
    let request = request.body(Full::new(Bytes::from(r#"{"prompt":"x"}"#))).unwrap();
    assert_eq!(handle(served, request).await.status(), 200);
}

#[tokio::test]
async fn a_full_queue_is_429_with_retry_after() {
    let (served, fake) = Fake { queue: Some(1), hang_after: Some(3), ..Fake::replying(&["abc"]) }.serve();
    let body = json!({"prompt": "x", "stream": true}).to_string();
    let first = send(&served, "POST", PATH, body.clone()).await;
    let second = send(&served, "POST", PATH, body).await;
    assert_eq!((second.status().as_u16(), &second.headers()["retry-after"]), (429, &http::HeaderValue::from(3)));
    drop(first);
    idle(&fake).await;
}

#[tokio::test]
async fn many_choices_take_turns_in_a_short_queue() {
    for (queue, most) in [(None, 4), (Some(2), 2), (Some(1), 1)] {
        let (served, fake) = Fake { queue, ..Fake::replying(&["ab"]) }.serve();
        let answer = ok(&served, PATH, json!({"prompt": "x", "n": 9})).await;
        let choices = answer["choices"].as_array().unwrap();
        assert_eq!(choices.len(), 9);
        assert!(choices.iter().enumerate().all(|(i, choice)| choice["index"] == i && choice["text"] == "ab"));
        assert_eq!(fake.most.load(Ordering::SeqCst), most);
        idle(&fake).await;
    }
}

#[tokio::test]
async fn an_engine_error_is_500_or_ends_the_stream_without_done() {
    let (served, _) = Fake { error: Some("it broke"), ..Fake::replying(&["abc"]) }.serve();
    let (status, answer) = post(&served, PATH, &json!({"prompt": "x"})).await;
    assert_eq!((status, &answer["error"]["message"]), (500, &json!("it broke")));
    let events = stream(&served, PATH, json!({"prompt": "x"})).await;
    let last = events.last().unwrap();
    assert_eq!((&last["error"]["message"], &last["error"]["type"]), (&json!("it broke"), &json!("server_error")));
}

#[tokio::test]
async fn a_client_that_leaves_cancels_its_work() {
    for streaming in [true, false] {
        let (served, fake) = Fake { hang_after: Some(4), ..Fake::replying(&["abcdef"]) }.serve();
        let body = json!({"prompt": "x", "stream": streaming, "n": 3}).to_string();
        let answer = tokio::time::timeout(Duration::from_millis(100), send(&served, "POST", PATH, body)).await;
        assert_eq!((answer.is_ok(), fake.seen.lock().unwrap().len()), (streaming, 3));
        drop(answer);
        idle(&fake).await;
    }
}

#[tokio::test]
async fn a_reader_that_stalls_ends_its_stream() {
    let long: &'static str = "x".repeat(90).leak();
    let fake = Arc::new(Fake::replying(&[long]));
    let mut served = fake::served(Box::new(fake.clone()));
    served.limits.pace.stall = Duration::from_millis(50);
    let body = json!({"prompt": "x", "stream": true, "max_tokens": 90}).to_string();
    let response = send(&Arc::new(served), "POST", PATH, body).await;
    idle(&fake).await;
    let events = events(&bytes(response).await);
    assert!(events.len() < 90 && events.last().unwrap() != "[DONE]");
}

mod random {
    use super::*;
    use proptest::prelude::*;

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            (-3.0..7.0).prop_map(Value::from),
            "[a-z<>|]{0,6}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec(("(role|content|type|text|name|function|[a-z0-9]{1,3})", inner), 0..4)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        /// Whatever one field holds: an answer or a refusal, never a failure.
        #[test]
        fn no_field_makes_it_fail(at in 0..64usize, value in json()) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let (served, _) = Fake::replying(&["ab"]).serve();
                let document: Value = serde_json::from_str(&crate::api::openapi::document().unwrap()).unwrap();
                for (path, base) in [
                    (PATH, json!({"prompt": "x"})),
                    ("/v1/chat/completions", json!({"messages": [{"role": "user", "content": "x"}]})),
                ] {
                    let fields = super::super::openapi::fields(&document, path);
                    let mut body = base;
                    body[&fields[at % fields.len()]] = value.clone();
                    let status = send(&served, "POST", path, body.to_string()).await.status();
                    assert!(status == 200 || status == 400, "{status} {body}");
                }
            });
        }
    }
}
