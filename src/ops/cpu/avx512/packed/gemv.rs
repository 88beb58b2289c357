//! `gemv_{q2k,q3k,q4k,q5k,q6k}_q8k_avx512vnni`, `gemv_{q80,q40,q41,q50,q51}_q8_avx512vnni`: panels times one token or few.
//!
//! A thread streams through its panels from front to back, each byte once for all tokens: weights are unpacked in
//! registers, 32 columns at a time, and multiplied with each token. The lines ahead are asked for as it goes.

#![allow(clippy::needless_range_loop, reason = "registers of several arrays are numbered alike")]

use super::kquants::{self, pairs, signed, starts};
use super::{by_tokens, four, legacy, panel};
use crate::ops::cpu::table::Rows;
use crate::quant::packed::{ROWS, VECTOR};
use std::arch::x86_64::*;

/// Bytes ahead of the block in work that are asked for.
const AHEAD: usize = 4096;

/// Panels of a K-quant times at most six tokens.
///
/// # Safety
/// As `Kernel`, with AVX-512 VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
pub(super) unsafe fn kquant_rows<B: kquants::Panel>(rows: &Rows<'_>) {
    for i in 0..rows.rows / ROWS {
        // SAFETY: the caller's word.
        unsafe { by_tokens!(rows.tokens.len(), kquant_panel::<B>(rows, i)) };
    }
}

/// Panels of a legacy type times at most six tokens.
///
/// # Safety
/// As `Kernel`, with AVX-512 VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
pub(super) unsafe fn legacy_rows<B: legacy::Panel>(rows: &Rows<'_>) {
    for i in 0..rows.rows / ROWS {
        // SAFETY: the caller's word.
        unsafe { by_tokens!(rows.tokens.len(), legacy_panel::<B>(rows, i)) };
    }
}

/// Asks for `vectors` lines beyond; an address behind the weights does no harm.
#[inline]
#[target_feature(enable = "avx512f")]
fn prefetch(p: *const u8, vectors: usize) {
    for i in 0..vectors {
        _mm_prefetch(p.wrapping_add(AHEAD + i * VECTOR).cast(), _MM_HINT_T1);
    }
}

/// Writes the results of panel `i`.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store<const T: usize>(rows: &Rows<'_>, i: usize, results: [__m512; T]) {
    for (t, result) in rows.tokens.clone().zip(results) {
        // SAFETY: the caller's word.
        unsafe { _mm512_storeu_ps(rows.out.add(t * rows.stride + i * ROWS), result) };
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
unsafe fn kquant_panel<B: kquants::Panel, const T: usize>(rows: &Rows<'_>, i: usize) {
    let (acts, first, blocks) = (rows.acts, rows.tokens.start, rows.acts.cols / 256);
    let start = panel(rows, i);
    let rests = start.wrapping_add(blocks * B::VECTORS * VECTOR);
    let (mut acc, mut min) = ([_mm512_setzero_ps(); T], [_mm512_setzero_ps(); T]);
    for b in 0..blocks {
        let block = start.wrapping_add(b * B::VECTORS * VECTOR);
        prefetch(block, B::VECTORS);
        // SAFETY: the panel holds its blocks; activations are padded to whole blocks.
        unsafe {
            let at: [usize; T] = std::array::from_fn(|t| acts.column(first + t, b * 256));
            let mut extra = [[0; 16]; T];
            for t in 0..T {
                starts::<B>(acts.sums.as_ptr().add(at[t] / 16), &mut extra[t]);
            }
            let (s, m) = B::scales(block);
            let mut products = [_mm512_setzero_si512(); T];
            let q = at.map(|at| acts.q.as_ptr().add(at));
            for n in 0..2 {
                let s = if B::WIDE { [s[n], s[n]] } else { [s[2 * n], s[2 * n + 1]] };
                group::<B, 0, T>(block, n, &q, &s, &extra, &mut products);
                group::<B, 1, T>(block, n, &q, &s, &extra, &mut products);
                group::<B, 2, T>(block, n, &q, &s, &extra, &mut products);
                group::<B, 3, T>(block, n, &q, &s, &extra, &mut products);
            }
            let (d, dmin) = B::factors(block, rests.add(b * 2 * ROWS));
            for t in 0..T {
                let scale = _mm512_set1_ps(acts.scale(first + t, b));
                acc[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products[t]), _mm512_mul_ps(d, scale), acc[t]);
            }
            if B::FOLDED {
                continue;
            }
            let mut offsets = [_mm512_setzero_si512(); T];
            for (i, m) in m.into_iter().enumerate().take(B::SCALES) {
                for (j, m) in pairs(m).into_iter().enumerate() {
                    for t in 0..T {
                        let sums = _mm512_set1_epi32(extra[t][if B::WIDE { 4 * i + j } else { 2 * i + j }]);
                        offsets[t] = _mm512_dpwssd_epi32(offsets[t], m, sums);
                    }
                }
            }
            for t in 0..T {
                let scale = _mm512_set1_ps(acts.scale(first + t, b));
                min[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(offsets[t]), _mm512_mul_ps(dmin, scale), min[t]);
            }
        }
    }
    // SAFETY: the caller's word.
    unsafe { store(rows, i, std::array::from_fn::<_, T, _>(|t| _mm512_sub_ps(acc[t], min[t]))) };
}

