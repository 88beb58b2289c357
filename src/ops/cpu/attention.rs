//! Attention over the paged cache, tile by tile with a running softmax (FlashAttention, arXiv 2205.14135), never a
//! matrix of scores.
//!
//! A work item is one sequence's KV head with all its query heads for a few tokens, so that a decoded block of keys and
//! values serves them all from L1. Positions are taken in blocks of [`KV_BLOCK`] within splits of [`SPLIT`], both at
//! absolute positions; a split yields maximum, sum and weighted values, and splits are joined in order. So a token's
//! result depends neither on how a prompt was cut nor on the number of threads. When there are few items (decoding at a
//! long context), the splits of one item are computed by different threads and joined in a second region.

use super::acts::Parts;
use super::pool::Pool;
use super::vector::Functions;
use crate::ops::{Attention, KV_BLOCK, KvLayer, SeqSlice, f32_bytes, visible_from};
use crate::quant::DType;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Positions of a split.
const SPLIT: usize = 512;
/// Queries (heads times tokens) that share a decoded block.
const QUERIES: usize = 32;

/// Buffers kept between calls: one per thread that ever worked at once, and the partial results of split items. Made for
/// a model they never grow; made empty they do.
#[derive(Default)]
pub(crate) struct Buffers {
    free: Mutex<Vec<Workspace>>,
    partials: Mutex<Vec<f32>>,
    fixed: bool,
}

/// What attention's buffers are sized for.
#[derive(Clone, Copy, Debug)]
pub struct AttentionSize {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Dimensions of a key.
    pub key_dim: usize,
    /// Dimensions of a value.
    pub value_dim: usize,
    /// Tokens of the whole cache.
    pub kv_tokens: usize,
}

impl AttentionSize {
    /// Bytes that the buffers of `threads` threads take.
    pub fn bytes(&self, threads: usize) -> u64 {
        let per_thread: u64 = self.workspace().iter().map(|&n| f32_bytes(n)).sum();
        per_thread.saturating_mul(threads as u64).saturating_add(f32_bytes(self.partials(threads)))
    }

    /// Elements of a [`Workspace`]'s buffers, in the order of its fields.
    fn workspace(&self) -> [usize; 4] {
        let states = queries(self.heads / self.kv_heads) * state_len(self.value_dim);
        [KV_BLOCK * self.key_dim, KV_BLOCK * self.value_dim, states, states]
    }

    /// Elements of the partial results when every sequence decodes: items are split when there are fewer than two per
    /// thread, and all their splits together are those of the cache and one begun by each sequence. What needs more (the
    /// prefix of many sequences at once, a chunk behind a long prompt) is computed item by item, with the same bits.
    fn partials(&self, threads: usize) -> usize {
        let sequences = (2 * threads).div_ceil(self.kv_heads);
        let splits = (self.kv_tokens / SPLIT).saturating_add(sequences);
        splits.saturating_mul(self.heads * state_len(self.value_dim))
    }
}

/// Queries of the largest item, with `group` query heads per KV head.
fn queries(group: usize) -> usize {
    (QUERIES / group).max(1) * group
}

/// Elements of a query's running state: weighted values, maximum, sum.
fn state_len(value_dim: usize) -> usize {
    value_dim + 2
}

/// What one thread needs for an item.
#[derive(Default)]
struct Workspace {
    keys: Vec<f32>,
    values: Vec<f32>,
    /// State of the split being computed and of the ones before: `[queries, value_dim + 2]` each.
    split: Vec<f32>,
    total: Vec<f32>,
}

/// One KV head's queries of a few tokens.
struct Item {
    seq: usize,
    head: usize,
    /// Rows within the sequence.
    rows: Range<usize>,
    /// Splits seen by any of them.
    splits: Range<usize>,
    /// Where its partial results start, in splits' states.
    partial: usize,
}

/// What all items share.
struct Job<'a> {
    q: &'a [f32],
    kv: &'a KvLayer<'a>,
    seqs: &'a [SeqSlice<'a>],
    heads: usize,
    group: usize,
    scale: f32,
    window: Option<usize>,
    out: Parts<f32>,
    f: Functions,
}

