//! `gemm_{q2k,q3k,q4k,q5k,q6k}_q8k_avx512vnni`, `gemm_{q80,q40,q41,q50,q51}_q8_avx512vnni`: panels times many tokens; runs of
//! sixteen plain rows, where a family unpacks such (`avx512::codebook`).
//!
//! ```text
//! per chunk of tokens (their results stay in L2)
//!   per run of columns (the tokens' activations stay in L2)
//!     per pair of panels, per 256 columns: unpack the pair's weights once to a tile in L1 (2 · 4 KiB)
//!       per group of tokens: 2 panels x 6 tokens of sums in registers; a broadcast serves both panels
//! ```
//! Twelve sums hide the latency of `vpdpbusd`, and for each twelve there are eight loads: the multiplier is the limit.

#![allow(clippy::needless_range_loop, reason = "registers of several arrays are numbered alike")]

use super::kquants::{self, pairs, signed, starts};
use super::{add_products, four, legacy, panel};
use crate::ops::cpu::acts::Acts;
use crate::ops::cpu::table::Rows;
use crate::quant::packed::{ROWS, VECTOR};
use std::arch::x86_64::*;
use std::hint::black_box;
use std::ops::Range;

/// Panels of a tile.
const P: usize = 2;
/// Columns of a tile.
const COLS: usize = 256;
/// Tokens of a group.
const GROUP: usize = 6;
/// Tokens of a chunk: whole groups.
const TOKENS: usize = 29 * GROUP;
/// Panels whose results are kept at a time.
const PANELS: usize = 8;
/// Columns of a run.
const RUN: usize = 8 * COLS;

/// Unpacked weights of [`P`] panels, and what goes with [`COLS`] of their columns.
#[repr(align(64))]
pub(in crate::ops::cpu::avx512) struct Tile {
    /// Weights, `[columns / 4][panel][row]`, four columns a dword.
    pub(in crate::ops::cpu::avx512) q: [[[i32; ROWS]; P]; COLS / 4],
    /// K-quants: scales, `[columns / 16 or 32][panel][row]`.
    pub(in crate::ops::cpu::avx512) s: [[[i32; ROWS]; P]; 16],
    /// K-quants: pairs of minima as [`pairs`] makes them.
    m: [[[i32; ROWS]; P]; 8],
    /// Factors of scales and minima, `[block][panel][row]`; K-quants have one block.
    pub(in crate::ops::cpu::avx512) d: [[[f32; ROWS]; P]; 8],
    dmin: [[[f32; ROWS]; P]; 8],
}

/// Per tile of a run and token of a chunk what [`starts`] makes of the token's sums; legacy types: the start of each
/// block's sum.
type Extra = [[[i32; 16]; TOKENS]; RUN / COLS];

/// Running results of a chunk of tokens.
#[repr(align(64))]
pub(in crate::ops::cpu::avx512) struct Results {
    acc: [[[f32; ROWS]; TOKENS]; PANELS],
    min: [[[f32; ROWS]; TOKENS]; PANELS],
}

/// A family's part of the work.
pub(in crate::ops::cpu::avx512) trait Family {
    /// Columns of a block.
    const BLOCK: usize;
    /// Bytes from a block of sixteen rows to the next.
    const STEP: usize;
    /// Minima are subtracted.
    const SUBTRACT: bool;
    /// Unpacks `blocks` from `start` on to the tile's panel `p`; plain rows are `row_bytes` apart.
    unsafe fn unpack(start: *const u8, row_bytes: usize, blocks: usize, tile: &mut Tile, p: usize);
    /// Fills [`Extra`] of a token from its sixteen sums.
    unsafe fn extra(sums: *const i16, out: &mut [i32; 16]);
    /// Adds a tile to the results of `T` tokens.
    unsafe fn step<const T: usize>(work: &Work<'_>, tile: &Tile, results: &mut Results);
}

/// A family with a block of 256 columns to a tile, whose sums meet integer scales.
pub(in crate::ops::cpu::avx512) trait Scaled: Family {
    /// Scales hold for 32 columns, else for 16.
    const WIDE: bool;
    /// Vectors of pairs of minima; 0 where [`Family::extra`] makes the starts of the sums.
    const MINIMA: usize;
}

/// Where a step works.
pub(in crate::ops::cpu::avx512) struct Work<'a> {
    acts: &'a Acts<'a>,
    /// Of the tile.
    extra: &'a [[i32; 16]; TOKENS],
    /// First token, in the batch and in the chunk.
    token: usize,
    at: usize,
    /// First of the tile's panels among those of the results.
    panel: usize,
    /// First block, and how many.
    b: usize,
    blocks: usize,
    /// Where the next tile's first panel begins: its weights are on their way while this one is multiplied.
    next: *const u8,
}

