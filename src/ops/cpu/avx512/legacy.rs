//! `gemv_{q80,q40,q41,q50,q51}_q8_avx512vnni`: legacy types times one token (or few), eight rows side by side.
//!
//! Two blocks of 32 columns fill a vector of unsigned weights; `vpdpbusd` multiplies them with the activations, the
//! offset of the weights is one product with the activations' sums. Eight rows by two blocks are reduced together
//! to sixteen exact integers, which meet sixteen scales in two fma.
//!
//! One thread reads Q8_0 at 25.6, the other types at 15-17 GB/s where plain reading reaches 25.8:
//! `benches/records/epyc-zen4-2cpu-2026-11-21.txt`.

use super::{load, sum_halves, tile};
use crate::ops::cpu::blocks::{LegacyBlock, Q40, Q41, Q50, Q51, Q80};
use crate::ops::cpu::table::Rows;
use std::arch::x86_64::*;

/// Rows side by side.
const R: usize = 8;

/// A family's unpacking.
pub(super) trait Unpack: LegacyBlock {
    /// Unpacks two adjacent blocks to 64 unsigned weights in column order.
    ///
    /// # Safety
    /// AVX-512 and two blocks of readable bytes.
    unsafe fn unpack(p: *const u8) -> __m512i;
}

/// All rows of a legacy type.
///
/// # Safety
/// As `Kernel`, with AVX-512 VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
pub(super) unsafe fn rows<B: Unpack>(rows: &Rows<'_>) {
    if rows.tokens.len() >= super::TILE_TOKENS {
        // SAFETY: the caller's word.
        return unsafe { tile::legacy::<B>(rows) };
    }
    for first in (0..rows.rows).step_by(R) {
        for t in rows.tokens.clone() {
            // SAFETY: the caller's word; rows beyond the last are read as the last and not written.
            unsafe {
                let result = gemv::<B>(rows, first, t);
                let mask = ((1u32 << (rows.rows - first).min(R)) - 1) as __mmask8;
                _mm256_mask_storeu_ps(rows.out.add(t * rows.stride + first), mask, result);
            }
        }
    }
}

/// Eight rows from `first` on times token `t`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
unsafe fn gemv<B: Unpack>(rows: &Rows<'_>, first: usize, t: usize) -> __m256 {
    let blocks = rows.acts.cols / 32;
    let start: [*const u8; R] = std::array::from_fn(|i| rows.row((first + i).min(rows.rows - 1)));
    let mut state = (_mm256_setzero_ps(), _mm256_setzero_ps());
    for pair in 0..blocks / 2 {
        let p = start.map(|p| p.wrapping_add(2 * pair * B::BYTES));
        for p in p {
            _mm_prefetch(p.wrapping_add(R * rows.row_bytes).cast(), _MM_HINT_T1);
            if 2 * B::BYTES > 64 {
                _mm_prefetch(p.wrapping_add(R * rows.row_bytes + 2 * B::BYTES - 1).cast(), _MM_HINT_T1);
            }
        }
        // SAFETY: two blocks from each of these addresses on.
        state = unsafe { step::<B>(rows, t, pair, &p, state) };
    }
    if !blocks.is_multiple_of(2) {
        // The last block gets a neighbour of zeros, which adds nothing.
        let mut padded = [[0u8; 80]; R];
        for (copy, p) in padded.iter_mut().zip(start) {
            // SAFETY: the row's last block.
            let block = unsafe { std::slice::from_raw_parts(p.add((blocks - 1) * B::BYTES), B::BYTES) };
            copy[..B::BYTES].copy_from_slice(block);
        }
        let p = std::array::from_fn(|i| padded[i].as_ptr());
        // SAFETY: two blocks from each of these addresses on.
        state = unsafe { step::<B>(rows, t, blocks / 2, &p, state) };
    }
    _mm256_add_ps(state.0, state.1)
}