/// Computes `args` on `pool`.
pub(crate) fn attention(args: Attention<'_>, f: &Functions, pool: &Pool, buffers: &Buffers) {
    args.check();
    let shape = args.kv.shape;
    let group = args.heads / shape.kv_heads;
    let out = Parts::new(args.out);
    let (q, kv, seqs, heads) = (args.q, args.kv, args.seqs, args.heads);
    let job = Job { q, kv, seqs, heads, group, scale: args.scale, window: args.window, out, f: *f };
    let items = job.items();
    let state = job.state_len();
    let splits: usize = items.iter().map(|item| item.splits.len()).sum();
    let slot = items.iter().map(|item| job.queries(item)).max().unwrap_or(0) * state;
    let mut partials = buffers.partials.lock().unwrap_or_else(PoisonError::into_inner);
    let room = !buffers.fixed || splits * slot <= partials.len();
    if items.len() >= 2 * pool.threads() || splits == items.len() || pool.threads() == 1 || !room {
        return pool.run(items.len(), 1, &|range| {
            buffers.with(|workspace| range.for_each(|i| job.whole(&items[i], workspace)));
        });
    }
    if partials.len() < splits * slot {
        partials.resize(splits * slot, 0.0);
    }
    let each: Vec<(usize, usize)> =
        items.iter().enumerate().flat_map(|(i, item)| item.splits.clone().map(move |s| (i, s))).collect();
    let parts = Parts::new(&mut partials);
    pool.run(splits, 1, &|range| {
        buffers.with(|workspace| {
            for &(i, split) in &each[range.clone()] {
                let item = &items[i];
                let at = (item.partial + split - item.splits.start) * slot;
                // SAFETY: each split's slot is written by the one thread that takes it.
                let out = unsafe { parts.part(at, job.queries(item) * state) };
                job.split(item, split, workspace, out);
            }
        });
    });
    pool.run(items.len(), 1, &|range| {
        for item in &items[range] {
            let n = job.queries(item) * state;
            // SAFETY: each item's slots are read and joined by the one thread that takes it.
            let slots: Vec<&mut [f32]> =
                (0..item.splits.len()).map(|s| unsafe { parts.part((item.partial + s) * slot, n) }).collect();
            let mut slots = slots.into_iter();
            let Some(total) = slots.next() else { continue };
            slots.for_each(|next| job.join(total, next));
            job.finish(item, total);
        }
    });
}

impl Buffers {
    /// Buffers for `threads` threads.
    pub(crate) fn new(size: &AttentionSize, threads: usize) -> Buffers {
        let [keys, values, split, total] = size.workspace();
        let workspace = || Workspace {
            keys: Vec::with_capacity(keys),
            values: Vec::with_capacity(values),
            split: Vec::with_capacity(split),
            total: Vec::with_capacity(total),
        };
        let free = (0..threads).map(|_| workspace()).collect();
        Buffers { free: Mutex::new(free), partials: Mutex::new(vec![0.0; size.partials(threads)]), fixed: true }
    }

    /// Bytes reserved; no call may be under way.
    pub(crate) fn reserved(&self) -> u64 {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let elements =
            |w: &Workspace| w.keys.capacity() + w.values.capacity() + w.split.capacity() + w.total.capacity();
        let partials = self.partials.lock().unwrap_or_else(PoisonError::into_inner).capacity();
        f32_bytes(partials + free.iter().map(elements).sum::<usize>())
    }

    /// Runs `work` with a workspace of its own.
    fn with(&self, work: impl FnOnce(&mut Workspace)) {
        let free = || self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let mut workspace = free().pop().unwrap_or_default();
        work(&mut workspace);
        free().push(workspace);
    }
}

