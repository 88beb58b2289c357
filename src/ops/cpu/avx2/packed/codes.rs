//! Panels of the types whose four bits are looked up (`vpshufb`) taken apart, and of TQ2_0: IQ4_XS and TQ2_0 as K-quants, IQ4_NL and
//! MXFP4 as legacy types.

use super::kquants::{self, crumbs, none, only_factor};
use super::{Floats, Lanes, NIBBLES, and, down, legacy, low_high, nibbles, or, up, vector};
use crate::ops::cpu::blocks::LegacyBlock;
use crate::ops::cpu::codes::{Iq4Nl, Iq4Xs, Mxfp4, Tq20};
use crate::quant::{fp4, iq4};
use std::arch::x86_64::*;

/// What nibbles stand for.
#[inline]
#[target_feature(enable = "avx2")]
fn lookup(table: &[i8; 16], nibbles: Lanes) -> Lanes {
    // SAFETY: 16 bytes.
    let table = _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(table.as_ptr().cast()) });
    [_mm256_shuffle_epi8(table, nibbles[0]), _mm256_shuffle_epi8(table, nibbles[1])]
}

impl legacy::Panel for Iq4Nl {
    const SIGNED: bool = true;
    const SUMS: usize = 1;
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn weights(block: *const u8, k: usize) -> [Lanes; 2] {
        // SAFETY: 4 vectors.
        let [low, high] = nibbles(unsafe { vector(block, k) });
        [lookup(&iq4::VALUES, low), lookup(&iq4::VALUES, high)]
    }
}

impl legacy::Panel for Mxfp4 {
    const SUMS: usize = 4;
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn weights(block: *const u8, k: usize) -> [Lanes; 2] {
        const TABLE: [i8; 16] = {
            let (mut table, mut i) = (fp4::VALUES, 0);
            while i < 16 {
                table[i] += Mxfp4::OFFSET as i8;
                i += 1;
            }
            table
        };
        // SAFETY: 4 vectors.
        let [low, high] = nibbles(unsafe { vector(block, k) });
        [lookup(&TABLE, low), lookup(&TABLE, high)]
    }
}

impl kquants::Panel for Iq4Xs {
    const WIDE: bool = true;
    const SIGNED: bool = true;
    const SUMS: usize = 1;
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn columns(block: *const u8, n: usize, p: usize, k: usize) -> [Lanes; 2] {
        let one = |i: usize| {
            // SAFETY: 2 vectors of factors and scales, 4 of nibbles per group.
            let v = unsafe { vector(block, 2 + 16 * n + 8 * p + 4 * i + k % 4) };
            lookup(&iq4::VALUES, and(down(v, if k < 4 { 0 } else { 4 }), NIBBLES))
        };
        [one(0), one(1)]
    }
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn scales(block: *const u8) -> ([Lanes; 4], [Lanes; 4]) {
        // SAFETY: the caller's word.
        let (first, low) = unsafe { (vector(block, 0), vector(block, 1)) };
        // Four nibbles of 16 bits, four pairs of 8 bits, to four bytes.
        let nibbles = |v: Lanes| {
            let two = and(or(v, up(v, 8)), 0x00ff_00ff);
            and(or(two, up(two, 4)), NIBBLES)
        };
        let pairs = |v: Lanes| {
            let two = or(v, up(v, 6));
            up(and(or(two, up(two, 12)), 0x0303_0303), 4)
        };
        let join = |low: Lanes, high: Lanes| {
            let (six, less) = (or(low, high), _mm256_set1_epi8(32));
            [_mm256_sub_epi8(six[0], less), _mm256_sub_epi8(six[1], less)]
        };
        let mut s = none();
        s[0] = join(nibbles(and(low, 0xffff)), pairs(and(down(first, 16), 255)));
        s[1] = join(nibbles(down(low, 16)), pairs(down(first, 24)));
        (s, none())
    }
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn factors(block: *const u8) -> [Floats; 2] {
        // SAFETY: the first vector.
        let [d, _] = low_high(unsafe { vector(block, 0) });
        [d; 2]
    }
}

impl kquants::Panel for Tq20 {
    const WIDE: bool = true;
    const OFFSET: i32 = Tq20::OFFSET as i32;
    const SUMS: usize = 8;
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn columns(block: *const u8, n: usize, p: usize, k: usize) -> [Lanes; 2] {
        // SAFETY: 16 vectors.
        crumbs(unsafe { vector(block, 8 * n + k) }, p)
    }
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn scales(_block: *const u8) -> ([Lanes; 4], [Lanes; 4]) {
        ([[_mm256_set1_epi8(1); 2]; 4], none())
    }
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn factors(block: *const u8) -> [Floats; 2] {
        // SAFETY: the caller's word.
        unsafe { only_factor::<Self>(block) }
    }
}