struct KQuant<B>(std::marker::PhantomData<B>);
struct Legacy<B>(std::marker::PhantomData<B>);

/// Panels of a K-quant.
///
/// # Safety
/// As `Kernel`, with AVX-512 VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
pub(super) unsafe fn kquant_rows<B: kquants::Panel>(rows: &Rows<'_>) {
    // SAFETY: the caller's word.
    unsafe { all::<KQuant<B>>(rows) };
}

/// Panels of a legacy type.
///
/// # Safety
/// As `Kernel`, with AVX-512 VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
pub(super) unsafe fn legacy_rows<B: legacy::Panel>(rows: &Rows<'_>) {
    // SAFETY: the caller's word.
    unsafe { all::<Legacy<B>>(rows) };
}

/// Whole runs of sixteen rows.
///
/// # Safety
/// As `Kernel`, with AVX-512 VNNI.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
pub(in crate::ops::cpu::avx512) unsafe fn all<F: Family>(rows: &Rows<'_>) {
    // SAFETY: zeros are valid for both.
    let (mut tile, mut results): (Tile, Results) = unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
    let mut extra: Extra = [[[0; 16]; TOKENS]; RUN / COLS];
    let (cols, panels) = (rows.acts.cols, rows.rows / ROWS);
    let mut chunks = rows.tokens.len().div_ceil(TOKENS);
    let mut end = rows.tokens.start;
    while end < rows.tokens.end {
        // Chunks as equal as can be.
        let tokens = end..end + (rows.tokens.end - end).div_ceil(chunks);
        (end, chunks) = (tokens.end, chunks - 1);
        for first in (0..panels).step_by(PANELS) {
            let count = PANELS.min(panels - first);
            for i in 0..count {
                results.acc[i][..tokens.len()].fill([0.0; ROWS]);
                results.min[i][..tokens.len()].fill([0.0; ROWS]);
            }
            for run in (0..cols).step_by(RUN) {
                for (col, extra) in (run..cols).step_by(COLS).zip(&mut extra) {
                    for (t, extra) in tokens.clone().zip(extra) {
                        // SAFETY: sums are padded to whole tiles.
                        unsafe { F::extra(rows.acts.sums.as_ptr().add(rows.acts.column(t, col) / 16), extra) };
                    }
                }
                let columns = || (run..cols.min(run + RUN)).step_by(COLS);
                let mut tiles = (0..count).step_by(P).flat_map(|pair| columns().map(move |col| (pair, col))).peekable();
                let later = if run + RUN < cols { (0, run + RUN) } else { (PANELS, 0) };
                while let Some((pair, col)) = tiles.next() {
                    let next = tiles.peek().copied().unwrap_or(later);
                    let work = Work {
                        acts: rows.acts,
                        extra: &extra[(col - run) / COLS],
                        token: tokens.start,
                        at: 0,
                        panel: pair,
                        b: col / F::BLOCK,
                        blocks: COLS.min(cols - col) / F::BLOCK,
                        next: panel(rows, first + next.0).wrapping_add(next.1 / F::BLOCK * F::STEP),
                    };
                    // SAFETY: the caller's word.
                    unsafe { one_tile::<F>(rows, first, tokens.len(), count, work, &mut tile, &mut results) };
                }
            }
            // SAFETY: the caller's word.
            unsafe { store::<F>(rows, first, count, tokens.clone(), &results) };
        }
    }
}

