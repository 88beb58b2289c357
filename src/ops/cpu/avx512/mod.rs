//! AVX-512 kernels: quantised weights by VNNI, floats by FMA. Types that are packed have kernels for panels only (`packed`):
//! the few rows beyond the last panel go to another tier.

mod codebook;
mod float;
mod lanes;
mod pack;
pub(super) mod packed;
mod quantise;

pub(super) use float::round;
pub(crate) use lanes::Wide;
pub(super) use pack::pack;
pub(crate) use quantise::quantise_row;

use super::codes::{Iq1M, Iq1S, Iq2S, Iq2Xs, Iq2Xxs, Iq3S, Iq3Xxs};
use super::table::Kernel;
use crate::quant::DType;
use std::arch::x86_64::*;

/// Kernels of the tier with VNNI for plain rows.
pub(crate) fn kernel(dtype: DType) -> Option<Kernel> {
    Some(match dtype {
        DType::IQ1_S => codebook::rows::<Iq1S>,
        DType::IQ1_M => codebook::rows::<Iq1M>,
        DType::IQ2_XXS => codebook::rows::<Iq2Xxs>,
        DType::IQ2_XS => codebook::rows::<Iq2Xs>,
        DType::IQ2_S => codebook::rows::<Iq2S>,
        DType::IQ3_XXS => codebook::rows::<Iq3Xxs>,
        DType::IQ3_S => codebook::rows::<Iq3S>,
        _ => return float_kernel(dtype),
    })
}

/// Kernels of the tier without VNNI.
pub(crate) fn float_kernel(dtype: DType) -> Option<Kernel> {
    Some(match dtype {
        DType::F32 => float::rows::<float::F32>,
        DType::F16 => float::rows::<float::F16>,
        DType::BF16 => float::rows::<float::Bf16>,
        _ => return None,
    })
}

/// BF16 in tiers that multiply it with activations in BF16.
pub(super) fn bf16_kernel() -> Kernel {
    float::bf16_rows
}

/// Reads 64 bytes.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load(p: *const u8) -> __m512i {
    // SAFETY: the caller's word: 64 readable bytes.
    unsafe { _mm512_loadu_si512(p.cast()) }
}

/// Sums the eight lanes of each half of eight vectors: lanes 0..8 are the low halves' sums, lanes 8..16 the high ones'.
#[inline]
#[target_feature(enable = "avx512f")]
fn sum_halves(v: [__m512i; 8]) -> __m512i {
    fold_halves(v, |a, b| _mm512_add_epi32(a, b))
}

/// Joins the eight lanes of each half of eight vectors by `join`, in an order of its own: see [`sum_halves`].
#[inline]
#[target_feature(enable = "avx512f")]
fn fold_halves(v: [__m512i; 8], join: impl Fn(__m512i, __m512i) -> __m512i) -> __m512i {
    let pair = |a, b| join(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    let quad = |a, b| join(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    let x = quad(pair(v[0], v[1]), pair(v[2], v[3]));
    let y = quad(pair(v[4], v[5]), pair(v[6], v[7]));
    let even = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13);
    let odd = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
    join(_mm512_permutex2var_epi64(x, even, y), _mm512_permutex2var_epi64(x, odd, y))
}

/// Sums all lanes of each of eight vectors.
#[inline]
#[target_feature(enable = "avx512f")]
fn sum_all(v: [__m512i; 8]) -> __m256i {
    let halves = sum_halves(v);
    _mm256_add_epi32(_mm512_castsi512_si256(halves), _mm512_extracti64x4_epi64(halves, 1))
}
