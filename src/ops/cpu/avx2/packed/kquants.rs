//! K-quants' panels taken apart: weights by columns of two groups of 32, scales and minima as bytes, four a dword.

use super::{BITS, CRUMBS, Floats, Lanes, NIBBLES, and, down, halves, low_high, nibbles, or, up, vector};
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
    /// Weights are signed; else unsigned.
    const SIGNED: bool = false;
    /// What unsigned weights are above the signed ones, in types whose minimum is that ([`KBlock::FOLDED`]).
    const OFFSET: i32 = 0;
    /// Dwords of columns whose products, two words a row, add up within a word: at most those that share a scale.
    const SUMS: usize;
    /// Vectors of scales: four scales a dword.
    const SCALES: usize = if Self::WIDE { 2 } else { 4 };
    /// Vectors of pairs of minima, or of what stands for them.
    const MINIMA: usize = if Self::SIGNED { 0 } else { 2 * Self::SCALES };
    /// Nibbles of a byte belong to groups two apart, else to neighbours.
    const APART: bool = false;

    /// The groups of 32 columns, of a half's four, that pass `p` (0 or 1) takes.
    fn groups(p: usize) -> [usize; 2] {
        if Self::APART { [p, p + 2] } else { [2 * p, 2 * p + 1] }
    }

    /// Weights of half `n` (128 columns): columns `4k..4k + 4` of each of the groups of pass `p`. Going through `n`, `p` and
    /// `k` reads the vectors in their order.
    ///
    /// # Safety
    /// AVX2; [`Panel::VECTORS`] are readable from `block` on.
    unsafe fn columns(block: *const u8, n: usize, p: usize, k: usize) -> [Lanes; 2];

    /// Scales (signed bytes) and minima (unsigned, where the type has its own), four a dword, [`Panel::SCALES`] vectors.
    ///
    /// # Safety
    /// As [`Panel::columns`].
    unsafe fn scales(block: *const u8) -> ([Lanes; 4], [Lanes; 4]);

    /// Factors of scales and minima.
    ///
    /// # Safety
    /// As [`Panel::columns`], and the block's rest is readable.
    unsafe fn factors(block: *const u8) -> [Floats; 2];
}

/// The factor that types without one of the minima have as their rest.
///
/// # Safety
/// As [`Panel::factors`].
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(super) unsafe fn only_factor<B: Panel>(block: *const u8) -> [Floats; 2] {
    // SAFETY: the caller's word.
    [unsafe { halves(block.add(B::VECTORS * VECTOR)) }; 2]
}

/// No vectors.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn none() -> [Lanes; 4] {
    [[_mm256_setzero_si256(); 2]; 4]
}

/// Pairs of bits `2p` and `2p + 1` of every byte, of its four.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn crumbs(v: Lanes, p: usize) -> [Lanes; 2] {
    [and(down(v, 4 * p), CRUMBS), and(down(v, 4 * p + 2), CRUMBS)]
}

/// Adds bits `from` and `from + 1` of every byte of `bits`, one to each of two groups as bit `to`.
#[inline]
#[target_feature(enable = "avx2")]
fn add_bits([a, b]: [Lanes; 2], bits: Lanes, from: usize, to: usize) -> [Lanes; 2] {
    let bit = |from: usize| up(and(down(bits, from), BITS), to);
    [or(a, bit(from)), or(b, bit(from + 1))]
}

/// Q4_K's and Q5_K's scales and minima of six bits, from vector 1 on.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn six_bits(block: *const u8) -> ([Lanes; 4], [Lanes; 4]) {
    // SAFETY: the caller's word.
    let (s, m, high) = unsafe { (vector(block, 1), vector(block, 2), vector(block, 3)) };
    let join = |low: Lanes, top: Lanes| or(and(low, NIBBLES), and(down(top, 2), 0x3030_3030));
    let (mut scales, mut minima) = (none(), none());
    (scales[0], scales[1]) = (and(s, 0x3f3f_3f3f), join(high, s));
    (minima[0], minima[1]) = (and(m, 0x3f3f_3f3f), join(down(high, 4), m));
    (scales, minima)
}

/// Scale `j` of four a dword, signed, as a pair of words in each lane.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn words(v: Lanes, j: usize) -> Lanes {
    let up = _mm_cvtsi32_si128(24 - 8 * j as i32);
    let one = |v: __m256i| {
        // To the top byte, from there to both words.
        let top = _mm256_sll_epi32(v, up);
        let word = _mm256_srai_epi32(top, 24);
        _mm256_blend_epi16(word, _mm256_slli_epi32(word, 16), 0xaa)
    };
    [one(v[0]), one(v[1])]
}

/// Bytes 0 and 2, and bytes 1 and 3 of each dword, as pairs of words; signed where they are scales.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn pairs<const SIGNED: bool>(v: Lanes) -> [Lanes; 2] {
    let even = |v: __m256i| match SIGNED {
        true => _mm256_srai_epi16(_mm256_slli_epi16(v, 8), 8),
        false => _mm256_and_si256(v, _mm256_set1_epi16(255)),
    };
    let odd = |v: __m256i| if SIGNED { _mm256_srai_epi16(v, 8) } else { _mm256_srli_epi16(v, 8) };
    [[even(v[0]), even(v[1])], [odd(v[0]), odd(v[1])]]
}

