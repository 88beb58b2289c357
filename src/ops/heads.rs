//! A matrix for each head, and moving heads between the two orders that activations have: `[tokens, heads, width]` as
//! products of whole layers yield them, `[heads, tokens, width]` as products with a matrix for each head want them.

use super::Tensor;
use std::ops::Range;

/// Part of each head of activations.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    /// Order `[heads, tokens, width]` instead of `[tokens, heads, width]`.
    pub by_head: bool,
    /// Elements of a head.
    pub width: usize,
    /// The first of them that is meant.
    pub first: usize,
}

impl Heads {
    /// `[tokens, heads, width]`, from element `first` on.
    pub fn by_token(width: usize, first: usize) -> Heads {
        Heads { by_head: false, width, first }
    }

    /// `[heads, tokens, width]`.
    pub fn by_head(width: usize) -> Heads {
        Heads { by_head: true, width, first: 0 }
    }

    /// Where the part begins.
    pub(crate) fn at(&self, token: usize, head: usize, tokens: usize, heads: usize) -> usize {
        let nth = if self.by_head { head * tokens + token } else { token * heads + head };
        nth * self.width + self.first
    }
}

/// Products with a stack of a matrix per head: `out[h, t, r] = Σ_c weight[h, rows.start + r, c] · x[h, t, c]`.
pub struct HeadMatMul<'a> {
    /// `[heads * stride, cols]`: matrix after matrix.
    pub weight: &'a Tensor,
    /// Heads.
    pub heads: usize,
    /// Those of each matrix that are wanted; a matrix has `weight.rows / heads`.
    pub rows: Range<usize>,
    /// `[heads, tokens, rows]`.
    pub out: &'a mut [f32],
}

impl HeadMatMul<'_> {
    /// Bytes that must move: weights and outputs once.
    pub fn bytes_moved(&self) -> u64 {
        (self.heads * self.rows.len() * self.weight.row_bytes()) as u64 + super::f32_bytes(self.out.len())
    }

    /// Multiplications and additions.
    pub fn operations(&self) -> u64 {
        2 * (self.out.len() * self.weight.cols) as u64
    }
}
