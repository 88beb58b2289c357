//! `gemm_{…}_{q8k|q8}_avx512vnni`: quantised weights times many tokens, sixteen rows by eight tokens.
//!
//! ```text
//! Tile.q [64][16 rows][4 bytes]   256 columns of 16 rows, unpacked once for all tokens: one vector holds the same four
//!                                 columns of 16 rows, the activations are a 4-byte broadcast, and `vpdpbusd` keeps
//!                                 one exact sum per row in each lane: no horizontal sums, one vector of scales a block
//! ```
//!
//! The tile (6 KiB) and the running results stay in L1, the activations of a chunk of tokens in L2. Sums are the same
//! exact integers as with one token, and meet the scales in the same order: the results have the same bits.
//!
//! One thread does 225-255 GOP/s on 64 tokens: `benches/records/epyc-zen4-2cpu-2026-11-21.txt`.

use super::{kquants, legacy as single};
use crate::ops::cpu::blocks::LegacyBlock;
use crate::ops::cpu::table::Rows;
use std::arch::x86_64::*;

/// Rows of a tile.
const R: usize = 16;
/// Columns of a tile.
const COLS: usize = 256;
/// Tokens whose running results are kept at a time.
const TOKENS: usize = 128;

/// Unpacked weights.
#[repr(align(64))]
struct Tile {
    /// Weights, `[columns / 4][rows]`, four columns a dword.
    q: [[i32; R]; COLS / 4],
    /// K-quants: scales `[columns / 16][rows]`.
    s: [[i32; R]; 16],
    /// K-quants: pairs of minima `[columns / 32][rows]`.
    m: [[i32; R]; 16],
    /// Factors of scales and minima: `[blocks][rows]`; K-quants use the first.
    d: [[f32; R]; 8],
    dmin: [[f32; R]; 8],
}

/// Rows in column order on their way into a tile.
#[repr(align(64))]
struct Staging([[u8; COLS]; R]);

/// Running results of a chunk of tokens.
#[repr(align(64))]
struct Results {
    acc: [[f32; R]; TOKENS],
    min: [[f32; R]; TOKENS],
}

impl Results {
    fn zero(&mut self, tokens: usize) {
        self.acc[..tokens].fill([0.0; R]);
        self.min[..tokens].fill([0.0; R]);
    }
}

/// Runs `$step::<T>` over `$n` tokens in groups of eight; a rest is split evenly in two.
macro_rules! by_eight {
    ($n:expr, |$at:ident| $step:ident::<B>($($arg:expr),*)) => {{
        let (n, mut $at) = ($n, 0);
        while $at < n {
            let left = n - $at;
            let take = if left > 8 && left < 16 { left.div_ceil(2) } else { left.min(8) };
            match take {
                1 => $step::<B, 1>($($arg),*),
                2 => $step::<B, 2>($($arg),*),
                3 => $step::<B, 3>($($arg),*),
                4 => $step::<B, 4>($($arg),*),
                5 => $step::<B, 5>($($arg),*),
                6 => $step::<B, 6>($($arg),*),
                7 => $step::<B, 7>($($arg),*),
                _ => $step::<B, 8>($($arg),*),
            }
            $at += take;
        }
    }};
}

/// Rows of a K-quant.
///
/// # Safety
/// As `Kernel`, with AVX-512 VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
pub(super) unsafe fn kquant<B: kquants::Unpack>(rows: &Rows<'_>) {
    // SAFETY: zeros are valid for both.
    let (mut tile, mut results): (Tile, Results) = unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
    for start in rows.tokens.clone().step_by(TOKENS) {
        let tokens = TOKENS.min(rows.tokens.end - start);
        for first in (0..rows.rows).step_by(R) {
            results.zero(tokens);
            for b in 0..rows.acts.cols / COLS {
                // SAFETY: the caller's word.
                unsafe {
                    unpack_kquant::<B>(rows, first, b, &mut tile);
                    by_eight!(tokens, |at| step_kquant::<B>(rows, start + at, b, &tile, &mut results, at));
                }
            }
            // SAFETY: the caller's word.
            unsafe { store(rows, first, start, tokens, &results, |acc, min| _mm512_sub_ps(acc, min)) };
        }
    }
}

