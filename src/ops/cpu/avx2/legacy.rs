//! `gem{v,m}_{q80,q40,q41,q50,q51,iq4nl,mxfp4}_q8_avx2`: legacy types and others of 32 columns. A block of 32 columns is one vector; `vpmaddubsw` takes unsigned
//! weights, or the magnitude of Q8_0's with their sign moved to the activations (unsigned they would overflow i16).
//! One thread reads Q8_0 at 25.3, the other types at 10-13 GB/s where plain reading reaches 25.8:
//! `benches/records/epyc-zen4-2cpu-2026-11-21.txt`.

use super::{N, gather, sum_each, write};
use crate::ops::cpu::acts::Acts;
use crate::ops::cpu::blocks::{LegacyBlock, Q40, Q41, Q50, Q51, Q80, half_at};
use crate::ops::cpu::codes::{Iq4Nl, Mxfp4};
use crate::ops::cpu::table::Rows;
use crate::quant::{fp4, iq4};
use std::arch::x86_64::*;

/// Offset of weights that fill all eight bits.
const WHOLE_BYTE: i16 = 128;

/// A family's unpacking.
pub(super) trait Unpack: LegacyBlock {
    /// Unpacks a block to 32 unsigned weights in column order.
    ///
    /// # Safety
    /// AVX2 and [`LegacyBlock::BYTES`] readable bytes.
    unsafe fn unpack(p: *const u8) -> __m256i;
}

/// All rows of a legacy type.
///
/// # Safety
/// As `Kernel`, with AVX2 and FMA.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn rows<B: Unpack>(rows: &Rows<'_>) {
    if rows.tokens.len() < super::MANY_TOKENS {
        for first in (0..rows.rows).step_by(N) {
            for t in rows.tokens.clone() {
                // SAFETY: the caller's word; rows beyond the last are read as the last and not written.
                unsafe { write(rows, true, first, t, eight_rows::<B>(rows, first, t)) };
            }
        }
    } else {
        for r in 0..rows.rows {
            for t in rows.tokens.clone().step_by(N) {
                // SAFETY: the caller's word; tokens beyond the last are read as the last and not written.
                unsafe { write(rows, false, r, t, eight_tokens::<B>(rows, r, t)) };
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn eight_rows<B: Unpack>(rows: &Rows<'_>, first: usize, t: usize) -> __m256 {
    let acts = rows.acts;
    let (mut acc, mut min) = (_mm256_setzero_ps(), _mm256_setzero_ps());
    for b in 0..acts.cols / 32 {
        let scale = acts.scale(t, b);
        let mut sums = [_mm256_setzero_si256(); N];
        let (mut d, mut m) = ([0i16; N], [0i16; N]);
        for i in 0..N {
            let p = rows.row((first + i).min(rows.rows - 1)).wrapping_add(b * B::BYTES);
            _mm_prefetch(p.wrapping_add(N * rows.row_bytes).cast(), _MM_HINT_T1);
            // SAFETY: the block is readable by the caller's word, the activations are padded to blocks.
            unsafe {
                sums[i] = product::<B>(B::unpack(p), acts, t, b);
                d[i] = p.cast::<i16>().read_unaligned();
                m[i] = if B::MIN { p.add(2).cast::<i16>().read_unaligned() } else { 0 };
            }
        }
        let d = _mm256_mul_ps(if B::EXPONENT { powers(d) } else { widen(d) }, _mm256_set1_ps(scale));
        acc = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum_each(sums)), d, acc);
        if B::MIN {
            min = _mm256_fmadd_ps(widen(m), _mm256_set1_ps(acts.ds[acts.block(t, b)]), min);
        }
    }
    _mm256_add_ps(acc, min)
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn eight_tokens<B: Unpack>(rows: &Rows<'_>, r: usize, t: usize) -> __m256 {
    let acts = rows.acts;
    let (mut acc, mut min) = (_mm256_setzero_ps(), _mm256_setzero_ps());
    for b in 0..acts.cols / 32 {
        // SAFETY: the block is readable by the caller's word.
        let (w, scale, least) = unsafe {
            let p = rows.row(r).add(b * B::BYTES);
            let block = std::slice::from_raw_parts(p, B::BYTES);
            let d = if B::EXPONENT { fp4::e8m0_half(block[0]) } else { half_at(block, 0) };
            (B::unpack(p), d, if B::MIN { half_at(block, 2) } else { 0.0 })
        };
        let mut sums = [_mm256_setzero_si256(); N];
        let (mut d, mut ds) = ([0.0; N], [0.0; N]);
        for i in 0..N {
            let t = (t + i).min(rows.tokens.end - 1);
            // SAFETY: the activations are padded to blocks.
            sums[i] = unsafe { product::<B>(w, acts, t, b) };
            (d[i], ds[i]) = (scale * acts.scale(t, b), acts.ds[acts.block(t, b)]);
        }
        acc = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum_each(sums)), gather(&d), acc);
        if B::MIN {
            min = _mm256_fmadd_ps(_mm256_set1_ps(least), gather(&ds), min);
        }
    }
    _mm256_add_ps(acc, min)
}

