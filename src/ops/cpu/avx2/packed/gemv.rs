//! `gemv_{q2k,q3k,q4k,q5k,q6k,…}_q8k_avx2`, `gemv_{q80,q40,q41,q50,q51,…}_q8_avx2`: panels times one token or two, unpacked in
//! registers.

#![allow(clippy::needless_range_loop, reason = "registers of several arrays are numbered alike")]

use super::kquants::{self, extra, pairs, words};
use super::{Floats, Lanes, add_scaled, four, keep_order, legacy, products};
use crate::ops::cpu::table::Rows;
use crate::quant::packed::ROWS;
use std::arch::x86_64::*;

/// Panels of a K-quant.
///
/// # Safety
/// As `Kernel`, with AVX2, FMA and F16C; at most two tokens.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn kquant_rows<B: kquants::Panel>(rows: &Rows<'_>) {
    for i in 0..rows.rows / ROWS {
        // SAFETY: the caller's word.
        unsafe {
            match rows.tokens.len() {
                1 => kquant_panel::<B, 1>(rows, i),
                _ => kquant_panel::<B, 2>(rows, i),
            }
        }
    }
}

/// Panels of a legacy type.
///
/// # Safety
/// As [`kquant_rows`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn legacy_rows<B: legacy::Panel>(rows: &Rows<'_>) {
    for i in 0..rows.rows / ROWS {
        // SAFETY: the caller's word.
        unsafe {
            match rows.tokens.len() {
                1 => legacy_panel::<B, 1>(rows, i),
                _ => legacy_panel::<B, 2>(rows, i),
            }
        }
    }
}

/// Writes a token's results of panel `i`.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn store(rows: &Rows<'_>, i: usize, token: usize, results: Floats) {
    // SAFETY: the caller's word.
    unsafe {
        let out = rows.out.add(token * rows.stride + i * ROWS);
        _mm256_storeu_ps(out, results[0]);
        _mm256_storeu_ps(out.add(8), results[1]);
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn kquant_panel<B: kquants::Panel, const T: usize>(rows: &Rows<'_>, i: usize) {
    let (acts, first, start) = (rows.acts, rows.tokens.start, rows.panel(i));
    let (mut acc, mut min) = ([[_mm256_setzero_ps(); 2]; T], [[_mm256_setzero_ps(); 2]; T]);
    for b in 0..rows.acts.cols / 256 {
        let block = start.wrapping_add(b * B::STEP);
        // SAFETY: the panel holds its blocks; activations are padded to whole blocks.
        unsafe {
            let mut at = [0; T];
            for t in 0..T {
                at[t] = acts.column(first + t, b * 256);
            }
            let (s, m) = B::scales(block);
            let mut offsets = [[_mm256_setzero_si256(); 2]; T];
            if B::MINIMA > 0 {
                let mut sums = [[0; 16]; T];
                for t in 0..T {
                    extra::<B>(acts.sums.as_ptr().add(at[t] / 16), &mut sums[t]);
                }
                let m = if B::FOLDED { &s } else { &m };
                for i in 0..B::SCALES {
                    let m = if B::FOLDED { pairs::<true>(m[i]) } else { pairs::<false>(m[i]) };
                    for j in 0..2 {
                        for t in 0..T {
                            let sums = _mm256_set1_epi32(sums[t][if B::WIDE { 4 * i + j } else { 2 * i + j }]);
                            add_words(&mut offsets[t], m[j], [sums; 2]);
                        }
                    }
                }
            }
            let mut sums = [[_mm256_setzero_si256(); 2]; T];
            let mut q = [std::ptr::null(); T];
            for t in 0..T {
                q[t] = acts.q.as_ptr().add(at[t]);
            }
            pass::<B, 0, 0, T>(block, &q, &s, &mut sums);
            pass::<B, 0, 1, T>(block, &q, &s, &mut sums);
            pass::<B, 1, 0, T>(block, &q, &s, &mut sums);
            pass::<B, 1, 1, T>(block, &q, &s, &mut sums);
            let [d, dmin] = B::factors(block);
            for t in 0..T {
                let scale = *acts.d.as_ptr().add(at[t] / 256);
                add_block::<B>(&mut acc[t], &mut min[t], sums[t], offsets[t], [d, dmin], scale);
            }
        }
    }
    for t in 0..T {
        let result = [_mm256_sub_ps(acc[t][0], min[t][0]), _mm256_sub_ps(acc[t][1], min[t][1])];
        // SAFETY: the caller's word.
        unsafe { store(rows, i, first + t, result) };
    }
}

/// Adds a block's products and minima to a token's results.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) fn add_block<B: kquants::Panel>(
    acc: &mut Floats,
    min: &mut Floats,
    mut sums: Lanes,
    offsets: Lanes,
    [d, dmin]: [Floats; 2],
    scale: f32,
) {
    if B::FOLDED && B::MINIMA > 0 {
        for h in 0..2 {
            sums[h] = _mm256_sub_epi32(sums[h], _mm256_mullo_epi32(offsets[h], _mm256_set1_epi32(B::OFFSET)));
        }
    }
    add_scaled(acc, sums, d, scale);
    if !B::FOLDED {
        add_scaled(min, offsets, dmin, scale);
    }
}

