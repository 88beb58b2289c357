//! K-quants' panels taken apart: weights by groups of 32 columns, scales and minima as bytes, four a dword.

use super::{halves, low_high, vector};
use crate::ops::cpu::blocks::{KBlock, Q2K, Q3K, Q4K, Q5K, Q6K};
use std::arch::x86_64::*;

/// What the kernels need of a family.
pub(super) trait Panel: KBlock {
    /// Vectors of a block.
    const VECTORS: usize = Self::BYTES / 4;
    /// Scales hold for 32 columns, else for 16.
    const WIDE: bool;
    /// What unsigned weights are above the signed ones, in types whose minimum is that ([`KBlock::FOLDED`]).
    const OFFSET: i32 = 0;
    /// Vectors of scales: four scales a dword.
    const SCALES: usize = if Self::WIDE { 2 } else { 4 };

    /// Unsigned weights of group `J` of half `n` (128 columns): eight vectors of four columns.
    ///
    /// # Safety
    /// AVX-512; [`Panel::VECTORS`] are readable from `block` on.
    unsafe fn group<const J: usize>(block: *const u8, n: usize) -> [__m512i; 8];

    /// Scales (signed bytes) and minima (unsigned, where the type has its own), four a dword, [`Panel::SCALES`] vectors.
    ///
    /// # Safety
    /// As [`Panel::group`].
    unsafe fn scales(block: *const u8) -> ([__m512i; 4], [__m512i; 4]);

    /// Factors of scales and minima; `rest` is the block's.
    ///
    /// # Safety
    /// As [`Panel::group`], and 32 bytes are readable from `rest` on where the type has a rest.
    unsafe fn factors(block: *const u8, rest: *const u8) -> (__m512, __m512);
}

/// Nibbles of eight vectors from vector `at` on: the low ones, or the high ones.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn nibbles(block: *const u8, at: usize, high: bool) -> [__m512i; 8] {
    // SAFETY: the caller's word.
    let v: [__m512i; 8] = std::array::from_fn(|k| unsafe { vector(block, at + k) });
    v.map(|v| _mm512_and_si512(if high { _mm512_srli_epi16(v, 4) } else { v }, _mm512_set1_epi8(15)))
}

/// Pairs of bits `2J`, `2J + 1` of every byte of eight vectors from vector `at` on.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn crumbs<const J: usize>(block: *const u8, at: usize) -> [__m512i; 8] {
    // SAFETY: the caller's word.
    let v: [__m512i; 8] = std::array::from_fn(|k| unsafe { vector(block, at + k) });
    let down = |v| match J {
        0 => v,
        1 => _mm512_srli_epi16(v, 2),
        2 => _mm512_srli_epi16(v, 4),
        _ => _mm512_srli_epi16(v, 6),
    };
    v.map(|v| _mm512_and_si512(down(v), _mm512_set1_epi8(3)))
}