/// Rows of a legacy type.
///
/// # Safety
/// As `Kernel`, with AVX-512 VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
pub(super) unsafe fn legacy<B: single::Unpack>(rows: &Rows<'_>) {
    // SAFETY: zeros are valid for both.
    let (mut tile, mut results): (Tile, Results) = unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
    let blocks = rows.acts.cols / 32;
    for start in rows.tokens.clone().step_by(TOKENS) {
        let tokens = TOKENS.min(rows.tokens.end - start);
        for first in (0..rows.rows).step_by(R) {
            results.zero(tokens);
            for b in (0..blocks).step_by(8) {
                let count = (blocks - b).min(8);
                // SAFETY: the caller's word.
                unsafe {
                    unpack_legacy::<B>(rows, first, b, count, &mut tile);
                    by_eight!(tokens, |at| step_legacy::<B>(rows, start + at, b, count, &tile, &mut results, at));
                }
            }
            // SAFETY: the caller's word.
            unsafe { store(rows, first, start, tokens, &results, |acc, min| _mm512_add_ps(acc, min)) };
        }
    }
}

/// Writes the results of a chunk of tokens.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store(
    rows: &Rows<'_>,
    first: usize,
    start: usize,
    tokens: usize,
    results: &Results,
    join: impl Fn(__m512, __m512) -> __m512,
) {
    let mask = ((1u32 << (rows.rows - first).min(R)) - 1) as __mmask16;
    for t in 0..tokens {
        // SAFETY: whole vectors of the results; `out` by the caller's word, rows beyond the last are masked.
        unsafe {
            let sum = join(_mm512_load_ps(results.acc[t].as_ptr()), _mm512_load_ps(results.min[t].as_ptr()));
            _mm512_mask_storeu_ps(rows.out.add((start + t) * rows.stride + first), mask, sum);
        }
    }
}

/// Adds block `b` of the tile's rows for `T` tokens from `t` on to the results from `at` on.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
unsafe fn step_kquant<B: kquants::Unpack, const T: usize>(
    rows: &Rows<'_>,
    t: usize,
    b: usize,
    tile: &Tile,
    results: &mut Results,
    at: usize,
) {
    let acts = rows.acts;
    let zero = _mm512_setzero_si512();
    // Dwords of weights that share a scale.
    let run = if B::WIDE { 8 } else { 4 };
    // SAFETY: activations are padded to whole blocks; the tile's vectors are aligned.
    unsafe {
        let a: [*const i32; T] = std::array::from_fn(|i| acts.q.as_ptr().add(acts.column(t + i, b * COLS)).cast());
        let mut product = [zero; T];
        for j in 0..64 / run {
            let mut sum = [zero; T];
            for k in j * run..(j + 1) * run {
                let w = _mm512_load_si512(tile.q[k].as_ptr().cast());
                for i in 0..T {
                    sum[i] = _mm512_dpbusd_epi32(sum[i], w, _mm512_set1_epi32(a[i].add(k).read_unaligned()));
                }
            }
            let s = _mm512_load_si512(tile.s[j * run / 4].as_ptr().cast());
            for i in 0..T {
                product[i] = _mm512_add_epi32(product[i], _mm512_mullo_epi32(sum[i], s));
            }
        }
        let mut offset = [zero; T];
        for j in 0..8 {
            let m = _mm512_load_si512(tile.m[j].as_ptr().cast());
            for (i, offset) in offset.iter_mut().enumerate() {
                let sums = acts.sums.as_ptr().add(acts.column(t + i, b * COLS) / 16).cast::<i32>();
                *offset = _mm512_dpwssd_epi32(*offset, m, _mm512_set1_epi32(sums.add(j).read_unaligned()));
            }
        }
        let (d, dmin) = (_mm512_load_ps(tile.d[0].as_ptr()), _mm512_load_ps(tile.dmin[0].as_ptr()));
        for i in 0..T {
            let scale = _mm512_set1_ps(acts.scale(t + i, b));
            let acc = results.acc[at + i].as_mut_ptr();
            let whole = if B::FOLDED { _mm512_sub_epi32(product[i], offset[i]) } else { product[i] };
            let sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole), _mm512_mul_ps(d, scale), _mm512_load_ps(acc));
            _mm512_store_ps(acc, sum);
            if !B::FOLDED {
                let min = results.min[at + i].as_mut_ptr();
                let offset = _mm512_cvtepi32_ps(offset[i]);
                _mm512_store_ps(min, _mm512_fmadd_ps(offset, _mm512_mul_ps(dmin, scale), _mm512_load_ps(min)));
            }
        }
    }
}

