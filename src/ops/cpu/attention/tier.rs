//! Attention's functions for each tier: the generic kernels compiled with its instruction sets, by type of the cache.

use super::kernels::{Bf16, F16, F32, Float, Scores, Softmax, Step, Values, Weights};
use super::quantised::{Q40, Q41, Q80, Quant};
use super::queries::Queries;
use super::rows::{DecodeRow, RowScores};
use super::{kernels, lanes, quantised, queries, rows};
use crate::ops::cpu::isa::Isa;
use crate::quant::DType;
use std::ops::Range;

/// One tier's functions. Unsafe to call: the host must have the tier.
pub(crate) struct Tier {
    /// Kernel of the keys' type.
    pub(super) scores: fn(DType) -> Scores,
    /// Kernel of the values' type.
    pub(super) values: fn(DType) -> Values,
    pub(super) softmax: Softmax,
    /// Of keys that lie token after token.
    pub(super) row_scores: RowScores,
    /// A row of a latent cache.
    pub(super) decode_row: DecodeRow,
    /// Makes query `i` ready, for quantised keys or not.
    pub(super) ready: unsafe fn(x: &[f32], scale: f32, queries: &mut Queries, i: usize, quantised: bool),
    /// `out = out · a + other · b`.
    pub(super) blend: unsafe fn(out: &mut [f32], a: f32, other: &[f32], b: f32),
}

#[inline(always)]
fn blend(out: &mut [f32], a: f32, other: &[f32], b: f32) {
    for (out, &other) in out.iter_mut().zip(other) {
        *out = other.mul_add(b, *out * a);
    }
}

#[inline(always)]
fn ready(x: &[f32], scale: f32, queries: &mut Queries, i: usize, quantised: bool) {
    let dim = queries.dim;
    if !quantised {
        return queries::scaled(x, scale, &mut queries.f[i * dim..][..dim]);
    }
    let groups = dim / crate::ops::KV_GROUP;
    let (d, sums) = (&mut queries.d[i * groups..][..groups], &mut queries.sums[i * groups..][..groups]);
    queries::rounded(x, scale, &mut queries.q[i * dim..][..dim], d, sums);
}

/// One tier with its vectors and features.
macro_rules! tier {
    ($name:ident, $lanes:ty, $(#[$feature:meta])?) => {
        mod $name {
            use super::*;
            type L = $lanes;

            $(#[$feature])?
            unsafe fn float_scores<E: Float>(q: &Queries, n: Range<usize>, keys: &[u8], next: *const u8, out: &mut [f32]) {
                // SAFETY: the caller's word.
                unsafe { kernels::scores::<L, E>(q, n, keys, next, out) }
            }
            $(#[$feature])?
            unsafe fn float_values<E: Float>(w: &Weights<'_>, values: &[u8], next: *const u8, out: &mut [f32]) {
                // SAFETY: the caller's word.
                unsafe { kernels::values::<L, E>(w, values, next, out) }
            }
            $(#[$feature])?
            unsafe fn quant_scores<B: Quant>(q: &Queries, n: Range<usize>, keys: &[u8], next: *const u8, out: &mut [f32]) {
                // SAFETY: the caller's word.
                unsafe { quantised::scores::<L, B>(q, n, keys, next, out) }
            }
            $(#[$feature])?
            unsafe fn quant_values<B: Quant>(w: &Weights<'_>, values: &[u8], next: *const u8, out: &mut [f32]) {
                // SAFETY: the caller's word.
                unsafe { quantised::values::<L, B>(w, values, next, out) }
            }
            $(#[$feature])?
            unsafe fn softmax(step: &mut Step<'_>, n: usize, seen: Range<usize>) {
                // SAFETY: the caller's word.
                unsafe { kernels::softmax::<L>(step, n, seen) }
            }
            $(#[$feature])?
            unsafe fn row_scores(q: &Queries, n: Range<usize>, keys: &[f32], seen: &Range<usize>, out: &mut [f32]) {
                // SAFETY: the caller's word.
                unsafe { rows::scores::<L>(q, n, keys, seen, out) }
            }
            $(#[$feature])?
            unsafe fn decode(dtype: DType, row: &[u8], out: &mut [f32]) {
                // SAFETY: the caller's word.
                unsafe { rows::decode::<L>(dtype, row, out) }
            }
            $(#[$feature])?
            unsafe fn ready(x: &[f32], scale: f32, queries: &mut Queries, i: usize, quantised: bool) {
                super::ready(x, scale, queries, i, quantised);
            }
            $(#[$feature])?
            unsafe fn blend(out: &mut [f32], a: f32, other: &[f32], b: f32) {
                super::blend(out, a, other, b);
            }
            fn scores(dtype: DType) -> Scores {
                match dtype {
                    DType::F32 => float_scores::<F32>,
                    DType::F16 => float_scores::<F16>,
                    DType::BF16 => float_scores::<Bf16>,
                    DType::Q8_0 => quant_scores::<Q80>,
                    DType::Q4_0 => quant_scores::<Q40>,
                    DType::Q4_1 => quant_scores::<Q41>,
                    other => panic!("no KV cache is of type {other}: its shape was not checked"),
                }
            }
            fn values(dtype: DType) -> Values {
                match dtype {
                    DType::F32 => float_values::<F32>,
                    DType::F16 => float_values::<F16>,
                    DType::BF16 => float_values::<Bf16>,
                    DType::Q8_0 => quant_values::<Q80>,
                    DType::Q4_0 => quant_values::<Q40>,
                    DType::Q4_1 => quant_values::<Q41>,
                    other => panic!("no KV cache is of type {other}: its shape was not checked"),
                }
            }
            pub(super) const TIER: Tier = Tier { scores, values, softmax, row_scores, decode_row: decode, ready, blend };
        }
    };
}

tier!(scalar, lanes::Arrays,);
#[cfg(target_arch = "x86_64")]
tier!(avx2, crate::ops::cpu::avx2::Pairs, #[target_feature(enable = "avx2,fma,f16c")]);
#[cfg(target_arch = "x86_64")]
tier!(
    avx512,
    crate::ops::cpu::avx512::Wide<false>,
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
);
#[cfg(target_arch = "x86_64")]
tier!(
    avx512vnni,
    crate::ops::cpu::avx512::Wide<true>,
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
);

impl Tier {
    /// Decodes a row of a cache's type.
    ///
    /// # Safety
    /// The host has the tier.
    pub(in crate::ops::cpu) unsafe fn decode(&self, dtype: DType, row: &[u8], out: &mut [f32]) {
        // SAFETY: the caller's word.
        unsafe { (self.decode_row)(dtype, row, out) }
    }

    /// The functions of `isa`.
    pub(crate) fn new(isa: Isa) -> Tier {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2::TIER,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => avx512::TIER,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni | Isa::Avx512Bf16 => avx512vnni::TIER,
            _ => scalar::TIER,
        }
    }
}