/// Adds two blocks of eight rows to `(acc, min)`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
unsafe fn step<B: Unpack>(
    rows: &Rows<'_>,
    t: usize,
    pair: usize,
    p: &[*const u8; R],
    (mut acc, mut min): (__m256, __m256),
) -> (__m256, __m256) {
    let acts = rows.acts;
    // SAFETY: activations are padded to pairs of blocks; the blocks are readable by the caller's word.
    unsafe {
        let a = load(acts.q.as_ptr().add(acts.column(t, 64 * pair)).cast());
        let mut sums = [_mm512_setzero_si512(); R];
        for i in 0..R {
            sums[i] = _mm512_dpbusd_epi32(sums[i], B::unpack(p[i]), a);
        }
        let mut sums = sum_halves(sums);
        if B::OFFSET != 0 {
            let s = acts.sums.as_ptr().add(acts.column(t, 64 * pair) / 16).cast::<i32>();
            let (low, high) = (s.read_unaligned(), s.add(1).read_unaligned());
            let s = halves_epi32(low, high);
            sums = _mm512_dpwssd_epi32(sums, s, _mm512_set1_epi16(-B::OFFSET));
        }
        let at = acts.block(t, 2 * pair);
        let scale = halves_ps(*acts.d.as_ptr().add(at), *acts.d.as_ptr().add(at + 1));
        let d = _mm512_mul_ps(halves::<B>(p, 0), scale);
        let sums = _mm512_cvtepi32_ps(sums);
        acc = _mm256_fmadd_ps(_mm512_castps512_ps256(sums), _mm512_castps512_ps256(d), acc);
        acc = _mm256_fmadd_ps(_mm512_extractf32x8_ps(sums, 1), _mm512_extractf32x8_ps(d, 1), acc);
        if B::MIN {
            let m = halves::<B>(p, 2);
            let (low, high) = (*acts.ds.as_ptr().add(at), *acts.ds.as_ptr().add(at + 1));
            min = _mm256_fmadd_ps(_mm512_castps512_ps256(m), _mm256_set1_ps(low), min);
            min = _mm256_fmadd_ps(_mm512_extractf32x8_ps(m, 1), _mm256_set1_ps(high), min);
        }
    }
    (acc, min)
}

/// The half-precision numbers at byte `at` of eight rows' first (low half) and second blocks.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512vl,f16c")]
unsafe fn halves<B: Unpack>(p: &[*const u8; R], at: usize) -> __m512 {
    // SAFETY: the caller's word: two blocks of readable bytes.
    let read = |i: usize, second: usize| unsafe { p[i].add(second * B::BYTES + at).cast::<i16>().read_unaligned() };
    let eight = |s: usize| {
        let h: [i16; R] = std::array::from_fn(|i| read(i, s));
        _mm256_cvtph_ps(_mm_setr_epi16(h[0], h[1], h[2], h[3], h[4], h[5], h[6], h[7]))
    };
    _mm512_insertf32x8(_mm512_castps256_ps512(eight(0)), eight(1), 1)
}

#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn halves_ps(low: f32, high: f32) -> __m512 {
    _mm512_insertf32x8(_mm512_set1_ps(low), _mm256_set1_ps(high), 1)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn halves_epi32(low: i32, high: i32) -> __m512i {
    _mm512_inserti64x4(_mm512_set1_epi32(low), _mm256_set1_epi32(high), 1)
}

impl Unpack for Q80 {
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn unpack(p: *const u8) -> __m512i {
        // SAFETY: two blocks of 34 bytes.
        let signed = unsafe { super::load_halves(p.add(2), p.add(36)) };
        _mm512_xor_si512(signed, _mm512_set1_epi8(-128))
    }
}

/// Two runs of 16 bytes of nibbles to 64 bytes in column order.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn nibbles(first: *const u8, second: *const u8) -> __m512i {
    // SAFETY: the caller's word: 16 readable bytes each.
    let (first, second) = unsafe { (_mm_loadu_si128(first.cast()), _mm_loadu_si128(second.cast())) };
    let both = _mm512_inserti64x4(
        _mm512_castsi256_si512(_mm256_broadcastsi128_si256(first)),
        _mm256_broadcastsi128_si256(second),
        1,
    );
    let shift = _mm512_setr_epi64(0, 0, 4, 4, 0, 0, 4, 4);
    _mm512_and_si512(_mm512_srlv_epi64(both, shift), _mm512_set1_epi8(15))
}

/// [`nibbles`] with a fifth bit each, from the four bytes in front of each run.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn five_bits(first: *const u8, second: *const u8) -> __m512i {
    // SAFETY: the caller's word: 4 + 16 readable bytes each.
    let (low, high, x) = unsafe {
        let high = second.cast::<u32>().read_unaligned();
        (first.cast::<u32>().read_unaligned(), high, nibbles(first.add(4), second.add(4)))
    };
    let bits = u64::from(low) | u64::from(high) << 32;
    _mm512_mask_add_epi8(x, bits, x, _mm512_set1_epi8(16))
}

impl Unpack for Q40 {
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn unpack(p: *const u8) -> __m512i {
        // SAFETY: two blocks of 18 bytes.
        unsafe { nibbles(p.add(2), p.add(20)) }
    }
}

impl Unpack for Q41 {
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn unpack(p: *const u8) -> __m512i {
        // SAFETY: two blocks of 20 bytes.
        unsafe { nibbles(p.add(4), p.add(24)) }
    }
}

impl Unpack for Q50 {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn unpack(p: *const u8) -> __m512i {
        // SAFETY: two blocks of 22 bytes.
        unsafe { five_bits(p.add(2), p.add(24)) }
    }
}

impl Unpack for Q51 {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn unpack(p: *const u8) -> __m512i {
        // SAFETY: two blocks of 24 bytes.
        unsafe { five_bits(p.add(4), p.add(28)) }
    }
}
