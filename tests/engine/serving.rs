//! The engine under many requests: each gets the text it would get alone, and nobody waits for a slow reader.

use crate::support::{Outcome, bundled, collect, eventually, executor, greedy, json, options, prompt, request, run};
use crate::support::{start, start_bundled, u32s, unpack};
use omni_inferd::engine::{EngineOptions, FinishReason, Request, SubmitError};
use omni_inferd::exec::{KvType, Solo, Wanted};
use omni_inferd::sample::{Logprobs, Params};
use omni_inferd::sys::numa::Wish;
use std::time::Duration;

/// A mix of lengths, samplers and seeds.
fn requests(n: usize) -> Vec<Request> {
    (0..n)
        .map(|i| {
            let sampling = Params {
                temperature: [0.0, 0.8, 1.3][i % 3],
                top_p: [1.0, 0.9][i % 2],
                top_k: [0, 40][i / 2 % 2],
                frequency_penalty: [0.0, 0.3][i / 3 % 2],
                seed: i as u64,
                logprobs: Some(2),
                ..Params::default()
            };
            // Some share a beginning.
            let mut ids = prompt(i as u64 % 4, 40);
            ids.extend(prompt(100 + i as u64, i * 7 % 60 + 1));
            Request { stop_tokens: vec![i as u32 % 50], ..request(&ids, 10 + i % 30, sampling) }
        })
        .collect()
}

fn assert_same(a: &Outcome, b: &Outcome, what: &str) {
    assert_eq!(a.tokens, b.tokens, "{what}");
    assert_eq!(a.logprobs, b.logprobs, "{what}");
    assert_eq!(a.reason(), b.reason(), "{what}");
}

/// Dense products of several matrices, experts, and latent attention's matrices of heads.
#[test]
fn rows_that_lie_with_their_threads_change_no_bit() {
    let files = ["qwen3", "qwen3moe", "gpt-oss", "deepseek-v3"]
        .map(|name| unpack(&format!("tests/data/hf-tiny/{name}.gguf.zst")));
    let paths = files.iter().map(|file| file.path.clone()).chain([bundled("q8_0"), bundled("q4_k_m")]);
    for path in paths {
        let ids: Vec<u32> = prompt(3, 50).into_iter().map(|id| 3 + id % 157).collect();
        let sampling = Params { logprobs: Some(2), ..greedy() };
        let [spread, rows] = [Wish::Interleave, Wish::Partition].map(|numa| {
            let handle = start(&path, &EngineOptions { numa, ..options() }).handle;
            run(&handle, request(&ids, 12, sampling.clone()))
        });
        assert_same(&rows, &spread, &path.display().to_string());
    }
}

#[test]
fn many_at_once_get_the_texts_they_get_alone() {
    let solo = start_bundled(&EngineOptions { parallel: 1, ..options() });
    let requests = requests(24);
    let alone: Vec<_> = requests.iter().map(|r| run(&solo, Request { cache: false, ..r.clone() })).collect();
    for (parallel, prefill_chunk) in [(8, 512), (3, 16)] {
        let handle = start_bundled(&EngineOptions { parallel, prefill_chunk, ..options() });
        let running: Vec<_> = requests.iter().map(|r| handle.submit(r.clone()).unwrap()).collect();
        let mut cached = 0;
        for (nth, (events, alone)) in running.into_iter().zip(&alone).enumerate() {
            let outcome = collect(events);
            assert_same(&outcome, alone, &format!("request {nth}, {parallel} at once"));
            cached += outcome.usage().cached_tokens;
        }
        assert!(cached > 0, "shared beginnings were not reused");
        eventually("blocks return", || handle.stats().kv_blocks_used == 0);
        let stats = handle.stats();
        assert_eq!((stats.requests_total, stats.waiting, stats.running), (24, 0, 0));
        assert_eq!(stats.completion_tokens_total, alone.iter().map(|o| o.tokens.len() as u64).sum::<u64>());
    }
}