/// Unpacks a tile and adds it to all tokens' results.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
unsafe fn one_tile<F: Family>(
    rows: &Rows<'_>,
    first: usize,
    tokens: usize,
    panels: usize,
    mut work: Work<'_>,
    tile: &mut Tile,
    results: &mut Results,
) {
    // SAFETY: the panels hold their blocks.
    unsafe {
        // A panel that is not there stays in the tile as it is; its results go nowhere.
        for p in 0..P.min(panels - work.panel) {
            let block = panel(rows, first + work.panel + p).wrapping_add(work.b * F::STEP);
            F::unpack(block, rows.row_bytes, work.blocks, tile, p);
        }
        // Groups as equal as can be.
        let mut groups = tokens.div_ceil(GROUP);
        let lines = (COLS / F::BLOCK * F::STEP).div_ceil(VECTOR);
        let (mut line, share) = (0, lines.div_ceil(groups));
        while work.at < tokens {
            for at in line..lines.min(line + share) {
                for p in 0..P {
                    let next = work.next.wrapping_add(p * ROWS * rows.row_bytes + at * VECTOR);
                    _mm_prefetch::<_MM_HINT_T0>(next.cast());
                }
            }
            line += share;
            let take = (tokens - work.at).div_ceil(groups);
            debug_assert!(take >= 3, "fewer tokens are not for tiles");
            match take {
                3 => F::step::<3>(&work, tile, results),
                4 => F::step::<4>(&work, tile, results),
                5 => F::step::<5>(&work, tile, results),
                _ => F::step::<6>(&work, tile, results),
            }
            (work.at, work.token, groups) = (work.at + take, work.token + take, groups - 1);
        }
    }
}

/// Writes `count` panels' results of a chunk of tokens, from panel `first` on: what is next to each other, one after the other.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store<F: Family>(rows: &Rows<'_>, first: usize, count: usize, tokens: Range<usize>, results: &Results) {
    for (at, t) in tokens.enumerate() {
        for i in 0..count {
            let (acc, min) = (load_ps(&results.acc[i][at]), load_ps(&results.min[i][at]));
            let sum = if F::SUBTRACT { _mm512_sub_ps(acc, min) } else { _mm512_add_ps(acc, min) };
            // SAFETY: `out` by the caller's word.
            unsafe { _mm512_storeu_ps(rows.out.add(t * rows.stride + (first + i) * ROWS), sum) };
        }
    }
}

