//! Everything that is not a product with weights: norms, activation, rotation, the inner loops of attention.
//!
//! Written once in plain code over arrays of lanes and compiled for each tier, where it becomes vector code; the order of
//! operations is in the source, so every tier yields the same bits.

use super::isa::Isa;
use super::scalar::add_lanes;
use crate::ops::RopePairing;

/// Lanes that dot products are summed in.
const LANES: usize = 16;

/// One tier's instances. Unsafe to call: the host must have the tier.
#[derive(Clone, Copy)]
pub(crate) struct Functions {
    /// `out = x / √(mean(x²) + eps) · gain` of one row; `out` may not overlap `x`.
    pub(crate) rms_norm: unsafe fn(x: &[f32], gain: &[f32], eps: f32, out: &mut [f32]),
    /// The same in place.
    pub(crate) rms_norm_inplace: unsafe fn(x: &mut [f32], gain: &[f32], eps: f32),
    /// `gate = silu(gate) · up`.
    pub(crate) silu_mul: unsafe fn(gate: &mut [f32], up: &[f32]),
    /// `x += y`.
    pub(crate) add: unsafe fn(x: &mut [f32], y: &[f32]),
    /// Turns one head by the angles of its token.
    pub(crate) rope: unsafe fn(head: &mut [f32], sin: &[f32], cos: &[f32], pairing: RopePairing),
    /// `scores[j] = scale · q·keys[j]`, keys `[scores.len(), q.len()]`.
    pub(crate) scores: unsafe fn(q: &[f32], keys: &[f32], scale: f32, scores: &mut [f32]),
    /// `x[i] = exp(x[i] − max)`; the sum.
    pub(crate) exp_sum: unsafe fn(x: &mut [f32], max: f32) -> f32,
    /// `out = out · keep + Σ_j weights[j] · values[j]`, values `[weights.len(), out.len()]`.
    pub(crate) weigh: unsafe fn(out: &mut [f32], keep: f32, weights: &[f32], values: &[f32]),
    /// `out = out · a + other · b`.
    pub(crate) blend: unsafe fn(out: &mut [f32], a: f32, other: &[f32], b: f32),
    /// Half to single precision, little-endian.
    pub(crate) widen: unsafe fn(half: &[u8], out: &mut [f32]),
    /// Single to half precision, nearest even, little-endian.
    pub(crate) narrow: unsafe fn(x: &[f32], half: &mut [u8]),
}

