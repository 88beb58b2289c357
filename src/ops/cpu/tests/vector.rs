//! Norms, rotation, activation, embedding: against the reference, the rotation also against its formula.

use super::{Rng, cpu, raw_tensor, tensor, tiers};
use crate::ops::{RopeAngles, RopePairing, RopeTable, reference};
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
fn other_activations_equal_the_reference() {
    type Specification = fn(&mut [f32], &[f32]);
    type Own = fn(&super::Cpu, &mut [f32], &[f32]);
    let kinds: [(&str, Specification, Own); 2] = [
        ("gelu", reference::gelu_mul, super::Cpu::gelu_mul),
        ("clamped", reference::clamped_silu_mul, super::Cpu::clamped_silu_mul),
    ];
    let mut rng = Rng::new(25);
    let mut gate: Vec<f32> = rng.vec(40_000).iter().map(|x| x * 12.0).collect();
    let mut up: Vec<f32> = rng.vec(gate.len()).iter().map(|x| x * 12.0).collect();
    gate[..8].copy_from_slice(&[0.0, -0.0, 7.0, 7.1, 300.0, -300.0, 1e-30, 0.3]);
    up[2..8].copy_from_slice(&[-1.0, 7.1, -7.1, 3.0, 1e30, -1e30]);
    for (name, specification, own) in kinds {
        let mut want = gate.clone();
        specification(&mut want, &up);
        for isa in tiers() {
            let (cpu, mut got) = (cpu(isa, 2), gate.clone());
            own(&cpu, &mut got, &up);
            for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                let allowed = 2e-6 * want.abs().max(1e-1);
                assert!((got - want).abs() <= allowed, "{name} {isa:?} of {} and {}: {got} for {want}", gate[i], up[i]);
            }
            // What is not a number stays visible.
            let mut bad = [f32::NAN, 1.0, f32::INFINITY];
            own(&cpu, &mut bad, &[1.0, f32::NAN, 1.0]);
            assert!(bad[0].is_nan() && bad[1].is_nan(), "{name} {isa:?}: {bad:?}");
        }
    }
}

#[test]
fn embeddings_are_decoded_rows() {
    let mut rng = Rng::new(23);
    for dtype in [DType::F32, DType::F16, DType::Q8_0, DType::Q4_K, DType::Q6_K] {
        let table = tensor(dtype, 50, 512, &rng.vec(50 * 512));
        let ids: Vec<u32> = (0..200).map(|_| rng.below(50) as u32).collect();
        let (mut want, mut got) = (vec![0.0; 200 * 512], vec![f32::NAN; 200 * 512]);
        let scale = if dtype == DType::Q8_0 { 22.6 } else { 1.0 };
        reference::embed(&table, &ids, scale, &mut want);
        cpu(tiers().last().unwrap(), 3).embed(&table, &ids, scale, &mut got);
        assert_eq!(got, want);
    }
    let bytes = raw_tensor(DType::F16, 1, 2, vec![0, 0x3c, 0, 0xc0]);
    assert_eq!(*bytes.to_f32(), [1.0, -2.0]);
}

/// The plain table: pair `i` turns by `10000^(-2i/dims)` per position.
fn rope(pairing: RopePairing, dims: usize) -> RopeTable {
    let inv_freq = (0..dims / 2).map(|i| 10_000f64.powf(-2.0 * i as f64 / dims as f64) as f32).collect();
    RopeTable { pairing, dims, inv_freq, magnitude: 1.0 }
}

#[test]
fn every_tier_turns_like_the_reference() {
    let mut rng = Rng::new(24);
    let positions: Vec<u32> = (0..60).map(|i| i * 131).collect();
    for pairing in [RopePairing::Interleaved, RopePairing::Halves] {
        for (heads, head_dim, dims) in [(3, 64, 64), (2, 40, 24), (5, 128, 128), (1, 2, 2)] {
            let table = rope(pairing, dims);
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
    for (pairing, pair) in [(RopePairing::Interleaved, [4usize, 5]), (RopePairing::Halves, [2, 6])] {
        let table = rope(pairing, 8);
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
fn angles_carry_the_magnitude() {
    let table = RopeTable { magnitude: 1.7, ..rope(RopePairing::Halves, 16) };
    let mut angles = RopeAngles::default();
    table.angles(&[0, 3], &mut angles);
    assert_eq!((angles.sin.len(), angles.cos.len()), (16, 16));
    assert_eq!(angles.cos[0], table.magnitude);
    let length = |i: usize| angles.sin[i].hypot(angles.cos[i]);
    assert!((0..16).all(|i| (length(i) - table.magnitude).abs() < 1e-5));
}

#[test]
fn factors_of_rows_and_caps_equal_the_reference() {
    let mut rng = Rng::new(27);
    let (rows, width) = (90, 700);
    let x: Vec<f32> = rng.vec(rows * width).iter().map(|x| x * 100.0).collect();
    let gate: Vec<f32> = rng.vec(rows).iter().map(|x| x * 20.0).collect();
    let positions: Vec<u32> = (0..rows as u32).map(|row| row * 1000).collect();
    let (mut capped, mut grown, mut gated) = (x.clone(), x.clone(), x.clone());
    reference::soft_cap(&mut capped, 30.0);
    reference::grow_queries(&mut grown, &positions, 0.1, 16_384);
    reference::gate_rows(&mut gated, &gate);
    for threads in [1, 3] {
        let cpu = cpu(super::Isa::Scalar, threads);
        let (mut a, mut b, mut c) = (x.clone(), x.clone(), x.clone());
        cpu.soft_cap(&mut a, 30.0);
        cpu.grow_queries(&mut b, &positions, 0.1, 16_384);
        cpu.gate_rows(&mut c, &gate);
        close(&a, &capped, "soft_cap");
        close(&b, &grown, "grow_queries");
        close(&c, &gated, "gate_rows");
        assert_eq!(b[..16 * width], x[..16 * width], "nothing grows below the first step");
        let mut bad = [f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
        cpu.soft_cap(&mut bad, 30.0);
        assert!(bad[..2] == [30.0, -30.0] && bad[2].is_nan());
    }
}
