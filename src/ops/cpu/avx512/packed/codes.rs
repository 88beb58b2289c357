//! Panels of the types whose four bits are looked up (`vpshufb`) taken apart, and of TQ2_0: IQ4_XS and TQ2_0 as K-quants, IQ4_NL and
//! MXFP4 as legacy types. The tables hold the values with the type's offset.

use super::{halves, kquants, legacy, low_high, vector};
use crate::ops::cpu::blocks::LegacyBlock;
use crate::ops::cpu::codes::{Iq4Nl, Iq4Xs, Mxfp4, Tq20};
use crate::quant::packed::VECTOR;
use crate::quant::{fp4, iq4};
use std::arch::x86_64::*;

/// A table with an offset.
const fn above(values: [i8; 16], offset: u8) -> [u8; 16] {
    let mut out = [0; 16];
    let mut i = 0;
    while i < 16 {
        out[i] = (values[i] as u8).wrapping_add(offset);
        i += 1;
    }
    out
}

/// What 64 nibbles stand for.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn lookup<const N: usize>(table: &[u8; 16], nibbles: [__m512i; N]) -> [__m512i; N] {
    // SAFETY: 16 bytes.
    let table = _mm512_broadcast_i32x4(unsafe { _mm_loadu_si128(table.as_ptr().cast()) });
    nibbles.map(|nibbles| _mm512_shuffle_epi8(table, nibbles))
}

impl legacy::Panel for Iq4Nl {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn weights(block: *const u8) -> [__m512i; 8] {
        const TABLE: [u8; 16] = above(iq4::VALUES, Iq4Nl::OFFSET as u8);
        // SAFETY: 4 vectors.
        lookup(&TABLE, unsafe { legacy::nibbles(block, 0) })
    }
}

impl legacy::Panel for Mxfp4 {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn weights(block: *const u8) -> [__m512i; 8] {
        const TABLE: [u8; 16] = above(fp4::VALUES, Mxfp4::OFFSET as u8);
        // SAFETY: 4 vectors.
        lookup(&TABLE, unsafe { legacy::nibbles(block, 0) })
    }
}

impl kquants::Panel for Iq4Xs {
    const WIDE: bool = true;
    const OFFSET: i32 = Iq4Xs::OFFSET as i32;
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn columns(block: *const u8, n: usize, p: usize, k: usize) -> [__m512i; 2] {
        const TABLE: [u8; 16] = above(iq4::VALUES, Iq4Xs::OFFSET);
        lookup(
            &TABLE,
            std::array::from_fn(|i| {
                // SAFETY: 2 vectors of factors and scales, 4 of nibbles per group.
                let v = unsafe { vector(block, 2 + 16 * n + 8 * p + 4 * i + k % 4) };
                _mm512_and_si512(if k < 4 { v } else { _mm512_srli_epi16(v, 4) }, _mm512_set1_epi8(15))
            }),
        )
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn scales(block: *const u8) -> ([__m512i; 4], [__m512i; 4]) {
        // SAFETY: the caller's word.
        let (first, low) = unsafe { (vector(block, 0), vector(block, 1)) };
        let (zero, bytes) = (_mm512_setzero_si512(), |v| _mm512_and_si512(v, _mm512_set1_epi32(255)));
        // Four nibbles of 16 bits, four pairs of 8 bits, to four bytes.
        let nibbles = |v| {
            let two = _mm512_and_si512(_mm512_or_si512(v, _mm512_slli_epi32(v, 8)), _mm512_set1_epi32(0x00ff_00ff));
            _mm512_and_si512(_mm512_or_si512(two, _mm512_slli_epi32(two, 4)), _mm512_set1_epi8(15))
        };
        let pairs = |v| {
            let two = _mm512_or_si512(v, _mm512_slli_epi32(v, 6));
            let four = _mm512_or_si512(two, _mm512_slli_epi32(two, 12));
            _mm512_slli_epi32(_mm512_and_si512(four, _mm512_set1_epi8(3)), 4)
        };
        let join = |low, high| _mm512_sub_epi8(_mm512_or_si512(low, high), _mm512_set1_epi8(32));
        let s = [
            join(nibbles(_mm512_and_si512(low, _mm512_set1_epi32(0xffff))), pairs(bytes(_mm512_srli_epi32(first, 16)))),
            join(nibbles(_mm512_srli_epi32(low, 16)), pairs(_mm512_srli_epi32(first, 24))),
        ];
        ([s[0], s[1], zero, zero], [zero; 4])
    }
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn factors(block: *const u8) -> (__m512, __m512) {
        // SAFETY: the first vector.
        let (d, _) = low_high(unsafe { vector(block, 0) });
        (d, d)
    }
}

impl kquants::Panel for Tq20 {
    const WIDE: bool = true;
    const OFFSET: i32 = Tq20::OFFSET as i32;
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn columns(block: *const u8, n: usize, p: usize, k: usize) -> [__m512i; 2] {
        // SAFETY: 16 vectors.
        kquants::crumbs(unsafe { vector(block, 8 * n + k) }, p)
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn scales(_block: *const u8) -> ([__m512i; 4], [__m512i; 4]) {
        ([_mm512_set1_epi8(1); 4], [_mm512_setzero_si512(); 4])
    }
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn factors(block: *const u8) -> (__m512, __m512) {
        // SAFETY: the caller's word.
        let d = unsafe { halves(block.add(Self::VECTORS * VECTOR)) };
        (d, d)
    }
}