/// One set of functions with the features given.
macro_rules! tier {
    ($name:ident, $(#[$feature:meta])?) => {
        mod $name {
            use super::*;
            $(#[$feature])?
            pub(super) unsafe fn rms_norm(x: &[f32], gain: &[f32], eps: f32, out: &mut [f32]) {
                super::rms_norm(x, gain, eps, out);
            }
            $(#[$feature])?
            pub(super) unsafe fn rms_norm_inplace(x: &mut [f32], gain: &[f32], eps: f32) {
                super::rms_norm_inplace(x, gain, eps);
            }
            $(#[$feature])?
            pub(super) unsafe fn silu_mul(gate: &mut [f32], up: &[f32]) {
                super::silu_mul(gate, up);
            }
            $(#[$feature])?
            pub(super) unsafe fn add(x: &mut [f32], y: &[f32]) {
                super::add(x, y);
            }
            $(#[$feature])?
            pub(super) unsafe fn rope(head: &mut [f32], sin: &[f32], cos: &[f32], pairing: RopePairing) {
                super::rope(head, sin, cos, pairing);
            }
            $(#[$feature])?
            pub(super) unsafe fn scores(q: &[f32], keys: &[f32], scale: f32, scores: &mut [f32]) {
                super::scores(q, keys, scale, scores);
            }
            $(#[$feature])?
            pub(super) unsafe fn exp_sum(x: &mut [f32], max: f32) -> f32 {
                super::exp_sum(x, max)
            }
            $(#[$feature])?
            pub(super) unsafe fn weigh(out: &mut [f32], keep: f32, weights: &[f32], values: &[f32]) {
                super::weigh(out, keep, weights, values);
            }
            $(#[$feature])?
            pub(super) unsafe fn blend(out: &mut [f32], a: f32, other: &[f32], b: f32) {
                super::blend(out, a, other, b);
            }
            pub(super) const ALL: Functions = Functions {
                rms_norm,
                rms_norm_inplace,
                silu_mul,
                add,
                rope,
                scores,
                exp_sum,
                weigh,
                blend,
                widen: super::widen,
                narrow: super::narrow,
            };
        }
    };
}

tier!(scalar,);
#[cfg(target_arch = "x86_64")]
tier!(avx2, #[target_feature(enable = "avx2,fma,f16c")]);
#[cfg(target_arch = "x86_64")]
tier!(avx512, #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]);

impl Functions {
    /// The functions of `isa`.
    pub(crate) fn new(isa: Isa) -> Functions {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => Functions { widen: super::avx2::widen, narrow: super::avx2::narrow, ..avx2::ALL },
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Vnni => Functions {
                widen: super::avx2::widen,
                narrow: super::avx2::narrow,
                scores: super::avx512::attention::scores,
                weigh: super::avx512::attention::weigh,
                ..avx512::ALL
            },
            _ => scalar::ALL,
        }
    }
}

/// `1 / √(mean(x²) + eps)`, the sum in eight F64 lanes.
#[inline(always)]
fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    let mut lanes = [0.0f64; 8];
    let chunks = x.chunks_exact(8);
    let rest = chunks.remainder();
    for chunk in chunks {
        for l in 0..8 {
            lanes[l] += f64::from(chunk[l]) * f64::from(chunk[l]);
        }
    }
    for (lane, &v) in lanes.iter_mut().zip(rest) {
        *lane += f64::from(v) * f64::from(v);
    }
    let mean = lanes.iter().sum::<f64>() / x.len() as f64;
    (1.0 / (mean + f64::from(eps)).sqrt()) as f32
}

#[inline(always)]
fn rms_norm(x: &[f32], gain: &[f32], eps: f32, out: &mut [f32]) {
    let scale = inverse_rms(x, eps);
    for ((out, &x), &gain) in out.iter_mut().zip(x).zip(gain) {
        *out = x * scale * gain;
    }
}

#[inline(always)]
fn rms_norm_inplace(x: &mut [f32], gain: &[f32], eps: f32) {
    let scale = inverse_rms(x, eps);
    for (x, &gain) in x.iter_mut().zip(gain) {
        *x = *x * scale * gain;
    }
}

/// e^x to 2 ulp: x = n·ln 2 + r, a polynomial of r, n into the exponent. Beyond ±87 it stays at the last finite,
/// normal value.
#[inline(always)]
fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    // ln 2 in two parts, the first with few enough bits that n times it is exact.
    let r = n.mul_add(-1.428_606_8e-6, n.mul_add(-0.693_145_75, x));
    let mut p = 1.388_889e-3f32;
    for c in [8.333_334e-3, 4.166_667e-2, 1.666_666_7e-1, 0.5, 1.0, 1.0] {
        p = p.mul_add(r, c);
    }
    let n = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    p * f32::from_bits(n.wrapping_add(127).wrapping_shl(23) as u32)
}

#[inline(always)]
fn silu_mul(gate: &mut [f32], up: &[f32]) {
    for (gate, &up) in gate.iter_mut().zip(up) {
        *gate = *gate / (1.0 + exp(-*gate)) * up;
    }
}

#[inline(always)]
fn add(x: &mut [f32], y: &[f32]) {
    for (x, &y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

#[inline(always)]
fn rope(head: &mut [f32], sin: &[f32], cos: &[f32], pairing: RopePairing) {
    let half = sin.len();
    match pairing {
        RopePairing::Interleaved => {
            for ((pair, &sin), &cos) in head[..2 * half].chunks_exact_mut(2).zip(sin).zip(cos) {
                let (x, y) = (pair[0], pair[1]);
                (pair[0], pair[1]) = (x * cos - y * sin, x * sin + y * cos);
            }
        }
        RopePairing::Halves => {
            let (first, second) = head[..2 * half].split_at_mut(half);
            for (((a, b), &sin), &cos) in first.iter_mut().zip(second).zip(sin).zip(cos) {
                let (x, y) = (*a, *b);
                (*a, *b) = (x * cos - y * sin, x * sin + y * cos);
            }
        }
    }
}

/// Dot products of `q` with `N` keys side by side, each in [`LANES`] lanes.
#[inline(always)]
fn dots<const N: usize>(q: &[f32], keys: &[f32]) -> [f32; N] {
    let width = q.len();
    let whole = width - width % LANES;
    let mut lanes = [[0.0f32; LANES]; N];
    let mut at = 0;
    while at < whole {
        let a: &[f32; LANES] = array(&q[at..]);
        for (j, lanes) in lanes.iter_mut().enumerate() {
            let b: &[f32; LANES] = array(&keys[j * width + at..]);
            for l in 0..LANES {
                lanes[l] = a[l].mul_add(b[l], lanes[l]);
            }
        }
        at += LANES;
    }
    for (j, lanes) in lanes.iter_mut().enumerate() {
        for l in 0..width - whole {
            lanes[l] = q[whole + l].mul_add(keys[j * width + whole + l], lanes[l]);
        }
    }
    lanes.map(add_lanes)
}

/// The first `N` elements.
#[inline(always)]
fn array<const N: usize>(x: &[f32]) -> &[f32; N] {
    match x.first_chunk() {
        Some(array) => array,
        None => panic!("{} elements where {N} are needed", x.len()),
    }
}

#[inline(always)]
pub(super) fn scores(q: &[f32], keys: &[f32], scale: f32, scores: &mut [f32]) {
    let width = q.len();
    assert_eq!(keys.len(), scores.len() * width);
    for (scores, keys) in scores.chunks_mut(4).zip(keys.chunks(4 * width)) {
        if scores.len() == 4 {
            let four = dots::<4>(q, keys);
            scores.iter_mut().zip(four).for_each(|(score, dot)| *score = dot * scale);
        } else {
            for (score, key) in scores.iter_mut().zip(keys.chunks_exact(width)) {
                *score = dots::<1>(q, key)[0] * scale;
            }
        }
    }
}

#[inline(always)]
fn exp_sum(x: &mut [f32], max: f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    for chunk in x.chunks_mut(LANES) {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *x = exp(*x - max);
            *lane += *x;
        }
    }
    add_lanes(lanes)
}

/// `N` columns of [`weigh`], kept in registers over all values.
#[inline(always)]
fn weigh_columns<const N: usize>(out: &mut [f32], keep: f32, weights: &[f32], values: &[f32], at: usize) {
    let width = out.len();
    let mut sum: [f32; N] = array::<N>(&out[at..]).map(|v| v * keep);
    for (j, &weight) in weights.iter().enumerate() {
        let value: &[f32; N] = array(&values[j * width + at..]);
        for l in 0..N {
            sum[l] = weight.mul_add(value[l], sum[l]);
        }
    }
    out[at..at + N].copy_from_slice(&sum);
}

#[inline(always)]
pub(super) fn weigh(out: &mut [f32], keep: f32, weights: &[f32], values: &[f32]) {
    assert_eq!(values.len(), weights.len() * out.len());
    let mut at = 0;
    while at + 64 <= out.len() {
        weigh_columns::<64>(out, keep, weights, values, at);
        at += 64;
    }
    while at + 16 <= out.len() {
        weigh_columns::<16>(out, keep, weights, values, at);
        at += 16;
    }
    while at < out.len() {
        weigh_columns::<1>(out, keep, weights, values, at);
        at += 1;
    }
}

#[inline(always)]
fn blend(out: &mut [f32], a: f32, other: &[f32], b: f32) {
    for (out, &other) in out.iter_mut().zip(other) {
        *out = other.mul_add(b, *out * a);
    }
}

unsafe fn widen(half: &[u8], out: &mut [f32]) {
    for (half, out) in half.chunks_exact(2).zip(out) {
        *out = half::f16::from_le_bytes([half[0], half[1]]).to_f32();
    }
}

unsafe fn narrow(x: &[f32], half: &mut [u8]) {
    for (&x, half) in x.iter().zip(half.chunks_exact_mut(2)) {
        half.copy_from_slice(&half::f16::from_f32(x).to_le_bytes());
    }
}
