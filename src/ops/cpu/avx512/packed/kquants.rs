//! K-quants' panels taken apart: weights by columns of two groups of 32, scales and minima as bytes, four a dword.

use super::{halves, low_high, vector};
use crate::ops::cpu::blocks::{KBlock, Q2K, Q3K, Q4K, Q5K, Q6K};
use crate::quant::packed::VECTOR;
use std::arch::x86_64::*;

/// What the kernels need of a family.
pub(super) trait Panel: KBlock {
    /// Bytes of a block of sixteen rows.
    const STEP: usize = 16 * Self::BYTES;
    /// Vectors of a block; its rest stands behind them.
    const VECTORS: usize = Self::BYTES / 4;
    /// Scales hold for 32 columns, else for 16.
    const WIDE: bool;
    /// What unsigned weights are above the signed ones, in types whose minimum is that ([`KBlock::FOLDED`]).
    const OFFSET: i32 = 0;
    /// Vectors of scales: four scales a dword.
    const SCALES: usize = if Self::WIDE { 2 } else { 4 };

    /// Nibbles of a byte belong to groups two apart, else to neighbours.
    const APART: bool = false;

    /// The groups of 32 columns, of a half's four, that pass `p` (0 or 1) takes.
    fn groups(p: usize) -> [usize; 2] {
        if Self::APART { [p, p + 2] } else { [2 * p, 2 * p + 1] }
    }

    /// Unsigned weights of half `n` (128 columns): columns `4k..4k + 4` of each of the groups of pass `p`. Going through
    /// `n`, `p` and `k` reads the vectors in their order, as the processor's prefetchers want it.
    ///
    /// # Safety
    /// AVX-512; [`Panel::VECTORS`] are readable from `block` on.
    unsafe fn columns(block: *const u8, n: usize, p: usize, k: usize) -> [__m512i; 2];

    /// Scales (signed bytes) and minima (unsigned, where the type has its own), four a dword, [`Panel::SCALES`] vectors.
    ///
    /// # Safety
    /// As [`Panel::columns`].
    unsafe fn scales(block: *const u8) -> ([__m512i; 4], [__m512i; 4]);

    /// Factors of scales and minima.
    ///
    /// # Safety
    /// As [`Panel::columns`], and the block's rest is readable.
    unsafe fn factors(block: *const u8) -> (__m512, __m512);
}

/// The low nibble of every byte, and the high one.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn nibbles(v: __m512i) -> [__m512i; 2] {
    [v, _mm512_srli_epi16(v, 4)].map(|v| _mm512_and_si512(v, _mm512_set1_epi8(15)))
}

/// Pairs of bits `2p` and `2p + 1` of every byte, of its four.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn crumbs(v: __m512i, p: usize) -> [__m512i; 2] {
    let down = |bits: usize| _mm512_srlv_epi16(v, _mm512_set1_epi16(bits as i16));
    [down(4 * p), down(4 * p + 2)].map(|v| _mm512_and_si512(v, _mm512_set1_epi8(3)))
}

/// Adds bits `from` and `from + 1` of every byte of `bits`, one to each of two groups as bit `to`, which is clear there.
#[inline]
#[target_feature(enable = "avx512f")]
fn add_bits(q: [__m512i; 2], bits: __m512i, from: usize, to: usize) -> [__m512i; 2] {
    std::array::from_fn(|i| {
        // A dword turned so that every byte's bit stays in its byte.
        let turned = _mm512_rorv_epi32(bits, _mm512_set1_epi32((from + i) as i32 - to as i32));
        // q | turned & bit
        _mm512_ternarylogic_epi32(q[i], turned, _mm512_set1_epi8(1 << to), 0xf8)
    })
}

/// Q4_K's and Q5_K's scales and minima of six bits, from vector 1 on.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn six_bits(block: *const u8) -> ([__m512i; 4], [__m512i; 4]) {
    // SAFETY: the caller's word.
    let (s, m, high) = unsafe { (vector(block, 1), vector(block, 2), vector(block, 3)) };
    let (six, nibble, top) = (_mm512_set1_epi8(63), _mm512_set1_epi8(15), _mm512_set1_epi8(0x30));
    let join = |low, v| {
        let top = _mm512_and_si512(_mm512_srli_epi16(v, 2), top);
        _mm512_or_si512(_mm512_and_si512(low, nibble), top)
    };
    let zero = _mm512_setzero_si512();
    let low = |v| _mm512_and_si512(v, six);
    ([low(s), join(high, s), zero, zero], [low(m), join(_mm512_srli_epi16(high, 4), m), zero, zero])
}

