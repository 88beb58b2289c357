//! `gem{v,m}_nvfp4_q8_avx2`: NVFP4. Thirty-two columns are one vector of signed weights, looked up by `vpshufb`; `vpmaddubsw`
//! takes their magnitudes and the activations with their signs. The two factors of 16 columns meet two exact sums.

use super::{N, gather, sum_halves, write};
use crate::ops::cpu::table::Rows;
use crate::quant::fp4;
use std::arch::x86_64::*;

/// All rows of NVFP4.
///
/// # Safety
/// As `Kernel`, with AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn rows(rows: &Rows<'_>) {
    let by_rows = rows.tokens.len() < super::MANY_TOKENS;
    if by_rows {
        for first in (0..rows.rows).step_by(N) {
            for t in rows.tokens.clone() {
                let pairs = std::array::from_fn(|i| ((first + i).min(rows.rows - 1), t));
                // SAFETY: the caller's word; rows beyond the last are read as the last and not written.
                unsafe { write(rows, by_rows, first, t, eight(rows, pairs)) };
            }
        }
    } else {
        for r in 0..rows.rows {
            for t in rows.tokens.clone().step_by(N) {
                let pairs = std::array::from_fn(|i| (r, (t + i).min(rows.tokens.end - 1)));
                // SAFETY: the caller's word; tokens beyond the last are read as the last and not written.
                unsafe { write(rows, by_rows, r, t, eight(rows, pairs)) };
            }
        }
    }
}

/// Results of eight pairs of a row and a token.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn eight(rows: &Rows<'_>, pairs: [(usize, usize); N]) -> __m256 {
    let acts = rows.acts;
    let mut acc = _mm256_setzero_ps();
    for j in 0..acts.cols / 32 {
        let mut sums = [_mm256_setzero_si256(); N];
        let (mut low, mut high) = ([0.0; N], [0.0; N]);
        for (i, (r, t)) in pairs.into_iter().enumerate() {
            let block = rows.row(r).wrapping_add(j / 2 * fp4::NV_BYTES);
            // SAFETY: the block is readable by the caller's word, the activations are padded to blocks.
            unsafe {
                let scales = block.add(j % 2 * 2);
                let scale = acts.scale(t, j);
                (low[i], high[i]) = (fp4::e4m3_half(*scales) * scale, fp4::e4m3_half(*scales.add(1)) * scale);
                let w = unpack(block.add(4 + 16 * (j % 2)));
                let a = _mm256_loadu_si256(acts.q.as_ptr().add(acts.column(t, 32 * j)).cast());
                let products = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w));
                sums[i] = _mm256_madd_epi16(products, _mm256_set1_epi16(1));
            }
        }
        let [first, second] = sum_halves(sums);
        acc = _mm256_fmadd_ps(_mm256_cvtepi32_ps(first), gather(&low), acc);
        acc = _mm256_fmadd_ps(_mm256_cvtepi32_ps(second), gather(&high), acc);
    }
    acc
}

/// Two groups' 16 bytes to 32 weights in column order.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn unpack(p: *const u8) -> __m256i {
    // SAFETY: the caller's word: 16 readable bytes; 16 of the table.
    let (x, table) = unsafe { (_mm_loadu_si128(p.cast()), _mm_loadu_si128(fp4::VALUES.as_ptr().cast())) };
    let high = _mm_srli_epi16(x, 4);
    let columns = _mm256_set_m128i(_mm_unpackhi_epi64(x, high), _mm_unpacklo_epi64(x, high));
    let nibbles = _mm256_and_si256(columns, _mm256_set1_epi8(15));
    _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), nibbles)
}
