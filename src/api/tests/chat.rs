//! `/v1/chat/completions`: messages to prompts, refusals, streams, log-probabilities.

use super::fake::{BOS, served};
use super::*;
use crate::text::OutputFormat;
use serde_json::json;

const PATH: &str = "/v1/chat/completions";

fn hi() -> Value {
    json!([{"role": "user", "content": "hi"}])
}

fn prompt_of(fake: &Fake, i: usize) -> String {
    let ids = fake.seen.lock().unwrap()[i].prompt.clone();
    let tokenizer = served(Box::new(Arc::new(Fake::default()))).tokenizer;
    String::from_utf8(tokenizer.decode(&ids, true)).unwrap()
}

#[tokio::test]
async fn a_conversation_is_answered() {
    let (served, fake) = Fake::replying(&["hello"]).serve();
    let answer = ok(&served, PATH, json!({"model": "fake", "messages": hi()})).await;
    assert_eq!(answer["object"], "chat.completion");
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    let message = json!({"role": "assistant", "content": "hello", "refusal": null});
    let choice = json!({"index": 0, "message": message, "logprobs": null, "finish_reason": "stop"});
    assert_eq!(answer["choices"], json!([choice]));
    assert_eq!(answer["usage"]["completion_tokens"], 5);
    assert_eq!(prompt_of(&fake, 0), "<s><|user|>user:hi\n<|assistant|>");
    let seen = fake.seen.lock().unwrap()[0].clone();
    assert_eq!(seen.prompt.iter().filter(|id| **id == BOS).count(), 1, "the template wrote it already");
    assert_eq!(seen.max_tokens, fake::CONTEXT - seen.prompt.len());
}

