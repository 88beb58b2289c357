//! What drawing a token costs over a vocabulary of 152k, in µs, for logits of several shapes and several cuts.
//!
//! ```text
//! cargo bench --bench sample
//! ```
//! Each figure is the median of 101 draws. Records: `benches/records/`.

use omni_inferd::sample::{Params, Sampler, Scratch};
use std::hint::black_box;
use std::time::Instant;

const VOCAB: usize = 151_936;
const DRAWS: usize = 101;

/// A logit of a number that is about normal.
type Shape = fn(f32) -> f32;

fn main() {
    let plain = Params { temperature: 0.7, ..Params::default() };
    let cuts = [
        ("greedy", Params { temperature: 0.0, ..plain.clone() }),
        ("none", plain.clone()),
        ("top_p 0.95", Params { top_p: 0.95, ..plain.clone() }),
        ("top_k 40", Params { top_k: 40, ..plain.clone() }),
        ("top_k, top_p", Params { top_k: 40, top_p: 0.95, ..plain.clone() }),
        ("min_p 0.05", Params { min_p: 0.05, ..plain.clone() }),
        ("typical 0.95", Params { typical_p: 0.95, ..plain.clone() }),
        ("penalties", Params { top_p: 0.95, repetition_penalty: 1.1, frequency_penalty: 0.2, ..plain.clone() }),
        ("logprobs 20", Params { logprobs: Some(20), ..plain }),
    ];
    let shapes: [(&str, Shape); 4] =
        [("peaked", |x| 4.0 * x), ("wide", |x| x), ("flat", |x| 0.05 * x), ("equal", |_| 1.0)];
    print!("{:<14}", "µs");
    shapes.iter().for_each(|(name, _)| print!("{name:>10}"));
    println!();
    for (name, params) in cuts {
        print!("{name:<14}");
        for (_, shape) in shapes {
            let logits: Vec<f32> = normal(VOCAB).into_iter().map(shape).collect();
            let (mut sampler, mut scratch) = (Sampler::new(params.clone(), &[1, 2, 3]), Scratch::new(VOCAB));
            let mut times: Vec<u128> = (0..DRAWS)
                .map(|_| {
                    let began = Instant::now();
                    _ = black_box(sampler.draw(black_box(&logits), &mut scratch));
                    began.elapsed().as_nanos()
                })
                .collect();
            times.sort_unstable();
            print!("{:>10}", times[DRAWS / 2] / 1000);
        }
        println!();
    }
}

/// About normal: sums of twelve uniform numbers.
fn normal(n: usize) -> Vec<f32> {
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32
    };
    (0..n).map(|_| (0..12).map(|_| uniform()).sum::<f32>() - 6.0).collect()
}
