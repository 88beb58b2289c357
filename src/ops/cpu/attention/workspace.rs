//! Attention's memory: what a thread needs for an item, and the partial results of split items. Sized when a model is
//! loaded, and counted exactly before; without a model it grows as needed.

use super::queries::{Queries, grow};
use super::rows::Rows;
use super::{LEAST_GROUP, QUERIES, SPLIT, tile_queries};
use crate::ops::kv::value_width;
use crate::ops::{KV_BLOCK, KvShape, f32_bytes};
use std::sync::{Mutex, PoisonError};

/// Buffers kept between calls: one workspace per thread that ever worked at once, and the partial results. Made for a
/// model they never grow; made empty they do.
#[derive(Default)]
pub(crate) struct Buffers {
    free: Mutex<Vec<Workspace>>,
    partials: Mutex<Vec<f32>>,
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
    /// A latent cache's block, decoded.
    pub(super) rows: Rows,
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

/// What attention's buffers are sized for.
#[derive(Clone, Copy, Debug)]
pub struct AttentionSize {
    /// Query heads.
    pub heads: usize,
    /// One layer's cache.
    pub shape: KvShape,
    /// Tokens of the whole cache.
    pub kv_tokens: usize,
    /// Elements of the queries of [`super::super::Cpu::expanded_attention`]; 0 where it is not called.
    pub expanded_key: usize,
}

impl AttentionSize {
    /// Bytes that the buffers of `threads` threads take.
    pub fn bytes(&self, threads: usize) -> u64 {
        let n = self.queries();
        let rows = KV_BLOCK * if self.shape.latent { self.shape.key_dim } else { 0 };
        let numbers = n * KV_BLOCK + 2 * room(n) + 2 * State::len(n, self.width()) + rows;
        let (floats, bytes, scales) = Queries::len(n, self.key_dim(), self.quantised());
        let per_thread = f32_bytes(numbers + floats + 2 * scales) + bytes as u64;
        per_thread.saturating_mul(threads as u64).saturating_add(f32_bytes(self.partials(threads)))
    }

    /// Queries of the largest item.
    fn queries(&self) -> usize {
        if self.shape.latent { QUERIES } else { tile_queries(self.group()) }
    }

    /// Query heads of a KV head.
    fn group(&self) -> usize {
        self.heads / self.shape.kv_heads
    }

    /// Elements of the longest queries.
    fn key_dim(&self) -> usize {
        self.shape.key_dim.max(self.expanded_key)
    }

    fn width(&self) -> usize {
        value_width(self.shape.value_dim)
    }

    fn quantised(&self) -> bool {
        self.shape.key_type.block_len() > 1 && !self.shape.latent
    }

    /// A thread's workspace for any item.
    fn workspace(&self) -> Workspace {
        let (n, state) = (self.queries(), State::len(self.queries(), self.width()));
        let (total, next) = (vec![0.0; state], vec![0.0; state]);
        let mut workspace = Workspace { total, next, ..Workspace::default() };
        workspace.reserve(n, self.key_dim(), self.quantised());
        if self.shape.latent {
            workspace.rows.reset(self.shape.key_dim);
        }
        workspace
    }

    /// Numbers of the partial results when every sequence decodes: items are split when there are fewer than two per
    /// thread, and all their splits together are those of the cache and one begun by each sequence. What needs more (the
    /// prefix of many sequences at once, a chunk behind a long prompt) is computed item by item, with the same bits.
    fn partials(&self, threads: usize) -> usize {
        if threads == 1 {
            return 0;
        }
        // A latent's heads are cut to groups, of which the smallest have the most room between them.
        let (parts, group) = match self.shape.latent {
            true => (self.heads.div_ceil(LEAST_GROUP), LEAST_GROUP.min(self.heads)),
            false => (self.shape.kv_heads, self.group()),
        };
        let sequences = (2 * threads).div_ceil(self.shape.kv_heads);
        let splits = (self.kv_tokens / SPLIT).saturating_add(sequences);
        splits.saturating_mul(parts * State::len(group, self.width()))
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

    fn reserved(&self) -> u64 {
        let Workspace { queries, scores, keep, factor, rows, total, next } = self;
        let numbers: usize = [scores, keep, factor, &rows.data, total, next].iter().map(|v| v.capacity()).sum();
        queries.reserved() + f32_bytes(numbers)
    }
}

impl Buffers {
    /// Buffers for `threads` threads.
    pub(crate) fn new(size: &AttentionSize, threads: usize) -> Buffers {
        let free = (0..threads).map(|_| size.workspace()).collect();
        Buffers { free: Mutex::new(free), partials: Mutex::new(vec![0.0; size.partials(threads)]), fixed: true }
    }

    /// Bytes reserved; no call may be under way.
    pub(crate) fn reserved(&self) -> u64 {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let partials = self.partials.lock().unwrap_or_else(PoisonError::into_inner);
        free.iter().map(Workspace::reserved).sum::<u64>() + f32_bytes(partials.capacity())
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
