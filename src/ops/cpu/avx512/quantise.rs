//! `quantise_row_avx512`: activations to 8 bits, a whole run of 256 columns in registers.

#![allow(
    clippy::needless_range_loop,
    reason = "closures over registers are not inlined where the target's features differ"
)]

use super::fold_halves;
use crate::ops::cpu::acts::{self, QuantisedRow, ROUND, RUN, TINY};
use std::arch::x86_64::*;

/// Vectors of a run.
const VECTORS: usize = RUN / 16;

/// See [`acts::quantise_row`], which takes what is not a whole run of ordinary numbers.
///
/// # Safety
/// As `QuantiseRow`, with AVX-512.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
pub(crate) unsafe fn quantise_row(x: &[f32], block: usize, out: &mut QuantisedRow<'_>) {
    let done = match x.first_chunk::<RUN>() {
        Some(x) if x.len() == RUN && block == RUN => one_block(x, out),
        Some(x) if x.len() == RUN && block == 32 => blocks_of_32(x, out),
        _ => false,
    };
    if !done {
        acts::quantise_row(x, block, out);
    }
}

/// One scale for the whole run. Does nothing and says so where the block is not one of ordinary numbers.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
fn one_block(x: &[f32; RUN], out: &mut QuantisedRow<'_>) -> bool {
    let x = load(x);
    let mut all = [_mm512_setzero_si512(); 4];
    for i in 0..VECTORS {
        all[i % 4] = _mm512_max_epu32(all[i % 4], magnitude(x[i]));
    }
    let all = _mm512_max_epu32(_mm512_max_epu32(all[0], all[1]), _mm512_max_epu32(all[2], all[3]));
    let largest = f32::from_bits(_mm512_reduce_max_epu32(all));
    if !ordinary(largest) {
        return false;
    }
    let scale = _mm512_set1_ps(127.0 / largest);
    let mut scaled = [_mm512_setzero_si512(); VECTORS];
    for i in 0..VECTORS {
        scaled[i] = round(_mm512_mul_ps(x[i], scale));
    }
    let sums = store(&scaled, out);
    out.d[0] = largest / 127.0;
    out.ds[0] = out.d[0] * _mm512_reduce_add_epi32(sums) as f32;
    true
}

/// A scale for each 32 columns; else as [`one_block`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
fn blocks_of_32(x: &[f32; RUN], out: &mut QuantisedRow<'_>) -> bool {
    let x = load(x);
    let mut pairs = [_mm512_setzero_si512(); 8];
    for b in 0..8 {
        pairs[b] = _mm512_max_epu32(magnitude(x[2 * b]), magnitude(x[2 * b + 1]));
    }
    let halves = fold_halves(pairs, |a, b| _mm512_max_epu32(a, b));
    let largest = _mm256_max_epu32(_mm512_castsi512_si256(halves), _mm512_extracti64x4_epi64(halves, 1));
    let bounds = [TINY, f32::INFINITY].map(|bound| _mm256_set1_epi32(bound.to_bits() as i32));
    if _mm256_cmpge_epu32_mask(largest, bounds[0]) & _mm256_cmplt_epu32_mask(largest, bounds[1]) != 0xff {
        return false;
    }
    let (largest, full) = (_mm256_castsi256_ps(largest), _mm256_set1_ps(127.0));
    let scales = _mm512_castps256_ps512(_mm256_div_ps(full, largest));
    let mut scaled = [_mm512_setzero_si512(); VECTORS];
    for i in 0..VECTORS {
        let scale = _mm512_permutexvar_ps(_mm512_set1_epi32(i as i32 / 2), scales);
        scaled[i] = round(_mm512_mul_ps(x[i], scale));
    }
    let sums = store(&scaled, out);
    let totals = _mm512_cvtepi64_epi32(_mm512_add_epi32(sums, _mm512_srli_epi64(sums, 32)));
    let d = _mm256_div_ps(largest, full);
    // SAFETY: a run has eight blocks of 32.
    unsafe {
        _mm256_storeu_ps(out.d[..8].as_mut_ptr(), d);
        _mm256_storeu_ps(out.ds[..8].as_mut_ptr(), _mm256_mul_ps(d, _mm256_cvtepi32_ps(totals)));
    }
    true
}

/// Whether a block with this largest magnitude has a finite scale.
fn ordinary(largest: f32) -> bool {
    largest.is_finite() && largest >= TINY
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(x: &[f32; RUN]) -> [__m512; VECTORS] {
    let mut v = [_mm512_setzero_ps(); VECTORS];
    for i in 0..VECTORS {
        // SAFETY: sixteen floats.
        v[i] = unsafe { _mm512_loadu_ps(x[16 * i..][..16].as_ptr()) };
    }
    v
}

/// Bits without the sign: ordered as the magnitudes are.
#[inline]
#[target_feature(enable = "avx512f")]
fn magnitude(x: __m512) -> __m512i {
    _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fff_ffff))
}

/// Nearest integers, ties to even.
#[inline]
#[target_feature(enable = "avx512f")]
fn round(x: __m512) -> __m512i {
    let bits = _mm512_castps_si512(_mm512_add_ps(x, _mm512_set1_ps(ROUND)));
    _mm512_sub_epi32(bits, _mm512_set1_epi32(ROUND.to_bits() as i32))
}

/// Writes a run's integers and their sums over 16 columns; returns the sums.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
fn store(v: &[__m512i; VECTORS], out: &mut QuantisedRow<'_>) -> __m512i {
    // Packing interleaves the 128-bit lanes of four vectors; dword `4 v + l` of the columns' order stands at `4 l + v`.
    let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    let mut quads = [_mm512_setzero_si512(); 4];
    let q = &mut out.q[..RUN];
    for (i, v) in v.chunks_exact(4).enumerate() {
        let words = [_mm512_packs_epi32(v[0], v[1]), _mm512_packs_epi32(v[2], v[3])];
        let bytes = _mm512_permutexvar_epi32(order, _mm512_packs_epi16(words[0], words[1]));
        // SAFETY: 64 of 256 bytes.
        unsafe { _mm512_storeu_si512(q.as_mut_ptr().add(64 * i).cast(), bytes) };
        let pairs = _mm512_maddubs_epi16(_mm512_set1_epi8(1), bytes);
        quads[i] = _mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
    }
    // Sums of the lanes of four vectors: vector `v`'s lane `l` at `4 l + v`.
    let pair = |a, b| _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    let (x, y) = (pair(quads[0], quads[1]), pair(quads[2], quads[3]));
    let lanes = _mm512_add_epi32(_mm512_unpacklo_epi64(x, y), _mm512_unpackhi_epi64(x, y));
    let sums = _mm512_permutexvar_epi32(order, lanes);
    // SAFETY: sixteen sums.
    unsafe { _mm256_storeu_si256(out.sums[..RUN / 16].as_mut_ptr().cast(), _mm512_cvtepi32_epi16(sums)) };
    sums
}
