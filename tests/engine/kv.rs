//! The types of the KV cache: what each costs in accuracy, and that reuse, cancelling and company change no text.

use crate::support::{
    bundled, collect, dequantised, eventually, executor, greedy, options, prompt, request, run, start,
};
use omni_inferd::engine::EngineOptions;
use omni_inferd::exec::{KvType, Solo, Wanted};

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
