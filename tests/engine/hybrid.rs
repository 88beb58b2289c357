//! Models with recurrent state in the engine: conversations, prompts that begin alike, snapshots that give way, requests
//! that are cut off. Whatever is reused, each gets the text it would get alone.

use crate::support::{Outcome, Unpacked, collect, eventually, executor, greedy, options, request, run, start, unpack};
use omni_inferd::engine::{EngineOptions, Handle, Opened, Request};
use omni_inferd::exec::{KvType, Solo, Wanted};
use omni_inferd::gguf::{self, Array, Value, write::Builder};
use omni_inferd::quant::DType;
use omni_inferd::sample::{Params, uniform};
use std::path::Path;

const NAMES: [&str; 3] = ["qwen3next", "qwen35", "qwen35moe"];

fn file(name: &str) -> Unpacked {
    unpack(&format!("tests/data/hf-tiny/{name}.gguf.zst"))
}

fn open(name: &str, options: &EngineOptions) -> Handle {
    start(&file(name).path, options).handle
}

fn larger() -> EngineOptions {
    EngineOptions { context: Some(1024), ..options() }
}

fn prompt(seed: u64, len: usize) -> Vec<u32> {
    (0..len as u64).map(|i| 3 + (uniform(seed, i) * 157.0) as u32).collect()
}

fn with_logprobs(ids: &[u32], max_tokens: usize) -> Request {
    request(ids, max_tokens, Params { logprobs: Some(3), ..greedy() })
}

fn assert_same(a: &Outcome, b: &Outcome, what: &str) {
    assert_eq!((&a.tokens, &a.logprobs), (&b.tokens, &b.logprobs), "{what}");
}

/// Five turns: each evaluates what is new and at most the rest of a block, and gets what a request without any reuse gets.
#[test]
fn a_conversation_evaluates_only_what_is_new() {
    for name in NAMES {
        let (handle, anew) = (open(name, &larger()), open(name, &larger()));
        let (mut history, mut evaluated) = (Vec::new(), 0);
        for turn in 0..5 {
            let before = evaluated;
            history.extend(prompt(turn, 70 + 13 * turn as usize));
            let answer = run(&handle, with_logprobs(&history, 45));
            let plain = run(&anew, Request { cache: false, ..with_logprobs(&history, 45) });
            assert_same(&answer, &plain, &format!("{name}, turn {turn}"));
            assert_eq!(plain.usage().cached_tokens, 0);
            // The last token drawn is not evaluated; of what was, less than a block is behind the last border.
            let cached = answer.usage().cached_tokens;
            assert!(cached + 32 > before, "{name}, turn {turn}: {cached} of {before} reused");
            evaluated = history.len() + answer.tokens.len() - 1;
            history.extend(answer.tokens);
        }
        assert!(handle.stats().state_snapshots > 0 && anew.stats().state_snapshots == 0);
    }
}

/// A chat that drops what was thought: the next prompt leaves the last answer early, and goes on from its prompt's end.
#[test]
fn a_turn_that_leaves_the_last_answer_goes_on_from_its_prompt() {
    let (handle, anew) = (open("qwen35moe", &larger()), open("qwen35moe", &larger()));
    let first = prompt(9, 100);
    let answer = run(&handle, with_logprobs(&first, 60));
    let next = [&first[..], &answer.tokens[40..], &prompt(10, 30)].concat();
    let (second, plain) = (run(&handle, with_logprobs(&next, 20)), run(&anew, with_logprobs(&next, 20)));
    assert_same(&second, &plain, "after a cut");
    assert_eq!(second.usage().cached_tokens, 96);
}

#[test]
fn choices_of_one_prompt_cost_one_prefill_and_differ_by_their_seeds() {
    let handle = open("qwen3next", &EngineOptions { prefill_chunk: 64, ..options() });
    let ids = prompt(2, 200);
    let sampled = |seed| request(&ids, 20, Params { seed, ..Params::default() });
    let running: Vec<_> = (0..4).map(|seed| handle.submit(sampled(seed)).unwrap()).collect();
    let outcomes: Vec<Outcome> = running.into_iter().map(collect).collect();
    let cached: Vec<usize> = outcomes.iter().map(|outcome| outcome.usage().cached_tokens).collect();
    assert_eq!(cached, [0, 192, 192, 192]);
    for (seed, outcome) in (0..).zip(&outcomes) {
        let alone = run(&handle, Request { cache: false, ..sampled(seed) });
        assert_eq!(outcome.tokens, alone.tokens, "seed {seed}");
    }
}

