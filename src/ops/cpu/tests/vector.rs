//! Norms, rotation, activation, embedding: against the reference, the rotation's table against its formulas.

use super::{Rng, cpu, raw_tensor, tensor, tiers};
use crate::model::{Rope, RopeKind, RopeScaling};
use crate::ops::{RopeAngles, RopeTable, reference};
use crate::quant::DType;

fn close(got: &[f32], want: &[f32], what: &str) {
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let allowed = 2e-6 * want.abs().max(1e-3);
        assert!((got - want).abs() <= allowed, "{what} [{i}]: {got} for {want}");
    }
}

#[test]
fn norms_equal_the_reference() {
    let mut rng = Rng::new(21);
    for (rows, cols, factor) in
        [(1, 1, 1.0), (3, 37, 1.0), (70, 512, 1.0), (2, 64, 1e-12), (2, 64, 1e18), (5, 128, 0.0)]
    {
        let weight = tensor(DType::F32, 1, cols, &rng.vec(cols));
        let x: Vec<f32> = rng.vec(rows * cols).iter().map(|x| x * factor).collect();
        let mut want = x.clone();
        reference::rms_norm(&x, &weight, 1e-6, &mut want);
        for isa in tiers() {
            let cpu = cpu(isa, 2);
            let (mut out, mut inplace) = (vec![f32::NAN; x.len()], x.clone());
            cpu.rms_norm(&x, &weight, 1e-6, &mut out);
            cpu.rms_norm_heads(&mut inplace, &weight, 1e-6);
            close(&out, &want, "rms_norm");
            assert_eq!(out, inplace);
        }
    }
}

#[test]
fn activation_and_sum_equal_the_reference() {
    let mut rng = Rng::new(22);
    let mut gate: Vec<f32> = rng.vec(50_000).iter().map(|x| x * 30.0).collect();
    gate[..8].copy_from_slice(&[0.0, -0.0, 87.0, -87.0, 500.0, -500.0, 1e-30, -1e30]);
    let up = rng.vec(gate.len());
    let (mut silu, mut sum) = (gate.clone(), gate.clone());
    reference::silu_mul(&mut silu, &up);
    reference::add(&mut sum, &up);
    for isa in tiers() {
        let cpu = cpu(isa, 2);
        let (mut a, mut b) = (gate.clone(), gate.clone());
        cpu.silu_mul(&mut a, &up);
        cpu.add(&mut b, &up);
        close(&a[..7], &silu[..7], "silu");
        close(&a[8..], &silu[8..], "silu");
        assert!(a[7].abs() < 1e-5, "{}", a[7]);
        assert_eq!(b, sum);
        let mut bad = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
        cpu.silu_mul(&mut bad, &[1.0; 3]);
        assert!(bad[0].is_nan() && bad[1] == f32::INFINITY);
    }
}

#[test]
fn embeddings_are_decoded_rows() {
    let mut rng = Rng::new(23);
    for dtype in [DType::F32, DType::F16, DType::Q8_0, DType::Q4_K, DType::Q6_K] {
        let table = tensor(dtype, 50, 512, &rng.vec(50 * 512));
        let ids: Vec<u32> = (0..200).map(|_| rng.below(50) as u32).collect();
        let (mut want, mut got) = (vec![0.0; 200 * 512], vec![f32::NAN; 200 * 512]);
        reference::embed(&table, &ids, &mut want);
        cpu(tiers().last().unwrap(), 3).embed(&table, &ids, &mut got);
        assert_eq!(got, want);
    }
    let bytes = raw_tensor(DType::F16, 1, 2, vec![0, 0x3c, 0, 0xc0]);
    assert_eq!(*bytes.to_f32(), [1.0, -2.0]);
}

fn rope(kind: RopeKind, dims: usize, base: f32, scaling: RopeScaling) -> Rope {
    Rope { kind, dims, base, scaling }
}

#[test]
fn every_tier_turns_like_the_reference() {
    let mut rng = Rng::new(24);
    let positions: Vec<u32> = (0..60).map(|i| i * 131).collect();
    for kind in [RopeKind::Norm, RopeKind::Neox] {
        for (heads, head_dim, dims) in [(3, 64, 64), (2, 40, 24), (5, 128, 128), (1, 2, 2)] {
            let table = RopeTable::new(&rope(kind, dims, 10_000.0, RopeScaling::None), None);
            let mut angles = RopeAngles::default();
            table.angles(&positions, &mut angles);
            let x = rng.vec(60 * heads * head_dim);
            let mut want = x.clone();
            reference::rope(&mut want, heads, head_dim, &angles, &table);
            for isa in tiers() {
                let mut got = x.clone();
                cpu(isa, 2).rope(&mut got, heads, head_dim, &angles, &table);
                close(&got, &want, "rope");
            }
        }
    }
}

