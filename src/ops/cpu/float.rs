//! Products with float weights, for every vector tier: dot products whose columns run along the lanes.
//!
//! ```text
//! tile     R rows by T tokens in registers: each weight is loaded (and widened) once for T tokens
//! columns  in runs that leave a tile's weights and activations in L1; lanes are kept between runs in
//! lanes    [token][row][16], of sixteen rows and at most 48 tokens, and added up at the end
//! ```
//! Lane `l` sums the columns that `scalar` says, in its order, whatever the shape of the tile and the runs: results have
//! the same bits for one token and for many.

use super::acts::Acts;
use super::table::Rows;
use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
use std::mem::MaybeUninit;

/// Rows whose lanes are kept: those of a unit.
const ROWS: usize = 16;
/// Tokens whose lanes are kept.
const TOKENS: usize = 48;
/// Bytes of activations that stay in L2 while rows pass over them.
const RESIDENT: usize = 512 * 1024;
/// Bytes of one token's activations in a run: with a tile's weights they leave room in L1.
const RUN: usize = 3072;
/// Lanes of a result.
pub(super) type Sums = [f32; 16];

/// A tier's instructions for one type of weights. All functions are unsafe: the host has the tier, and pointers are good
/// for what is read or written.
pub(super) trait Dot {
    /// Bytes of a weight.
    const BYTES: usize;
    /// Columns of a step, at most 32, and 64 bytes of weights.
    const COLS: usize;
    /// Vectors that hold the lanes of a result.
    const HALVES: usize;
    /// Most tokens of a tile, at most [`MOST`].
    const TILE: usize;
    /// An activation.
    type Act: Copy + Default;
    /// Lanes.
    type Sum: Copy;
    /// Weights or activations of half a step.
    type Half: Copy;
    /// The first activation, and the distance of tokens.
    fn acts(acts: &Acts<'_>) -> (*const Self::Act, usize);
    unsafe fn zero() -> Self::Sum;
    unsafe fn get(p: *const f32) -> Self::Sum;
    unsafe fn put(p: *mut f32, v: Self::Sum);
    unsafe fn weights(p: *const u8, half: usize) -> Self::Half;
    unsafe fn activations(p: *const Self::Act, half: usize) -> Self::Half;
    unsafe fn multiply(w: Self::Half, a: Self::Half, sum: Self::Sum) -> Self::Sum;
    /// Adds each row's lanes pairwise at distances 8, 4, 2, 1.
    unsafe fn add(lanes: &[Sums; ROWS]) -> [f32; ROWS];
}

/// Most tokens of any tile.
const MOST: usize = 6;

/// Columns of all rows and tokens of a tile, and where their lanes are.
struct Run<'a, D: Dot> {
    rows: &'a Rows<'a>,
    x: *const D::Act,
    /// Distance of tokens.
    stride: usize,
    /// First row.
    row: usize,
    /// First token.
    token: usize,
    /// First column.
    start: usize,
    /// Columns.
    cols: usize,
    /// The lanes of the first row and token; rows lie together, tokens [`ROWS`] apart.
    lanes: *mut Sums,
}

/// All rows times all tokens, `R` rows in a tile.
///
/// # Safety
/// As `Kernel`, with the tier of `D`, whose features the caller has enabled.
#[inline(always)]
pub(super) unsafe fn rows<D: Dot, const R: usize>(rows: &Rows<'_>) {
    let (cols, (x, stride)) = (rows.acts.cols, D::acts(rows.acts));
    let mut lanes = [const { MaybeUninit::<[Sums; ROWS]>::uninit() }; TOKENS];
    // In one tile all columns at once: nothing is read again, and memory in long runs.
    let most = if rows.tokens.len() > D::TILE { RUN / size_of::<D::Act>() } else { cols.max(1) };
    let run = cols.div_ceil(cols.div_ceil(most).max(1)).next_multiple_of(D::COLS);
    let chunk = (RESIDENT / (cols * size_of::<D::Act>()).max(1)).clamp(TOKENS / 4, TOKENS) / MOST * MOST;
    for token in rows.tokens.clone().step_by(chunk) {
        let tokens = chunk.min(rows.tokens.end - token);
        for row in (0..rows.rows).step_by(ROWS) {
            let count = ROWS.min(rows.rows - row);
            if count < ROWS {
                lanes[..tokens].fill(MaybeUninit::new([[0.0; 16]; ROWS]));
            }
            for start in (0..cols).step_by(run) {
                let cols = run.min(cols - start);
                let mut t = 0;
                while t < tokens {
                    let lanes = lanes.as_mut_ptr().wrapping_add(t).cast();
                    let here = Run::<D> { rows, x, stride, row, token: token + t, start, cols, lanes };
                    // SAFETY: the caller's word.
                    t += unsafe { here.some_tokens::<R>(count, tokens - t) };
                }
            }
            for (t, lanes) in lanes[..tokens].iter().enumerate() {
                // SAFETY: lanes of all rows were written, by tiles or above; the caller's word.
                unsafe {
                    let sums = D::add(lanes.assume_init_ref());
                    let out = rows.out.add((token + t) * rows.stride + row);
                    std::ptr::copy_nonoverlapping(sums.as_ptr(), out, count);
                }
            }
        }
    }
}

