//! A matrix for each head, and moving heads between the two orders that activations have: `[tokens, heads, width]` as
//! products of whole layers yield them, `[heads, tokens, width]` as products with a matrix for each head want them.

use super::Tensor;
use std::ops::Range;

/// Part of each head of activations.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    order: Order,
    /// Elements of a head.
    pub(crate) width: usize,
    /// The first of them that is meant.
    pub(crate) first: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    ByToken,
    ByHead,
    Shared,
}

impl Heads {
    /// `[tokens, heads, width]`, from element `first` on.
    pub fn by_token(width: usize, first: usize) -> Heads {
        Heads { order: Order::ByToken, width, first }
    }

    /// `[heads, tokens, width]`, from element `first` on.
    pub fn by_head(width: usize, first: usize) -> Heads {
        Heads { order: Order::ByHead, width, first }
    }

    /// `[tokens, width]`, from element `first` on: the same for all heads. To copy from, not to.
    pub fn shared(width: usize, first: usize) -> Heads {
        Heads { order: Order::Shared, width, first }
    }

    /// Elements of `tokens` tokens and `heads` heads.
    pub(crate) fn len(&self, tokens: usize, heads: usize) -> usize {
        tokens * self.width * if self.order == Order::Shared { 1 } else { heads }
    }

    /// Where the part begins.
    pub(crate) fn at(&self, token: usize, head: usize, tokens: usize, heads: usize) -> usize {
        let nth = match self.order {
            Order::ByToken => token * heads + head,
            Order::ByHead => head * tokens + token,
            Order::Shared => token,
        };
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
