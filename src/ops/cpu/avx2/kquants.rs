//! `gem{v,m}_{q2k,q3k,q4k,q5k,q6k,iq…,tq…}_q8k_avx2`: K-quants and other types of 256 columns. A block is taken apart to bytes (plain code that becomes vector
//! code here), `vpmaddubsw` multiplies 32 columns, `vpmaddwd` applies the scales; sums stay exact integers.
//! One thread reads Q4_K at 9.4, Q5_K at 11.1, Q6_K at 16.4 GB/s where plain reading reaches 25.8:
//! `benches/records/epyc-zen4-2cpu-2026-11-21.txt`.

use super::{N, gather, sum_each, write};
use crate::ops::cpu::blocks::{KBlock, KParts};
use crate::ops::cpu::table::Rows;
use std::arch::x86_64::*;

/// All rows of a K-quant.
///
/// # Safety
/// As `Kernel`, with AVX2 and FMA.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn rows<B: KBlock>(rows: &Rows<'_>) {
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

/// Sums of eight results' blocks, and the running results.
struct State {
    acc: __m256,
    min: __m256,
}

impl State {
    /// Adds a block: exact sums, factors of weights times scales of activations.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn add<B: KBlock>(&mut self, products: [__m256i; N], offsets: [__m256i; N], d: &[f32; N], dmin: &[f32; N]) {
        let (product, offset) = (sum_each(products), sum_each(offsets));
        let whole = if B::FOLDED { _mm256_sub_epi32(product, offset) } else { product };
        self.acc = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole), gather(d), self.acc);
        if !B::FOLDED {
            self.min = _mm256_fmadd_ps(_mm256_cvtepi32_ps(offset), gather(dmin), self.min);
        }
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn eight_rows<B: KBlock>(rows: &Rows<'_>, first: usize, t: usize) -> __m256 {
    let acts = rows.acts;
    let mut state = State { acc: _mm256_setzero_ps(), min: _mm256_setzero_ps() };
    for b in 0..acts.cols / 256 {
        let (mut products, mut offsets) = ([_mm256_setzero_si256(); N], [_mm256_setzero_si256(); N]);
        let (mut d, mut dmin) = ([0.0; N], [0.0; N]);
        for i in 0..N {
            let p = rows.row((first + i).min(rows.rows - 1)).wrapping_add(b * B::BYTES);
            for line in 0..B::BYTES.div_ceil(64) {
                _mm_prefetch(p.wrapping_add(N * rows.row_bytes + 64 * line).cast(), _MM_HINT_T1);
            }
            // SAFETY: the block is readable by the caller's word, the activations are padded to blocks.
            unsafe {
                let parts = B::parts(std::slice::from_raw_parts(p, B::BYTES));
                (products[i], offsets[i]) = sums::<B>(&parts, acts.q, acts.sums, acts.column(t, b * 256));
                (d[i], dmin[i]) = (parts.d * acts.scale(t, b), parts.dmin * acts.scale(t, b));
            }
        }
        state.add::<B>(products, offsets, &d, &dmin);
    }
    _mm256_sub_ps(state.acc, state.min)
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn eight_tokens<B: KBlock>(rows: &Rows<'_>, r: usize, t: usize) -> __m256 {
    let acts = rows.acts;
    let mut state = State { acc: _mm256_setzero_ps(), min: _mm256_setzero_ps() };
    for b in 0..acts.cols / 256 {
        // SAFETY: the block is readable by the caller's word.
        let parts = B::parts(unsafe { std::slice::from_raw_parts(rows.row(r).add(b * B::BYTES), B::BYTES) });
        let (mut products, mut offsets) = ([_mm256_setzero_si256(); N], [_mm256_setzero_si256(); N]);
        let (mut d, mut dmin) = ([0.0; N], [0.0; N]);
        for i in 0..N {
            let t = (t + i).min(rows.tokens.end - 1);
            // SAFETY: the activations are padded to blocks.
            (products[i], offsets[i]) = unsafe { sums::<B>(&parts, acts.q, acts.sums, acts.column(t, b * 256)) };
            (d[i], dmin[i]) = (parts.d * acts.scale(t, b), parts.dmin * acts.scale(t, b));
        }
        state.add::<B>(products, offsets, &d, &dmin);
    }
    _mm256_sub_ps(state.acc, state.min)
}

/// Lanes that add up to a block's product and offset with the activations from `at` on.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn sums<B: KBlock>(parts: &KParts, q: &[i8], sums: &[i16], at: usize) -> (__m256i, __m256i) {
    let mut product = _mm256_setzero_si256();
    // SAFETY: 256 weights and activations, 16 sums and minima.
    unsafe {
        for c in 0..8 {
            let w = _mm256_loadu_si256(parts.q.as_ptr().add(32 * c).cast());
            let a = _mm256_loadu_si256(q.as_ptr().add(at + 32 * c).cast());
            let s = _mm256_set_m128i(_mm_set1_epi16(parts.s[2 * c + 1]), _mm_set1_epi16(parts.s[2 * c]));
            let pairs = if B::WHOLE {
                let w = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
                _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w))
            } else {
                _mm256_maddubs_epi16(w, a)
            };
            product = _mm256_add_epi32(product, _mm256_madd_epi16(pairs, s));
        }
        if B::WHOLE {
            // The weights were signed again.
            return (product, _mm256_setzero_si256());
        }
        let m = _mm256_loadu_si256(parts.m.as_ptr().cast());
        let s = _mm256_loadu_si256(sums.as_ptr().add(at / 16).cast());
        (product, _mm256_madd_epi16(m, s))
    }
}
