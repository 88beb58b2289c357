//! Attention's memory: what a thread needs for an item, and the partial results of split items. Sized when a model is
//! loaded; without that it grows as needed.

use super::queries::{Queries, grow};
use super::{SPLIT, tile_queries};
use crate::ops::kv::value_width;
use crate::ops::{KV_BLOCK, KvShape};
use std::sync::{Mutex, PoisonError};

/// Buffers kept between calls: one workspace per thread that ever worked at once, and the partial results.
#[derive(Default)]
pub(crate) struct Buffers {
    free: Mutex<Vec<Workspace>>,
    partials: Mutex<Vec<f32>>,
    /// Sized once: nothing grows any more.
    fixed: bool,
}

/// What one thread needs for an item.
#[derive(Default)]
pub(super) struct Workspace {
    pub(super) queries: Queries,
    /// `[queries][32]`.
    pub(super) scores: Vec<f32>,
    pub(super) keep: Vec<f32>,
    pub(super) factor: Vec<f32>,
    /// States of the splits so far and of the one being computed.
    pub(super) total: Vec<f32>,
    pub(super) next: Vec<f32>,
}

/// The running state of some queries: weighted values, maxima, sums.
pub(super) struct State<'a> {
    /// `[queries][width]`.
    pub(super) out: &'a mut [f32],
    pub(super) max: &'a mut [f32],
    pub(super) sum: &'a mut [f32],
}

/// Numbers per query with room for whole vectors behind any of them.
fn room(n: usize) -> usize {
    n + 16
}

impl<'a> State<'a> {
    /// Numbers of a state of `n` queries.
    pub(super) fn len(n: usize, width: usize) -> usize {
        n * width + 2 * room(n)
    }

    /// A state in the first numbers of `memory`.
    pub(super) fn new(memory: &'a mut [f32], n: usize, width: usize) -> State<'a> {
        let (out, rest) = memory.split_at_mut(n * width);
        let (max, rest) = rest.split_at_mut(room(n));
        State { out, max, sum: &mut rest[..room(n)] }
    }
}

impl Workspace {
    /// Room for `n` queries of `dim` dimensions.
    pub(super) fn reserve(&mut self, n: usize, dim: usize, quantised: bool) {
        self.queries.reserve(n, dim, quantised);
        grow(&mut self.scores, n * KV_BLOCK);
        grow(&mut self.keep, room(n));
        grow(&mut self.factor, room(n));
    }

    fn bytes(&self) -> usize {
        let Workspace { queries, scores, keep, factor, total, next } = self;
        let numbers: usize = [scores, keep, factor, total, next].iter().map(|v| v.capacity()).sum();
        queries.bytes() + 4 * numbers
    }
}

impl Buffers {
    /// Buffers for `threads` threads over caches of `shape` with `heads` query heads and sequences up to `context`. A
    /// batch whose partial results would not fit is computed item by item instead.
    pub(crate) fn sized(threads: usize, shape: &KvShape, heads: usize, context: usize) -> Buffers {
        let (group, width) = (heads / shape.kv_heads.max(1), value_width(shape.value_dim));
        let n = tile_queries(group.max(1));
        let workspace = || {
            let mut workspace = Workspace::default();
            workspace.reserve(n, shape.key_dim, shape.key_type.block_len() > 1);
            grow(&mut workspace.total, State::len(n, width));
            grow(&mut workspace.next, State::len(n, width));
            workspace
        };
        // One token's items are split when they are fewer than twice the threads.
        let items = (2 * threads).saturating_sub(1);
        let partials = if threads == 1 { 0 } else { items * context.div_ceil(SPLIT) * State::len(group, width) };
        Buffers {
            free: Mutex::new((0..threads).map(|_| workspace()).collect()),
            partials: Mutex::new(vec![0.0; partials]),
            fixed: true,
        }
    }

    /// Bytes allocated.
    pub(crate) fn bytes(&self) -> usize {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let partials = self.partials.lock().unwrap_or_else(PoisonError::into_inner);
        free.iter().map(Workspace::bytes).sum::<usize>() + 4 * partials.capacity()
    }

    /// Runs `work` with a workspace of its own.
    pub(super) fn with(&self, work: impl FnOnce(&mut Workspace)) {
        let free = || self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let mut workspace = free().pop().unwrap_or_default();
        work(&mut workspace);
        free().push(workspace);
    }

    /// Runs `work` with room for `n` numbers of partial results; false where there is not so much.
    pub(super) fn with_partials(&self, n: usize, work: impl FnOnce(&mut [f32])) -> bool {
        let mut partials = self.partials.lock().unwrap_or_else(PoisonError::into_inner);
        if partials.len() < n {
            if self.fixed {
                return false;
            }
            grow(&mut partials, n);
        }
        work(&mut partials[..n]);
        true
    }
}