/// Adds bit `from` of every byte of eight vectors from vector `at` on as bit `to`, which is clear in `q`.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn add_bit(q: [__m512i; 8], block: *const u8, at: usize, from: usize, to: usize) -> [__m512i; 8] {
    // A dword turned so that every byte's bit stays in its byte.
    let turn = _mm512_set1_epi32(from as i32 - to as i32);
    let bit = _mm512_set1_epi8(1 << to);
    std::array::from_fn(|k| {
        // SAFETY: the caller's word.
        let turned = _mm512_rorv_epi32(unsafe { vector(block, at + k) }, turn);
        // q | turned & bit
        _mm512_ternarylogic_epi32(q[k], turned, bit, 0xf8)
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
    unsafe fn group<const J: usize>(block: *const u8, n: usize) -> [__m512i; 8] {
        // SAFETY: 32 vectors of nibbles behind 4 of factors and scales.
        unsafe { nibbles(block, 4 + 16 * n + 8 * (J / 2), J % 2 == 1) }
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn scales(block: *const u8) -> ([__m512i; 4], [__m512i; 4]) {
        // SAFETY: the caller's word.
        unsafe { six_bits(block) }
    }
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn factors(block: *const u8, _rest: *const u8) -> (__m512, __m512) {
        // SAFETY: the first vector.
        low_high(unsafe { vector(block, 0) })
    }
}

impl Panel for Q5K {
    const WIDE: bool = true;
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn group<const J: usize>(block: *const u8, n: usize) -> [__m512i; 8] {
        // SAFETY: 4 vectors of factors and scales, 8 of fifth bits, 32 of nibbles.
        unsafe { add_bit(nibbles(block, 12 + 16 * n + 8 * (J / 2), J % 2 == 1), block, 4, 4 * n + J, 4) }
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn scales(block: *const u8) -> ([__m512i; 4], [__m512i; 4]) {
        // SAFETY: the caller's word.
        unsafe { six_bits(block) }
    }
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn factors(block: *const u8, _rest: *const u8) -> (__m512, __m512) {
        // SAFETY: the first vector.
        low_high(unsafe { vector(block, 0) })
    }
}

impl Panel for Q6K {
    const WIDE: bool = false;
    const OFFSET: i32 = 32;
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn group<const J: usize>(block: *const u8, n: usize) -> [__m512i; 8] {
        // SAFETY: 32 vectors of nibbles, 16 of pairs of upper bits, 4 of scales.
        let low = unsafe { nibbles(block, 16 * n + 8 * (J % 2), J >= 2) };
        std::array::from_fn(|k| {
            // SAFETY: as above.
            let high = unsafe { vector(block, 32 + 8 * n + k) };
            let high = match J {
                0 => _mm512_slli_epi16(high, 4),
                1 => _mm512_slli_epi16(high, 2),
                2 => high,
                _ => _mm512_srli_epi16(high, 2),
            };
            // low | high & 0x30
            _mm512_ternarylogic_epi32(low[k], high, _mm512_set1_epi8(0x30), 0xf8)
        })
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn scales(block: *const u8) -> ([__m512i; 4], [__m512i; 4]) {
        // SAFETY: the caller's word.
        (std::array::from_fn(|i| unsafe { vector(block, 48 + i) }), [_mm512_setzero_si512(); 4])
    }
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn factors(_block: *const u8, rest: *const u8) -> (__m512, __m512) {
        // SAFETY: the caller's word.
        let d = unsafe { halves(rest) };
        (d, d)
    }
}

impl Panel for Q2K {
    const WIDE: bool = false;
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn group<const J: usize>(block: *const u8, n: usize) -> [__m512i; 8] {
        // SAFETY: 4 vectors of scales, 16 of weights, 1 of factors.
        unsafe { crumbs::<J>(block, 4 + 8 * n) }
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn scales(block: *const u8) -> ([__m512i; 4], [__m512i; 4]) {
        // SAFETY: the caller's word.
        let v: [__m512i; 4] = std::array::from_fn(|i| unsafe { vector(block, i) });
        let low = |v| _mm512_and_si512(v, _mm512_set1_epi8(15));
        (v.map(low), v.map(|v| low(_mm512_srli_epi16(v, 4))))
    }
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn factors(block: *const u8, _rest: *const u8) -> (__m512, __m512) {
        // SAFETY: the last vector.
        low_high(unsafe { vector(block, 20) })
    }
}

impl Panel for Q3K {
    const WIDE: bool = false;
    const OFFSET: i32 = 4;
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn group<const J: usize>(block: *const u8, n: usize) -> [__m512i; 8] {
        // SAFETY: 8 vectors of third bits, 16 of weights, 3 of scales.
        unsafe { add_bit(crumbs::<J>(block, 8 + 8 * n), block, 0, 4 * n + J, 2) }
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn scales(block: *const u8) -> ([__m512i; 4], [__m512i; 4]) {
        // SAFETY: the caller's word.
        let (a, b, top) = unsafe { (vector(block, 24), vector(block, 25), vector(block, 26)) };
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
    unsafe fn factors(_block: *const u8, rest: *const u8) -> (__m512, __m512) {
        // SAFETY: the caller's word.
        let d = unsafe { halves(rest) };
        (d, d)
    }
}

/// Byte `k` of each dword with its sign.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn signed<const K: usize>(v: __m512i) -> __m512i {
    match K {
        0 => _mm512_srai_epi32(_mm512_slli_epi32(v, 24), 24),
        1 => _mm512_srai_epi32(_mm512_slli_epi32(v, 16), 24),
        2 => _mm512_srai_epi32(_mm512_slli_epi32(v, 8), 24),
        _ => _mm512_srai_epi32(v, 24),
    }
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