/// Three requests of one long beginning: the second finds keys and values but no state, and keeps it for the third.
#[test]
fn a_beginning_met_twice_is_kept() {
    let handle = open("qwen35", &larger());
    let common = prompt(1, 300);
    let cached = |tail: u64| {
        let ids = [&common[..], &prompt(tail, 80)].concat();
        let outcome = run(&handle, with_logprobs(&ids, 10));
        assert_same(&outcome, &run(&handle, Request { cache: false, ..with_logprobs(&ids, 10) }), "shared beginning");
        outcome.usage().cached_tokens
    };
    assert_eq!([cached(20), cached(21), cached(22), cached(23)], [0, 0, 288, 288]);
}

/// Far more conversations than there are snapshots: nothing goes wrong when theirs are gone.
#[test]
fn snapshots_that_gave_way_cost_time_and_nothing_else() {
    let handle = open("qwen3next", &EngineOptions { context: Some(512), parallel: 1, ..options() });
    let first: Vec<_> = (0..6).map(|i| run(&handle, with_logprobs(&prompt(i, 80), 40))).collect();
    assert_eq!(handle.stats().state_snapshots, 3);
    let mut reused = 0;
    for (i, first) in first.iter().enumerate() {
        let next = [&prompt(i as u64, 80)[..], &first.tokens, &prompt(50 + i as u64, 20)].concat();
        let outcome = run(&handle, with_logprobs(&next, 10));
        assert_same(&outcome, &run(&handle, Request { cache: false, ..with_logprobs(&next, 10) }), "evicted");
        reused += usize::from(outcome.usage().cached_tokens > 0);
    }
    assert!(reused < 6, "all were reused: nothing gave way");
    eventually("blocks return", || handle.stats().kv_blocks_used == 0);
}

/// Requests of all lengths that share beginnings, some cut off by their readers, in small steps: the others' texts are those
/// they get alone.
#[test]
fn many_at_once_with_cuts_get_the_texts_they_get_alone() {
    for (name, parallel, prefill_chunk) in [("qwen3next", 6, 48), ("qwen35moe", 3, 17)] {
        let handle = open(name, &EngineOptions { parallel, prefill_chunk, ..options() });
        let alone = open(name, &EngineOptions { parallel: 1, ..options() });
        let requests: Vec<Request> = (0..30u64)
            .map(|i| {
                let sampling = Params { temperature: (i % 2) as f32, seed: i, logprobs: Some(1), ..Params::default() };
                let ids =
                    [prompt(i % 3, 40 + 20 * (i as usize % 3)), prompt(100 + i, i as usize * 7 % 60 + 1)].concat();
                Request { cache: i % 7 != 6, ..request(&ids, 10 + i as usize * 3 % 40, sampling) }
            })
            .collect();
        let running: Vec<_> = requests.iter().map(|r| handle.submit(r.clone()).unwrap()).collect();
        let mut cached = 0;
        for (i, (mut events, wanted)) in running.into_iter().zip(&requests).enumerate() {
            if i % 5 == 4 {
                // Somewhere on the way.
                (0..i % 4).for_each(|_| drop(events.blocking_recv()));
                continue;
            }
            let outcome = collect(events);
            cached += outcome.usage().cached_tokens;
            let expected = run(&alone, Request { cache: false, ..wanted.clone() });
            assert_same(&outcome, &expected, &format!("{name}, request {i}"));
        }
        assert!(cached > 0, "shared beginnings were not reused");
        eventually("everything returns", || (handle.stats().running, handle.stats().kv_blocks_used) == (0, 0));
    }
}