/// Adds the products of pairs of words.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn add_words(sums: &mut Lanes, a: Lanes, b: Lanes) {
    for h in 0..2 {
        sums[h] = _mm256_add_epi32(sums[h], _mm256_madd_epi16(a[h], b[h]));
    }
}

/// Adds pass `P` of half `N` of a block, two groups of 32 columns, to the sums of all tokens.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn pass<B: kquants::Panel, const N: usize, const P: usize, const T: usize>(
    block: *const u8,
    q: &[*const i8; T],
    s: &[Lanes; 4],
    sums: &mut [Lanes; T],
) {
    let [j, l] = B::groups(P);
    for from in (0..8).step_by(B::SUMS) {
        // Two arrays: indexed by a variable, sums would lie in memory.
        let (mut a, mut b) = ([[_mm256_setzero_si256(); 2]; T], [[_mm256_setzero_si256(); 2]; T]);
        for k in from..from + B::SUMS {
            // SAFETY: the caller's word.
            unsafe {
                let [w, v] = B::columns(block, N, P, k);
                for t in 0..T {
                    add_columns::<B>(&mut a[t], w, four(q[t].add(128 * N + 32 * j), k));
                    add_columns::<B>(&mut b[t], v, four(q[t].add(128 * N + 32 * l), k));
                    keep_order(&mut b[t][1]);
                }
            }
        }
        let scale = |j: usize| if B::WIDE { words(s[N], j) } else { words(s[2 * N + j / 2], 2 * (j % 2) + from / 4) };
        let (x, y) = (scale(j), scale(l));
        for t in 0..T {
            add_words(&mut sums[t], a[t], x);
            add_words(&mut sums[t], b[t], y);
        }
    }
}

/// Adds the products of four columns to words.
#[inline]
#[target_feature(enable = "avx2")]
fn add_columns<B: kquants::Panel>(to: &mut Lanes, w: Lanes, a: __m256i) {
    for h in 0..2 {
        let words = if B::SIGNED { products::<true>(w[h], a) } else { products::<false>(w[h], a) };
        to[h] = _mm256_add_epi16(to[h], words);
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn legacy_panel<B: legacy::Panel, const T: usize>(rows: &Rows<'_>, i: usize) {
    let (acts, first, start) = (rows.acts, rows.tokens.start, rows.panel(i));
    let (zero, ones) = (_mm256_setzero_si256(), _mm256_set1_epi16(1));
    let (mut acc, mut min) = ([[_mm256_setzero_ps(); 2]; T], [[_mm256_setzero_ps(); 2]; T]);
    for b in 0..rows.acts.cols / 32 {
        let block = start.wrapping_add(b * B::STEP);
        // SAFETY: the panel holds its blocks; activations are padded to whole blocks.
        unsafe {
            let mut sums = [[zero; 2]; T];
            let mut q = [std::ptr::null::<i8>(); T];
            for t in 0..T {
                let at = acts.column(first + t, b * 32);
                q[t] = acts.q.as_ptr().add(at);
                if !B::SIGNED && B::OFFSET != 0 {
                    let of_16 = _mm256_set1_epi32(acts.sums.as_ptr().add(at / 16).cast::<i32>().read_unaligned());
                    sums[t] = [_mm256_madd_epi16(of_16, _mm256_set1_epi16(-B::OFFSET)); 2];
                }
            }
            // Half of the dwords of a pair's words are the low ones, half the high ones.
            let flush = if B::SUMS >= 4 { 4 } else { 1 };
            for from in (0..4).step_by(flush) {
                let (mut a, mut c) = ([[zero; 2]; T], [[zero; 2]; T]);
                for k in from..from + flush {
                    let ([w, v], [low, high]) = (B::weights(block, k), legacy::places::<B>(k));
                    for t in 0..T {
                        let (x, y) = (four(q[t], low), four(q[t], high));
                        for h in 0..2 {
                            let one = |w, a| if B::SIGNED { products::<true>(w, a) } else { products::<false>(w, a) };
                            a[t][h] = _mm256_add_epi16(a[t][h], one(w[h], x));
                            c[t][h] = _mm256_add_epi16(c[t][h], one(v[h], y));
                        }
                        keep_order(&mut c[t][1]);
                    }
                }
                for t in 0..T {
                    add_words(&mut sums[t], a[t], [ones; 2]);
                    add_words(&mut sums[t], c[t], [ones; 2]);
                }
            }
            let [d, m] = legacy::factors::<B>(block);
            for t in 0..T {
                let at = acts.block(first + t, b);
                add_scaled(&mut acc[t], sums[t], d, *acts.d.as_ptr().add(at));
                if B::MIN {
                    let ds = _mm256_set1_ps(*acts.ds.as_ptr().add(at));
                    for h in 0..2 {
                        min[t][h] = _mm256_fmadd_ps(m[h], ds, min[t][h]);
                    }
                }
            }
        }
    }
    for t in 0..T {
        let result = [_mm256_add_ps(acc[t][0], min[t][0]), _mm256_add_ps(acc[t][1], min[t][1])];
        // SAFETY: the caller's word.
        unsafe { store(rows, i, first + t, result) };
    }
}
