//! `/v1/completions`: every field, every refusal, streams, log-probabilities.

use super::fake::{BOS, CONTEXT, END};
use super::*;
use serde_json::json;

const PATH: &str = "/v1/completions";

#[tokio::test]
async fn a_text_is_completed() {
    let (served, fake) = Fake::replying(&[" world"]).serve();
    let answer = ok(&served, PATH, json!({"model": "auto", "prompt": "hello", "user": "x", "unknown": {}})).await;
    assert_eq!(answer["object"], "text_completion");
    assert_eq!(answer["model"], "fake");
    assert!(answer["id"].as_str().unwrap().starts_with("cmpl-") && answer["created"].as_u64().unwrap() > 1_700_000_000);
    let choice = json!({"index": 0, "text": " world", "logprobs": null, "finish_reason": "stop"});
    assert_eq!(answer["choices"], json!([choice]));
    let usage = json!({"prompt_tokens": 5, "completion_tokens": 6, "total_tokens": 11,
        "prompt_tokens_details": {"cached_tokens": 2}});
    assert_eq!(answer["usage"], usage, "<s>, he, l, l, o");
    assert_eq!(answer["timings"]["prompt_n"], 3);
    assert_eq!(answer["timings"]["predicted_per_second"], 300.0);
    let seen = &fake.seen.lock().unwrap()[0];
    assert_eq!(seen.prompt, [BOS, 260, 108, 108, 111]);
    assert_eq!((seen.max_tokens, seen.stop_tokens.as_slice(), seen.cache), (16, [END].as_slice(), true));
    assert_eq!(seen.sampling.temperature, 1.0);
}

#[tokio::test]
async fn every_sampling_field_reaches_the_engine() {
    let (served, fake) = Fake::replying(&["a"]).serve();
    let body = json!({"prompt": [1, 2], "max_tokens": 7, "temperature": 0, "top_p": 0.5, "top_k": 40, "min_p": 0.25,
        "typical_p": 0.75, "repetition_penalty": 1.5, "frequency_penalty": -1, "presence_penalty": 2, "seed": -1,
        "repeat_last_n": 32, "logit_bias": {"97": -100, "98": 2.5}, "stop_token_ids": [10, 3], "ignore_eos": true,
        "cache_prompt": false, "best_of": 1, "n": 1, "logprobs": 3, "suffix": null, "stop": null});
    ok(&served, PATH, body).await;
    let seen = fake.seen.lock().unwrap()[0].clone();
    assert_eq!((seen.prompt, seen.max_tokens, seen.stop_tokens, seen.cache), (vec![1, 2], 7, vec![3, 10], false));
    let want = crate::sample::Params {
        temperature: 0.0,
        top_k: 40,
        top_p: 0.5,
        min_p: 0.25,
        typical_p: 0.75,
        repetition_penalty: 1.5,
        frequency_penalty: -1.0,
        presence_penalty: 2.0,
        penalty_last_n: 32,
        logit_bias: vec![(97, -100.0), (98, 2.5)],
        seed: u64::MAX,
        logprobs: Some(3),
    };
    assert_eq!(seen.sampling, want);
    ok(&served, PATH, json!({"prompt": "x", "top_k": -1, "repeat_penalty": 1.25, "seed": u64::MAX})).await;
    let seen = fake.seen.lock().unwrap()[1].clone();
    assert_eq!((seen.sampling.top_k, seen.sampling.repetition_penalty), (0, 1.25));
}

