//! The types of the KV cache: what each costs in accuracy, and that reuse, cancelling and company change no text.

use crate::support::{
    bundled, collect, dequantised, eventually, executor, greedy, options, prompt, request, root, run, start,
};
use omni_inferd::engine::EngineOptions;
use omni_inferd::exec::{KvType, Solo, Wanted};
use omni_inferd::load::Source;
use omni_inferd::text::Tokenizer;

/// Σ (a − b)² / Σ b².
fn nmse(a: &[f32], b: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x) * f64::from(x);
    let error: f64 = a.iter().zip(b).map(|(a, b)| square(a - b)).sum();
    error / b.iter().map(|&b| square(b)).sum::<f64>()
}

/// Logits with each cache type against those with F32, over 240 positions of exact weights. The bounds are of the
/// order of each type's rounding and were set before anything was measured.
#[test]
fn logits_stay_near_those_of_an_f32_cache() {
    let file = dequantised(&bundled("q8_0"));
    let tokens = prompt(5, 240);
    let exact = Solo::new(&mut executor(&file.path, KvType::F32, 256)).feed(&tokens, Wanted::All).to_vec();
    for (kv_type, bound) in [
        (KvType::F32, 0.0),
        (KvType::F16, 1e-6),
        (KvType::Bf16, 5e-5),
        (KvType::Q8_0, 2e-4),
        (KvType::Q4_1, 2e-2),
        (KvType::Q4_0, 3e-2),
    ] {
        let mut exec = executor(&file.path, kv_type, 256);
        let mut solo = Solo::new(&mut exec);
        let found: Vec<f32> = tokens.chunks(100).flat_map(|chunk| solo.feed(chunk, Wanted::All).to_vec()).collect();
        let error = nmse(&found, &exact);
        println!("{}: NMSE {error:.2e}", kv_type.name());
        assert!(error <= bound, "{}: NMSE {error:.2e} over {bound:.0e}", kv_type.name());
    }
}

/// Natural log-probabilities of a row of logits.
fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from(x - max).exp()).sum();
    logits.iter().map(|&x| f64::from(x - max) - sum.ln()).collect()
}

/// Mean divergence of the predictions with each type of cache from those with F32, by the definition of
/// `llama-perplexity -fa on -c 256 --chunks 16 --kl-divergence`, and what that measures with the same types. Both
/// programs' figures are in `benches/records/epyc-zen4-2cpu-2026-11-21-float.txt`.
#[test]
fn predictions_diverge_no_more_than_llama_cpps() {
    const CHUNK: usize = 256;
    let file = bundled("f32");
    let text = std::fs::read_to_string(root().join("models/omni-stories-heldout.txt")).unwrap();
    let source = Source::open(&file).unwrap();
    let tokenizer = Tokenizer::from_metadata(&source.header.metadata).unwrap();
    let tokens = tokenizer.encode(&text, true, false);
    let chunks: Vec<Vec<u32>> = (tokens.chunks_exact(CHUNK).take(16))
        .map(|chunk| [&[tokenizer.bos().unwrap()], &chunk[1..]].concat())
        .collect();
    // Log-probabilities of the second half of each chunk but its last token, which has nothing to predict.
    let predictions = |kv_type| -> Vec<Vec<f64>> {
        let mut exec = executor(&file, kv_type, CHUNK);
        let vocab = exec.hparams().vocab;
        let feed = |chunk: &Vec<u32>| {
            let logits = Solo::new(&mut exec).feed(chunk, Wanted::All).to_vec();
            logits.chunks_exact(vocab).skip(CHUNK / 2).take(CHUNK / 2 - 1).map(log_softmax).collect::<Vec<_>>()
        };
        chunks.iter().flat_map(feed).collect()
    };
    let exact = predictions(KvType::F32);
    let perplexity = |found: &[Vec<f64>]| {
        let targets = chunks.iter().flat_map(|chunk| &chunk[CHUNK / 2 + 1..]);
        let loss: f64 = found.iter().zip(targets).map(|(row, &id)| -row[id as usize]).sum();
        (loss / found.len() as f64).exp()
    };
    println!("F32: perplexity {:.4}", perplexity(&exact));
    for (kv_type, llama_cpp) in [
        (KvType::F16, 0.0),
        (KvType::Bf16, 4e-6),
        (KvType::Q8_0, 2.3e-5),
        (KvType::Q4_1, 3.588e-3),
        (KvType::Q4_0, 4.977e-3),
    ] {
        let found = predictions(kv_type);
        let divergence = |(exact, found): (&Vec<f64>, &Vec<f64>)| -> f64 {
            exact.iter().zip(found).map(|(p, q)| p.exp() * (p - q)).sum()
        };
        let mean = exact.iter().zip(&found).map(divergence).sum::<f64>() / exact.len() as f64;
        println!(
            "{}: divergence {mean:.3e}, llama.cpp {llama_cpp:.3e}, perplexity {:.4}",
            kv_type.name(),
            perplexity(&found)
        );
        assert!(mean <= 1.1 * llama_cpp + 1e-6, "{}: {mean:.3e} against {llama_cpp:.3e}", kv_type.name());
    }
}

/// With every type: a prefix that is found again, neighbours and requests that are cut off change no token.
#[test]
fn reuse_and_cancelling_change_no_text_with_any_type() {
    for kv_type in KvType::ALL {
        let handle = start(&bundled("q8_0"), &EngineOptions { kv_type, prefill_chunk: 48, ..options() }).handle;
        let ids = prompt(3, 110);
        let first = run(&handle, request(&ids, 20, greedy()));
        let cut = handle.submit(request(&prompt(4, 90), 100, greedy())).unwrap();
        let beside = handle.submit(request(&[&ids[..80], &prompt(6, 30)[..]].concat(), 20, greedy())).unwrap();
        let again = handle.submit(request(&ids, 20, greedy())).unwrap();
        drop(cut);
        let (again, beside) = (collect(again), collect(beside));
        assert_eq!(again.tokens, first.tokens, "{}", kv_type.name());
        assert!(again.usage().cached_tokens >= 96 && beside.usage().cached_tokens >= 64, "{}", kv_type.name());
        eventually("blocks return", || handle.stats().kv_blocks_used == 0);
    }
}
