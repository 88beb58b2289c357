//! Legacy types' panels taken apart: a block of 32 columns is eight vectors of unsigned weights and its factors.

use super::{halves, low_high, powers, vector};
use crate::ops::cpu::blocks::{LegacyBlock, Q40, Q41, Q50, Q51, Q80};
use crate::quant::packed::VECTOR;
use std::arch::x86_64::*;

/// What the kernels need of a family.
pub(super) trait Panel: LegacyBlock {
    /// Bytes of a block of sixteen rows.
    const STEP: usize = 16 * Self::BYTES;
    /// Vectors of a block; its rest stands behind them.
    const VECTORS: usize = Self::BYTES / 4;

    /// Unsigned weights: eight vectors of four columns.
    ///
    /// # Safety
    /// AVX-512; [`Panel::VECTORS`] are readable from `block` on.
    unsafe fn weights(block: *const u8) -> [__m512i; 8];
}

/// Scales and minima of a block; types without minima have their scales in the rest, others both in the first vector.
///
/// # Safety
/// As [`Panel::weights`], and the block's rest is readable where the type has one.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn factors<B: Panel>(block: *const u8) -> (__m512, __m512) {
    // SAFETY: the caller's word.
    unsafe {
        if B::MIN {
            low_high(vector(block, 0))
        } else {
            let rest = block.add(B::VECTORS * VECTOR);
            (if B::EXPONENT { powers(rest) } else { halves(rest) }, _mm512_setzero_ps())
        }
    }
}

/// Nibbles of four vectors from vector `at` on: the low ones, then the high ones.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn nibbles(block: *const u8, at: usize) -> [__m512i; 8] {
    std::array::from_fn(|k| {
        // SAFETY: the caller's word.
        let v = unsafe { vector(block, at + k % 4) };
        _mm512_and_si512(if k < 4 { v } else { _mm512_srli_epi16(v, 4) }, _mm512_set1_epi8(15))
    })
}

/// [`nibbles`] behind a vector whose dwords hold a fifth bit for each of 32 columns.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn five_bits(block: *const u8, at: usize) -> [__m512i; 8] {
    // SAFETY: the caller's word.
    let (bits, low) = unsafe { (vector(block, at), nibbles(block, at + 1)) };
    let spread = _mm512_set4_epi32(0x0c0c_0c0c, 0x0808_0808, 0x0404_0404, 0);
    std::array::from_fn(|k| {
        // Byte `k / 2` of each dword in all its bytes; each byte keeps the bit of its column.
        let own = _mm512_add_epi8(spread, _mm512_set1_epi8((k / 2) as i8));
        let column = _mm512_set1_epi32(if k % 2 == 0 { 0x0804_0201 } else { 0x8040_2010u32 as i32 });
        let set = _mm512_test_epi8_mask(_mm512_shuffle_epi8(bits, own), column);
        _mm512_mask_add_epi8(low[k], set, low[k], _mm512_set1_epi8(16))
    })
}

impl Panel for Q80 {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn weights(block: *const u8) -> [__m512i; 8] {
        // SAFETY: 8 vectors.
        std::array::from_fn(|k| _mm512_xor_si512(unsafe { vector(block, k) }, _mm512_set1_epi8(-128)))
    }
}

impl Panel for Q40 {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn weights(block: *const u8) -> [__m512i; 8] {
        // SAFETY: 4 vectors.
        unsafe { nibbles(block, 0) }
    }
}

impl Panel for Q41 {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn weights(block: *const u8) -> [__m512i; 8] {
        // SAFETY: factors, then 4 vectors.
        unsafe { nibbles(block, 1) }
    }
}

impl Panel for Q50 {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn weights(block: *const u8) -> [__m512i; 8] {
        // SAFETY: fifth bits, then 4 vectors.
        unsafe { five_bits(block, 0) }
    }
}

impl Panel for Q51 {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn weights(block: *const u8) -> [__m512i; 8] {
        // SAFETY: factors, fifth bits, then 4 vectors.
        unsafe { five_bits(block, 1) }
    }
}
