//! Everything that is not a product with weights: norms, activation, rotation.
//!
//! Written once in plain code over arrays of lanes and compiled for each tier, where it becomes vector code; the order of
//! operations is in the source, so every tier yields the same bits.

use super::isa::Isa;
use crate::ops::RopePairing;

/// One tier's instances. Unsafe to call: the host must have the tier.
#[derive(Clone, Copy)]
pub(crate) struct Functions {
    /// `out = x / √(mean(x²) + eps) · gain` of one row; `out` may not overlap `x`.
    pub(crate) rms_norm: unsafe fn(x: &[f32], gain: &[f32], eps: f32, out: &mut [f32]),
    /// The same in place.
    pub(crate) rms_norm_inplace: unsafe fn(x: &mut [f32], gain: &[f32], eps: f32),
    /// `gate = silu(gate) · up`.
    pub(crate) silu_mul: unsafe fn(gate: &mut [f32], up: &[f32]),
    /// `gate = gelu(gate) · up`.
    pub(crate) gelu_mul: unsafe fn(gate: &mut [f32], up: &[f32]),
    /// gpt-oss's form of SwiGLU.
    pub(crate) clamped_silu_mul: unsafe fn(gate: &mut [f32], up: &[f32]),
    /// `x += y`.
    pub(crate) add: unsafe fn(x: &mut [f32], y: &[f32]),
    /// Turns one head by the angles of its token.
    pub(crate) rope: unsafe fn(head: &mut [f32], sin: &[f32], cos: &[f32], pairing: RopePairing),
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
            pub(super) unsafe fn gelu_mul(gate: &mut [f32], up: &[f32]) {
                super::gelu_mul(gate, up);
            }
            $(#[$feature])?
            pub(super) unsafe fn clamped_silu_mul(gate: &mut [f32], up: &[f32]) {
                super::clamped_silu_mul(gate, up);
            }
            $(#[$feature])?
            pub(super) unsafe fn add(x: &mut [f32], y: &[f32]) {
                super::add(x, y);
            }
            $(#[$feature])?
            pub(super) unsafe fn rope(head: &mut [f32], sin: &[f32], cos: &[f32], pairing: RopePairing) {
                super::rope(head, sin, cos, pairing);
            }
            pub(super) const ALL: Functions = Functions {
                rms_norm,
                rms_norm_inplace,
                silu_mul,
                gelu_mul,
                clamped_silu_mul,
                add,
                rope,
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
            Isa::Avx2 => Functions { narrow: super::avx2::narrow, ..avx2::ALL },
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Vnni | Isa::Avx512Bf16 => Functions { narrow: super::avx2::narrow, ..avx512::ALL },
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
pub(super) fn exp(x: f32) -> f32 {
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

/// `g/2 · (1 + tanh(y))` is `g · sigmoid(2y)`.
#[inline(always)]
fn gelu_mul(gate: &mut [f32], up: &[f32]) {
    // 2 √(2/π), and times 0.044715.
    const LINEAR: f32 = 1.595_769_2;
    const CUBIC: f32 = 0.071_354_814;
    for (gate, &up) in gate.iter_mut().zip(up) {
        let g = *gate;
        let y = g * (g * g).mul_add(CUBIC, LINEAR);
        *gate = g / (1.0 + exp(-y)) * up;
    }
}

#[inline(always)]
fn clamped_silu_mul(gate: &mut [f32], up: &[f32]) {
    const ALPHA: f32 = 1.702;
    const LIMIT: f32 = 7.0;
    for (gate, &up) in gate.iter_mut().zip(up) {
        let (g, u) = (gate.clamp(f32::NEG_INFINITY, LIMIT), up.clamp(-LIMIT, LIMIT));
        *gate = g / (1.0 + exp(-ALPHA * g)) * (u + 1.0);
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

unsafe fn narrow(x: &[f32], half: &mut [u8]) {
    for (&x, half) in x.iter().zip(half.chunks_exact_mut(2)) {
        half.copy_from_slice(&half::f16::from_f32(x).to_le_bytes());
    }
}
