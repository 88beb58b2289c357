//! `gemv_{q2k,q3k,q4k,q5k,q6k}_q8k_avx512vnni`, `gemv_{q80,q40,q41,q50,q51}_q8_avx512vnni`: panels times one token or few.
//!
//! A thread streams through its panels from front to back, each byte once for all tokens: weights are unpacked in
//! registers, few columns at a time, and multiplied with each token.

#![allow(clippy::needless_range_loop, reason = "registers of several arrays are numbered alike")]

use super::kquants::{self, pairs, signed, starts};
use super::{add_products, by_tokens, four, legacy};
use crate::ops::cpu::table::Rows;
use crate::quant::packed::ROWS;
use std::arch::asm;
use std::arch::x86_64::*;
use std::ops::Range;

/// Tokens that a panel is multiplied with at a time: with more, sums and factors do not fit into the registers.
const TOKENS: usize = 4;

/// Panels of a K-quant times some tokens.
///
/// # Safety
/// As `Kernel`, with AVX-512 VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
pub(super) unsafe fn kquant_rows<B: kquants::Panel>(rows: &Rows<'_>) {
    for (i, tokens) in pieces(rows) {
        // SAFETY: the caller's word.
        unsafe { by_tokens!(tokens.len(), kquant_panel::<B>(rows, i, tokens.clone())) };
    }
}

/// Panels of a legacy type times some tokens.
///
/// # Safety
/// As `Kernel`, with AVX-512 VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
pub(super) unsafe fn legacy_rows<B: legacy::Panel>(rows: &Rows<'_>) {
    for (i, tokens) in pieces(rows) {
        // SAFETY: the caller's word.
        unsafe { by_tokens!(tokens.len(), legacy_panel::<B>(rows, i, tokens.clone())) };
    }
}

/// Loads before it stay before it, those after it after it, and `sum` is computed in between. A panel is laid out in the order
/// in which it is read here; the compiler, left to itself, mixes the loads of a whole block and asks for its lines out of
/// order, and the prefetchers of the processor lose the stream: a third of the bandwidth is left. Prefetching by hand does
/// not make up for it. No instruction.
#[inline]
#[target_feature(enable = "avx512f")]
fn keep_order(sum: &mut __m512i) {
    // SAFETY: nothing is executed.
    unsafe { asm!("/* {} */", inout(zmm_reg) * sum, options(nostack, preserves_flags)) };
}

/// Each panel with all tokens, at most [`TOKENS`] at a time and as equally many as can be: the panel comes from memory for the
/// first of them and from the cache for the others.
fn pieces(rows: &Rows<'_>) -> impl Iterator<Item = (usize, Range<usize>)> {
    let (tokens, count) = (rows.tokens.clone(), rows.tokens.len().div_ceil(TOKENS));
    let start = move |piece: usize| tokens.start + tokens.len() * piece / count;
    (0..rows.rows / ROWS * count).map(move |at| (at / count, start(at % count)..start(at % count + 1)))
}

/// Writes the results of panel `i`.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store<const T: usize>(rows: &Rows<'_>, i: usize, first: usize, results: [__m512; T]) {
    for (t, result) in (first..).zip(results) {
        // SAFETY: the caller's word.
        unsafe { _mm512_storeu_ps(rows.out.add(t * rows.stride + i * ROWS), result) };
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
unsafe fn kquant_panel<B: kquants::Panel, const T: usize>(rows: &Rows<'_>, i: usize, tokens: Range<usize>) {
    let (acts, first, blocks) = (rows.acts, tokens.start, rows.acts.cols / 256);
    let start = rows.panel(i);
    let (mut acc, mut min) = ([_mm512_setzero_ps(); T], [_mm512_setzero_ps(); T]);
    for b in 0..blocks {
        let block = start.wrapping_add(b * B::STEP);
        // SAFETY: the panel holds its blocks; activations are padded to whole blocks.
        unsafe {
            let at: [usize; T] = std::array::from_fn(|t| acts.column(first + t, b * 256));
            // Unchecked: behind a check's branch the compiler would gather all products and keep their factors on the stack.
            let scale = at.map(|at| _mm512_set1_ps(*acts.d.as_ptr().add(at / 256)));
            let mut extra = [[0; 16]; T];
            for t in 0..T {
                starts::<B>(acts.sums.as_ptr().add(at[t] / 16), &mut extra[t]);
            }
            let (s, m) = B::scales(block);
            // Before the products: a loop between them and their sums would do as a check does.
            if !B::FOLDED {
                minima::<B, T>(block, &m, &extra, &scale, &mut min);
            }
            let mut products = [_mm512_setzero_si512(); T];
            let q = at.map(|at| acts.q.as_ptr().add(at));
            pass::<B, 0, 0, T>(block, &q, &s, &extra, &mut products);
            pass::<B, 0, 1, T>(block, &q, &s, &extra, &mut products);
            pass::<B, 1, 0, T>(block, &q, &s, &extra, &mut products);
            pass::<B, 1, 1, T>(block, &q, &s, &extra, &mut products);
            let (d, _) = B::factors(block);
            for t in 0..T {
                acc[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products[t]), _mm512_mul_ps(d, scale[t]), acc[t]);
            }
        }
    }
    // SAFETY: the caller's word.
    unsafe { store(rows, i, first, std::array::from_fn::<_, T, _>(|t| _mm512_sub_ps(acc[t], min[t]))) };
}