/// Bytes are counted before loading, exactly: keys and values of the layers with attention alone, and the states.
#[test]
fn planned_bytes_are_those_that_are_reserved() {
    for name in NAMES {
        let Opened { handle, facts, .. } = start(&file(name).path, &larger());
        let (kv_layers, layers, value_heads) = match name {
            "qwen3next" => (1, 3, 4),
            "qwen35" => (2, 2, 4),
            _ => (1, 3, 6),
        };
        // 4 sequences of 1024 tokens, 2 heads, 32 + 32 dimensions, F16.
        assert_eq!(facts.kv_bytes, 4 * 1024 * kv_layers * 2 * 64 * 2);
        // 2 q and k heads of 16, v heads of 32; 4 sequences and 12 snapshots.
        let state = 4 * layers * (3 * (64 + 32 * value_heads) + value_heads * 16 * 32);
        assert_eq!(facts.state_bytes, 16 * state, "{name}");
        let report = inspect(&file(name).path);
        assert_eq!(report["bytes"]["state_per_sequence"], state);
        assert_eq!(report["bytes"]["kv_per_token"], kv_layers * 2 * 64 * 2);
        assert_eq!(report["supported"], true, "{report:#}");
        let parts =
            ["weights", "kv_at_context", "state_per_sequence"].map(|part| report["bytes"][part].as_u64().unwrap());
        assert_eq!(report["bytes"]["load"], parts.iter().sum::<u64>());

        let streams = [700, 30, 1, 200].map(|len| handle.submit(with_logprobs(&prompt(len as u64, len), 40)).unwrap());
        for stream in streams {
            collect(stream).end.unwrap().unwrap();
        }
        eventually("all have ended", || handle.stats().running == 0);
        assert_eq!(handle.stats().scratch_bytes, facts.scratch_bytes, "{name}");
    }
}

fn inspect(path: &Path) -> serde_json::Value {
    let bytes = std::fs::read(path).unwrap();
    let header = gguf::File::parse(&bytes, bytes.len() as u64).unwrap();
    serde_json::to_value(omni_inferd::model::report::Report::new(&header)).unwrap()
}

/// A tensor of a file being changed: F32, name, shape (columns first) and values.
type Item = (String, Vec<u64>, Vec<f32>);

/// A model with other keys and tensors. `None` takes a key away.
fn altered(name: &str, keys: &[(&str, Option<Value>)], tensors: impl Fn(Vec<Item>) -> Vec<Item>) -> Unpacked {
    let mut unpacked = file(name);
    let bytes = std::fs::read(&unpacked.path).unwrap();
    let file = gguf::File::parse(&bytes, bytes.len() as u64).unwrap();
    let full = |key: &str| format!("{name}.{key}");
    let mut builder = Builder::new();
    for (key, value) in &file.metadata.entries {
        if !keys.iter().any(|(other, _)| full(other) == *key) {
            builder = builder.key(key, value.clone());
        }
    }
    for (key, value) in keys {
        if let Some(value) = value {
            builder = builder.key(full(key), value.clone());
        }
    }
    let floats = |at: u64, size: u64| -> Vec<f32> {
        bytes[at as usize..][..size as usize].as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    };
    let all = file.tensors.iter().map(|t| (t.name.clone(), t.shape.clone(), floats(t.offset, t.size))).collect();
    for (name, shape, values) in tensors(all) {
        let data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        builder = builder.tensor(name, &shape, DType::F32, data);
    }
    unpacked.path.set_file_name("altered.gguf");
    std::fs::write(&unpacked.path, builder.build()).unwrap();
    unpacked
}

