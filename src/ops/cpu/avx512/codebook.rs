//! `gemv_{iq1s,iq1m,iq2xxs,iq2xs,iq2s,iq3xxs,iq3s}_q8k_avx512vnni`: points of a codebook times one token (or few), eight rows
//! side by side.
//!
//! Points are fetched one by one; what stands beside them (upper bits of indices, signs, scales) is unpacked for a whole
//! block at a time. Weights stay magnitudes and their signs 256 bits of masks, which negate the activations: a masked
//! subtraction for 64 columns, and `vpdpbusd` needs no offset. Its four products per lane stay below 2¹⁵, so `vpdpwssd` applies
//! the scales; eight rows are reduced together. Many tokens: [`tiles`], with the signs put to the weights.

use super::pack::transpose;
use super::packed::gemm::{self, Scaled};
use super::{load, sum_all};
use crate::ops::cpu::blocks::KBlock;
use crate::ops::cpu::codes::{Iq1M, Iq1S, Iq2S, Iq2Xs, Iq2Xxs, Iq3S, Iq3Xxs};
use crate::ops::cpu::table::Rows;
use crate::ops::cpu::tiles::{self, Family, Results, Tile, Work};
use crate::quant::codebook;
use crate::quant::packed::ROWS;
use std::arch::x86_64::*;
use std::marker::PhantomData;

/// Rows side by side.
const R: usize = 8;
/// From how many tokens on rows are unpacked once for all of them. Both ways yield the same bits.
const TILE_TOKENS: usize = 4;

/// A row's block in registers, in column order.
pub(super) struct Points {
    /// Magnitudes.
    q: [__m512i; 4],
    /// Which are negative.
    minus: [__mmask64; 4],
    /// Scales per 16 columns.
    s: __m256i,
}

/// A family's unpacking.
pub(super) trait Codebook: KBlock {
    /// The largest magnitude: what a tile's unsigned weights are above the signed ones.
    const LARGEST: u8;
    /// What the block's F16 number is to be multiplied with.
    const SHARE: f32;
    /// Unpacks a block. A function for each of its two uses, so that both inline it: apart, it would hand registers over in
    /// memory.
    ///
    /// # Safety
    /// AVX-512 and [`KBlock::BYTES`] readable bytes.
    unsafe fn points<const TILED: bool>(p: *const u8) -> Points;
    /// The block's F16 number.
    ///
    /// # Safety
    /// As [`Codebook::points`].
    #[inline(always)]
    unsafe fn half(p: *const u8) -> i16 {
        // SAFETY: the caller's word.
        unsafe { p.cast::<i16>().read_unaligned() }
    }
}

/// Sixteen plain rows at a time unpacked to a tile.
struct Tiles<B>(PhantomData<B>);

impl<B: Codebook> Family for Tiles<B> {
    const BLOCK: usize = 256;
    const STEP: usize = B::BYTES;
    const SUBTRACT: bool = true;
    const GROUP: usize = gemm::GROUP;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
    unsafe fn unpack(start: *const u8, row_bytes: usize, _blocks: usize, tile: &mut Tile, p: usize) {
        let zero = _mm512_setzero_si512();
        let (mut q, mut s, mut d) = ([[zero; ROWS]; 4], [zero; ROWS], [0i16; ROWS]);
        for r in 0..ROWS {
            let block = start.wrapping_add(r * row_bytes);
            // SAFETY: the block is readable by the caller's word.
            let points = unsafe {
                d[r] = B::half(block);
                B::points::<true>(block)
            };
            s[r] = _mm512_cvtepi16_epi32(points.s);
            let offset = _mm512_set1_epi8(B::LARGEST as i8);
            for (c, q) in q.iter_mut().enumerate() {
                let (points, minus) = (points.q[c], points.minus[c]);
                q[r] = _mm512_mask_sub_epi8(_mm512_add_epi8(offset, points), minus, offset, points);
            }
        }
        for (c, q) in q.into_iter().enumerate() {
            for (i, q) in transpose(q).into_iter().enumerate() {
                gemm::put(&mut tile.q[16 * c + i][p], q);
            }
        }
        for (s, to) in transpose(s).into_iter().zip(&mut tile.s) {
            gemm::put(&mut to[p], s);
        }
        // SAFETY: 32 bytes of the array.
        let d = _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(d.as_ptr().cast()) });
        gemm::put_ps(&mut tile.d[0][p], _mm512_mul_ps(d, _mm512_set1_ps(B::SHARE)));
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
    unsafe fn extra(sums: *const i16, out: &mut [i32; 16]) {
        // SAFETY: sixteen sums by the caller's word.
        let sums = _mm512_cvtepi16_epi32(unsafe { _mm256_loadu_si256(sums.cast()) });
        gemm::put(out, _mm512_mullo_epi32(sums, _mm512_set1_epi32(-i32::from(B::LARGEST))));
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
    unsafe fn step(tokens: usize, work: &Work<'_>, tile: &Tile, results: &mut Results) {
        // SAFETY: the caller's word.
        unsafe { gemm::scaled_step::<Self>(tokens, work, tile, results) };
    }
}