/// A token's sums of 16 columns, of 32 in wide types, in pairs as [`pairs`] of the minima: dwords `2i`, `2i + 1` for vector `i`
/// of minima (wide types: `4i`, `4i + 1`).
///
/// # Safety
/// 16 sums are readable from `sums` on.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) unsafe fn extra<B: Panel>(sums: *const i16, out: &mut [i32; 16]) {
    // SAFETY: the caller's word; `out` holds 32 bytes.
    unsafe {
        let mut sums = _mm256_loadu_si256(sums.cast());
        if B::WIDE {
            let both = _mm256_madd_epi16(sums, _mm256_set1_epi16(1));
            sums = _mm256_packs_epi32(both, both);
        }
        let sums = _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(sums, 0xd8), 0xd8);
        _mm256_storeu_si256(out.as_mut_ptr().cast(), sums);
    }
}

impl Panel for Q4K {
    const WIDE: bool = true;
    const SUMS: usize = 8;
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn columns(block: *const u8, n: usize, p: usize, k: usize) -> [Lanes; 2] {
        // SAFETY: 32 vectors of nibbles behind 4 of factors and scales.
        nibbles(unsafe { vector(block, 4 + 16 * n + 8 * p + k) })
    }
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn scales(block: *const u8) -> ([Lanes; 4], [Lanes; 4]) {
        // SAFETY: the caller's word.
        unsafe { six_bits(block) }
    }
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn factors(block: *const u8) -> [Floats; 2] {
        // SAFETY: the first vector.
        low_high(unsafe { vector(block, 0) })
    }
}

impl Panel for Q5K {
    const WIDE: bool = true;
    const SUMS: usize = 4;
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn columns(block: *const u8, n: usize, p: usize, k: usize) -> [Lanes; 2] {
        let at = if n + p == 0 { 5 + 2 * k } else { 12 + 16 * n + 8 * p + k };
        // SAFETY: 4 vectors of factors and scales, 8 of fifth bits in turn with as many of the 32 of nibbles.
        let (v, bits) = unsafe { (vector(block, at), vector(block, 4 + 2 * k)) };
        add_bits(nibbles(v), bits, 4 * n + 2 * p, 4)
    }
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn scales(block: *const u8) -> ([Lanes; 4], [Lanes; 4]) {
        // SAFETY: the caller's word.
        unsafe { six_bits(block) }
    }
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn factors(block: *const u8) -> [Floats; 2] {
        // SAFETY: the first vector.
        low_high(unsafe { vector(block, 0) })
    }
}

impl Panel for Q6K {
    const WIDE: bool = false;
    const OFFSET: i32 = 32;
    const APART: bool = true;
    const SUMS: usize = 2;
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn columns(block: *const u8, n: usize, p: usize, k: usize) -> [Lanes; 2] {
        let half = 4 + 24 * n;
        // SAFETY: 4 vectors of scales; each half has 8 of nibbles in turn with 8 of pairs of upper bits, then 8 of nibbles.
        let (v, high) = unsafe {
            (vector(block, if p == 0 { half + 2 * k } else { half + 16 + k }), vector(block, half + 2 * k + 1))
        };
        let [low, above] = nibbles(v);
        // Pairs of bits 0 and 2, or 1 and 3.
        let (first, second) = if p == 0 { (up(high, 4), high) } else { (up(high, 2), down(high, 2)) };
        [or(low, and(first, 0x3030_3030)), or(above, and(second, 0x3030_3030))]
    }
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn scales(block: *const u8) -> ([Lanes; 4], [Lanes; 4]) {
        // SAFETY: the caller's word.
        unsafe { ([vector(block, 0), vector(block, 1), vector(block, 2), vector(block, 3)], none()) }
    }
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn factors(block: *const u8) -> [Floats; 2] {
        // SAFETY: the caller's word.
        unsafe { only_factor::<Self>(block) }
    }
}

impl Panel for Q2K {
    const WIDE: bool = false;
    const SUMS: usize = 4;
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn columns(block: *const u8, n: usize, p: usize, k: usize) -> [Lanes; 2] {
        // SAFETY: 1 vector of factors, 4 of scales, 16 of weights.
        crumbs(unsafe { vector(block, 5 + 8 * n + k) }, p)
    }
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn scales(block: *const u8) -> ([Lanes; 4], [Lanes; 4]) {
        let (mut s, mut m) = (none(), none());
        for i in 0..4 {
            // SAFETY: the caller's word.
            [s[i], m[i]] = nibbles(unsafe { vector(block, 1 + i) });
        }
        (s, m)
    }
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn factors(block: *const u8) -> [Floats; 2] {
        // SAFETY: the first vector.
        low_high(unsafe { vector(block, 0) })
    }
}

impl Panel for Q3K {
    const WIDE: bool = false;
    const OFFSET: i32 = 4;
    const SUMS: usize = 4;
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn columns(block: *const u8, n: usize, p: usize, k: usize) -> [Lanes; 2] {
        // SAFETY: 3 vectors of scales, 8 of third bits in turn with as many of the 16 of weights.
        let (v, bits) = unsafe { (vector(block, if n == 0 { 4 + 2 * k } else { 19 + k }), vector(block, 3 + 2 * k)) };
        add_bits(crumbs(v, p), bits, 4 * n + 2 * p, 2)
    }
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn scales(block: *const u8) -> ([Lanes; 4], [Lanes; 4]) {
        // SAFETY: the caller's word.
        let (a, b, top) = unsafe { (vector(block, 0), vector(block, 1), vector(block, 2)) };
        let join = |low: Lanes, top: Lanes| {
            let six = or(and(low, NIBBLES), and(top, 0x3030_3030));
            let less = _mm256_set1_epi8(32);
            [_mm256_sub_epi8(six[0], less), _mm256_sub_epi8(six[1], less)]
        };
        let s = [join(a, up(top, 4)), join(b, up(top, 2)), join(down(a, 4), top), join(down(b, 4), down(top, 2))];
        (s, none())
    }
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn factors(block: *const u8) -> [Floats; 2] {
        // SAFETY: the caller's word.
        unsafe { only_factor::<Self>(block) }
    }
}