#[tokio::test]
async fn messages_are_normalised_for_the_template() {
    let (served, fake) = Fake::replying(&["x"]).serve();
    let messages = json!([
        {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": null, "tool_calls": [{"id": "1", "type": "function", "function": {}}]},
        {"role": "tool", "tool_call_id": "1", "content": "r"}]);
    ok(&served, PATH, json!({"messages": messages, "max_completion_tokens": 3, "max_tokens": 9})).await;
    assert_eq!(prompt_of(&fake, 0), "<s><|user|>system:a\nb\n<|user|>assistant:\n<|user|>tool:r\n<|assistant|>");
    assert_eq!(fake.seen.lock().unwrap()[0].max_tokens, 3);
    let tools = json!([{"type": "function", "function": {"name": "f"}}]);
    let body = json!({"messages": hi(), "tools": tools, "tool_choice": "auto", "enable_thinking": false,
        "chat_template_kwargs": {"x": 1}, "reasoning_effort": "low", "response_format": {"type": "text"}});
    ok(&served, PATH, body).await;
    assert_eq!(prompt_of(&fake, 1), "<s><|user|>user:hi\n[f][False]<|assistant|>");
    ok(&served, PATH, json!({"messages": hi(), "tools": tools, "tool_choice": "none"})).await;
    assert_eq!(prompt_of(&fake, 2), "<s><|user|>user:hi\n<|assistant|>");
    ok(&served, PATH, json!({"messages": hi(), "add_generation_prompt": false})).await;
    assert_eq!(prompt_of(&fake, 3), "<s><|user|>user:hi\n");
    let messages = json!([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Sure, "}]);
    ok(&served, PATH, json!({"messages": messages, "continue_final_message": true})).await;
    assert_eq!(prompt_of(&fake, 4), "<s><|user|>user:hi\n<|user|>assistant:Sure,");
}

#[tokio::test]
async fn wrong_requests_are_refused_by_name() {
    let (served, fake) = Fake::replying(&["x"]).serve();
    let image = json!([{"type": "image_url", "image_url": {"url": "data:"}}]);
    let messages = [
        json!(null),
        json!([]),
        json!("hi"),
        json!([{"role": "robot", "content": "x"}]),
        json!([{"content": "x"}]),
        json!([{"role": "user"}]),
        json!([{"role": "user", "content": 7}]),
        json!([{"role": "user", "content": [{"type": "text"}]}]),
        json!([{"role": "user", "content": "x", "tool_calls": [{}]}]),
        json!([{"role": "assistant", "tool_calls": [7]}]),
        json!([{"role": "user", "content": image}]),
    ];
    for messages in messages {
        refused(&served, PATH, json!({"messages": messages}), "messages").await;
    }
    let bad = [
        ("max_tokens", json!(0)),
        ("max_completion_tokens", json!(0)),
        ("top_logprobs", json!(3)),
        ("top_logprobs", json!(21)),
        ("logprobs", json!(3)),
        ("response_format", json!({"type": "json_object"})),
        ("response_format", json!("json")),
        ("tools", json!([{"type": "retrieval", "function": {"name": "f"}}])),
        ("tools", json!([{"type": "function", "function": {}}])),
        ("tools", json!([{"type": "function"}])),
        ("tool_choice", json!("required")),
        ("tool_choice", json!({"type": "function", "function": {"name": "f"}})),
        ("reasoning_format", json!("xml")),
        ("chat_template_kwargs", json!([1])),
        ("continue_final_message", json!(true)),
        ("functions", json!([{"name": "f"}])),
        ("modalities", json!(["audio"])),
        ("temperature", json!(9)),
    ];
    for (field, value) in bad {
        refused(&served, PATH, json!({"messages": hi(), field: value}), field).await;
    }
    let long = json!([{"role": "user", "content": "x".repeat(200)}]);
    let message = refused(&served, PATH, json!({"messages": long}), "messages").await;
    assert!(message.contains("holds 100"), "{message}");
    assert!(fake.seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_model_without_template_names_the_remedy() {
    let mut served = served(Box::new(Arc::new(Fake::replying(&["x"]))));
    served.template = None;
    let message = refused(&Arc::new(served), PATH, json!({"messages": hi()}), "messages").await;
    assert!(message.contains("/v1/completions") && message.contains("chat_template"), "{message}");
}

#[tokio::test]
async fn streams_role_deltas_finish_usage_done() {
    let (served, _) = Fake::replying(&["hello €"]).serve();
    let body = json!({"messages": hi(), "stream_options": {"include_usage": true}, "return_token_ids": true});
    let events = stream(&served, PATH, body).await;
    let chunks: Vec<_> = events.iter().filter(|event| event.is_object()).collect();
    assert_eq!(chunks[0]["object"], "chat.completion.chunk");
    assert_eq!(chunks[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    assert!(chunks[0]["choices"][0]["prompt_token_ids"].as_array().unwrap().len() > 5);
    let deltas: String = chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(deltas, "hello €");
    let ids: usize = chunks.iter().filter_map(|chunk| chunk["choices"][0]["token_ids"].as_array()).map(Vec::len).sum();
    assert_eq!(ids, "hello €".len());
    let finish = chunks[chunks.len() - 2];
    assert_eq!((&finish["choices"][0]["finish_reason"], &finish["choices"][0]["delta"]), (&json!("stop"), &json!({})));
    assert_eq!(chunks[chunks.len() - 1]["usage"]["total_tokens"].as_u64().unwrap(), 20);
    assert_eq!(events.last().unwrap(), "[DONE]");
}

#[tokio::test]
async fn logprobs_in_the_chat_shape() {
    let (served, _) = Fake::replying(&["hé"]).serve();
    let answer = ok(&served, PATH, json!({"messages": hi(), "logprobs": true, "top_logprobs": 2, "n": 2})).await;
    assert_eq!(answer["choices"][1]["index"], 1);
    for choice in answer["choices"].as_array().unwrap() {
        let content = choice["logprobs"]["content"].as_array().unwrap();
        assert_eq!(content.len(), 3);
        let top =
            json!([{"token": "h", "logprob": -0.5, "bytes": [104]}, {"token": "i", "logprob": -1.5, "bytes": [105]}]);
        assert_eq!(content[0], json!({"token": "h", "logprob": -0.5, "bytes": [104], "top_logprobs": top}));
        assert_eq!((&content[1]["token"], &content[1]["bytes"]), (&json!("\u{fffd}"), &json!([195])));
    }
    let answer = ok(&served, PATH, json!({"messages": hi(), "logprobs": true, "stop": "é"})).await;
    assert_eq!(answer["choices"][0]["message"]["content"], "h");
    assert_eq!(answer["choices"][0]["logprobs"]["content"].as_array().unwrap().len(), 1);
}

/// Streamed deltas add up to the whole answer, whatever markup the text has.
#[tokio::test]
async fn streamed_deltas_add_up() {
    let texts =
        ["plain  text \n", "a < b and <b>c</b> <", "<think>hm\n</think>\n\nyes <think>", "<think>cut", " <thin"];
    for text in texts {
        let (served, _) = Fake::replying(&[text]).serve();
        for extra in [json!({}), json!({"tools": [{"type": "function", "function": {"name": "f"}}]})] {
            let mut body = json!({"messages": hi(), "max_tokens": 60});
            body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            let whole = ok(&served, PATH, body.clone()).await["choices"][0]["message"].clone();
            let events = stream(&served, PATH, body).await;
            let join = |name: &str| -> String {
                events.iter().filter_map(|event| event["choices"][0]["delta"][name].as_str()).collect()
            };
            assert_eq!(join("content"), whole["content"].as_str().unwrap_or_default(), "{text:?}");
            assert_eq!(join("reasoning_content"), whole["reasoning_content"].as_str().unwrap_or_default(), "{text:?}");
        }
    }
}

/// A value's type comes from the tool's schema where the markup does not show it.
#[tokio::test]
async fn tool_arguments_follow_the_schema() {
    let call = "<function=f><parameter=a>1</parameter><parameter=b>2</parameter></function>";
    let mut served = served(Box::new(Arc::new(Fake::replying(&[call]))));
    served.format = OutputFormat::FunctionTags;
    let parameters = json!({"properties": {"a": {"type": "string"}, "b": {"type": "integer"}}});
    let tools = json!([{"type": "function", "function": {"name": "f", "parameters": parameters}}]);
    let answer = ok(&Arc::new(served), PATH, json!({"messages": hi(), "tools": tools})).await;
    let choice = &answer["choices"][0];
    assert_eq!(choice["message"]["tool_calls"][0]["function"]["arguments"], r#"{"a": "1", "b": 2}"#, "{answer}");
}
