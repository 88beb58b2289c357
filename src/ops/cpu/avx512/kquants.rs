//! `gemv_{q2k,q3k,q4k,q5k,q6k}_q8k_avx512vnni`: K-quants times one token (or few), eight rows side by side.
//!
//! A block's 256 unsigned weights become four vectors; `vpdpbusd` multiplies them with the activations (four products
//! per lane, below 2¹⁵), `vpdpwssd` the lane sums with the scales, so that a row's block is one vector of exact integers.
//! Eight rows are reduced together: 23 instructions for the eight horizontal sums, one fma for the eight results. The
//! eight rows are one contiguous run of memory; the next run is prefetched line by line.
//!
//! One thread reads Q4_K at 19.7, Q5_K at 18.5, Q6_K at 21.2, Q2_K and Q3_K at 12 GB/s where plain reading reaches 25.8:
//! `benches/records/epyc-zen4-2cpu-2026-11-21.txt`. Prefetching into L1 instead of L2 costs a third.

use super::{load, sum_all, sum_each, tile};
use crate::ops::cpu::blocks::{KBlock, Q2K, Q3K, Q4K, Q5K, Q6K, six_bits, three_bit_scales};
use crate::ops::cpu::table::Rows;
use std::arch::x86_64::*;

/// Rows side by side.
const R: usize = 8;

/// A row's block in registers: weights in the order of [`Unpack::GROUPS`], scales and minima per 16 columns.
pub(super) struct Unpacked {
    pub(super) q: [__m512i; 4],
    pub(super) s: __m256i,
    pub(super) m: __m256i,
}

/// A family's unpacking.
pub(super) trait Unpack: KBlock {
    /// Which groups of 32 columns vector `i`'s two halves hold.
    const GROUPS: [[usize; 2]; 4];
    /// Where the block's factors stand; minima 2 bytes behind the scales' where they have their own.
    const D_AT: usize;
    /// What the factors' F16 numbers are to be multiplied with.
    const SHARE: f32 = 1.0;
    /// Scales come in equal pairs: they hold for 32 columns.
    const WIDE: bool;
    /// Unpacks a block.
    ///
    /// # Safety
    /// AVX-512 and [`KBlock::BYTES`] readable bytes.
    unsafe fn unpack(p: *const u8) -> Unpacked;
    /// The F16 number of the scales' factor.
    ///
    /// # Safety
    /// As [`Unpack::unpack`].
    #[inline(always)]
    unsafe fn half(p: *const u8) -> i16 {
        // SAFETY: the caller's word.
        unsafe { p.add(Self::D_AT).cast::<i16>().read_unaligned() }
    }
}

const NATURAL: [[usize; 2]; 4] = [[0, 1], [2, 3], [4, 5], [6, 7]];
const NIBBLES: [[usize; 2]; 4] = [[0, 2], [1, 3], [4, 6], [5, 7]];
const CRUMBS: [[usize; 2]; 4] = [[0, 4], [1, 5], [2, 6], [3, 7]];