#[tokio::test]
async fn numbers_out_of_range_are_refused_by_name() {
    let (served, fake) = Fake::replying(&["a"]).serve();
    let bad = [
        ("temperature", json!(-0.1)),
        ("temperature", json!(5.1)),
        ("temperature", json!("hot")),
        ("top_p", json!(1.01)),
        ("top_k", json!(-2)),
        ("top_k", json!(1.5)),
        ("min_p", json!(2)),
        ("typical_p", json!(0)),
        ("repetition_penalty", json!(0)),
        ("repeat_penalty", json!(11)),
        ("repeat_last_n", json!(-2)),
        ("frequency_penalty", json!(2.1)),
        ("presence_penalty", json!(-2.1)),
        ("logit_bias", json!({"261": 1})),
        ("logit_bias", json!({"x": 1})),
        ("logit_bias", json!({"1": 101})),
        ("seed", json!(1.5)),
        ("seed", json!("1")),
        ("n", json!(0)),
        ("n", json!(129)),
        ("best_of", json!(2)),
        ("max_tokens", json!(-1)),
        ("logprobs", json!(21)),
        ("logprobs", json!(true)),
        ("stop", json!([""])),
        ("stop", json!(7)),
        ("stop", json!(vec!["a"; 17])),
        ("stop", json!("a".repeat(1025))),
        ("stop_token_ids", json!([261])),
        ("stop_token_ids", json!([-1])),
        ("stream", json!("yes")),
        ("stream_options", json!(true)),
        ("echo", json!(1)),
        ("suffix", json!("x")),
        ("grammar", json!("root ::= x")),
        ("model", json!(7)),
    ];
    for (field, value) in bad {
        let message = refused(&served, PATH, json!({"prompt": "x", field: value}), field).await;
        assert!(message.contains(field), "{message}");
    }
    assert!(fake.seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn prompts_come_in_four_forms() {
    let (served, fake) = Fake::replying(&["1", "2", "3", "4"]).serve();
    let answer = ok(&served, PATH, json!({"prompt": ["a", "b"], "n": 2, "seed": 5})).await;
    let texts: Vec<_> = answer["choices"].as_array().unwrap().iter().map(|choice| &choice["text"]).collect();
    assert_eq!(texts, ["1", "2", "3", "4"]);
    assert_eq!(answer["usage"]["prompt_tokens"], 4);
    assert_eq!(answer["usage"]["prompt_tokens_details"]["cached_tokens"], 4);
    let seeds: Vec<u64> = fake.seen.lock().unwrap().iter().map(|request| request.sampling.seed).collect();
    assert_eq!(seeds, [5, 6, 5, 6]);
    ok(&served, PATH, json!({"prompt": [[1], [2, 3]]})).await;
    assert_eq!(fake.seen.lock().unwrap()[5].prompt, [2, 3]);
    for prompt in [json!(null), json!([]), json!([[]]), json!([[1], []]), json!({}), json!([261]), json!([1, "a"])] {
        refused(&served, PATH, json!({"prompt": prompt}), "prompt").await;
    }
    refused(&served, PATH, json!({"prompt": vec!["a"; 129]}), "prompt").await;
    refused(&served, PATH, json!({"prompt": vec!["a"; 64], "n": 3}), "prompt").await;
    // An empty text still begins with BOS.
    ok(&served, PATH, json!({"prompt": ""})).await;
}

#[tokio::test]
async fn a_prompt_that_does_not_fit_is_refused_with_both_numbers() {
    let (served, fake) = Fake::replying(&["abcdefghij"]).serve();
    let (status, answer) = post(&served, PATH, &json!({"prompt": "x".repeat(CONTEXT - 1)})).await;
    assert_eq!((status, &answer["error"]["code"]), (400, &json!("context_length_exceeded")));
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(message.contains("100 tokens") && message.contains("holds 100"), "{message}");
    let answer = ok(&served, PATH, json!({"prompt": "x".repeat(CONTEXT - 6), "max_tokens": 1000})).await;
    assert_eq!(fake.seen.lock().unwrap()[0].max_tokens, 5);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn stop_strings_cut_exactly_and_cancel_the_rest() {
    let (served, fake) = Fake::replying(&["one. two END three"]).serve();
    let body = json!({"prompt": "x", "stop": [" END", "never"], "max_tokens": 50, "return_token_ids": true});
    let answer = ok(&served, PATH, body.clone()).await;
    let choice = &answer["choices"][0];
    assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!("one. two"), &json!("stop")));
    assert_eq!(choice["token_ids"].as_array().unwrap().len(), 8, "tokens of the stop string are dropped");
    assert_eq!(choice["prompt_token_ids"], json!([BOS, 120]));
    assert_eq!(answer["usage"]["completion_tokens"], 12, "but were generated");
    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    assert_eq!(fake.live.load(std::sync::atomic::Ordering::SeqCst), 0);
    let events = stream(&served, PATH, body).await;
    let text: String = events.iter().filter_map(|event| event["choices"][0]["text"].as_str()).collect();
    assert_eq!(text, "one. two");
    // What looks like the beginning of a stop string at the end is text after all.
    let answer = ok(&served, PATH, json!({"prompt": "x", "stop": "three!", "max_tokens": 50})).await;
    assert_eq!(answer["choices"][0]["text"], "one. two END three");
}

#[tokio::test]
async fn streams_text_usage_and_done() {
    let (served, _) = Fake::replying(&["a€b"]).serve();
    let body = json!({"prompt": "hello there", "stream_options": {"include_usage": true}, "echo": true});
    let events = stream(&served, PATH, body).await;
    assert!(events.contains(&json!(": prefill 5/10")), "{events:?}");
    let texts: Vec<_> = events.iter().filter_map(|event| event["choices"][0]["text"].as_str()).collect();
    assert_eq!(texts.concat(), "hello therea€b");
    assert!(texts.iter().all(|text| !text.contains('\u{fffd}')));
    let usage = &events[events.len() - 2];
    assert_eq!((&usage["choices"], &usage["usage"]["completion_tokens"]), (&json!([]), &json!(5)));
    assert!(usage["timings"]["queue_ms"].as_f64().unwrap() > 0.0);
    assert_eq!(events[events.len() - 3]["choices"][0]["finish_reason"], "stop");
    assert_eq!(events.last().unwrap(), "[DONE]");
    let ids: Vec<_> = events.iter().filter_map(|event| event["id"].as_str()).collect();
    assert!(ids.iter().all(|id| *id == ids[0]));
    // Without usage the times come with the last choice.
    let events = stream(&served, PATH, json!({"prompt": "x", "n": 2})).await;
    let timed: Vec<_> = events.iter().filter(|event| event["timings"].is_object()).collect();
    assert_eq!(timed.len(), 1);
    assert_eq!(timed[0], &events[events.len() - 2]);
    assert!(events.iter().all(|event| event["usage"].is_null()));
}

#[tokio::test]
async fn logprobs_in_the_older_shape() {
    let (served, _) = Fake::replying(&["hé"]).serve();
    let answer = ok(&served, PATH, json!({"prompt": "ab", "echo": true, "logprobs": 1})).await;
    let choice = &answer["choices"][0];
    assert_eq!(choice["text"], "abhé");
    let logprobs = &choice["logprobs"];
    assert_eq!(logprobs["tokens"], json!(["<s>", "a", "b", "h", "bytes:\\xc3", "bytes:\\xa9"]));
    assert_eq!(logprobs["token_logprobs"], json!([null, -0.5, -0.5, -0.5, -0.5, -0.5]));
    assert_eq!(logprobs["text_offset"], json!([0, 0, 1, 2, 3, 3]));
    assert_eq!(logprobs["top_logprobs"][0], json!(null));
    assert_eq!(logprobs["top_logprobs"][3], json!({"h": -0.5}));
    // Only the prompt's: what evaluation harnesses ask for.
    let answer = ok(&served, PATH, json!({"prompt": "ab", "echo": true, "logprobs": 0, "max_tokens": 0})).await;
    let choice = &answer["choices"][0];
    assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!("ab"), &json!("length")));
    assert_eq!(choice["logprobs"]["tokens"], json!(["<s>", "a", "b"]));
    assert_eq!(choice["logprobs"]["top_logprobs"][1], json!({"a": -0.5}));
    let events = stream(&served, PATH, json!({"prompt": "ab", "logprobs": 2})).await;
    let tokens: Vec<_> =
        events.iter().filter_map(|event| event["choices"][0]["logprobs"]["tokens"].as_array()).flatten().collect();
    assert_eq!(tokens, ["h", "bytes:\\xc3", "bytes:\\xa9"]);
}
