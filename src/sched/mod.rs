//! Which sequences run, and which of their tokens the next step evaluates. Pure and deterministic: no clock, no thread,
//! no tensor; block numbers and token ids only. `engine` owns one [`Scheduler`] and carries out what it says.
//!
//! A step is one [`Batch`]: a token of every decoding sequence and, within the token budget, chunks of prompts
//! (continuous batching with chunked prefill). Rules:
//!
//! - **Queue**: first in, first out. Nobody overtakes, so nobody starves.
//! - **Admission**: a sequence starts only when the blocks for its prompt and all tokens it may generate are certain:
//!   free and evictable blocks cover what the running ones may still take and what it may take. Blocks are taken one by
//!   one as they fill, so the promise costs no memory. Hence no preemption, and nothing is ever cut short.
//! - **Prefix reuse**: full blocks are published under their content and the blocks before them ([`BlockPool`]); a new
//!   prompt starts behind what it finds. A sequence whose next block is being computed by an earlier one waits for it
//!   instead of computing it too, so `n` choices of one prompt cost one prefill.
//! - **Recurrent state** of hybrid models cannot be taken up in the middle of a prefix, only where a snapshot of it was kept
//!   ([`SnapshotPool`]): blocks found beyond the last snapshot are evaluated again. Snapshots are taken at block borders: the
//!   last one of a prompt, the last one of what was generated, and where prompts part that begin alike.
//! - The last token of a prompt is always evaluated: its logits choose the first new token.

mod blocks;
mod scheduler;
mod sequence;
mod snapshots;
#[cfg(test)]
mod tests;

pub use blocks::{BlockId, BlockPool};
pub use scheduler::{Batch, Item, Restore, Rows, Save, Scheduler};
pub use sequence::{Job, SeqId, Sequence};
pub use snapshots::SnapshotPool;

/// What bounds a scheduler. All numbers are at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Blocks of the KV cache; at least those of one whole context.
    pub blocks: usize,
    /// Tokens per block.
    pub block_tokens: usize,
    /// Most sequences at once.
    pub parallel: usize,
    /// Most prompt tokens per step.
    pub prefill_chunk: usize,
    /// Most prompt tokens per step whose logits are wanted (prompt log-probabilities).
    pub prompt_logits: usize,
    /// Most tokens of a sequence, prompt and output.
    pub context: usize,
    /// Snapshots of recurrent state that are kept; `None` for a model without such state.
    pub snapshots: Option<usize>,
}

impl Limits {
    /// Most rows of a batch.
    pub fn max_rows(&self) -> usize {
        self.parallel.saturating_add(self.prefill_chunk)
    }

    /// Slots of recurrent state: one for each sequence at once, then those of snapshots.
    pub fn state_slots(&self) -> usize {
        self.snapshots.map_or(0, |snapshots| self.parallel.saturating_add(snapshots))
    }

    /// Most rows of a batch that want logits.
    pub fn max_logit_rows(&self) -> usize {
        self.parallel.saturating_add(self.prompt_logits).min(self.max_rows())
    }
}