/// Loads a vector of the tile.
#[inline]
#[target_feature(enable = "avx512f")]
fn load(v: &[i32; ROWS]) -> __m512i {
    // SAFETY: 64 bytes.
    unsafe { _mm512_loadu_si512(v.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_ps(v: &[f32; ROWS]) -> __m512 {
    // SAFETY: 64 bytes.
    unsafe { _mm512_loadu_ps(v.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(in crate::ops::cpu::avx512) fn put(to: &mut [i32; ROWS], v: __m512i) {
    // SAFETY: 64 bytes.
    unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), v) };
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(in crate::ops::cpu::avx512) fn put_ps(to: &mut [f32; ROWS], v: __m512) {
    // SAFETY: 64 bytes.
    unsafe { _mm512_storeu_ps(to.as_mut_ptr(), v) };
}

impl<B: kquants::Panel> Family for KQuant<B> {
    const BLOCK: usize = 256;
    const STEP: usize = B::STEP;
    const SUBTRACT: bool = true;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
    unsafe fn unpack(start: *const u8, _row_bytes: usize, _blocks: usize, tile: &mut Tile, p: usize) {
        // SAFETY: the caller's word.
        unsafe {
            for i in 0..32 {
                let (n, pass, k) = (i / 16, i / 8 % 2, i % 8);
                for (j, w) in B::groups(pass).into_iter().zip(B::columns(start, n, pass, k)) {
                    put(&mut tile.q[32 * n + 8 * j + k][p], w);
                }
            }
            let (s, m) = B::scales(start);
            for i in 0..B::SCALES {
                for j in 0..4 {
                    put(&mut tile.s[4 * i + j][p], signed(s[i], j));
                }
                if !B::FOLDED {
                    let [even, odd] = pairs(m[i]);
                    put(&mut tile.m[2 * i][p], even);
                    put(&mut tile.m[2 * i + 1][p], odd);
                }
            }
            let (d, dmin) = B::factors(start);
            put_ps(&mut tile.d[0][p], d);
            put_ps(&mut tile.dmin[0][p], dmin);
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
    unsafe fn extra(sums: *const i16, out: &mut [i32; 16]) {
        // SAFETY: the caller's word.
        unsafe { starts::<B>(sums, out) };
    }

    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
    unsafe fn step<const T: usize>(work: &Work<'_>, tile: &Tile, results: &mut Results) {
        // SAFETY: the caller's word.
        unsafe { scaled_step::<Self, T>(work, tile, results) };
    }
}

impl<B: kquants::Panel> Scaled for KQuant<B> {
    const WIDE: bool = B::WIDE;
    const MINIMA: usize = if B::FOLDED { 0 } else { 2 * B::SCALES };
}

/// [`Family::step`] of a family whose sums meet integer scales.
///
/// # Safety
/// As `Kernel`, with AVX-512 VNNI.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
pub(in crate::ops::cpu::avx512) unsafe fn scaled_step<F: Scaled, const T: usize>(
    work: &Work<'_>,
    tile: &Tile,
    results: &mut Results,
) {
    let (acts, zero) = (work.acts, _mm512_setzero_si512());
    // Dwords of columns that share a scale.
    let share = if F::WIDE { 8 } else { 4 };
    // SAFETY: activations are padded to whole blocks.
    unsafe {
        // Tokens lie side by side.
        let a = acts.q.as_ptr().add(acts.column(work.token, work.b * 256));
        let extra = &work.extra[work.at..work.at + T];
        let mut products = [[zero; T]; P];
        // The compiler is not to see how many: unrolled, this fills the cache of decoded instructions.
        for j in 0..black_box(64 / share) {
            let mut sums = [[zero; T]; P];
            if F::MINIMA == 0 {
                for (i, extra) in extra.iter().enumerate() {
                    let start = _mm512_set1_epi32(*extra.get_unchecked(j));
                    (0..P).for_each(|p| sums[p][i] = start);
                }
            }
            for k in j * share..(j + 1) * share {
                let w: [__m512i; P] = std::array::from_fn(|p| load(&tile.q.get_unchecked(k)[p]));
                for i in 0..T {
                    let a = four(a, i * COLS / 4 + k);
                    for p in 0..P {
                        sums[p][i] = _mm512_dpbusd_epi32(sums[p][i], w[p], a);
                    }
                }
            }
            for p in 0..P {
                let s = load(&tile.s.get_unchecked(j)[p]);
                for i in 0..T {
                    products[p][i] = _mm512_add_epi32(products[p][i], _mm512_mullo_epi32(sums[p][i], s));
                }
            }
        }
        let mut offsets = [[zero; T]; P];
        for j in 0..F::MINIMA {
            for (i, extra) in extra.iter().enumerate() {
                let sums = _mm512_set1_epi32(extra[if F::WIDE { j / 2 * 4 + j % 2 } else { j }]);
                for p in 0..P {
                    add_products(&mut offsets[p][i], load(&tile.m[j][p]), sums);
                }
            }
        }
        for i in 0..T {
            let scale = _mm512_set1_ps(acts.scale(work.token + i, work.b));
            for p in 0..P {
                let (panel, at) = (work.panel + p, work.at + i);
                let (acc, d) = (&mut results.acc[panel][at], _mm512_mul_ps(load_ps(&tile.d[0][p]), scale));
                put_ps(acc, _mm512_fmadd_ps(_mm512_cvtepi32_ps(products[p][i]), d, load_ps(acc)));
                if F::MINIMA > 0 {
                    let (min, d) = (&mut results.min[panel][at], _mm512_mul_ps(load_ps(&tile.dmin[0][p]), scale));
                    put_ps(min, _mm512_fmadd_ps(_mm512_cvtepi32_ps(offsets[p][i]), d, load_ps(min)));
                }
            }
        }
    }
}
impl<B: legacy::Panel> Family for Legacy<B> {
    const BLOCK: usize = 32;
    const STEP: usize = B::STEP;
    const SUBTRACT: bool = false;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
    unsafe fn unpack(start: *const u8, _row_bytes: usize, blocks: usize, tile: &mut Tile, p: usize) {
        for b in 0..blocks {
            // SAFETY: the caller's word.
            unsafe {
                let block = start.add(b * B::STEP);
                for (k, w) in B::weights(block).into_iter().enumerate() {
                    put(&mut tile.q[8 * b + k][p], w);
                }
                let (d, m) = legacy::factors::<B>(block);
                put_ps(&mut tile.d[b][p], d);
                put_ps(&mut tile.dmin[b][p], m);
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
    unsafe fn extra(sums: *const i16, out: &mut [i32; 16]) {
        // SAFETY: the caller's word; `out` holds 64 bytes.
        unsafe {
            let sums = _mm256_loadu_si256(sums.cast());
            _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm256_madd_epi16(sums, _mm256_set1_epi16(-B::OFFSET)));
        }
    }

    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
    unsafe fn step<const T: usize>(work: &Work<'_>, tile: &Tile, results: &mut Results) {
        let acts = work.acts;
        // SAFETY: activations are padded to whole blocks.
        unsafe {
            // Tokens lie side by side.
            let a = acts.q.as_ptr().add(acts.column(work.token, work.b * 32));
            let scales = acts.d.as_ptr().add(acts.block(work.token, work.b));
            let extra = &work.extra[work.at..work.at + T];
            let mut acc: [[__m512; T]; P] =
                std::array::from_fn(|p| std::array::from_fn(|i| load_ps(&results.acc[work.panel + p][work.at + i])));
            for j in 0..work.blocks {
                let mut sums = [[_mm512_setzero_si512(); T]; P];
                if B::OFFSET != 0 {
                    for (i, extra) in extra.iter().enumerate() {
                        let start = _mm512_set1_epi32(*extra.get_unchecked(j));
                        (0..P).for_each(|p| sums[p][i] = start);
                    }
                }
                for k in 8 * j..8 * j + 8 {
                    let w: [__m512i; P] = std::array::from_fn(|p| load(&tile.q.get_unchecked(k)[p]));
                    for i in 0..T {
                        let a = four(a, i * COLS / 4 + k);
                        for p in 0..P {
                            sums[p][i] = _mm512_dpbusd_epi32(sums[p][i], w[p], a);
                        }
                    }
                }
                let w: [__m512; P] = std::array::from_fn(|p| load_ps(&tile.d.get_unchecked(j)[p]));
                for i in 0..T {
                    let scale = _mm512_set1_ps(*scales.add(i * COLS / 32 + j));
                    for p in 0..P {
                        let factor = _mm512_mul_ps(w[p], scale);
                        acc[p][i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[p][i]), factor, acc[p][i]);
                    }
                }
            }
            for (p, acc) in acc.into_iter().enumerate() {
                for (i, acc) in acc.into_iter().enumerate() {
                    put_ps(&mut results.acc[work.panel + p][work.at + i], acc);
                }
            }
            if B::MIN {
                minima::<T>(work, tile, results);
            }
        }
    }
}

/// Adds a legacy type's minima times the activations' scaled sums.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
unsafe fn minima<const T: usize>(work: &Work<'_>, tile: &Tile, results: &mut Results) {
    for p in 0..P {
        for i in 0..T {
            let ds = &work.acts.ds[work.acts.block(work.token + i, work.b)..][..work.blocks];
            let result = &mut results.min[work.panel + p][work.at + i];
            let mut min = load_ps(result);
            for (&ds, m) in ds.iter().zip(&tile.dmin) {
                min = _mm512_fmadd_ps(load_ps(&m[p]), _mm512_set1_ps(ds), min);
            }
            put_ps(result, min);
        }
    }
}
