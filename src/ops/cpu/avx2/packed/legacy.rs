//! Legacy types' panels taken apart: a block of 32 columns is eight dwords of weights a row, and its factors.

use super::{Floats, Lanes, halves, low_high, nibbles, or, powers, vector};
use crate::ops::cpu::blocks::{LegacyBlock, Q40, Q41, Q50, Q51, Q80};
use crate::quant::packed::VECTOR;
use std::arch::x86_64::*;

/// What the kernels need of a family.
pub(super) trait Panel: LegacyBlock {
    /// Bytes of a block of sixteen rows.
    const STEP: usize = 16 * Self::BYTES;
    /// Vectors of a block; its rest stands behind them.
    const VECTORS: usize = Self::BYTES / 4;
    /// Weights are signed; else unsigned, by [`LegacyBlock::OFFSET`] above the signed ones.
    const SIGNED: bool = false;
    /// Dwords of columns whose products, two words a row, add up within a word: 1, 4 or 8.
    const SUMS: usize;

    /// Dwords `k` and `k + 4` of weights, of `k` below 4; or `2k` and `2k + 1`, of types with a byte for each weight.
    ///
    /// # Safety
    /// AVX2; [`Panel::VECTORS`] are readable from `block` on.
    unsafe fn weights(block: *const u8, k: usize) -> [Lanes; 2];
}

/// Which dwords [`Panel::weights`] yields.
#[inline(always)]
pub(super) fn places<B: Panel>(k: usize) -> [usize; 2] {
    if B::VECTORS == 8 { [2 * k, 2 * k + 1] } else { [k, k + 4] }
}

/// Scales and minima of a block; types without minima have their scales in the rest, others both in the first vector.
///
/// # Safety
/// As [`Panel::weights`], and the block's rest is readable where the type has one.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(super) unsafe fn factors<B: Panel>(block: *const u8) -> [Floats; 2] {
    // SAFETY: the caller's word.
    unsafe {
        if B::MIN {
            return low_high(vector(block, 0));
        }
        let rest = block.add(B::VECTORS * VECTOR);
        [if B::EXPONENT { powers(rest) } else { halves(rest) }, [_mm256_setzero_ps(); 2]]
    }
}

/// Nibbles of vector `k` behind one whose dwords hold a fifth bit for each of 32 columns.
///
/// # Safety
/// Five vectors are readable from vector `at` on.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn five_bits(block: *const u8, at: usize, k: usize) -> [Lanes; 2] {
    // SAFETY: the caller's word.
    let (bits, [low, high]) = unsafe { (vector(block, at), nibbles(vector(block, at + 1 + k))) };
    let fifth = |dword: usize| {
        let one = |v: __m256i| {
            // Byte `dword / 2` in all bytes; each keeps the bit of its column.
            let own = _mm256_set1_epi32(0x0101_0101 * (dword / 2) as i32);
            let lanes =
                _mm256_setr_epi32(0, 0x0404_0404, 0x0808_0808, 0x0c0c_0c0c, 0, 0x0404_0404, 0x0808_0808, 0x0c0c_0c0c);
            let column = _mm256_set1_epi32(if dword.is_multiple_of(2) { 0x0804_0201 } else { 0x8040_2010_u32 as i32 });
            let bit = _mm256_and_si256(_mm256_shuffle_epi8(v, _mm256_add_epi8(lanes, own)), column);
            _mm256_and_si256(_mm256_cmpeq_epi8(bit, column), _mm256_set1_epi8(16))
        };
        [one(bits[0]), one(bits[1])]
    };
    [or(low, fifth(k)), or(high, fifth(k + 4))]
}

impl Panel for Q80 {
    const SIGNED: bool = true;
    const SUMS: usize = 1;
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn weights(block: *const u8, k: usize) -> [Lanes; 2] {
        // SAFETY: 8 vectors.
        unsafe { [vector(block, 2 * k), vector(block, 2 * k + 1)] }
    }
}

impl Panel for Q40 {
    const SUMS: usize = 8;
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn weights(block: *const u8, k: usize) -> [Lanes; 2] {
        // SAFETY: 4 vectors.
        nibbles(unsafe { vector(block, k) })
    }
}

impl Panel for Q41 {
    const SUMS: usize = 8;
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn weights(block: *const u8, k: usize) -> [Lanes; 2] {
        // SAFETY: factors, then 4 vectors.
        nibbles(unsafe { vector(block, 1 + k) })
    }
}

impl Panel for Q50 {
    const SUMS: usize = 4;
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn weights(block: *const u8, k: usize) -> [Lanes; 2] {
        // SAFETY: fifth bits, then 4 vectors.
        unsafe { five_bits(block, 0, k) }
    }
}

impl Panel for Q51 {
    const SUMS: usize = 4;
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn weights(block: *const u8, k: usize) -> [Lanes; 2] {
        // SAFETY: factors, fifth bits, then 4 vectors.
        unsafe { five_bits(block, 1, k) }
    }
}