/// Adds `count` blocks from `b` on of the tile's rows for `T` tokens from `t` on to the results from `at` on.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
#[allow(clippy::too_many_arguments)] // What is fixed per tile and what per group of tokens; a struct would be built per call.
unsafe fn step_legacy<B: LegacyBlock, const T: usize>(
    rows: &Rows<'_>,
    t: usize,
    b: usize,
    count: usize,
    tile: &Tile,
    results: &mut Results,
    at: usize,
) {
    let acts = rows.acts;
    // SAFETY: activations are padded to pairs of blocks; the tile's vectors are aligned.
    unsafe {
        let a: [*const i32; T] = std::array::from_fn(|i| acts.q.as_ptr().add(acts.column(t + i, b * 32)).cast());
        let mut acc: [__m512; T] = std::array::from_fn(|i| _mm512_load_ps(results.acc[at + i].as_ptr()));
        let mut min: [__m512; T] = std::array::from_fn(|i| _mm512_load_ps(results.min[at + i].as_ptr()));
        let offset = _mm512_set1_epi16(-B::OFFSET);
        for j in 0..count {
            let mut sum: [__m512i; T] = std::array::from_fn(|i| {
                let sums = acts.sums.as_ptr().add(acts.column(t + i, b * 32) / 16).cast::<i32>();
                let zero = _mm512_setzero_si512();
                if B::OFFSET == 0 {
                    return zero;
                }
                _mm512_dpwssd_epi32(zero, offset, _mm512_set1_epi32(sums.add(j).read_unaligned()))
            });
            for k in 8 * j..8 * j + 8 {
                let w = _mm512_load_si512(tile.q[k].as_ptr().cast());
                for i in 0..T {
                    sum[i] = _mm512_dpbusd_epi32(sum[i], w, _mm512_set1_epi32(a[i].add(k).read_unaligned()));
                }
            }
            let (d, m) = (_mm512_load_ps(tile.d[j].as_ptr()), _mm512_load_ps(tile.dmin[j].as_ptr()));
            for i in 0..T {
                let scale = _mm512_set1_ps(acts.scale(t + i, b + j));
                acc[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[i]), _mm512_mul_ps(d, scale), acc[i]);
                if B::MIN {
                    min[i] = _mm512_fmadd_ps(m, _mm512_set1_ps(acts.ds[acts.block(t + i, b + j)]), min[i]);
                }
            }
        }
        for i in 0..T {
            _mm512_store_ps(results.acc[at + i].as_mut_ptr(), acc[i]);
            _mm512_store_ps(results.min[at + i].as_mut_ptr(), min[i]);
        }
    }
}

/// Unpacks block `b` of sixteen rows from `first` on; rows beyond the last repeat it.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
unsafe fn unpack_kquant<B: kquants::Unpack>(rows: &Rows<'_>, first: usize, b: usize, tile: &mut Tile) {
    let mut staging = Staging([[0; COLS]; R]);
    let zero = _mm512_setzero_si512();
    let (mut s, mut m) = ([zero; R], [zero; R]);
    let (mut d, mut dmin) = ([0i16; R], [0i16; R]);
    for i in 0..R {
        let p = rows.row((first + i).min(rows.rows - 1)).wrapping_add(b * B::BYTES);
        // SAFETY: the block is readable by the caller's word; halves of vectors go to their groups of 32 columns.
        unsafe {
            let w = B::unpack(p);
            for (q, [low, high]) in w.q.into_iter().zip(B::GROUPS) {
                let row = staging.0[i].as_mut_ptr();
                _mm256_storeu_si256(row.add(32 * low).cast(), _mm512_castsi512_si256(q));
                _mm256_storeu_si256(row.add(32 * high).cast(), _mm512_extracti64x4_epi64(q, 1));
            }
            s[i] = _mm512_cvtepi16_epi32(w.s);
            m[i] = _mm512_castsi256_si512(w.m);
            d[i] = B::half(p);
            dmin[i] = if B::FOLDED { d[i] } else { p.add(B::D_AT + 2).cast::<i16>().read_unaligned() };
        }
    }
    interleave(&staging, tile);
    transpose(s, &mut tile.s);
    transpose(m, &mut tile.m);
    tile.d[0] = widen(&d).map(|d| d * B::SHARE);
    tile.dmin[0] = widen(&dmin);
}

