//! The tier that runs anywhere, over plain rows and panels, and the order of operations that every tier keeps, so that all of them, at any number
//! of tokens, yield the same bits:
//!
//! - K-quants: per block of 256 the exact integers `I = Σ s·q·a` and `C = Σ m·Σa`; then, block after block,
//!   `acc = fma(I, d·da, acc)` and `min = fma(C, dmin·da, min)`; the result is `acc − min` (folded: `acc = fma(I − C, …)`).
//! - Legacy: per block of 32 the exact integer `I = Σ (q − OFFSET)·a`; `acc = fma(I, d·da, acc)`, `min = fma(m, ds, min)`;
//!   the result is `acc + min`.
//! - NVFP4: per 16 the exact integer `I = Σ q·a`; `acc = fma(I, d·da, acc)`.
//! - Floats: sixteen lanes, lane `l` summing columns `16i + l` by fma, then added pairwise at distances 8, 4, 2, 1.

use super::acts::{QuantisedRow, quantise_row as quantise};
use super::blocks::{KBlock, LegacyBlock};
use super::codes;
use super::table::Rows;
use crate::quant::float::widen_f16;
use crate::quant::fp4;
use crate::quant::packed::{LARGEST_BLOCK, ROWS};

/// See [`quantise`].
pub(crate) unsafe fn quantise_row(x: &[f32], block: usize, out: &mut QuantisedRow<'_>) {
    quantise(x, block, out);
}

/// Runs `dot` for every row and token.
///
/// # Safety
/// As [`super::table::Kernel`].
#[inline(always)]
unsafe fn each(rows: &Rows<'_>, dot: impl Fn(usize, usize) -> f32) {
    for r in 0..rows.rows {
        for t in rows.tokens.clone() {
            // SAFETY: the caller's word.
            unsafe { rows.write(t, r, dot(r, t)) };
        }
    }
}

/// Calls `body` with each block of row `r`, in any layout.
#[inline(always)]
fn blocks(rows: &Rows<'_>, bytes: usize, r: usize, mut body: impl FnMut(usize, &[u8])) {
    let Some(cut) = rows.cut else {
        let row = &rows.weights[r * rows.row_bytes..][..rows.row_bytes];
        return row.chunks_exact(bytes).enumerate().for_each(|(b, block)| body(b, block));
    };
    let panel = &rows.weights[r / ROWS * ROWS * rows.row_bytes..][..ROWS * rows.row_bytes];
    let mut buffer = [0; LARGEST_BLOCK];
    for b in 0..rows.row_bytes / bytes {
        cut.block(panel, b, r % ROWS, &mut buffer[..bytes]);
        body(b, &buffer[..bytes]);
    }
}

/// Rows of a K-quant.
///
/// # Safety
/// As [`super::table::Kernel`].
pub(crate) unsafe fn kquant<B: KBlock>(rows: &Rows<'_>) {
    let acts = rows.acts;
    let dot = |r: usize, t: usize| {
        let (mut acc, mut min) = (0.0f32, 0.0f32);
        blocks(rows, B::BYTES, r, |b, block| {
            let parts = B::parts(block);
            let (mut product, mut offset) = (0i32, 0i32);
            let at = acts.column(t, 256 * b);
            for (j, (w, a)) in parts.q.chunks_exact(16).zip(acts.q[at..].chunks_exact(16)).enumerate() {
                let sum: i32 = w.iter().zip(a).map(|(&w, &a)| i32::from(w) * i32::from(a)).sum();
                product += i32::from(parts.s[j]) * sum;
                offset += i32::from(parts.m[j]) * i32::from(acts.sums[at / 16 + j]);
            }
            let scale = acts.scale(t, b);
            if B::FOLDED {
                acc = ((product - offset) as f32).mul_add(parts.d * scale, acc);
            } else {
                acc = (product as f32).mul_add(parts.d * scale, acc);
                min = (offset as f32).mul_add(parts.dmin * scale, min);
            }
        });
        acc - min
    };
    // SAFETY: the caller's word.
    unsafe { each(rows, dot) };
}

