//! Attention over the paged cache, block by block with a running softmax (FlashAttention, arXiv 2205.14135), never a
//! matrix of scores.
//!
//! A work item is one sequence's KV head with all its query heads for a few tokens, so that a block's keys and values are
//! read once for all of them. Blocks that all its queries see whole are one tile; on the diagonal and at a window's edge
//! each token takes what it sees. Positions are taken in blocks of [`KV_BLOCK`] within splits of [`SPLIT`], both at
//! absolute positions; a split yields maxima, sums and weighted values, and splits are joined in order. So a token's
//! result depends neither on how a prompt was cut nor on the number of threads, nor on the tier. When there are few items
//! (decoding at a long context), the splits of an item are computed by different threads; the last one joins them.
//! Sinks join at the very end.
//!
//! Latent caches: see [`rows`].

mod expanded;
mod kernels;
pub(super) mod lanes;
mod quantised;
mod queries;
mod rows;
mod tier;
mod workspace;
mod write;

pub(crate) use expanded::expanded;
pub use expanded::expanded_states;
pub(crate) use lanes::Lanes;
pub(crate) use tier::Tier;
pub use workspace::AttentionSize;
pub(crate) use workspace::Buffers;
pub(super) use write::kv_write;

use super::acts::Parts;
use super::pool::Pool;
use crate::ops::kv::value_width;
use crate::ops::{Attention, KV_BLOCK, KvLayer, SeqSlice, visible_from};
use kernels::{START, Scores, Softmax, Step, Values, Weights};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use workspace::{State, Workspace};

/// Positions of a split.
const SPLIT: usize = 512;
/// Queries (heads times tokens) that share a block's keys and values, where one token's heads are not more.
const QUERIES: usize = 48;

/// Heads of an item over a latent cache at least: its decoding must pay.
const LEAST_GROUP: usize = 4;

/// One KV head's queries of a few tokens, or of a group of heads over a latent cache.
struct Item {
    seq: usize,
    head: usize,
    /// Rows within the sequence.
    rows: Range<usize>,
    /// Splits seen by any of them.
    splits: Range<usize>,
    /// Where its partial results start, in numbers.
    partial: usize,
}

/// What all items share.
struct Job<'a> {
    q: &'a [f32],
    kv: &'a KvLayer<'a>,
    seqs: &'a [SeqSlice<'a>],
    heads: usize,
    group: usize,
    /// The caller's, times log₂e.
    scale: f32,
    window: Option<usize>,
    /// `[heads]`, times log₂e when they are used.
    sinks: Option<&'a [f32]>,
    out: Parts<f32>,
    tier: &'a Tier,
    scores: Scores,
    values: Values,
    softmax: Softmax,
}

/// Computes `args` on `pool`.
pub(super) fn attention(args: Attention<'_>, tier: &Tier, pool: &Pool, buffers: &Buffers) {
    args.check();
    let shape = args.kv.shape;
    let job = Job {
        q: args.q,
        kv: args.kv,
        seqs: args.seqs,
        heads: args.heads,
        group: if shape.latent { latent_group(&args, pool.threads()) } else { args.heads / shape.kv_heads },
        scale: args.scale * std::f32::consts::LOG2_E,
        window: args.window,
        sinks: args.sinks,
        out: Parts::new(args.out),
        tier,
        scores: (tier.scores)(shape.key_type),
        values: (tier.values)(shape.value_type),
        softmax: tier.softmax,
    };
    let (items, partial) = job.items();
    let splits: usize = items.iter().map(|item| item.splits.len()).sum();
    let alone = items.len() >= 2 * pool.threads() || splits == items.len() || pool.threads() == 1;
    let joined = !alone && buffers.with_partials(partial, |partials| job.in_splits(&items, partials, pool, buffers));
    if !joined {
        pool.run(items.len(), 1, &|range| {
            buffers.with(|workspace| range.for_each(|i| job.whole(&items[i], workspace)));
        });
    }
}

/// Heads of an item over a latent cache, which all heads share: as many as make a whole tile, fewer where a thread would
/// have nothing to do.
fn latent_group(args: &Attention<'_>, threads: usize) -> usize {
    let splits = |seq: &SeqSlice<'_>| seq.rows * (seq.start + seq.rows).div_ceil(SPLIT);
    let each: usize = args.seqs.iter().map(splits).sum();
    let fits = |group: &usize| args.heads.is_multiple_of(*group);
    let enough = |group: &usize| args.heads / group * each >= threads;
    let mut groups = (1..=QUERIES).rev().filter(fits).filter(|group| *group >= LEAST_GROUP.min(args.heads));
    let largest = groups.next().unwrap_or(1);
    if enough(&largest) { largest } else { groups.find(enough).unwrap_or(largest) }
}

