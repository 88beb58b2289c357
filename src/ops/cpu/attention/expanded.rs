//! Attention of one sequence's rows over keys and values that were made from its latents, run by run of its context.
//!
//! A work item is one head with a tile of rows. Its state is kept from run to run; blocks are taken in order, each with
//! its own softmax, at absolute positions: a row's result depends neither on the runs' lengths nor on its neighbours.

use super::QUERIES;
use super::kernels::{START, Step, Weights};
use super::tier::Tier;
use super::workspace::{Buffers, State, Workspace};
use crate::ops::cpu::acts::Parts;
use crate::ops::cpu::f32_as_bytes;
use crate::ops::cpu::pool::Pool;
use crate::ops::{ExpandedAttention, KV_BLOCK};
use crate::quant::DType;
use std::ops::Range;

/// Numbers of the states of `rows` rows of `heads` heads whose values have `value_dim` elements.
pub fn expanded_states(rows: usize, heads: usize, value_dim: usize) -> usize {
    rows.div_ceil(QUERIES).saturating_mul(heads * State::len(QUERIES, value_dim))
}

/// See [`crate::ops::cpu::Cpu::expanded_attention`].
pub(crate) fn expanded(args: ExpandedAttention<'_>, tier: &Tier, pool: &Pool, buffers: &Buffers) {
    let ExpandedAttention { heads, key_dim, value_dim, .. } = args;
    let rows = args.q.len() / (heads * key_dim);
    let positions = args.keys.len() / (heads * key_dim);
    assert!(key_dim.is_multiple_of(16) && value_dim.is_multiple_of(16), "heads of {key_dim} and {value_dim}");
    assert_eq!(args.q.len(), rows * heads * key_dim, "queries are not [rows, heads * key_dim]");
    assert!(positions.is_multiple_of(KV_BLOCK) && args.first.is_multiple_of(KV_BLOCK), "keys are not whole blocks");
    assert_eq!(args.keys.len(), heads * positions * key_dim, "keys are not [heads, positions, key_dim]");
    assert_eq!(args.values.len(), heads * positions * value_dim, "values are not [heads, positions, value_dim]");
    let (tiles, len) = (rows.div_ceil(QUERIES), State::len(QUERIES, value_dim));
    assert!(args.states.len() >= expanded_states(rows, heads, value_dim), "states of too few rows");
    let run = Run {
        q: args.q,
        heads,
        keys: args.keys,
        values: args.values,
        dims: (key_dim, value_dim),
        start: args.start,
        context: args.first..args.first + positions,
        scale: args.scale * std::f32::consts::LOG2_E,
        tier,
    };
    let (states, out) = (Parts::new(args.states), args.out.map(Parts::new));
    pool.run(heads * tiles, 1, &|range| {
        buffers.with(|workspace| {
            for item in range {
                let (head, first) = (item / tiles, item % tiles * QUERIES);
                let own = first..rows.min(first + QUERIES);
                // SAFETY: each item's state belongs to one range.
                let mut state = State::new(unsafe { states.part(item * len, len) }, own.len(), value_dim);
                run.item(head, own.clone(), workspace, &mut state);
                let Some(out) = &out else { continue };
                for (i, values) in state.out.chunks_exact(value_dim).enumerate() {
                    // SAFETY: each query's output belongs to one item.
                    let out = unsafe { out.part(((first + i) * heads + head) * value_dim, value_dim) };
                    let scale = 1.0 / state.sum[i];
                    out.iter_mut().zip(values).for_each(|(out, &v)| *out = v * scale);
                }
            }
        });
    });
}

/// What all items of a run share.
struct Run<'a> {
    q: &'a [f32],
    heads: usize,
    keys: &'a [f32],
    values: &'a [f32],
    /// Elements of a key and of a value.
    dims: (usize, usize),
    /// Position of the first row.
    start: usize,
    /// Positions of the keys.
    context: Range<usize>,
    /// The caller's, times log₂e.
    scale: f32,
    tier: &'a Tier,
}

impl Run<'_> {
    /// Adds the run to the state of some rows of one head.
    fn item(&self, head: usize, rows: Range<usize>, workspace: &mut Workspace, state: &mut State<'_>) {
        let (key_dim, n) = (self.dims.0, rows.len());
        if self.context.start == 0 {
            state.out.fill(0.0);
            state.max.fill(START);
            state.sum.fill(0.0);
        }
        workspace.reserve(n, key_dim, false);
        for (i, row) in rows.clone().enumerate() {
            let x = &self.q[(row * self.heads + head) * key_dim..][..key_dim];
            // SAFETY: the functions suit this host.
            unsafe { (self.tier.ready)(x, self.scale, &mut workspace.queries, i, false) };
        }
        let end = self.context.end.min(self.start + rows.end);
        for begin in (self.context.start..end).step_by(KV_BLOCK) {
            self.block(head, begin, &rows, workspace, state);
        }
    }

    /// Adds the block of positions from `begin` on.
    fn block(&self, head: usize, begin: usize, rows: &Range<usize>, workspace: &mut Workspace, state: &mut State<'_>) {
        let ((key_dim, value_dim), n) = (self.dims, rows.len());
        let at = head * self.context.len() + begin - self.context.start;
        let Workspace { queries, scores, keep, factor, .. } = workspace;
        let keys = &self.keys[at * key_dim..][..KV_BLOCK * key_dim];
        let seen = |row: usize| 0..(self.start + row + 1 - begin.min(self.start + row + 1)).min(KV_BLOCK);
        // SAFETY: the functions suit this host.
        unsafe { (self.tier.row_scores)(queries, 0..n, keys, &(0..KV_BLOCK), scores) };
        if seen(rows.start).end == KV_BLOCK {
            let mut step = Step { scores, max: state.max, sum: state.sum, keep, factor };
            // SAFETY: as above.
            unsafe { (self.tier.softmax)(&mut step, n, 0..KV_BLOCK) };
        } else {
            // In order: a step leaves what is before its query alone, and what is behind it for the next.
            for (q, row) in rows.clone().enumerate() {
                let (max, sum) = (&mut state.max[q..], &mut state.sum[q..]);
                let (keep, factor) = (&mut keep[q..], &mut factor[q..]);
                let mut step = Step { scores: &mut scores[q * KV_BLOCK..], max, sum, keep, factor };
                // SAFETY: as above.
                unsafe { (self.tier.softmax)(&mut step, 1, seen(row)) };
            }
        }
        // What a row does not see has the weight 0.
        let seen = seen(rows.end - 1);
        let weights = Weights { n, p: scores, keep, factor, seen, width: value_dim, stride: value_dim };
        let values = f32_as_bytes(&self.values[at * value_dim..][..KV_BLOCK * value_dim]);
        // SAFETY: as above.
        unsafe { ((self.tier.values)(DType::F32))(&weights, values, values.as_ptr(), state.out) };
    }
}