/// Adds group `J` of half `n` to the products of all tokens.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
unsafe fn group<B: kquants::Panel, const J: usize, const T: usize>(
    block: *const u8,
    n: usize,
    q: &[*const i8; T],
    s: &[__m512i; 2],
    extra: &[[i32; 16]; T],
    products: &mut [__m512i; T],
) {
    // SAFETY: the caller's word.
    unsafe {
        let w = B::group::<J>(block, n);
        let a = q.map(|q| q.add(128 * n + 32 * J));
        if B::WIDE {
            let s = signed::<J>(s[0]);
            for t in 0..T {
                let mut sum = _mm512_set1_epi32(if B::FOLDED { extra[t][4 * n + J] } else { 0 });
                for k in 0..8 {
                    sum = _mm512_dpbusd_epi32(sum, w[k], four(a[t], k));
                }
                products[t] = _mm512_add_epi32(products[t], _mm512_mullo_epi32(sum, s));
            }
            return;
        }
        let s = s[J / 2];
        let s = if J.is_multiple_of(2) { [signed::<0>(s), signed::<1>(s)] } else { [signed::<2>(s), signed::<3>(s)] };
        for t in 0..T {
            for h in 0..2 {
                let start = if B::FOLDED { extra[t][8 * n + 2 * J + h] } else { 0 };
                let mut sum = _mm512_set1_epi32(start);
                for k in 4 * h..4 * h + 4 {
                    sum = _mm512_dpbusd_epi32(sum, w[k], four(a[t], k));
                }
                products[t] = _mm512_add_epi32(products[t], _mm512_mullo_epi32(sum, s[h]));
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
unsafe fn legacy_panel<B: legacy::Panel, const T: usize>(rows: &Rows<'_>, i: usize) {
    let (acts, first, blocks) = (rows.acts, rows.tokens.start, rows.acts.cols / 32);
    let start = panel(rows, i);
    let rests = start.wrapping_add(blocks * B::VECTORS * VECTOR);
    let (mut acc, mut min) = ([_mm512_setzero_ps(); T], [_mm512_setzero_ps(); T]);
    for b in 0..blocks {
        let (block, rest) = (start.wrapping_add(b * B::VECTORS * VECTOR), rests.wrapping_add(b * B::REST * ROWS));
        prefetch(block, B::VECTORS);
        // SAFETY: the panel holds its blocks; activations are padded to whole blocks.
        unsafe {
            let w = B::weights(block);
            let (d, m) = legacy::factors::<B>(block, rest);
            for t in 0..T {
                let at = acts.column(first + t, b * 32);
                let mut sum = _mm512_setzero_si512();
                if B::OFFSET != 0 {
                    let sums = _mm512_set1_epi32(acts.sums.as_ptr().add(at / 16).cast::<i32>().read_unaligned());
                    sum = _mm512_dpwssd_epi32(sum, _mm512_set1_epi16(-B::OFFSET), sums);
                }
                for (k, &w) in w.iter().enumerate() {
                    sum = _mm512_dpbusd_epi32(sum, w, four(acts.q.as_ptr().add(at), k));
                }
                let at = acts.block(first + t, b);
                let scale = _mm512_set1_ps(*acts.d.as_ptr().add(at));
                acc[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_mul_ps(d, scale), acc[t]);
                if B::MIN {
                    min[t] = _mm512_fmadd_ps(m, _mm512_set1_ps(*acts.ds.as_ptr().add(at)), min[t]);
                }
            }
        }
    }
    // SAFETY: the caller's word.
    unsafe { store(rows, i, std::array::from_fn::<_, T, _>(|t| _mm512_add_ps(acc[t], min[t]))) };
}