/// Queries of an item at most.
fn tile_queries(group: usize) -> usize {
    (QUERIES / group).max(1) * group
}

impl Job<'_> {
    /// Cuts the batch to items; and how many numbers the partial results of all their splits are.
    fn items(&self) -> (Vec<Item>, usize) {
        let tile = tile_queries(self.group) / self.group;
        let (mut items, mut partial) = (Vec::new(), 0);
        for (s, seq) in self.seqs.iter().enumerate() {
            for head in 0..self.heads / self.group {
                for first in (0..seq.rows).step_by(tile) {
                    let rows = first..(first + tile).min(seq.rows);
                    let from = visible_from(seq.start + rows.start, self.window) / SPLIT;
                    let splits = from..(seq.start + rows.end).div_ceil(SPLIT);
                    let own = splits.len() * State::len(rows.len() * self.group, self.width());
                    items.push(Item { seq: s, head, rows, splits, partial });
                    partial += own;
                }
            }
        }
        (items, partial)
    }

    /// Elements of a stored value.
    fn width(&self) -> usize {
        value_width(self.kv.shape.value_dim)
    }

    /// Queries of an item.
    fn queries(&self, item: &Item) -> usize {
        item.rows.len() * self.group
    }

    /// All items, their splits dealt to all threads.
    fn in_splits(&self, items: &[Item], partials: &mut [f32], pool: &Pool, buffers: &Buffers) {
        let each: Vec<(usize, usize)> =
            items.iter().enumerate().flat_map(|(i, item)| item.splits.clone().map(move |s| (i, s))).collect();
        let left: Vec<AtomicUsize> = items.iter().map(|item| AtomicUsize::new(item.splits.len())).collect();
        let parts = Parts::new(partials);
        pool.run(each.len(), 1, &|range| {
            buffers.with(|workspace| {
                for &(i, split) in &each[range.clone()] {
                    let item = &items[i];
                    let n = self.queries(item);
                    let len = State::len(n, self.width());
                    let at = item.partial + (split - item.splits.start) * len;
                    // SAFETY: each split's numbers are written by the one thread that takes it.
                    let mut state = State::new(unsafe { parts.part(at, len) }, n, self.width());
                    self.ready(item, workspace);
                    self.split(item, split, workspace, &mut state);
                    // The last one to come by joins: it sees what the others wrote before they counted down.
                    if left[i].fetch_sub(1, Ordering::AcqRel) == 1 {
                        // SAFETY: all splits of this item are done, nobody else touches them.
                        let all = unsafe { parts.part(item.partial, item.splits.len() * len) };
                        let (total, rest) = all.split_at_mut(len);
                        let mut total = State::new(total, n, self.width());
                        for next in rest.chunks_exact_mut(len) {
                            self.join(&mut total, &State::new(next, n, self.width()));
                        }
                        self.finish(item, &total);
                    }
                }
            });
        });
    }

    /// An item from its first split to the output.
    fn whole(&self, item: &Item, workspace: &mut Workspace) {
        let (n, width) = (self.queries(item), self.width());
        let mut total = std::mem::take(&mut workspace.total);
        let mut next = std::mem::take(&mut workspace.next);
        queries::grow(&mut total, State::len(n, width));
        queries::grow(&mut next, State::len(n, width));
        let mut sum = State::new(&mut total, n, width);
        self.ready(item, workspace);
        self.split(item, item.splits.start, workspace, &mut sum);
        for s in item.splits.clone().skip(1) {
            let mut state = State::new(&mut next, n, width);
            self.split(item, s, workspace, &mut state);
            self.join(&mut sum, &state);
        }
        self.finish(item, &sum);
        (workspace.total, workspace.next) = (total, next);
    }

    /// Makes an item's queries ready.
    fn ready(&self, item: &Item, workspace: &mut Workspace) {
        let shape = &self.kv.shape;
        let quantised = shape.key_type.block_len() > 1 && !shape.latent;
        workspace.reserve(self.queries(item), shape.key_dim, quantised);
        workspace.rows.reset(if shape.latent { shape.key_dim } else { 0 });
        let first = self.seqs[item.seq].first_row + item.rows.start;
        for i in 0..self.queries(item) {
            let at = (first + i / self.group) * self.heads + item.head * self.group + i % self.group;
            let x = &self.q[at * shape.key_dim..][..shape.key_dim];
            // SAFETY: the functions suit this host.
            unsafe { (self.tier.ready)(x, self.scale, &mut workspace.queries, i, quantised) };
        }
    }

    /// The state of an item's queries over one split.
    fn split(&self, item: &Item, split: usize, workspace: &mut Workspace, state: &mut State<'_>) {
        let seq = &self.seqs[item.seq];
        state.out.fill(0.0);
        state.max.fill(START);
        state.sum.fill(0.0);
        let (first, last) = (seq.start + item.rows.start, seq.start + item.rows.end - 1);
        let start = visible_from(first, self.window).max(split * SPLIT);
        let end = (last + 1).min((split + 1) * SPLIT);
        for block in start / KV_BLOCK..end.div_ceil(KV_BLOCK) {
            let begin = block * KV_BLOCK;
            let next = if begin + KV_BLOCK < end { block + 1 } else { block };
            let place = [seq.blocks[block] as usize, seq.blocks[next] as usize];
            if visible_from(last, self.window) <= begin && begin + KV_BLOCK <= first + 1 {
                self.block(item.head, place, 0..self.queries(item), 0..KV_BLOCK, workspace, state);
                continue;
            }
            for row in item.rows.clone() {
                let position = seq.start + row;
                let from = visible_from(position, self.window).max(begin);
                let to = (position + 1).min(begin + KV_BLOCK);
                if from < to {
                    let query = (row - item.rows.start) * self.group;
                    let seen = from - begin..to - begin;
                    self.block(item.head, place, query..query + self.group, seen, workspace, state);
                }
            }
        }
    }

    /// Adds the positions `seen` of a block to some queries' state; `place` is the block's and the next one's.
    fn block(
        &self,
        head: usize,
        place: [usize; 2],
        n: Range<usize>,
        seen: Range<usize>,
        workspace: &mut Workspace,
        state: &mut State<'_>,
    ) {
        let (shape, width) = (&self.kv.shape, self.width());
        if shape.latent {
            return self.latent_block(place[0], n, seen, workspace, state);
        }
        let [keys, next_keys] = place.map(|b| &self.kv.keys[(b * shape.kv_heads + head) * shape.key_head_bytes()..]);
        let [values, next_values] =
            place.map(|b| &self.kv.values[(b * shape.kv_heads + head) * shape.value_head_bytes()..]);
        let Workspace { queries, scores, keep, factor, .. } = workspace;
        // SAFETY: the functions suit this host; heads of blocks are within the cache.
        unsafe { (self.scores)(queries, n.clone(), &keys[..shape.key_head_bytes()], next_keys.as_ptr(), scores) };
        let (max, sum) = (&mut state.max[n.start..], &mut state.sum[n.start..]);
        // SAFETY: as above.
        unsafe { (self.softmax)(&mut Step { scores, max, sum, keep, factor }, n.len(), seen.clone()) };
        let weights = Weights { n: n.len(), p: scores, keep, factor, seen, width, stride: width };
        let out = &mut state.out[n.start * width..n.end * width];
        // SAFETY: as above.
        unsafe { (self.values)(&weights, &values[..shape.value_head_bytes()], next_values.as_ptr(), out) };
    }

    /// Joins the states of two adjacent splits into the first.
    fn join(&self, total: &mut State<'_>, next: &State<'_>) {
        let width = self.width();
        for (q, (total_out, next_out)) in
            total.out.chunks_exact_mut(width).zip(next.out.chunks_exact(width)).enumerate()
        {
            let max = total.max[q].max(next.max[q]);
            let (a, b) = ((total.max[q] - max).exp2(), (next.max[q] - max).exp2());
            // SAFETY: the functions suit this host.
            unsafe { (self.tier.blend)(total_out, a, next_out, b) };
            total.sum[q] = next.sum[q].mul_add(b, total.sum[q] * a);
            total.max[q] = max;
        }
    }

    /// Divides by the sums, to which each head's sink is added here, once, and writes the output.
    fn finish(&self, item: &Item, total: &State<'_>) {
        let dim = self.kv.shape.value_dim;
        let first = self.seqs[item.seq].first_row + item.rows.start;
        for (query, values) in total.out.chunks_exact(self.width()).enumerate() {
            let (row, head) = (first + query / self.group, item.head * self.group + query % self.group);
            // SAFETY: each query's output belongs to one item.
            let out = unsafe { self.out.part((row * self.heads + head) * dim, dim) };
            let scale = match self.sinks {
                None => 1.0 / total.sum[query],
                Some(sinks) => {
                    let (sink, seen) = (sinks[head] * std::f32::consts::LOG2_E, total.max[query]);
                    let max = sink.max(seen);
                    let (kept, own) = ((seen - max).exp2(), (sink - max).exp2());
                    kept / (total.sum[query] * kept + own)
                }
            };
            out.iter_mut().zip(values).for_each(|(out, &v)| *out = v * scale);
        }
    }
}