#[test]
fn a_prompt_seen_before_is_counted_as_cached() {
    let handle = start_bundled(&options());
    let ids = prompt(1, 100);
    let first = run(&handle, request(&ids, 8, greedy()));
    assert_eq!(first.usage().cached_tokens, 0);
    let again = run(&handle, request(&ids, 8, greedy()));
    assert_eq!(again.usage().cached_tokens, 96, "three blocks of 32");
    assert_same(&first, &again, "with and without the cache");
    let apart = run(&handle, Request { cache: false, ..request(&ids, 8, greedy()) });
    assert_eq!(apart.usage().cached_tokens, 0);
    let follow_up = [&ids[..], &first.tokens, &[5; 40]].concat();
    assert_eq!(run(&handle, request(&follow_up, 1, greedy())).usage().cached_tokens, 96);
    assert_eq!(handle.stats().cached_tokens_total, 96 + 96);
}

#[test]
fn choices_of_one_prompt_cost_one_prefill() {
    let handle = start_bundled(&EngineOptions { prefill_chunk: 64, ..options() });
    let ids = prompt(2, 200);
    let sampled = |seed| request(&ids, 5, Params { seed, ..Params::default() });
    let running: Vec<_> = (0..4).map(|seed| handle.submit(sampled(seed)).unwrap()).collect();
    for (events, cached) in running.into_iter().zip([0, 192, 192, 192]) {
        let outcome = collect(events);
        assert_eq!((outcome.prefill[0], outcome.usage().cached_tokens), ((cached, 200), cached));
    }
}

#[test]
fn prefill_is_reported_chunk_by_chunk() {
    let handle = start_bundled(&EngineOptions { prefill_chunk: 64, ..options() });
    let outcome = run(&handle, request(&prompt(3, 150), 2, greedy()));
    assert_eq!(outcome.prefill, [(0, 150), (64, 150), (128, 150), (150, 150)]);
    // The first report is what the cache held.
    let again = run(&handle, request(&prompt(3, 150), 2, greedy()));
    assert_eq!(again.prefill, [(128, 150), (150, 150)]);
    assert_eq!(again.usage().cached_tokens, 128);
}

#[test]
fn ends_are_what_they_should_be() {
    let handle = start_bundled(&options());
    let ids = prompt(4, 20);
    let text = run(&handle, request(&ids, 12, greedy()));
    assert_eq!((text.tokens.len(), text.reason()), (12, FinishReason::Length));
    let stop = text.tokens[5];
    let at = text.tokens.iter().position(|t| *t == stop).unwrap();
    let stopped = run(&handle, Request { stop_tokens: vec![stop], ..request(&ids, 12, greedy()) });
    assert_eq!(stopped.tokens, text.tokens[..at]);
    assert_eq!(stopped.reason(), FinishReason::Stop(stop));
    assert_eq!(stopped.usage().completion_tokens, at);
    let full = run(&handle, request(&prompt(5, 250), 1000, greedy()));
    assert_eq!((full.tokens.len(), full.reason()), (6, FinishReason::Length), "the context is 256");
    let nothing = run(&handle, request(&ids, 0, greedy()));
    assert_eq!((nothing.tokens.len(), nothing.reason()), (0, FinishReason::Length));
}

#[test]
fn prompt_logprobs_cover_every_token_once() {
    let handle = start_bundled(&options());
    let ids = prompt(6, 101);
    // The cache holds the prompt already and must not be used.
    let plain = run(&handle, request(&ids, 3, greedy()));
    let echo = Request { prompt_logprobs: Some(3), ..request(&ids, 3, greedy()) };
    let outcome = run(&handle, echo.clone());
    assert_eq!(outcome.tokens, plain.tokens);
    let logprobs = outcome.prompt_logprobs.unwrap();
    assert_eq!(logprobs.len(), ids.len());
    assert!(logprobs[0].is_none());
    for (nth, found) in logprobs.iter().enumerate().skip(1) {
        let found = found.as_ref().unwrap();
        assert_eq!(found.top.len(), 3);
        assert!(found.chosen <= found.top[0].1 && found.chosen < 0.0, "token {nth}");
    }
    // The log-probability of a prompt token is that of generating it.
    let generated = run(&handle, request(&ids[..50], 1, Params { logprobs: Some(1), ..greedy() }));
    let echoed = [&ids[..50], &generated.tokens].concat();
    let echo = run(&handle, Request { prompt: echoed, max_tokens: 0, ..echo });
    let last = echo.prompt_logprobs.unwrap().pop().unwrap().unwrap();
    assert_eq!(last.chosen, generated.logprobs[0].chosen);
}

