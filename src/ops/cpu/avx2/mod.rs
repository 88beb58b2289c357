//! AVX2 kernels: quantised weights by `vpmaddubsw`, floats by FMA. Eight results side by side in one vector: eight rows
//! times one token, or one row times eight tokens. Types that are packed have kernels for panels only (`packed`): the few rows beyond
//! the last panel are `scalar`'s.

mod float;
mod fp4;
mod kquants;
mod lanes;
pub(super) mod packed;

pub(crate) use lanes::Pairs;

use super::acts::{QuantisedRow, quantise_row as quantise};
use super::codes::{Iq1M, Iq1S, Iq2S, Iq2Xs, Iq2Xxs, Iq3S, Iq3Xxs, Tq10};
use super::table::{Kernel, Rows};
use crate::quant::DType;
use half::f16;
use std::arch::x86_64::*;

/// Results side by side.
const N: usize = 8;
/// From how many tokens on eight tokens go side by side, not eight rows. Both ways yield the same bits.
const MANY_TOKENS: usize = 4;

/// Kernels of the tier for plain rows.
pub(crate) fn kernel(dtype: DType) -> Option<Kernel> {
    Some(match dtype {
        DType::F32 => float::rows::<float::F32>,
        DType::F16 => float::rows::<float::F16>,
        DType::BF16 => float::rows::<float::Bf16>,
        DType::IQ1_S => kquants::rows::<Iq1S>,
        DType::IQ1_M => kquants::rows::<Iq1M>,
        DType::IQ2_XXS => kquants::rows::<Iq2Xxs>,
        DType::IQ2_XS => kquants::rows::<Iq2Xs>,
        DType::IQ2_S => kquants::rows::<Iq2S>,
        DType::IQ3_XXS => kquants::rows::<Iq3Xxs>,
        DType::IQ3_S => kquants::rows::<Iq3S>,
        DType::TQ1_0 => kquants::rows::<Tq10>,
        DType::NVFP4 => fp4::rows,
        _ => return None,
    })
}

/// See [`quantise`].
#[target_feature(enable = "avx2,fma")]
pub(crate) unsafe fn quantise_row(x: &[f32], block: usize, out: &mut QuantisedRow<'_>) {
    quantise(x, block, out);
}

/// Single to half precision, nearest even, little-endian.
#[target_feature(enable = "avx2,f16c")]
pub(crate) unsafe fn narrow(x: &[f32], half: &mut [u8]) {
    assert_eq!(half.len(), 2 * x.len());
    for (x, half) in x.chunks_exact(8).zip(half.chunks_exact_mut(16)) {
        // SAFETY: 8 numbers in, 16 bytes out.
        unsafe {
            let v = _mm256_cvtps_ph(_mm256_loadu_ps(x.as_ptr()), _MM_FROUND_TO_NEAREST_INT);
            _mm_storeu_si128(half.as_mut_ptr().cast(), v);
        }
    }
    let done = x.len() / 8 * 8;
    for (&x, half) in x[done..].iter().zip(half[2 * done..].chunks_exact_mut(2)) {
        half.copy_from_slice(&f16::from_f32(x).to_le_bytes());
    }
}

/// Sums the low four and the high four lanes of each of eight vectors.
#[inline]
#[target_feature(enable = "avx2")]
fn sum_halves(v: [__m256i; N]) -> [__m256i; 2] {
    let low = _mm256_hadd_epi32(_mm256_hadd_epi32(v[0], v[1]), _mm256_hadd_epi32(v[2], v[3]));
    let high = _mm256_hadd_epi32(_mm256_hadd_epi32(v[4], v[5]), _mm256_hadd_epi32(v[6], v[7]));
    [_mm256_permute2x128_si256(low, high, 0x20), _mm256_permute2x128_si256(low, high, 0x31)]
}

/// Sums the lanes of each of eight vectors.
#[inline]
#[target_feature(enable = "avx2")]
fn sum_each(v: [__m256i; N]) -> __m256i {
    let [low, high] = sum_halves(v);
    _mm256_add_epi32(low, high)
}

/// Eight numbers to a vector.
#[inline]
#[target_feature(enable = "avx2")]
fn gather(v: &[f32; N]) -> __m256 {
    // SAFETY: 32 bytes of the array.
    unsafe { _mm256_loadu_ps(v.as_ptr()) }
}

/// Writes eight results: rows `first..` of token `t`, or tokens `t..` of row `first`; those beyond the end are dropped.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn write(rows: &Rows<'_>, by_rows: bool, first: usize, t: usize, v: __m256) {
    let mut out = [0.0f32; N];
    // SAFETY: 32 bytes of the array; `out` of the rows by the caller's word.
    unsafe {
        _mm256_storeu_ps(out.as_mut_ptr(), v);
        if by_rows {
            for (i, &v) in out.iter().enumerate().take(rows.rows - first) {
                rows.write(t, first + i, v);
            }
        } else {
            for (i, &v) in out.iter().enumerate().take(rows.tokens.end - t) {
                rows.write(t + i, first, v);
            }
        }
    }
}