/// Lanes that add up to a block's product with the activations of token `t`.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn product<B: LegacyBlock>(w: __m256i, acts: &Acts<'_>, t: usize, b: usize) -> __m256i {
    let at = acts.column(t, 32 * b);
    // SAFETY: activations are padded to blocks.
    let a = unsafe { _mm256_loadu_si256(acts.q.as_ptr().add(at).cast()) };
    let ones = _mm256_set1_epi16(1);
    if B::OFFSET == WHOLE_BYTE {
        let w = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
        return _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w)), ones);
    }
    let sum = _mm256_madd_epi16(_mm256_maddubs_epi16(w, a), ones);
    if B::OFFSET == 0 {
        return sum;
    }
    let total = i32::from(acts.sums[at / 16]) + i32::from(acts.sums[at / 16 + 1]);
    let offset = _mm256_zextsi128_si256(_mm_cvtsi32_si128(total * i32::from(B::OFFSET)));
    _mm256_sub_epi32(sum, offset)
}

/// Halves of the powers of two whose exponents are the low bytes, as [`fp4::e8m0_half`].
#[inline]
#[target_feature(enable = "avx2")]
fn powers(exponents: [i16; N]) -> __m256 {
    let e = exponents.map(|e| i32::from(e) & 255);
    // SAFETY: 32 bytes of the array.
    let e = unsafe { _mm256_loadu_si256(e.as_ptr().cast()) };
    let normal = _mm256_slli_epi32(_mm256_sub_epi32(e, _mm256_set1_epi32(1)), 23);
    let subnormal = _mm256_sllv_epi32(_mm256_set1_epi32(0x0020_0000), e);
    _mm256_castsi256_ps(_mm256_blendv_epi8(normal, subnormal, _mm256_cmpgt_epi32(_mm256_set1_epi32(2), e)))
}

/// Half to single precision.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn widen(half: [i16; N]) -> __m256 {
    // SAFETY: 16 bytes of the array.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(half.as_ptr().cast()) })
}

/// 16 bytes of nibbles to 32 bytes in column order.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn nibbles(p: *const u8) -> __m256i {
    // SAFETY: the caller's word: 16 readable bytes.
    let x = unsafe { _mm_loadu_si128(p.cast()) };
    _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(x, 4), x), _mm256_set1_epi8(15))
}

/// [`nibbles`] looked up in a table of sixteen.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) unsafe fn lookup(table: &[i8; 16], p: *const u8) -> __m256i {
    // SAFETY: the caller's word: 16 readable bytes; 16 of the table.
    let (table, nibbles) = unsafe { (_mm_loadu_si128(table.as_ptr().cast()), nibbles(p)) };
    _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), nibbles)
}

/// [`nibbles`] with a fifth bit each, from the four bytes in front.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn five_bits(p: *const u8) -> __m256i {
    // SAFETY: the caller's word: 4 + 16 readable bytes.
    let (high, x) = unsafe { (p.cast::<i32>().read_unaligned(), nibbles(p.add(4))) };
    // Byte `i` gets the byte that holds bit `i`, keeps that bit alone, and becomes all ones where it is set.
    let spread = _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303);
    let bit = _mm256_set1_epi64x(0x8040_2010_0804_0201u64 as i64);
    let bits = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(high), spread), bit);
    let set = _mm256_cmpeq_epi8(bits, bit);
    _mm256_or_si256(x, _mm256_and_si256(set, _mm256_set1_epi8(16)))
}

impl Unpack for Q80 {
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn unpack(p: *const u8) -> __m256i {
        // SAFETY: a block of 34 bytes.
        let signed = unsafe { _mm256_loadu_si256(p.add(2).cast()) };
        _mm256_xor_si256(signed, _mm256_set1_epi8(-128))
    }
}

impl Unpack for Q40 {
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn unpack(p: *const u8) -> __m256i {
        // SAFETY: a block of 18 bytes.
        unsafe { nibbles(p.add(2)) }
    }
}

impl Unpack for Q41 {
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn unpack(p: *const u8) -> __m256i {
        // SAFETY: a block of 20 bytes.
        unsafe { nibbles(p.add(4)) }
    }
}

impl Unpack for Q50 {
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn unpack(p: *const u8) -> __m256i {
        // SAFETY: a block of 22 bytes.
        unsafe { five_bits(p.add(2)) }
    }
}

impl Unpack for Q51 {
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn unpack(p: *const u8) -> __m256i {
        // SAFETY: a block of 24 bytes.
        unsafe { five_bits(p.add(4)) }
    }
}

impl Unpack for Iq4Nl {
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn unpack(p: *const u8) -> __m256i {
        // SAFETY: a block of 18 bytes.
        _mm256_xor_si256(unsafe { lookup(&iq4::VALUES, p.add(2)) }, _mm256_set1_epi8(-128))
    }
}

impl Unpack for Mxfp4 {
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn unpack(p: *const u8) -> __m256i {
        // SAFETY: a block of 17 bytes.
        _mm256_add_epi8(unsafe { lookup(&fp4::VALUES, p.add(1)) }, _mm256_set1_epi8(Self::OFFSET as i8))
    }
}