/// Chosen and best log-probabilities are the log-softmax of what the forward pass yields, for prompt and output.
#[test]
fn logprobs_are_the_logits_log_softmax() {
    let handle = start_bundled(&options());
    let ids = prompt(8, 60);
    let sampling = Params { logprobs: Some(5), temperature: 0.8, seed: 3, ..Params::default() };
    let outcome = run(&handle, Request { prompt_logprobs: Some(5), ..request(&ids, 8, sampling) });
    let tokens = [&ids[..], &outcome.tokens].concat();
    let found = outcome.prompt_logprobs.unwrap().into_iter().flatten().chain(outcome.logprobs);
    let found: Vec<Logprobs> = found.collect();
    assert_eq!(found.len(), tokens.len() - 1);

    let mut exec = executor(&bundled("q8_0"), KvType::F16, 96);
    let vocab = exec.hparams().vocab;
    let rows = Solo::new(&mut exec).feed(&tokens[..tokens.len() - 1], Wanted::All).to_vec();
    for ((logits, next), found) in rows.chunks_exact(vocab).zip(&tokens[1..]).zip(found) {
        let total = logits.iter().map(|&logit| f64::from(logit).exp()).sum::<f64>().ln();
        let expected = |id: u32| f64::from(logits[id as usize]) - total;
        assert!((f64::from(found.chosen) - expected(*next)).abs() < 1e-5);
        let mut best: Vec<u32> = (0..vocab as u32).collect();
        best.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)));
        assert_eq!(found.top.iter().map(|top| top.0).collect::<Vec<_>>(), best[..5]);
        assert!(found.top.iter().all(|&(id, logprob)| (f64::from(logprob) - expected(id)).abs() < 1e-5));
    }
}

#[test]
fn a_slow_reader_stalls_only_itself() {
    let handle = start_bundled(&EngineOptions { context: Some(1024), parallel: 2, ..options() });
    let ids = u32s(&json("models/omni-stories.golden.json")["prompts"]["Once upon a time"]["ids"]);
    let slow = handle.submit(request(&ids, 600, greedy())).unwrap();
    // 256 places less the five that a step may need.
    eventually("the slow one's channel is full", || slow.len() >= 252);
    let before = handle.stats().completion_tokens_total;
    let quick = run(&handle, request(&ids, 300, greedy()));
    assert_eq!(quick.tokens.len(), 300);
    assert_eq!(handle.stats().completion_tokens_total - before, 300, "the slow one went on");
    assert!(handle.stats().beat_age_ms < 2000);
    let slow = collect(slow);
    assert_eq!((slow.tokens.len(), &slow.tokens[..300]), (600, &quick.tokens[..]));
}

#[test]
fn what_cannot_run_is_refused_at_once() {
    let handle = start_bundled(&EngineOptions { parallel: 1, queue: 2, ..options() });
    assert!(matches!(handle.submit(request(&[], 1, greedy())), Err(SubmitError::Empty)));
    let long = handle.submit(request(&prompt(0, 256), 1, greedy()));
    assert!(matches!(long, Err(SubmitError::TooLong { prompt: 256, context: 256 })));
    let unknown = handle.submit(request(&[2048], 1, greedy()));
    assert!(matches!(unknown, Err(SubmitError::BadToken { id: 2048, vocab: 2048 })));

    let taken: Vec<_> = (0..3).map(|i| handle.submit(request(&[i], 200, greedy())).unwrap()).collect();
    let Err(SubmitError::QueueFull { limit: 2, retry_after }) = handle.submit(request(&[1], 1, greedy())) else {
        panic!("the queue of two takes a fourth request")
    };
    assert!((Duration::from_secs(1)..=Duration::from_secs(60)).contains(&retry_after));
    for events in taken {
        assert_eq!(collect(events).tokens.len(), 200);
    }
    eventually("places return", || handle.submit(request(&[1], 1, greedy())).is_ok());
}
