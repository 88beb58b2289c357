//! Quantised activations: every tier's bits are those of the plain code.

use super::{Rng, tiers};
use crate::ops::cpu::acts::{self, QuantisedRow, RUN};
use crate::ops::cpu::table::Table;

/// A run's values, scales, sums and scaled sums, as bits.
type Run = (Vec<i8>, Vec<u32>, Vec<i16>, Vec<u32>);

fn quantise(row: acts::QuantiseRow, x: &[f32], block: usize) -> Run {
    let n = RUN / block;
    let (mut q, mut d, mut sums, mut ds) = ([99; RUN], vec![9.0; n], [99; RUN / 16], vec![9.0; n]);
    let mut out = QuantisedRow { q: &mut q, d: &mut d, sums: &mut sums, ds: &mut ds };
    // SAFETY: the tier is this host's.
    unsafe { row(x, block, &mut out) };
    let bits = |v: Vec<f32>| v.into_iter().map(f32::to_bits).collect();
    (q.to_vec(), bits(d), sums.to_vec(), bits(ds))
}

#[test]
fn activations_have_the_same_bits_in_every_tier() {
    let mut rng = Rng::new(31);
    let mut cases: Vec<Vec<f32>> = (0..20).map(|_| rng.vec(RUN)).collect();
    let with = |mut x: Vec<f32>, values: &[(usize, f32)]| {
        values.iter().for_each(|&(i, v)| x[i] = v);
        x
    };
    // Ties, signed zeros, magnitudes at both ends, and blocks that are not ordinary among those that are.
    cases.push((0..RUN).map(|i| (i as f32 - 128.0) / 2.0).collect());
    cases.push((0..RUN).map(|i| if i % 2 == 0 { 0.0 } else { -0.0 }).collect());
    cases.push(vec![-3.5; RUN]);
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, 1e-45, 1e-36, 2e-36] {
        cases.push(with(rng.vec(RUN), &[(77, value)]));
        cases.push(with(vec![0.0; RUN], &[(255, value)]));
        cases.push(vec![value; RUN]);
    }
    cases.extend([32, 64, 224].map(|n| rng.vec(n)));
    for isa in tiers() {
        let row = Table::new(isa).quantise;
        for (i, x) in cases.iter().enumerate() {
            for block in [32, RUN] {
                let plain = quantise(|x, block, out| acts::quantise_row(x, block, out), x, block);
                assert!(quantise(row, x, block) == plain, "{isa:?} case {i}, blocks of {block}");
            }
        }
    }
}