impl Panel for Q4K {
    const WIDE: bool = true;
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn columns(block: *const u8, n: usize, p: usize, k: usize) -> [__m512i; 2] {
        // SAFETY: 32 vectors of nibbles behind 4 of factors and scales.
        nibbles(unsafe { vector(block, 4 + 16 * n + 8 * p + k) })
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn scales(block: *const u8) -> ([__m512i; 4], [__m512i; 4]) {
        // SAFETY: the caller's word.
        unsafe { six_bits(block) }
    }
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn factors(block: *const u8) -> (__m512, __m512) {
        // SAFETY: the first vector.
        low_high(unsafe { vector(block, 0) })
    }
}

impl Panel for Q5K {
    const WIDE: bool = true;
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn columns(block: *const u8, n: usize, p: usize, k: usize) -> [__m512i; 2] {
        let at = if n + p == 0 { 5 + 2 * k } else { 12 + 16 * n + 8 * p + k };
        // SAFETY: 4 vectors of factors and scales, 8 of fifth bits in turn with as many of the 32 of nibbles.
        let (v, bits) = unsafe { (vector(block, at), vector(block, 4 + 2 * k)) };
        add_bits(nibbles(v), bits, 4 * n + 2 * p, 4)
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn scales(block: *const u8) -> ([__m512i; 4], [__m512i; 4]) {
        // SAFETY: the caller's word.
        unsafe { six_bits(block) }
    }
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn factors(block: *const u8) -> (__m512, __m512) {
        // SAFETY: the first vector.
        low_high(unsafe { vector(block, 0) })
    }
}

impl Panel for Q6K {
    const WIDE: bool = false;
    const OFFSET: i32 = 32;
    const APART: bool = true;
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn columns(block: *const u8, n: usize, p: usize, k: usize) -> [__m512i; 2] {
        let half = 4 + 24 * n;
        // SAFETY: 4 vectors of scales; each half has 8 of nibbles in turn with 8 of pairs of upper bits, then 8 of nibbles.
        let (v, high) = unsafe {
            (vector(block, if p == 0 { half + 2 * k } else { half + 16 + k }), vector(block, half + 2 * k + 1))
        };
        let low = nibbles(v);
        // Pairs of bits 0 and 2, or 1 and 3, to where they belong.
        let up = if p == 0 { 4 } else { 2 };
        let high = [_mm512_sllv_epi16(high, _mm512_set1_epi16(up)), _mm512_srlv_epi16(high, _mm512_set1_epi16(4 - up))];
        // low | high & 0x30
        std::array::from_fn(|i| _mm512_ternarylogic_epi32(low[i], high[i], _mm512_set1_epi8(0x30), 0xf8))
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn scales(block: *const u8) -> ([__m512i; 4], [__m512i; 4]) {
        // SAFETY: the caller's word.
        (std::array::from_fn(|i| unsafe { vector(block, i) }), [_mm512_setzero_si512(); 4])
    }
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn factors(block: *const u8) -> (__m512, __m512) {
        // SAFETY: the caller's word.
        let d = unsafe { halves(block.add(Self::VECTORS * VECTOR)) };
        (d, d)
    }
}

impl Panel for Q2K {
    const WIDE: bool = false;
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn columns(block: *const u8, n: usize, p: usize, k: usize) -> [__m512i; 2] {
        // SAFETY: 1 vector of factors, 4 of scales, 16 of weights.
        crumbs(unsafe { vector(block, 5 + 8 * n + k) }, p)
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn scales(block: *const u8) -> ([__m512i; 4], [__m512i; 4]) {
        // SAFETY: the caller's word.
        let v: [__m512i; 4] = std::array::from_fn(|i| unsafe { vector(block, 1 + i) });
        let low = |v| _mm512_and_si512(v, _mm512_set1_epi8(15));
        (v.map(low), v.map(|v| low(_mm512_srli_epi16(v, 4))))
    }
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn factors(block: *const u8) -> (__m512, __m512) {
        // SAFETY: the first vector.
        low_high(unsafe { vector(block, 0) })
    }
}

impl Panel for Q3K {
    const WIDE: bool = false;
    const OFFSET: i32 = 4;
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn columns(block: *const u8, n: usize, p: usize, k: usize) -> [__m512i; 2] {
        // SAFETY: 3 vectors of scales, 8 of third bits in turn with as many of the 16 of weights.
        let (v, bits) = unsafe { (vector(block, if n == 0 { 4 + 2 * k } else { 19 + k }), vector(block, 3 + 2 * k)) };
        add_bits(crumbs(v, p), bits, 4 * n + 2 * p, 2)
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn scales(block: *const u8) -> ([__m512i; 4], [__m512i; 4]) {
        // SAFETY: the caller's word.
        let (a, b, top) = unsafe { (vector(block, 0), vector(block, 1), vector(block, 2)) };
        let (nibble, two) = (_mm512_set1_epi8(15), _mm512_set1_epi8(0x30));
        let join = |low, top| {
            let six = _mm512_ternarylogic_epi32(_mm512_and_si512(low, nibble), top, two, 0xf8);
            _mm512_sub_epi8(six, _mm512_set1_epi8(32))
        };
        let s = [
            join(a, _mm512_slli_epi16(top, 4)),
            join(b, _mm512_slli_epi16(top, 2)),
            join(_mm512_srli_epi16(a, 4), top),
            join(_mm512_srli_epi16(b, 4), _mm512_srli_epi16(top, 2)),
        ];
        (s, [_mm512_setzero_si512(); 4])
    }
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn factors(block: *const u8) -> (__m512, __m512) {
        // SAFETY: the caller's word.
        let d = unsafe { halves(block.add(Self::VECTORS * VECTOR)) };
        (d, d)
    }
}

/// Byte `k` of each dword with its sign.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn signed(v: __m512i, k: usize) -> __m512i {
    _mm512_srai_epi32(_mm512_sllv_epi32(v, _mm512_set1_epi32(24 - 8 * k as i32)), 24)
}

/// Bytes 0 and 2, and bytes 1 and 3 of each dword, as pairs of words.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn pairs(v: __m512i) -> [__m512i; 2] {
    [_mm512_and_si512(v, _mm512_set1_epi16(255)), _mm512_srli_epi16(v, 8)]
}

/// What a token's block of 256 adds beyond its products, in the order in which the kernels take it: dwords to broadcast.
/// Folded types: the start of each sum of 16 columns, of 32 in wide types. Others: the activations' sums in pairs as [`pairs`] of the minima,
/// dwords `2i`, `2i + 1` for vector `i` of minima (wide types: `4i`, `4i + 1`).
///
/// # Safety
/// 16 sums are readable from `sums` on.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) unsafe fn starts<B: Panel>(sums: *const i16, out: &mut [i32; 16]) {
    // SAFETY: the caller's word; `out` holds 64 bytes.
    unsafe {
        let sums = _mm256_loadu_si256(sums.cast());
        if B::FOLDED && B::WIDE {
            let start = _mm256_madd_epi16(sums, _mm256_set1_epi16(-B::OFFSET as i16));
            _mm256_storeu_si256(out.as_mut_ptr().cast(), start);
            return;
        }
        if B::FOLDED {
            let wide = _mm512_cvtepi16_epi32(sums);
            let start = _mm512_mullo_epi32(wide, _mm512_set1_epi32(-B::OFFSET));
            _mm512_storeu_si512(out.as_mut_ptr().cast(), start);
            return;
        }
        let sums = if B::WIDE {
            let both = _mm256_madd_epi16(sums, _mm256_set1_epi16(1));
            _mm256_packs_epi32(both, both)
        } else {
            sums
        };
        let sums = _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(sums, 0xd8), 0xd8);
        _mm256_storeu_si256(out.as_mut_ptr().cast(), sums);
    }
}
