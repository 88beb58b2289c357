//! Panels times many tokens, whatever the instruction set: the loops around a tier's tiles.
//!
//! ```text
//! per chunk of tokens (their results stay in L2)
//!   per run of columns (the tokens' activations stay in L2)
//!     per pair of panels, per 256 columns: unpack the pair's weights once to a tile in L1 (2 · 4 KiB)
//!       per group of tokens: sums of the pair's rows in registers
//! ```
//! A tier says by [`Family`] how a type's weights are unpacked and multiplied.

use super::acts::Acts;
use super::table::Rows;
use crate::quant::packed::{ROWS, VECTOR};
use std::ops::Range;

/// Panels of a tile.
pub(crate) const P: usize = 2;
/// Columns of a tile.
pub(crate) const COLS: usize = 256;
/// Tokens of a chunk: whole groups of six.
pub(crate) const TOKENS: usize = 29 * 6;
/// Panels whose results are kept at a time.
const PANELS: usize = 8;
/// Columns of a run.
const RUN: usize = 8 * COLS;

/// Unpacked weights of [`P`] panels, and what goes with [`COLS`] of their columns.
#[repr(align(64))]
pub(crate) struct Tile {
    /// Weights, `[columns / 4][panel][row]`, four columns a dword.
    pub(crate) q: [[[i32; ROWS]; P]; COLS / 4],
    /// K-quants: scales, `[columns / 16 or 32][panel][row]`, as the tier multiplies them.
    pub(crate) s: [[[i32; ROWS]; P]; 16],
    /// K-quants: pairs of minima, of 16 bits each.
    pub(crate) m: [[[i32; ROWS]; P]; 8],
    /// Factors of scales and minima, `[block][panel][row]`; K-quants have one block.
    pub(crate) d: [[[f32; ROWS]; P]; 8],
    pub(crate) dmin: [[[f32; ROWS]; P]; 8],
}

/// Per tile of a run and token of a chunk what [`Family::extra`] makes of the token's sums.
type Extra = [[[i32; 16]; TOKENS]; RUN / COLS];

/// Running results of a chunk of tokens.
#[repr(align(64))]
pub(crate) struct Results {
    pub(crate) acc: [[[f32; ROWS]; TOKENS]; PANELS],
    pub(crate) min: [[[f32; ROWS]; TOKENS]; PANELS],
}

/// A family's part of the work.
pub(crate) trait Family {
    /// Columns of a block.
    const BLOCK: usize;
    /// Bytes from a block of sixteen rows to the next.
    const STEP: usize;
    /// Minima are subtracted.
    const SUBTRACT: bool;
    /// Most tokens of a step.
    const GROUP: usize;
    /// Unpacks `blocks` from `start` on to the tile's panel `p`; plain rows are `row_bytes` apart.
    unsafe fn unpack(start: *const u8, row_bytes: usize, blocks: usize, tile: &mut Tile, p: usize);
    /// Makes of a token's sums, sixteen of 16 columns each, what a step adds beyond the products.
    unsafe fn extra(sums: *const i16, out: &mut [i32; 16]);
    /// Adds a tile to the results of `tokens`, from 1 to [`Family::GROUP`].
    unsafe fn step(tokens: usize, work: &Work<'_>, tile: &Tile, results: &mut Results);
}

/// Where a step works.
pub(crate) struct Work<'a> {
    pub(crate) acts: &'a Acts<'a>,
    /// Of the tile.
    pub(crate) extra: &'a [[i32; 16]; TOKENS],
    /// First token, in the batch and in the chunk.
    pub(crate) token: usize,
    pub(crate) at: usize,
    /// First of the tile's panels among those of the results.
    pub(crate) panel: usize,
    /// First block, and how many.
    pub(crate) b: usize,
    pub(crate) blocks: usize,
    /// Where the next tile's first panel begins: its weights are on their way while this one is multiplied.
    next: *const u8,
}

/// Whole runs of sixteen rows. Inlined into a function with the tier's instruction set, as its families' functions are then.
///
/// # Safety
/// As `Kernel`, with the tier's instruction set.
#[inline(always)]
pub(crate) unsafe fn all<F: Family>(rows: &Rows<'_>) {
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
                        next: rows.panel(first + next.0).wrapping_add(next.1 / F::BLOCK * F::STEP),
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
#[inline(always)]
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
            let block = rows.panel(first + work.panel + p).wrapping_add(work.b * F::STEP);
            F::unpack(block, rows.row_bytes, work.blocks, tile, p);
        }
        // Groups as equal as can be.
        let mut groups = tokens.div_ceil(F::GROUP);
        let lines = (COLS / F::BLOCK * F::STEP).div_ceil(VECTOR);
        let (mut line, share) = (0, lines.div_ceil(groups));
        while work.at < tokens {
            for at in line..lines.min(line + share) {
                for p in 0..P {
                    let next = work.next.wrapping_add(p * ROWS * rows.row_bytes + at * VECTOR);
                    prefetch(next);
                }
            }
            line += share;
            let take = (tokens - work.at).div_ceil(groups);
            F::step(take, &work, tile, results);
            (work.at, work.token, groups) = (work.at + take, work.token + take, groups - 1);
        }
    }
}

/// Asks for a line of the weights; an address beyond them does no harm.
#[inline(always)]
fn prefetch(line: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 has the instruction, and it reads nothing that the program could see.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(line.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}

/// Writes `count` panels' results of a chunk of tokens, from panel `first` on: what is next to each other, one after the other.
#[inline(always)]
unsafe fn store<F: Family>(rows: &Rows<'_>, first: usize, count: usize, tokens: Range<usize>, results: &Results) {
    for (at, t) in tokens.enumerate() {
        for i in 0..count {
            let (acc, min) = (&results.acc[i][at], &results.min[i][at]);
            let join = |r: usize| if F::SUBTRACT { acc[r] - min[r] } else { acc[r] + min[r] };
            let sum: [f32; ROWS] = std::array::from_fn(join);
            // SAFETY: `out` by the caller's word.
            unsafe { rows.out.add(t * rows.stride + (first + i) * ROWS).cast::<[f32; ROWS]>().write_unaligned(sum) };
        }
    }
}