impl<B: Codebook> Scaled for Tiles<B> {
    const WIDE: bool = false;
    const MINIMA: usize = 0;
}

/// All rows.
///
/// # Safety
/// As `Kernel`, with AVX-512 VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
pub(super) unsafe fn rows<B: Codebook>(rows: &Rows<'_>) {
    let mut done = 0;
    if rows.tokens.len() >= TILE_TOKENS {
        done = rows.rows / ROWS * ROWS;
        // SAFETY: the caller's word.
        unsafe { tiled::<B>(rows) };
    }
    for first in (done..rows.rows).step_by(R) {
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

/// Whole runs of sixteen rows times many tokens. Apart from [`rows`], which is not to touch the stack that this takes.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
unsafe fn tiled<B: Codebook>(rows: &Rows<'_>) {
    // SAFETY: the caller's word.
    unsafe { tiles::all::<Tiles<B>>(rows) };
}

/// Eight rows from `first` on times token `t`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
unsafe fn gemv<B: Codebook>(rows: &Rows<'_>, first: usize, t: usize) -> __m256 {
    let acts = rows.acts;
    let start: [*const u8; R] = std::array::from_fn(|i| rows.row((first + i).min(rows.rows - 1)));
    let scale_index: [__m512i; 4] = std::array::from_fn(|i| scale_index(i));
    let zero = _mm512_setzero_si512();
    let mut acc = _mm256_setzero_ps();
    for b in 0..acts.cols / 256 {
        // SAFETY: the activations are padded to whole blocks, the rows hold `cols / 256` blocks.
        unsafe {
            let a = acts.q.as_ptr().add(acts.column(t, b * 256)).cast::<u8>();
            let a: [__m512i; 4] = std::array::from_fn(|i| load(a.add(64 * i)));
            let mut products = [zero; R];
            for i in 0..R {
                let p = start[i].add(b * B::BYTES);
                for line in 0..B::BYTES.div_ceil(64) {
                    _mm_prefetch(p.wrapping_add(R * rows.row_bytes + 64 * line).cast(), _MM_HINT_T1);
                }
                let w = B::points::<false>(p);
                let s = _mm512_castsi256_si512(w.s);
                for c in 0..4 {
                    let scale = _mm512_maskz_permutexvar_epi16(0x5555_5555, scale_index[c], s);
                    let signed = _mm512_mask_sub_epi8(a[c], w.minus[c], zero, a[c]);
                    products[i] = _mm512_dpwssd_epi32(products[i], _mm512_dpbusd_epi32(zero, w.q[c], signed), scale);
                }
            }
            let mut d = [0; R];
            for (d, p) in d.iter_mut().zip(start) {
                *d = B::half(p.add(b * B::BYTES));
            }
            let d = _mm256_cvtph_ps(_mm_setr_epi16(d[0], d[1], d[2], d[3], d[4], d[5], d[6], d[7]));
            let d = _mm256_mul_ps(d, _mm256_set1_ps(B::SHARE));
            let product = _mm256_cvtepi32_ps(sum_all(products));
            acc = _mm256_fmadd_ps(product, _mm256_mul_ps(d, _mm256_set1_ps(acts.scale(t, b))), acc);
        }
    }
    acc
}

/// Indices that spread a block's sixteen words of scales over the dwords of columns `64c..64c + 64`.
#[inline]
#[target_feature(enable = "avx512f")]
fn scale_index(c: usize) -> __m512i {
    let lanes: [i32; 16] = std::array::from_fn(|lane| (4 * c + lane / 4) as i32);
    // SAFETY: 64 bytes of the array.
    unsafe { _mm512_loadu_si512(lanes.as_ptr().cast()) }
}

/// Points of eight times eight elements. Read as floats: those are put side by side by one instruction each.
///
/// # Safety
/// Indices are below `N`.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn eight<const N: usize>(points: &[u64; N], index: [usize; 8]) -> __m512i {
    let mut v = [0.0; 8];
    for (v, i) in v.iter_mut().zip(index) {
        // SAFETY: the caller's word; any bits are a number.
        *v = unsafe { *points.as_ptr().add(i).cast::<f64>() };
    }
    let [a, b, c, d, e, f, g, h] = v;
    _mm512_castpd_si512(_mm512_setr_pd(a, b, c, d, e, f, g, h))
}

/// Points of sixteen times four elements, as [`eight`].
///
/// # Safety
/// Indices are below `N`.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn sixteen<const N: usize>(points: &[u32; N], index: [usize; 16]) -> __m512i {
    let mut v = [0.0; 16];
    for (v, i) in v.iter_mut().zip(index) {
        // SAFETY: the caller's word; any bits are a number.
        *v = unsafe { *points.as_ptr().add(i).cast::<f32>() };
    }
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = v;
    _mm512_castps_si512(_mm512_setr_ps(a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p))
}