/// Adds a block's minima times the activations' sums.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
unsafe fn minima<B: kquants::Panel, const T: usize>(
    block: *const u8,
    m: &[__m512i; 4],
    extra: &[[i32; 16]; T],
    scale: &[__m512; T],
    min: &mut [__m512; T],
) {
    // SAFETY: the caller's word.
    let (_, dmin) = unsafe { B::factors(block) };
    let mut offsets = [_mm512_setzero_si512(); T];
    for (i, &m) in m.iter().enumerate().take(B::SCALES) {
        for (j, m) in pairs(m).into_iter().enumerate() {
            for t in 0..T {
                let sums = _mm512_set1_epi32(extra[t][if B::WIDE { 4 * i + j } else { 2 * i + j }]);
                add_products(&mut offsets[t], m, sums);
            }
        }
    }
    for t in 0..T {
        min[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(offsets[t]), _mm512_mul_ps(dmin, scale[t]), min[t]);
    }
}

/// Adds pass `P` of half `N` of a block, two groups of 32 columns, to the products of all tokens.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
unsafe fn pass<B: kquants::Panel, const N: usize, const P: usize, const T: usize>(
    block: *const u8,
    q: &[*const i8; T],
    s: &[__m512i; 4],
    extra: &[[i32; 16]; T],
    products: &mut [__m512i; T],
) {
    let [j, l] = B::groups(P);
    // Dwords of columns that share a scale.
    let share = if B::WIDE { 8 } else { 4 };
    // SAFETY: the caller's word.
    unsafe {
        for h in 0..8 / share {
            let start = |j: usize, t: usize| if B::FOLDED { extra[t][(4 * N + j) * 8 / share + h] } else { 0 };
            // Two arrays: indexed by a variable, sums would lie in memory.
            let mut a: [__m512i; T] = std::array::from_fn(|t| _mm512_set1_epi32(start(j, t)));
            let mut b: [__m512i; T] = std::array::from_fn(|t| _mm512_set1_epi32(start(l, t)));
            for k in h * share..(h + 1) * share {
                let [w, v] = B::columns(block, N, P, k);
                for t in 0..T {
                    a[t] = _mm512_dpbusd_epi32(a[t], w, four(q[t].add(128 * N + 32 * j), k));
                    b[t] = _mm512_dpbusd_epi32(b[t], v, four(q[t].add(128 * N + 32 * l), k));
                    keep_order(&mut a[t]);
                    keep_order(&mut b[t]);
                }
            }
            let scale = |j: usize| if B::WIDE { signed(s[N], j) } else { signed(s[2 * N + j / 2], 2 * (j % 2) + h) };
            let (x, y) = (scale(j), scale(l));
            for t in 0..T {
                let sum = _mm512_add_epi32(_mm512_mullo_epi32(a[t], x), _mm512_mullo_epi32(b[t], y));
                products[t] = _mm512_add_epi32(products[t], sum);
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
unsafe fn legacy_panel<B: legacy::Panel, const T: usize>(rows: &Rows<'_>, i: usize, tokens: Range<usize>) {
    let (acts, first, blocks) = (rows.acts, tokens.start, rows.acts.cols / 32);
    let start = rows.panel(i);
    let (mut acc, mut min) = ([_mm512_setzero_ps(); T], [_mm512_setzero_ps(); T]);
    for b in 0..blocks {
        let block = start.wrapping_add(b * B::STEP);
        // SAFETY: the panel holds its blocks; activations are padded to whole blocks.
        unsafe {
            let w = B::weights(block);
            let (d, m) = legacy::factors::<B>(block);
            for t in 0..T {
                let at = acts.column(first + t, b * 32);
                let mut sum = _mm512_setzero_si512();
                if B::OFFSET != 0 {
                    let sums = _mm512_set1_epi32(acts.sums.as_ptr().add(at / 16).cast::<i32>().read_unaligned());
                    add_products(&mut sum, _mm512_set1_epi16(-B::OFFSET), sums);
                }
                for (k, &w) in w.iter().enumerate() {
                    sum = _mm512_dpbusd_epi32(sum, w, four(acts.q.as_ptr().add(at), k));
                }
                keep_order(&mut sum);
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
    unsafe { store(rows, i, first, std::array::from_fn::<_, T, _>(|t| _mm512_add_ps(acc[t], min[t]))) };
}
