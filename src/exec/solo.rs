//! One sequence alone, without a scheduler: for commands that work on a file, for benchmarks and tests.

use super::{Batch, Executor, KV_BLOCK, SeqSlice, StateUse};

/// Feeds one sequence to an executor, chunk by chunk. Only one may use an executor at a time: it takes the cache's blocks
/// from the first on, and the first slot of recurrent state.
pub struct Solo<'a> {
    exec: &'a mut Executor,
    blocks: Vec<u32>,
    len: usize,
}

/// Which rows of a chunk want logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// None of them.
    Nothing,
    /// The last.
    Last,
    /// All of them.
    All,
}

impl<'a> Solo<'a> {
    /// An empty sequence.
    pub fn new(exec: &'a mut Executor) -> Solo<'a> {
        Solo { exec, blocks: Vec::new(), len: 0 }
    }

    /// Tokens fed so far.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True before the first token.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Evaluates `tokens` behind those fed before; the logits `[wanted rows, vocab]`. The executor's limits on rows,
    /// logit rows and cache bound the chunk and the sequence; beyond them it panics, as [`Executor::forward`] does.
    pub fn feed(&mut self, tokens: &[u32], wanted: Wanted) -> &[f32] {
        let start = self.len;
        self.len += tokens.len();
        let blocks = self.len.div_ceil(KV_BLOCK);
        self.blocks.extend(self.blocks.len() as u32..blocks as u32);
        let rows = tokens.len();
        let logit_rows: Vec<usize> = match wanted {
            Wanted::Nothing => Vec::new(),
            Wanted::Last => vec![rows - 1],
            Wanted::All => (0..rows).collect(),
        };
        let seqs = [SeqSlice { first_row: 0, rows, start, blocks: &self.blocks }];
        let states = [StateUse { slot: 0, save: None }];
        self.exec.forward(&Batch { tokens, seqs: &seqs, states: &states, logit_rows: &logit_rows }, &mut || ())
    }
}
