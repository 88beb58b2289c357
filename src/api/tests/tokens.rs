//! `/tokenize`, `/detokenize`, `/v1/models`, `/health`.

use super::fake::BOS;
use super::*;
use serde_json::json;

#[tokio::test]
async fn text_to_tokens_and_back() {
    let (served, _) = Fake::replying(&["x"]).serve();
    assert_eq!(ok(&served, "/tokenize", json!({"content": "he<|end|>"})).await, json!({"tokens": [260, 256]}));
    let body = json!({"content": "a<|end|>", "add_special": true, "parse_special": false});
    let answer = ok(&served, "/tokenize", body).await;
    assert_eq!((answer["tokens"][0].as_u64(), answer["tokens"].as_array().unwrap().len()), (Some(u64::from(BOS)), 9));
    let answer = ok(&served, "/tokenize", json!({"content": "a€", "with_pieces": true})).await;
    let pieces = json!([{"id": 97, "piece": "a"}, {"id": 226, "piece": [226]}, {"id": 130, "piece": [130]},
        {"id": 172, "piece": [172]}]);
    assert_eq!(answer["tokens"], pieces);
    assert_eq!(ok(&served, "/detokenize", json!({"tokens": [260, 226, 130, 172]})).await, json!({"content": "he€"}));
    assert_eq!(ok(&served, "/detokenize", json!({"tokens": []})).await, json!({"content": ""}));
    refused(&served, "/tokenize", json!({}), "content").await;
    refused(&served, "/tokenize", json!({"content": 7}), "content").await;
    refused(&served, "/detokenize", json!({"tokens": [9999]}), "tokens").await;
    refused(&served, "/detokenize", json!({"tokens": "x"}), "tokens").await;
    refused(&served, "/detokenize", json!({}), "tokens").await;
}

#[tokio::test]
async fn models_and_health() {
    let (served, _) = Fake::replying(&["x"]).serve();
    let list: Value = serde_json::from_slice(&bytes(send(&served, "GET", "/v1/models", "").await).await).unwrap();
    let card = json!({"id": "fake", "object": "model", "created": 1, "owned_by": "omni-inferd",
        "aliases": ["other/name"], "context_length": 100});
    assert_eq!(list, json!({"object": "list", "data": [card]}));
    for (path, status) in [("/v1/models/fake", 200), ("/v1/models/other%2fname", 200), ("/v1/models/x%zz%", 404)] {
        assert_eq!(send(&served, "GET", path, "").await.status(), status, "{path}");
    }
    assert_eq!(bytes(send(&served, "GET", "/health", "").await).await, r#"{"status":"ok"}"#);
}