/// Rows of a legacy type.
///
/// # Safety
/// As [`super::table::Kernel`].
pub(crate) unsafe fn legacy<B: LegacyBlock>(rows: &Rows<'_>) {
    let acts = rows.acts;
    let dot = |r: usize, t: usize| {
        let (mut acc, mut min) = (0.0f32, 0.0f32);
        blocks(rows, B::BYTES, r, |b, block| {
            let parts = B::parts(block);
            let signed = |w: u8| i32::from(w) - i32::from(B::OFFSET);
            let sum: i32 =
                parts.q.iter().zip(&acts.q[acts.column(t, 32 * b)..]).map(|(&w, &a)| signed(w) * i32::from(a)).sum();
            acc = (sum as f32).mul_add(parts.d * acts.scale(t, b), acc);
            if B::MIN {
                min = parts.m.mul_add(acts.ds[acts.block(t, b)], min);
            }
        });
        acc + min
    };
    // SAFETY: the caller's word.
    unsafe { each(rows, dot) };
}

/// Rows of NVFP4.
///
/// # Safety
/// As [`super::table::Kernel`].
pub(crate) unsafe fn nvfp4(rows: &Rows<'_>) {
    let acts = rows.acts;
    let dot = |r: usize, t: usize| {
        let mut acc = 0.0f32;
        blocks(rows, fp4::NV_BYTES, r, |b, block| {
            let (w, d) = codes::nvfp4(block);
            let a = &acts.q[acts.column(t, 64 * b)..];
            for (g, (w, a)) in w.chunks_exact(16).zip(a.chunks_exact(16)).enumerate() {
                let sum: i32 = w.iter().zip(a).map(|(&w, &a)| i32::from(w) * i32::from(a)).sum();
                acc = (sum as f32).mul_add(d[g] * acts.scale(t, 2 * b + g / 2), acc);
            }
        });
        acc
    };
    // SAFETY: the caller's word.
    unsafe { each(rows, dot) };
}

/// A float type of weights.
pub(crate) trait Float {
    /// Bytes of an element.
    const BYTES: usize;
    /// Decodes an element.
    fn decode(bytes: &[u8]) -> f32;
}

pub(crate) struct F32;
impl Float for F32 {
    const BYTES: usize = 4;
    fn decode(b: &[u8]) -> f32 {
        f32::from_le_bytes([b[0], b[1], b[2], b[3]])
    }
}

pub(crate) struct F16;
impl Float for F16 {
    const BYTES: usize = 2;
    fn decode(b: &[u8]) -> f32 {
        widen_f16(u16::from_le_bytes([b[0], b[1]]))
    }
}

pub(crate) struct Bf16;
impl Float for Bf16 {
    const BYTES: usize = 2;
    fn decode(b: &[u8]) -> f32 {
        f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16)
    }
}

/// Rows of a float type.
///
/// # Safety
/// As [`super::table::Kernel`].
pub(crate) unsafe fn float<T: Float>(rows: &Rows<'_>) {
    let acts = rows.acts;
    let dot = |r: usize, t: usize| {
        let weights = &rows.weights[r * rows.row_bytes..][..rows.row_bytes];
        let x = &acts.x[t * acts.cols..][..acts.cols];
        let mut lanes = [0.0f32; 16];
        for (w, x) in weights.chunks(16 * T::BYTES).zip(x.chunks(16)) {
            for ((lane, w), &x) in lanes.iter_mut().zip(w.chunks_exact(T::BYTES)).zip(x) {
                *lane = T::decode(w).mul_add(x, *lane);
            }
        }
        add_lanes(lanes)
    };
    // SAFETY: the caller's word.
    unsafe { each(rows, dot) };
}

/// Adds sixteen lanes pairwise at distances 8, 4, 2, 1.
#[inline(always)]
pub(crate) fn add_lanes(mut lanes: [f32; 16]) -> f32 {
    for distance in [8, 4, 2, 1] {
        for l in 0..distance {
            lanes[l] += lanes[l + distance];
        }
    }
    lanes[0]
}