impl Job<'_> {
    /// See [`state_len`].
    fn state_len(&self) -> usize {
        state_len(self.kv.shape.value_dim)
    }

    /// Queries of an item.
    fn queries(&self, item: &Item) -> usize {
        item.rows.len() * self.group
    }

    /// Cuts the batch to items.
    fn items(&self) -> Vec<Item> {
        let tile = queries(self.group) / self.group;
        let mut items = Vec::new();
        let mut partial = 0;
        for (s, seq) in self.seqs.iter().enumerate() {
            for head in 0..self.kv.shape.kv_heads {
                for first in (0..seq.rows).step_by(tile) {
                    let rows = first..(first + tile).min(seq.rows);
                    let from = visible_from(seq.start + rows.start, self.window) / SPLIT;
                    let splits = from..(seq.start + rows.end).div_ceil(SPLIT);
                    let count = splits.len();
                    items.push(Item { seq: s, head, rows, splits, partial });
                    partial += count;
                }
            }
        }
        items
    }

    /// An item from its first split to the output.
    fn whole(&self, item: &Item, workspace: &mut Workspace) {
        let n = self.queries(item) * self.state_len();
        let mut total = std::mem::take(&mut workspace.total);
        let mut split = std::mem::take(&mut workspace.split);
        total.resize(n, 0.0);
        split.resize(n, 0.0);
        self.split(item, item.splits.start, workspace, &mut total);
        for s in item.splits.clone().skip(1) {
            self.split(item, s, workspace, &mut split);
            self.join(&mut total, &split);
        }
        self.finish(item, &total);
        (workspace.total, workspace.split) = (total, split);
    }

    /// The state of an item's queries over one split.
    fn split(&self, item: &Item, split: usize, workspace: &mut Workspace, state: &mut [f32]) {
        let shape = &self.kv.shape;
        let seq = &self.seqs[item.seq];
        for state in state.chunks_exact_mut(self.state_len()) {
            state.fill(0.0);
            state[shape.value_dim] = f32::NEG_INFINITY;
        }
        let first_seen = visible_from(seq.start + item.rows.start, self.window).max(split * SPLIT);
        let end = (seq.start + item.rows.end).min((split + 1) * SPLIT);
        for block in first_seen / KV_BLOCK..end.div_ceil(KV_BLOCK) {
            let begin = block * KV_BLOCK;
            let count = (end - begin).min(KV_BLOCK);
            self.decode(seq.blocks[block] as usize, item.head, count, workspace);
            for row in item.rows.clone() {
                let position = seq.start + row;
                let from = visible_from(position, self.window).max(begin);
                let to = (position + 1).min(begin + count);
                if from >= to {
                    continue;
                }
                for head in 0..self.group {
                    let query = (row - item.rows.start) * self.group + head;
                    let q = (seq.first_row + row) * self.heads + item.head * self.group + head;
                    let q = &self.q[q * shape.key_dim..][..shape.key_dim];
                    let state = &mut state[query * self.state_len()..][..self.state_len()];
                    self.attend(q, workspace, from - begin..to - begin, state);
                }
            }
        }
    }

    /// Decodes the first `count` keys and values of a head in one block.
    fn decode(&self, block: usize, head: usize, count: usize, workspace: &mut Workspace) {
        let shape = &self.kv.shape;
        let slot = (block * shape.kv_heads + head) * KV_BLOCK;
        for (bytes, width, out) in [
            (&*self.kv.keys, shape.key_dim, &mut workspace.keys),
            (&*self.kv.values, shape.value_dim, &mut workspace.values),
        ] {
            out.resize(KV_BLOCK * width, 0.0);
            let size = shape.element_bytes();
            let bytes = &bytes[slot * width * size..][..count * width * size];
            let out = &mut out[..count * width];
            if shape.dtype == DType::F16 {
                // SAFETY: the functions suit this host.
                unsafe { (self.f.widen)(bytes, out) };
            } else {
                let elements = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
                out.iter_mut().zip(elements).for_each(|(out, x)| *out = x);
            }
        }
    }

    /// Adds the decoded positions `seen` to a query's state.
    fn attend(&self, q: &[f32], workspace: &Workspace, seen: Range<usize>, state: &mut [f32]) {
        let shape = &self.kv.shape;
        let (values, last) = state.split_at_mut(shape.value_dim);
        let mut scores = [0.0f32; KV_BLOCK];
        let scores = &mut scores[..seen.len()];
        let keys = &workspace.keys[seen.start * shape.key_dim..seen.end * shape.key_dim];
        // SAFETY: the functions suit this host.
        unsafe { (self.f.scores)(q, keys, self.scale, scores) };
        let max = scores.iter().copied().fold(last[0], f32::max);
        let keep = shrink(last[0], max);
        let decoded = &workspace.values[seen.start * shape.value_dim..seen.end * shape.value_dim];
        // SAFETY: the functions suit this host.
        let sum = unsafe { (self.f.exp_sum)(scores, max) };
        // SAFETY: as above.
        unsafe { (self.f.weigh)(values, keep, scores, decoded) };
        last[0] = max;
        last[1] = last[1].mul_add(keep, sum);
    }

    /// Joins the states of two adjacent splits into the first.
    fn join(&self, total: &mut [f32], next: &[f32]) {
        let width = self.kv.shape.value_dim;
        for (total, next) in total.chunks_exact_mut(width + 2).zip(next.chunks_exact(width + 2)) {
            let max = total[width].max(next[width]);
            let (a, b) = (shrink(total[width], max), shrink(next[width], max));
            // SAFETY: the functions suit this host.
            unsafe { (self.f.blend)(&mut total[..width], a, &next[..width], b) };
            total[width + 1] = next[width + 1].mul_add(b, total[width + 1] * a);
            total[width] = max;
        }
    }

    /// Divides by the sums and writes the output.
    fn finish(&self, item: &Item, total: &[f32]) {
        let width = self.kv.shape.value_dim;
        let first = self.seqs[item.seq].first_row + item.rows.start;
        for (query, state) in total.chunks_exact(width + 2).enumerate() {
            let (row, head) = (first + query / self.group, item.head * self.group + query % self.group);
            // SAFETY: each query's output belongs to one item.
            let out = unsafe { self.out.part((row * self.heads + head) * width, width) };
            let scale = 1.0 / state[width + 1];
            out.iter_mut().zip(state).for_each(|(out, &v)| *out = v * scale);
        }
    }
}

/// `exp(from − to)`, 0 where nothing was seen before.
fn shrink(from: f32, to: f32) -> f32 {
    if from == f32::NEG_INFINITY { 0.0 } else { (from - to).exp() }
}