/// Older files have one input projection, key head by key head.
#[test]
fn a_file_with_one_input_projection_means_the_same() {
    let (heads, dim, wide, cols) = (2, 16, 64, 64);
    let fused = altered("qwen3next", &[], |tensors| {
        let gate_of = |name: &str| {
            let name = name.replace("attn_qkv", "attn_gate");
            tensors.iter().find(|t| t.0 == name).unwrap().2.clone()
        };
        let fuse = |(name, shape, qkv): &Item| -> Option<Item> {
            if name.contains("attn_gate") {
                return None;
            }
            if !name.contains("attn_qkv") {
                return Some((name.clone(), shape.clone(), qkv.clone()));
            }
            let gate = gate_of(name);
            let rows = |from: &[f32], first: usize, n: usize| from[first * cols..][..n * cols].to_vec();
            let head = |h: usize| {
                let values = 2 * heads * dim + h * wide;
                let keys = [rows(qkv, h * dim, dim), rows(qkv, (heads + h) * dim, dim)].concat();
                [keys, rows(qkv, values, wide), rows(&gate, h * wide, wide)].concat()
            };
            let all: Vec<f32> = (0..heads).flat_map(head).collect();
            Some((name.replace("attn_qkv", "ssm_in"), vec![cols as u64, (all.len() / cols) as u64], all))
        };
        tensors.iter().filter_map(fuse).collect()
    });
    let logits = |path: &Path| {
        let mut exec = executor(path, KvType::F32, 96);
        Solo::new(&mut exec).feed(&prompt(3, 80), Wanted::All).to_vec()
    };
    assert!(logits(&fused.path) == logits(&file("qwen3next").path), "the same rows gave other logits");
}

#[test]
fn files_that_make_no_recurrence_are_refused_with_the_reason() {
    let refused = |name: &str, key: &str, value: Option<Value>, part: &str| {
        let file = altered(name, &[(key, value)], |tensors| tensors);
        let error = omni_inferd::engine::open(&file.path, &options(), &mut |_| ()).err().expect(part).to_string();
        assert!(error.contains(key) && error.contains(part), "{key}: {error}");
    };
    let n = |n: u32| Some(Value::U32(n));
    refused("qwen3next", "ssm.conv_kernel", None, "missing");
    refused("qwen3next", "ssm.conv_kernel", n(1), "from 2 to 8");
    refused("qwen3next", "ssm.conv_kernel", n(u32::MAX), "from 2 to 8");
    refused("qwen3next", "ssm.group_count", n(0), "at least 1");
    refused("qwen3next", "ssm.time_step_rank", n(3), "multiple of the 2 key heads");
    refused("qwen3next", "ssm.state_size", n(24), "multiple of 16");
    refused("qwen3next", "ssm.state_size", n(u32::MAX), "from 16 to 65536");
    refused("qwen3next", "ssm.inner_size", n(130), "multiple of 16 for each of the 4 heads");
    refused("qwen3next", "ssm.inner_size", n(u32::MAX), "multiple of 16");
    let short = Value::Array(Array::Bool(vec![true; 3]));
    refused("qwen3next", "attention.recurrent_layers", Some(short), "all 4 layers");
    let numbers = Value::Array(Array::U32(vec![1; 4]));
    refused("qwen3next", "attention.recurrent_layers", Some(numbers), "array of bool");
    refused("qwen35", "full_attention_interval", n(0), "at least 1");
    refused("qwen35", "full_attention_interval", n(9), "0 of 4 layers");
    refused("qwen35", "full_attention_interval", n(1), "4 of 4 layers");
    refused("qwen35", "expert_count", n(8), "no experts");
    refused("qwen35moe", "expert_count", n(0), "needs experts");

    // Layers that are not what the keys say, sizes that are not the tensors', a convolution of another type of weights.
    let text =
        |file: &Unpacked| omni_inferd::engine::open(&file.path, &options(), &mut |_| ()).err().unwrap().to_string();
    let swapped = altered("qwen35", &[("full_attention_interval", n(4))], |tensors| tensors);
    assert!(text(&swapped).contains("\"blk.1.attn_qkv.weight\" is missing"), "{}", text(&swapped));
    let wider = altered("qwen3next", &[("ssm.state_size", n(32))], |tensors| tensors);
    assert!(text(&wider).contains("\"blk.0.attn_qkv.weight\" has shape [64, 192]"), "{}", text(&wider));
    for tensor in ["ssm_a", "ssm_dt.bias", "ssm_conv1d.weight", "ssm_norm.weight", "attn_q_norm.weight"] {
        let without = altered("qwen3next", &[], |tensors| {
            tensors.into_iter().filter(|(name, ..)| !name.ends_with(tensor)).collect()
        });
        assert!(text(&without).contains(tensor) && text(&without).contains("is missing"), "{}", text(&without));
    }
}