/// A rotation keeps lengths, turns pair `i` by `position · base^(-2i/dims)`, and pairs as its kind says.
#[test]
fn rotation_follows_its_formula() {
    for (kind, pair) in [(RopeKind::Norm, [4usize, 5]), (RopeKind::Neox, [2, 6])] {
        let table = RopeTable::new(&rope(kind, 8, 10_000.0, RopeScaling::None), None);
        let mut angles = RopeAngles::default();
        table.angles(&[7], &mut angles);
        let mut x = vec![0.0f32; 10];
        x[pair[0]] = 1.0;
        x[8] = 5.0;
        reference::rope(&mut x, 1, 10, &angles, &table);
        let angle = 7.0 * 10_000f64.powf(-0.5);
        assert!((f64::from(x[pair[0]]) - angle.cos()).abs() < 1e-6, "{x:?}");
        assert!((f64::from(x[pair[1]]) - angle.sin()).abs() < 1e-6, "{x:?}");
        assert_eq!(x[8], 5.0, "dimensions beyond the rotated ones stay");
    }
}

#[test]
fn scaled_frequencies_follow_their_formulas() {
    let base = 500_000.0f32;
    let plain = RopeTable::new(&rope(RopeKind::Norm, 128, base, RopeScaling::None), None);
    assert_eq!(plain.magnitude, 1.0);
    for (i, &f) in plain.inv_freq.iter().enumerate() {
        let want = f64::from(base).powf(-(i as f64) / 64.0);
        assert!((f64::from(f) - want).abs() <= 1e-6 * want);
    }
    let linear = RopeTable::new(&rope(RopeKind::Norm, 128, base, RopeScaling::Linear { factor: 4.0 }), None);
    assert!(linear.inv_freq.iter().zip(&plain.inv_freq).all(|(l, p)| (l * 4.0 - p).abs() <= 1e-6 * p));
    let factors: Vec<f32> = (0..64).map(|i| 1.0 + i as f32).collect();
    let llama3 = RopeTable::new(&rope(RopeKind::Norm, 128, base, RopeScaling::None), Some(&factors));
    for ((scaled, factor), plain) in llama3.inv_freq.iter().zip(&factors).zip(&plain.inv_freq) {
        assert!((scaled * factor - plain).abs() <= 1e-6 * plain);
    }
}

/// YaRN as published (arXiv 2309.00071): waves that turn more than `beta_fast` times within the original context stay,
/// those that turn less than `beta_slow` times are interpolated, in between a ramp over the pairs.
#[test]
fn yarn_follows_its_paper() {
    let (factor, context, base, dims) = (4.0f32, 32_768u32, 1e6f32, 128usize);
    let yarn = |extrapolation, attention| RopeScaling::Yarn {
        factor,
        original_context: context,
        extrapolation,
        attention,
        beta_fast: 32.0,
        beta_slow: 1.0,
    };
    let plain = RopeTable::new(&rope(RopeKind::Neox, dims, base, RopeScaling::None), None);
    let table = RopeTable::new(&rope(RopeKind::Neox, dims, base, yarn(1.0, 1.0)), None);
    assert!((table.magnitude - (0.1 * 4.0f32.ln() + 1.0)).abs() < 1e-6);
    let pair = |turns: f64| {
        let waves = f64::from(context) / (turns * std::f64::consts::TAU);
        dims as f64 * waves.ln() / (2.0 * f64::from(base).ln())
    };
    let (low, high) = (pair(32.0).floor(), pair(1.0).ceil());
    assert!(low > 10.0 && high < 60.0, "{low} {high}");
    for i in 0..dims / 2 {
        let (scaled, unscaled) = (f64::from(table.inv_freq[i]), f64::from(plain.inv_freq[i]));
        let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
        let want = unscaled * (1.0 - ramp) + unscaled / 4.0 * ramp;
        assert!((scaled - want).abs() <= 1e-6 * want, "pair {i}: {scaled} for {want}");
    }
    let none = RopeTable::new(&rope(RopeKind::Neox, dims, base, yarn(0.0, 0.7)), None);
    assert_eq!(none.magnitude, 0.7);
    assert!(none.inv_freq.iter().zip(&plain.inv_freq).all(|(n, p)| (n * 4.0 - p).abs() <= 1e-6 * p));
}

#[test]
fn angles_carry_the_magnitude() {
    let scaling = RopeScaling::Yarn {
        factor: 2.0,
        original_context: 1024,
        extrapolation: 1.0,
        attention: 1.5,
        beta_fast: 32.0,
        beta_slow: 1.0,
    };
    let table = RopeTable::new(&rope(RopeKind::Neox, 16, 10_000.0, scaling), None);
    let mut angles = RopeAngles::default();
    table.angles(&[0, 3], &mut angles);
    assert_eq!((angles.sin.len(), angles.cos.len()), (16, 16));
    assert_eq!(angles.cos[0], table.magnitude);
    let length = |i: usize| angles.sin[i].hypot(angles.cos[i]);
    assert!((0..16).all(|i| (length(i) - table.magnitude).abs() < 1e-5));
}