/// Unpacks `count` blocks from `b` on of sixteen rows from `first` on; rows beyond the last repeat it.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
unsafe fn unpack_legacy<B: single::Unpack>(rows: &Rows<'_>, first: usize, b: usize, count: usize, tile: &mut Tile) {
    let mut staging = Staging([[0; COLS]; R]);
    let (mut d, mut m) = ([[0i16; R]; 8], [[0i16; R]; 8]);
    for i in 0..R {
        let p = rows.row((first + i).min(rows.rows - 1)).wrapping_add(b * B::BYTES);
        // SAFETY: `count` blocks are readable by the caller's word.
        unsafe {
            for pair in 0..count / 2 {
                let q = B::unpack(p.add(2 * pair * B::BYTES));
                _mm512_storeu_si512(staging.0[i].as_mut_ptr().add(64 * pair).cast(), q);
            }
            if !count.is_multiple_of(2) {
                let last = std::slice::from_raw_parts(p.add((count - 1) * B::BYTES), B::BYTES);
                staging.0[i][32 * (count - 1)..][..32].copy_from_slice(&B::parts(last).q);
            }
            for j in 0..count {
                d[j][i] = p.add(j * B::BYTES).cast::<i16>().read_unaligned();
                m[j][i] = if B::MIN { p.add(j * B::BYTES + 2).cast::<i16>().read_unaligned() } else { 0 };
            }
        }
    }
    interleave(&staging, tile);
    for j in 0..count {
        tile.d[j] = widen(&d[j]);
        tile.dmin[j] = widen(&m[j]);
    }
}

/// Half to single precision.
#[inline]
#[target_feature(enable = "avx512f")]
fn widen(half: &[i16; R]) -> [f32; R] {
    let mut out = [0.0; R];
    // SAFETY: 32 bytes in, 64 bytes out.
    unsafe { _mm512_storeu_ps(out.as_mut_ptr(), _mm512_cvtph_ps(_mm256_loadu_si256(half.as_ptr().cast()))) };
    out
}

/// Rows in column order to dwords side by side.
#[inline]
#[target_feature(enable = "avx512f")]
fn interleave(staging: &Staging, tile: &mut Tile) {
    for (part, q) in tile.q.chunks_exact_mut(16).enumerate() {
        // SAFETY: 64 bytes from each row.
        let v = std::array::from_fn(|i| unsafe { super::load(staging.0[i].as_ptr().add(64 * part)) });
        if let Ok(q) = q.try_into() {
            transpose(v, q);
        }
    }
}

/// Transposes 16 x 16 dwords.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose(v: [__m512i; 16], out: &mut [[i32; 16]; 16]) {
    let mut quads = [_mm512_setzero_si512(); 16];
    for i in 0..4 {
        let [a, b, c, d] = [v[4 * i], v[4 * i + 1], v[4 * i + 2], v[4 * i + 3]];
        let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
        quads[4 * i] = _mm512_unpacklo_epi64(ab, cd);
        quads[4 * i + 1] = _mm512_unpackhi_epi64(ab, cd);
        let (ab, cd) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
        quads[4 * i + 2] = _mm512_unpacklo_epi64(ab, cd);
        quads[4 * i + 3] = _mm512_unpackhi_epi64(ab, cd);
    }
    // `quads[4i + c]` lane 4l + r now holds row 4i + r, column 4l + c: what is left is to transpose the lanes of four.
    for c in 0..4 {
        let [a, b, d, e] = [quads[c], quads[4 + c], quads[8 + c], quads[12 + c]];
        let (ab, de) = (_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(d, e, 0x88));
        let even = [_mm512_shuffle_i32x4(ab, de, 0x88), _mm512_shuffle_i32x4(ab, de, 0xdd)];
        let (ab, de) = (_mm512_shuffle_i32x4(a, b, 0xdd), _mm512_shuffle_i32x4(d, e, 0xdd));
        let odd = [_mm512_shuffle_i32x4(ab, de, 0x88), _mm512_shuffle_i32x4(ab, de, 0xdd)];
        for (at, v) in [(c, even[0]), (8 + c, even[1]), (4 + c, odd[0]), (12 + c, odd[1])] {
            // SAFETY: 64 bytes of the array.
            unsafe { _mm512_storeu_si512(out[at].as_mut_ptr().cast(), v) };
        }
    }
}