/// All rows of a K-quant.
///
/// # Safety
/// As `Kernel`, with AVX-512 VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
pub(super) unsafe fn rows<B: Unpack>(rows: &Rows<'_>) {
    if rows.tokens.len() >= super::TILE_TOKENS {
        // SAFETY: the caller's word.
        return unsafe { tile::kquant::<B>(rows) };
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
    let acts = rows.acts;
    let start: [*const u8; R] = std::array::from_fn(|i| rows.row((first + i).min(rows.rows - 1)));
    let scale_index: [__m512i; 4] = std::array::from_fn(|i| scale_index(B::GROUPS[i]));
    let zero = _mm512_setzero_si512();
    let (mut acc, mut min) = (_mm256_setzero_ps(), _mm256_setzero_ps());
    for b in 0..acts.cols / 256 {
        // SAFETY: the activations are padded to whole blocks, the rows hold `cols / 256` blocks.
        unsafe {
            let a = acts.q.as_ptr().add(acts.column(t, b * 256)).cast::<u8>();
            let a: [__m512i; 4] = std::array::from_fn(|i| {
                let [low, high] = B::GROUPS[i];
                super::load_halves(a.add(32 * low), a.add(32 * high))
            });
            let sums = _mm256_loadu_si256(acts.sums.as_ptr().add(acts.column(t, b * 256) / 16).cast());
            let block = |i: usize| start[i].add(b * B::BYTES);
            let (mut products, mut offsets) = ([zero; R], [_mm256_setzero_si256(); R]);
            for i in 0..R {
                let p = block(i);
                prefetch::<B>(p, R * rows.row_bytes);
                let w = B::unpack(p);
                let s = _mm512_castsi256_si512(w.s);
                let mut sum = zero;
                for c in 0..4 {
                    let scale = _mm512_maskz_permutexvar_epi16(0x5555_5555, scale_index[c], s);
                    sum = _mm512_dpwssd_epi32(sum, _mm512_dpbusd_epi32(zero, w.q[c], a[c]), scale);
                }
                offsets[i] = _mm256_madd_epi16(w.m, sums);
                products[i] = if B::FOLDED { _mm512_sub_epi32(sum, _mm512_zextsi256_si512(offsets[i])) } else { sum };
            }
            let scale = _mm256_set1_ps(acts.scale(t, b));
            let product = _mm256_cvtepi32_ps(sum_all(products));
            let (d, dmin) = factors::<B>(&std::array::from_fn(block));
            acc = _mm256_fmadd_ps(product, _mm256_mul_ps(d, scale), acc);
            if !B::FOLDED {
                let offset = _mm256_cvtepi32_ps(sum_each(offsets));
                min = _mm256_fmadd_ps(offset, _mm256_mul_ps(dmin, scale), min);
            }
        }
    }
    _mm256_sub_ps(acc, min)
}

/// Asks for the block's lines in the run of rows after this one; an address beyond the weights does no harm.
#[inline]
#[target_feature(enable = "avx512f")]
fn prefetch<B: Unpack>(p: *const u8, distance: usize) {
    for line in 0..B::BYTES.div_ceil(64) {
        _mm_prefetch(p.wrapping_add(distance + 64 * line).cast(), _MM_HINT_T1);
    }
}

/// Factors of eight blocks.
#[inline]
#[target_feature(enable = "avx512f,avx512vl,f16c")]
unsafe fn factors<B: Unpack>(blocks: &[*const u8; R]) -> (__m256, __m256) {
    if B::FOLDED {
        // SAFETY: within the blocks.
        let d = blocks.map(|p| unsafe { p.add(B::D_AT).cast::<i16>().read_unaligned() });
        let d = _mm256_cvtph_ps(_mm_setr_epi16(d[0], d[1], d[2], d[3], d[4], d[5], d[6], d[7]));
        return (d, d);
    }
    // SAFETY: within the blocks; the two halves stand side by side.
    let both = blocks.map(|p| unsafe { p.add(B::D_AT).cast::<i32>().read_unaligned() });
    let both = _mm256_setr_epi32(both[0], both[1], both[2], both[3], both[4], both[5], both[6], both[7]);
    (_mm256_cvtph_ps(_mm256_cvtepi32_epi16(both)), _mm256_cvtph_ps(_mm256_cvtepi32_epi16(_mm256_srli_epi32(both, 16))))
}

/// Indices that spread 16 words of scales over the dwords of two groups of 32 columns.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn scale_index(groups: [usize; 2]) -> __m512i {
    let lane = |l: usize| (2 * groups[l / 8] + l % 8 / 4) as i32;
    let lanes: [i32; 16] = std::array::from_fn(lane);
    // SAFETY: 64 bytes of the array.
    unsafe { _mm512_loadu_si512(lanes.as_ptr().cast()) }
}

/// Q4_K's and Q5_K's scales and minima, each twice, as words.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn six_bit_words(p: *const u8) -> (__m256i, __m256i) {
    // SAFETY: the caller's word: 12 readable bytes.
    let (s, m) = six_bits(unsafe { std::slice::from_raw_parts(p, 12) });
    let words = |eight: u64| {
        let bytes = _mm_cvtsi64_si128(eight as i64);
        _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(bytes, bytes))
    };
    (words(s), words(m))
}

impl Unpack for Q4K {
    const GROUPS: [[usize; 2]; 4] = NIBBLES;
    const WIDE: bool = true;
    const D_AT: usize = 0;
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn unpack(p: *const u8) -> Unpacked {
        // SAFETY: within the block of 144 bytes.
        let ((s, m), x, y) = unsafe { (six_bit_words(p.add(4)), load(p.add(16)), load(p.add(80))) };
        let nibble = _mm512_set1_epi8(15);
        let low = |v| _mm512_and_si512(v, nibble);
        let high = |v| _mm512_and_si512(_mm512_srli_epi16(v, 4), nibble);
        Unpacked { q: [low(x), high(x), low(y), high(y)], s, m }
    }
}

impl Unpack for Q5K {
    const GROUPS: [[usize; 2]; 4] = NIBBLES;
    const WIDE: bool = true;
    const D_AT: usize = 0;
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn unpack(p: *const u8) -> Unpacked {
        // SAFETY: within the block of 176 bytes.
        let ((s, m), x, y) = unsafe { (six_bit_words(p.add(4)), load(p.add(48)), load(p.add(112))) };
        // SAFETY: as above.
        let bits = unsafe { load_halves_same(p.add(16)) };
        let nibble = _mm512_set1_epi8(15);
        // Bit `j` of each byte belongs to group `j`; vector `i` holds groups `GROUPS[i]`.
        let fifth = |low: i64, high: i64| {
            let shift = _mm512_setr_epi64(low, low, low, low, high, high, high, high);
            let one = _mm512_and_si512(_mm512_srlv_epi64(bits, shift), _mm512_set1_epi8(1));
            _mm512_slli_epi16(one, 4)
        };
        let low = |v| _mm512_and_si512(v, nibble);
        let high = |v| _mm512_and_si512(_mm512_srli_epi16(v, 4), nibble);
        let q = [
            _mm512_or_si512(low(x), fifth(0, 2)),
            _mm512_or_si512(high(x), fifth(1, 3)),
            _mm512_or_si512(low(y), fifth(4, 6)),
            _mm512_or_si512(high(y), fifth(5, 7)),
        ];
        Unpacked { q, s, m }
    }
}

