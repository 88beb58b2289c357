//! `gem{v,m}_{q80,q40,q41,q50,q51}_q8_avx2`: legacy types. A block of 32 columns is one vector; `vpmaddubsw` takes unsigned
//! weights, or the magnitude of Q8_0's with their sign moved to the activations (unsigned they would overflow i16).
//! Measured GB/s: see `benches/records/`, rows of the same names.

use super::{N, gather, sum_each, write};
use crate::ops::cpu::acts::Acts;
use crate::ops::cpu::blocks::{LegacyBlock, LegacyParts};
use crate::ops::cpu::table::Rows;
use std::arch::x86_64::*;

/// Offset of weights that fill all eight bits.
const WHOLE_BYTE: i16 = 128;

/// All rows of a legacy type.
///
/// # Safety
/// As `Kernel`, with AVX2 and FMA.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn rows<B: LegacyBlock>(rows: &Rows<'_>) {
    if rows.tokens.len() < super::MANY_TOKENS {
        for first in (0..rows.rows).step_by(N) {
            for t in rows.tokens.clone() {
                // SAFETY: the caller's word; rows beyond the last are read as the last and not written.
                unsafe { write(rows, true, first, t, eight_rows::<B>(rows, first, t)) };
            }
        }
    } else {
        for r in 0..rows.rows {
            for t in rows.tokens.clone().step_by(N) {
                // SAFETY: the caller's word; tokens beyond the last are read as the last and not written.
                unsafe { write(rows, false, r, t, eight_tokens::<B>(rows, r, t)) };
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn eight_rows<B: LegacyBlock>(rows: &Rows<'_>, first: usize, t: usize) -> __m256 {
    let acts = rows.acts;
    let (mut acc, mut min) = (_mm256_setzero_ps(), _mm256_setzero_ps());
    for b in 0..acts.cols / 32 {
        let scale = acts.scale(t, b);
        let mut sums = [_mm256_setzero_si256(); N];
        let (mut d, mut m) = ([0.0; N], [0.0; N]);
        for i in 0..N {
            let p = rows.row((first + i).min(rows.rows - 1)).wrapping_add(b * B::BYTES);
            _mm_prefetch(p.wrapping_add(N * rows.row_bytes).cast(), _MM_HINT_T1);
            // SAFETY: the block is readable by the caller's word, the activations are padded to blocks.
            unsafe {
                let parts = B::parts(std::slice::from_raw_parts(p, B::BYTES));
                sums[i] = product::<B>(&parts, acts, t, b);
                (d[i], m[i]) = (parts.d * scale, parts.m);
            }
        }
        acc = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum_each(sums)), gather(&d), acc);
        if B::MIN {
            min = _mm256_fmadd_ps(gather(&m), _mm256_set1_ps(acts.ds[t * acts.blocks + b]), min);
        }
    }
    _mm256_add_ps(acc, min)
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn eight_tokens<B: LegacyBlock>(rows: &Rows<'_>, r: usize, t: usize) -> __m256 {
    let acts = rows.acts;
    let (mut acc, mut min) = (_mm256_setzero_ps(), _mm256_setzero_ps());
    for b in 0..acts.cols / 32 {
        // SAFETY: the block is readable by the caller's word.
        let parts = B::parts(unsafe { std::slice::from_raw_parts(rows.row(r).add(b * B::BYTES), B::BYTES) });
        let mut sums = [_mm256_setzero_si256(); N];
        let (mut d, mut ds) = ([0.0; N], [0.0; N]);
        for i in 0..N {
            let t = (t + i).min(rows.tokens.end - 1);
            // SAFETY: the activations are padded to blocks.
            sums[i] = unsafe { product::<B>(&parts, acts, t, b) };
            (d[i], ds[i]) = (parts.d * acts.scale(t, b), acts.ds[t * acts.blocks + b]);
        }
        acc = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum_each(sums)), gather(&d), acc);
        if B::MIN {
            min = _mm256_fmadd_ps(_mm256_set1_ps(parts.m), gather(&ds), min);
        }
    }
    _mm256_add_ps(acc, min)
}

/// Lanes that add up to a block's product with the activations of token `t`.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn product<B: LegacyBlock>(parts: &LegacyParts, acts: &Acts<'_>, t: usize, b: usize) -> __m256i {
    let at = t * acts.stride + 32 * b;
    // SAFETY: 32 weights and activations.
    let (w, a) =
        unsafe { (_mm256_loadu_si256(parts.q.as_ptr().cast()), _mm256_loadu_si256(acts.q.as_ptr().add(at).cast())) };
    let ones = _mm256_set1_epi16(1);
    if B::OFFSET == WHOLE_BYTE {
        let w = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
        return _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w)), ones);
    }
    let sum = _mm256_madd_epi16(_mm256_maddubs_epi16(w, a), ones);
    if B::OFFSET == 0 {
        return sum;
    }
    let total = i32::from(acts.sums[at / 16]) + i32::from(acts.sums[at / 16 + 1]);
    let offset = _mm256_zextsi128_si256(_mm_cvtsi32_si128(total * i32::from(B::OFFSET)));
    _mm256_sub_epi32(sum, offset)
}