impl<D: Dot> Run<'_, D> {
    /// `count` rows times at most `tokens` tokens; how many they were.
    #[inline(always)]
    unsafe fn some_tokens<const R: usize>(&self, count: usize, tokens: usize) -> usize {
        let n = tokens.min(D::TILE);
        // SAFETY: the caller's word.
        unsafe {
            match n {
                1 => self.all_rows::<R, 1>(count),
                2 => self.all_rows::<R, 2>(count),
                3 => self.all_rows::<R, 3>(count),
                4 => self.all_rows::<R, 4>(count),
                5 => self.all_rows::<R, 5>(count),
                _ => self.all_rows::<R, MOST>(count),
            }
        }
        n
    }

    #[inline(always)]
    unsafe fn all_rows<const R: usize, const T: usize>(&self, count: usize) {
        let mut r = 0;
        // SAFETY: the caller's word.
        unsafe {
            while r + R <= count {
                self.tile::<R, T>(r);
                r += R;
            }
            while r < count {
                self.tile::<1, T>(r);
                r += 1;
            }
        }
    }

    /// `R` rows from `first` on times `T` tokens.
    #[inline(always)]
    unsafe fn tile<const R: usize, const T: usize>(&self, first: usize) {
        let whole = self.cols - self.cols % D::COLS;
        let w: [*const u8; R] =
            std::array::from_fn(|r| self.rows.row(self.row + first + r).wrapping_add(self.start * D::BYTES));
        let x: [*const D::Act; T] =
            std::array::from_fn(|t| self.x.wrapping_add((self.token + t) * self.stride + self.start));
        let lanes = |r: usize, t: usize, h: usize| {
            self.lanes.wrapping_add(t * ROWS + first + r).cast::<f32>().wrapping_add(16 / D::HALVES * h)
        };
        // SAFETY: the caller's word; the columns of each row and token, and their lanes.
        unsafe {
            let mut sums = [[[D::zero(); 2]; T]; R];
            if self.start > 0 {
                for (r, sums) in sums.iter_mut().enumerate() {
                    for (t, sums) in sums.iter_mut().enumerate() {
                        (0..D::HALVES).for_each(|h| sums[h] = D::get(lanes(r, t, h)));
                    }
                }
            }
            for c in (0..whole).step_by(D::COLS) {
                if T == 1 {
                    for w in w {
                        _mm_prefetch::<_MM_HINT_T1>(w.wrapping_add(R * self.rows.row_bytes + c * D::BYTES).cast());
                    }
                }
                let (w, x) = (w.map(|w| w.add(c * D::BYTES)), x.map(|x| x.add(c)));
                (0..D::HALVES).for_each(|h| step::<D, R, T>(&w, &x, h, &mut sums));
            }
            let rest = self.cols - whole;
            if rest > 0 {
                // What is beyond the last column counts as zero.
                let (mut weights, mut acts) = ([[0u8; 64]; R], [[D::Act::default(); 32]; T]);
                for (w, to) in w.iter().zip(&mut weights) {
                    std::ptr::copy_nonoverlapping(w.add(whole * D::BYTES), to.as_mut_ptr(), rest * D::BYTES);
                }
                for (x, to) in x.iter().zip(&mut acts) {
                    std::ptr::copy_nonoverlapping(x.add(whole), to.as_mut_ptr(), rest);
                }
                let (w, x) = (weights.each_ref().map(|w| w.as_ptr()), acts.each_ref().map(|x| x.as_ptr()));
                (0..D::HALVES).for_each(|h| step::<D, R, T>(&w, &x, h, &mut sums));
            }
            for (r, sums) in sums.into_iter().enumerate() {
                for (t, sums) in sums.into_iter().enumerate() {
                    (0..D::HALVES).for_each(|h| D::put(lanes(r, t, h), sums[h]));
                }
            }
        }
    }
}

/// Half `h` of one step of all rows and tokens of a tile; the fewer of both stay in registers.
#[inline(always)]
unsafe fn step<D: Dot, const R: usize, const T: usize>(
    w: &[*const u8; R],
    x: &[*const D::Act; T],
    h: usize,
    sums: &mut [[[D::Sum; 2]; T]; R],
) {
    // SAFETY: the caller's word.
    unsafe {
        if R < T {
            let w: [D::Half; R] = std::array::from_fn(|r| D::weights(w[r], h));
            for (t, x) in x.iter().enumerate() {
                let a = D::activations(*x, h);
                for (r, w) in w.iter().enumerate() {
                    sums[r][t][h] = D::multiply(*w, a, sums[r][t][h]);
                }
            }
        } else {
            let a: [D::Half; T] = std::array::from_fn(|t| D::activations(x[t], h));
            for (r, w) in w.iter().enumerate() {
                let w = D::weights(*w, h);
                for (t, a) in a.iter().enumerate() {
                    sums[r][t][h] = D::multiply(w, *a, sums[r][t][h]);
                }
            }
        }
    }
}