/// Bytes from `p` on as indices, `gap` bytes left out after every four.
///
/// # Safety
/// They are readable.
#[inline(always)]
unsafe fn bytes<const N: usize>(p: *const u8, gap: usize) -> [usize; N] {
    // SAFETY: the caller's word.
    std::array::from_fn(|k| usize::from(unsafe { *p.add(k + k / 4 * gap) }))
}

/// The low nine bits of eight words from `p` on as indices.
///
/// # Safety
/// 16 bytes are readable.
#[inline(always)]
unsafe fn nine_bits(p: *const u8) -> [usize; 8] {
    // SAFETY: the caller's word.
    std::array::from_fn(|k| usize::from(unsafe { p.cast::<u16>().add(k).read_unaligned() } & 511))
}

/// `N` words from word `at` on as indices.
#[inline(always)]
fn part<const N: usize>(words: &[u16; 32], at: usize) -> [usize; N] {
    std::array::from_fn(|k| usize::from(words[at + k]))
}

/// Words to memory, to be read one by one.
#[inline]
#[target_feature(enable = "avx512f")]
fn words(v: __m512i) -> [u16; 32] {
    let mut out = [0; 32];
    // SAFETY: 64 bytes.
    unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), v) };
    out
}

/// Masks of 64 columns from 32 bytes of signs.
#[inline]
#[target_feature(enable = "avx2")]
fn masks(signs: __m256i) -> [__mmask64; 4] {
    let mut out = [0; 4];
    // SAFETY: 32 bytes.
    unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), signs) };
    out
}

/// Sets the top bit of bytes of seven bits where that makes the number of ones even.
#[inline]
#[target_feature(enable = "avx2")]
fn even(seven: __m256i) -> __m256i {
    let odd = _mm_setr_epi8(0, -128, -128, 0, -128, 0, 0, -128, -128, 0, 0, -128, 0, -128, -128, 0);
    let half = _mm256_xor_si256(seven, _mm256_srli_epi16(seven, 4));
    let index = _mm256_and_si256(half, _mm256_set1_epi8(15));
    _mm256_or_si256(seven, _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(odd), index))
}

/// Signs and scales of eight words that hold four times seven signs and a scale.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn signs_and_scales(x: __m256i) -> ([__mmask64; 4], __m256i) {
    let and = |v, mask| _mm256_and_si256(v, _mm256_set1_epi32(mask));
    // 28 bits to two times 14, to four times seven.
    let x14 = _mm256_or_si256(and(x, 0x3fff), and(_mm256_slli_epi32(x, 2), 0x3fff_0000));
    let x7 = _mm256_or_si256(and(x14, 0x007f_007f), and(_mm256_slli_epi32(x14, 1), 0x7f00_7f00));
    let s = _mm256_or_si256(and(_mm256_srli_epi32(x, 27), 0x1e), _mm256_set1_epi32(1));
    (masks(even(x7)), _mm256_or_si256(s, _mm256_slli_epi32(s, 16)))
}

/// `2·n + 1` of sixteen nibbles, the low ones first, as words.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn odd_nibbles(p: *const u8) -> __m256i {
    // SAFETY: the caller's word: 8 readable bytes.
    let x = _mm_cvtepu8_epi16(_mm_cvtsi64_si128(unsafe { p.cast::<i64>().read_unaligned() }));
    let nibbles = _mm_and_si128(_mm_or_si128(x, _mm_slli_epi16(x, 4)), _mm_set1_epi8(15));
    let words = _mm256_cvtepu8_epi16(nibbles);
    _mm256_or_si256(_mm256_add_epi16(words, words), _mm256_set1_epi16(1))
}

/// Byte indices of the first word of a qword, four times; and what leads to the second qword.
const FIRST: i64 = 0x0100_0100_0100_0100;
const EIGHT: i64 = 0x0808_0808_0808_0808;