/// The same 32 bytes in both halves.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load_halves_same(p: *const u8) -> __m512i {
    // SAFETY: the caller's word: 32 readable bytes.
    _mm512_broadcast_i64x4(unsafe { _mm256_loadu_si256(p.cast()) })
}

impl Unpack for Q6K {
    const GROUPS: [[usize; 2]; 4] = NATURAL;
    const WIDE: bool = false;
    const D_AT: usize = 208;
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn unpack(p: *const u8) -> Unpacked {
        let nibble = _mm512_set1_epi8(15);
        let top = _mm512_set1_epi8(0x30);
        let up = _mm512_setr_epi64(4, 4, 4, 4, 2, 2, 2, 2);
        let down = _mm512_setr_epi64(0, 0, 0, 0, 2, 2, 2, 2);
        let half = |n: usize| {
            // SAFETY: within the block of 210 bytes.
            let (low, high) = unsafe { (load(p.add(64 * n)), load_halves_same(p.add(128 + 32 * n))) };
            let first = _mm512_and_si512(_mm512_sllv_epi64(high, up), top);
            let second = _mm512_and_si512(_mm512_srlv_epi64(high, down), top);
            (
                _mm512_or_si512(_mm512_and_si512(low, nibble), first),
                _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi16(low, 4), nibble), second),
            )
        };
        let ((a, b), (c, d)) = (half(0), half(1));
        // SAFETY: as above.
        let s = _mm256_cvtepi8_epi16(unsafe { _mm_loadu_si128(p.add(192).cast()) });
        Unpacked { q: [a, b, c, d], s, m: _mm256_slli_epi16(s, 5) }
    }
}

impl Unpack for Q2K {
    const GROUPS: [[usize; 2]; 4] = CRUMBS;
    const WIDE: bool = false;
    const D_AT: usize = 80;
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn unpack(p: *const u8) -> Unpacked {
        // SAFETY: within the block of 84 bytes.
        let (scales, x) = unsafe { (_mm_loadu_si128(p.cast()), load(p.add(16))) };
        let crumb = |v| _mm512_and_si512(v, _mm512_set1_epi8(3));
        let q = [x, _mm512_srli_epi16(x, 2), _mm512_srli_epi16(x, 4), _mm512_srli_epi16(x, 6)].map(crumb);
        let nibble = |v| _mm256_cvtepu8_epi16(_mm_and_si128(v, _mm_set1_epi8(15)));
        Unpacked { q, s: nibble(scales), m: nibble(_mm_srli_epi16(scales, 4)) }
    }
}

impl Unpack for Q3K {
    const GROUPS: [[usize; 2]; 4] = CRUMBS;
    const WIDE: bool = false;
    const D_AT: usize = 108;
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn unpack(p: *const u8) -> Unpacked {
        // SAFETY: within the block of 110 bytes.
        let (bits, x) = unsafe { (load_halves_same(p), load(p.add(32))) };
        // Bit `4·half + i` of each byte belongs to vector `i`'s half.
        let halves = _mm512_setr_epi64(0, 0, 0, 0, 4, 4, 4, 4);
        let bits = _mm512_srlv_epi64(bits, halves);
        let third = |v| _mm512_slli_epi16(_mm512_and_si512(v, _mm512_set1_epi8(1)), 2);
        let crumb = |v| _mm512_and_si512(v, _mm512_set1_epi8(3));
        let q = [
            _mm512_or_si512(crumb(x), third(bits)),
            _mm512_or_si512(crumb(_mm512_srli_epi16(x, 2)), third(_mm512_srli_epi16(bits, 1))),
            _mm512_or_si512(crumb(_mm512_srli_epi16(x, 4)), third(_mm512_srli_epi16(bits, 2))),
            _mm512_or_si512(crumb(_mm512_srli_epi16(x, 6)), third(_mm512_srli_epi16(bits, 3))),
        ];
        // SAFETY: as above.
        let [low, high] = three_bit_scales(unsafe { std::slice::from_raw_parts(p.add(96), 12) });
        let s = _mm256_cvtepu8_epi16(_mm_set_epi64x(high as i64, low as i64));
        let s = _mm256_sub_epi16(s, _mm256_set1_epi16(32));
        Unpacked { q, s, m: _mm256_slli_epi16(s, 2) }
    }
}