/// The lowest word of each qword four times, shifted right by 0, 1, 2, 3 times `STEP`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn fan<const STEP: i64>(v: __m512i) -> __m512i {
    let first = _mm512_broadcast_i32x4(_mm_set_epi64x(FIRST + EIGHT, FIRST));
    let shift = _mm512_set1_epi64(STEP << 16 | (2 * STEP) << 32 | (3 * STEP) << 48);
    _mm512_srlv_epi16(_mm512_shuffle_epi8(v, first), shift)
}

/// Low bytes of indices, and above them those bits of `high` that `mask` has.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn indices(low: *const u8, high: __m512i, mask: i16) -> [u16; 32] {
    // SAFETY: the caller's word: 32 readable bytes.
    let low = _mm512_cvtepu8_epi16(unsafe { _mm256_loadu_si256(low.cast()) });
    words(_mm512_or_si512(low, _mm512_slli_epi16(_mm512_and_si512(high, _mm512_set1_epi16(mask)), 8)))
}

impl Codebook for Iq2Xxs {
    const LARGEST: u8 = Self::OFFSET;
    const SHARE: f32 = 0.125;
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn points<const TILED: bool>(p: *const u8) -> Points {
        // SAFETY: within the block of 66 bytes: eight groups of 8, four indices first.
        let x = unsafe { load(p.add(2)) };
        let (minus, s) = signs_and_scales(_mm512_cvtepi64_epi32(_mm512_srli_epi64(x, 32)));
        // SAFETY: as above; a byte is below 256.
        let q = |c: usize| unsafe { eight(&codebook::IQ2_XXS, bytes(p.add(2 + 16 * c), 4)) };
        Points { q: [q(0), q(1), q(2), q(3)], minus, s }
    }
}

impl Codebook for Iq2Xs {
    const LARGEST: u8 = Self::OFFSET;
    const SHARE: f32 = 0.125;
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn points<const TILED: bool>(p: *const u8) -> Points {
        // SAFETY: within the block of 74 bytes.
        let (x, s) = unsafe { (load(p.add(2)), odd_nibbles(p.add(66))) };
        let minus = masks(even(_mm512_cvtepi16_epi8(_mm512_srli_epi16(x, 9))));
        // SAFETY: as above; indices are below 512.
        let q = |c: usize| unsafe { eight(&codebook::IQ2_XS, nine_bits(p.add(2 + 16 * c))) };
        Points { q: [q(0), q(1), q(2), q(3)], minus, s }
    }
}

impl Codebook for Iq2S {
    const LARGEST: u8 = Self::OFFSET;
    const SHARE: f32 = 0.125;
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn points<const TILED: bool>(p: *const u8) -> Points {
        // SAFETY: within the block of 82 bytes.
        unsafe {
            let high = _mm512_cvtepu8_epi64(_mm_cvtsi64_si128(p.add(66).cast::<i64>().read_unaligned()));
            let index = indices(p.add(2), fan::<2>(high), 3);
            let minus = masks(_mm256_loadu_si256(p.add(34).cast()));
            // A byte and two bits more are below 1024.
            let q = |c: usize| eight(&codebook::IQ2_S, part(&index, 8 * c));
            Points { q: [q(0), q(1), q(2), q(3)], minus, s: odd_nibbles(p.add(74)) }
        }
    }
}

impl Codebook for Iq3Xxs {
    const LARGEST: u8 = Self::OFFSET;
    const SHARE: f32 = 0.25;
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn points<const TILED: bool>(p: *const u8) -> Points {
        // SAFETY: within the block of 98 bytes.
        let (minus, s) = signs_and_scales(unsafe { _mm256_loadu_si256(p.add(66).cast()) });
        // SAFETY: as above; a byte is below 256.
        let q = |c: usize| unsafe { sixteen(&codebook::IQ3_XXS, bytes(p.add(2 + 16 * c), 0)) };
        Points { q: [q(0), q(1), q(2), q(3)], minus, s }
    }
}

impl Codebook for Iq3S {
    const LARGEST: u8 = Self::OFFSET;
    const SHARE: f32 = 1.0;
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn points<const TILED: bool>(p: *const u8) -> Points {
        // SAFETY: within the block of 110 bytes.
        unsafe {
            let ninth = p.add(66).cast::<u64>().read_unaligned();
            let half = |h: usize| {
                let low = _mm512_cvtepu8_epi16(_mm256_loadu_si256(p.add(2 + 32 * h).cast()));
                let bit = _mm512_set1_epi16(256);
                words(_mm512_mask_add_epi16(low, (ninth >> (32 * h)) as __mmask32, low, bit))
            };
            let index = [half(0), half(1)];
            let minus = masks(_mm256_loadu_si256(p.add(74).cast()));
            // Four bytes of scales to eight, each twice, as words.
            let x = _mm_cvtepu8_epi16(_mm_cvtsi32_si128(p.add(106).cast::<i32>().read_unaligned()));
            let nibbles = _mm_and_si128(_mm_or_si128(x, _mm_slli_epi16(x, 4)), _mm_set1_epi8(15));
            let s = _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(nibbles, nibbles));
            let s = _mm256_or_si256(_mm256_add_epi16(s, s), _mm256_set1_epi16(1));
            // A byte and a bit more are below 512.
            let q = |c: usize| sixteen(&codebook::IQ3_S, part(&index[c / 2], 16 * (c % 2)));
            Points { q: [q(0), q(1), q(2), q(3)], minus, s }
        }
    }
}

/// IQ1's elements in eighths from its points' indices and the runs of eight whose eighth is subtracted.
///
/// # Safety
/// Indices are below 2048.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn eighths(index: &[u16; 32], minus: __mmask32) -> ([__m512i; 4], [__mmask64; 4]) {
    // A point is 1 above its value: 8·(point - 1) ± 1.
    let (up, down) = (_mm512_set1_epi8(-7), _mm512_set1_epi8(-9));
    let eighth = |c: usize| {
        let eighth = _mm512_mask_blend_epi64((minus >> (8 * c)) as __mmask8, up, down);
        // SAFETY: the caller's word.
        let points = unsafe { eight(&codebook::IQ1, part(index, 8 * c)) };
        _mm512_add_epi8(_mm512_slli_epi16(points, 3), eighth)
    };
    let q = [eighth(0), eighth(1), eighth(2), eighth(3)];
    (q.map(|q| _mm512_abs_epi8(q)), q.map(|q| _mm512_movepi8_mask(q)))
}

impl Codebook for Iq1S {
    const LARGEST: u8 = Self::OFFSET;
    const SHARE: f32 = 0.125;
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn points<const TILED: bool>(p: *const u8) -> Points {
        // SAFETY: within the block of 50 bytes.
        unsafe {
            let x = _mm_loadu_si128(p.add(34).cast());
            let fanned = fan::<3>(_mm512_cvtepu16_epi64(x));
            let index = indices(p.add(2), fanned, 7);
            // The first of the four words is not shifted: its top bit counts for all.
            let top = _mm512_shuffle_epi8(fanned, _mm512_broadcast_i32x4(_mm_set_epi64x(FIRST + EIGHT, FIRST)));
            let (q, minus) = eighths(&index, _mm512_movepi16_mask(top));
            let s = _mm_or_si128(_mm_and_si128(_mm_srli_epi16(x, 11), _mm_set1_epi16(14)), _mm_set1_epi16(1));
            let s = _mm256_cvtepu16_epi32(s);
            Points { q, minus, s: _mm256_or_si256(s, _mm256_slli_epi32(s, 16)) }
        }
    }
}

impl Codebook for Iq1M {
    const LARGEST: u8 = Self::OFFSET;
    const SHARE: f32 = 0.125;
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn points<const TILED: bool>(p: *const u8) -> Points {
        // SAFETY: within the block of 56 bytes.
        unsafe {
            let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(p.add(32).cast()));
            // Two nibbles of a byte to two words.
            let nibbles = _mm512_or_si512(bytes, _mm512_slli_epi32(bytes, 12));
            let nibbles = _mm512_and_si512(nibbles, _mm512_set1_epi16(15));
            let index = indices(p, nibbles, 7);
            let subtract = _mm512_test_epi16_mask(nibbles, _mm512_set1_epi16(8));
            let (q, minus) = eighths(&index, subtract);
            let scales = _mm512_cvtepu16_epi64(_mm_cvtsi64_si128(p.add(48).cast::<i64>().read_unaligned()));
            let three = _mm256_and_si256(_mm512_castsi512_si256(fan::<3>(scales)), _mm256_set1_epi16(7));
            Points { q, minus, s: _mm256_or_si256(_mm256_add_epi16(three, three), _mm256_set1_epi16(1)) }
        }
    }
    #[inline(always)]
    unsafe fn half(p: *const u8) -> i16 {
        // SAFETY: within the block: four words, a nibble of the factor at the top of each.
        let x = unsafe { p.add(48).cast::<u64>().read_unaligned() };
        (x >> 12 & 0xf | x >> 24 & 0xf0 | x >> 36 & 0xf00 | x >> 48 & 0xf000) as i16
    }
}
