//! The scheduler itself: queue, running sequences, and the choice of each step's rows.

use super::Limits;
use super::blocks::{BlockId, BlockPool};
use super::sequence::{Job, SeqId, Sequence};
use std::collections::VecDeque;

/// Which of an item's rows want logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// None: the prompt goes on.
    None,
    /// The last one: a token is drawn from it.
    Last,
    /// All: prompt log-probabilities.
    All,
}

/// One sequence's part of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item {
    /// Whose.
    pub seq: SeqId,
    /// First row of the batch.
    pub first_row: usize,
    /// Rows, at least 1.
    pub rows: usize,
    /// Position of the first row's token in the sequence.
    pub start: usize,
    /// Wanted logits.
    pub logits: Rows,
}

/// One step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Decoding sequences first, then prompts, each in order of admission.
    pub items: Vec<Item>,
    /// One token per row.
    pub tokens: Vec<u32>,
    /// Sequences that left the queue in this step, to date their start.
    pub admitted: Vec<SeqId>,
}

impl Batch {
    /// An empty batch with room for the largest one.
    pub fn new(limits: &Limits) -> Batch {
        Batch {
            items: Vec::with_capacity(limits.parallel),
            tokens: Vec::with_capacity(limits.max_rows()),
            admitted: Vec::with_capacity(limits.parallel),
        }
    }

    /// Bytes that [`Batch::new`] reserves.
    pub fn bytes(limits: &Limits) -> u64 {
        let per_sequence = (size_of::<Item>() + size_of::<SeqId>()) as u64;
        let tokens = (limits.max_rows() as u64).saturating_mul(size_of::<u32>() as u64);
        (limits.parallel as u64).saturating_mul(per_sequence).saturating_add(tokens)
    }

    /// Bytes reserved.
    pub fn reserved(&self) -> u64 {
        let Batch { items, tokens, admitted } = self;
        let per_sequence = size_of::<Item>() * items.capacity() + size_of::<SeqId>() * admitted.capacity();
        (per_sequence + size_of::<u32>() * tokens.capacity()) as u64
    }

    fn clear(&mut self) {
        self.items.clear();
        self.tokens.clear();
        self.admitted.clear();
    }

    fn push(&mut self, seq: &Sequence, rows: usize, logits: Rows) {
        self.items.push(Item { seq: seq.id, first_row: self.tokens.len(), rows, start: seq.computed, logits });
        self.tokens.extend_from_slice(&seq.tokens[seq.computed..seq.computed + rows]);
    }
}

/// Queue, running sequences and KV blocks.
#[derive(Clone, Debug)]
pub struct Scheduler {
    limits: Limits,
    pool: BlockPool,
    waiting: VecDeque<Sequence>,
    /// In order of admission.
    running: Vec<Sequence>,
}

impl Scheduler {
    /// An empty scheduler.
    pub fn new(limits: Limits) -> Self {
        debug_assert!(limits.blocks >= limits.context.div_ceil(limits.block_tokens), "one context must fit");
        Scheduler {
            limits,
            pool: BlockPool::new(limits.blocks, limits.block_tokens),
            waiting: VecDeque::new(),
            running: Vec::with_capacity(limits.parallel),
        }
    }

    /// Bytes that [`Scheduler::new`] reserves. A request's own tokens come and go with it and are not among them.
    pub fn bytes(limits: &Limits) -> u64 {
        let running = (limits.parallel as u64).saturating_mul(size_of::<Sequence>() as u64);
        BlockPool::bytes(limits.blocks, limits.block_tokens).saturating_add(running)
    }

    /// Bytes reserved.
    pub fn reserved(&self) -> u64 {
        self.pool.reserved() + (size_of::<Sequence>() * self.running.capacity()) as u64
    }

    /// Appends a job to the queue. The caller bounds the queue and checks the prompt: one token at least, less than the
    /// context.
    pub fn submit(&mut self, job: Job) {
        debug_assert!(!job.prompt.is_empty() && job.prompt.len() <= self.limits.context);
        self.waiting.push_back(Sequence::new(job, &self.limits));
    }

    /// Removes a sequence, waiting or running, and frees its blocks. Returns it with its tokens and counts.
    pub fn remove(&mut self, id: SeqId) -> Option<Sequence> {
        if let Some(index) = self.waiting.iter().position(|s| s.id == id) {
            return self.waiting.remove(index);
        }
        let index = self.running.iter().position(|s| s.id == id)?;
        let mut seq = self.running.remove(index);
        seq.release(&mut self.pool);
        Some(seq)
    }

    /// Chooses the next step's rows. A sequence for which `ready` is false stays where it is (its reader is slow).
    /// The batch is empty when nothing can run.
    pub fn plan(&mut self, batch: &mut Batch, ready: impl Fn(SeqId) -> bool) {
        batch.clear();
        self.admit(batch);
        let mut logit_rows = self.limits.max_logit_rows();
        for index in 0..self.running.len() {
            let seq = &self.running[index];
            if !seq.in_prefill() && seq.computed < seq.tokens.len() && ready(seq.id) {
                self.take_blocks(index, 1);
                batch.push(&self.running[index], 1, Rows::Last);
                logit_rows -= 1;
            }
        }
        let mut budget = self.limits.prefill_chunk;
        for index in 0..self.running.len() {
            if budget == 0 {
                break;
            }
            if !self.running[index].in_prefill() || !ready(self.running[index].id) {
                continue;
            }
            self.attach_cached(index);
            if self.must_wait(index, &ready) {
                continue;
            }
            budget -= self.plan_prefill(index, batch, budget, &mut logit_rows);
        }
    }

    /// One prompt's chunk; returns its rows.
    fn plan_prefill(&mut self, index: usize, batch: &mut Batch, budget: usize, logit_rows: &mut usize) -> usize {
        let seq = &self.running[index];
        let left = seq.prompt - seq.computed;
        let wants_all = seq.prompt_logits;
        // Rows kept free for the sequences that reach their end of prompt in this step and come after this one.
        let spare = self.running.len() - index - 1;
        let room = if wants_all { logit_rows.saturating_sub(spare) } else { usize::MAX };
        let mut rows = left.min(budget).min(room);
        if rows < left {
            // End at a block's border where possible, so that the block can be shared at once.
            let block = self.limits.block_tokens;
            let aligned = ((seq.computed + rows) / block * block).saturating_sub(seq.computed);
            rows = if aligned > 0 { aligned } else { rows };
        }
        if rows == 0 {
            return 0;
        }
        let logits = match (wants_all, rows == left) {
            (true, _) => Rows::All,
            (false, true) => Rows::Last,
            (false, false) => Rows::None,
        };
        *logit_rows -= match logits {
            Rows::All => rows,
            Rows::Last => 1,
            Rows::None => 0,
        };
        self.take_blocks(index, rows);
        batch.push(&self.running[index], rows, logits);
        rows
    }

    /// Books a step that was evaluated: its tokens are in the cache, full blocks are published.
    pub fn complete(&mut self, batch: &Batch) {
        for item in &batch.items {
            if let Some(seq) = self.running.iter_mut().find(|s| s.id == item.seq) {
                seq.computed = item.start + item.rows;
                seq.publish(&mut self.pool, self.limits.block_tokens);
            }
        }
    }

    /// Appends a drawn token. True when the sequence may not grow further: the caller then removes it.
    pub fn push_token(&mut self, id: SeqId, token: u32) -> bool {
        match self.running.iter_mut().find(|s| s.id == id) {
            Some(seq) => {
                seq.tokens.push(token);
                seq.is_full()
            }
            None => true,
        }
    }

    /// A sequence, waiting or running.
    pub fn get(&self, id: SeqId) -> Option<&Sequence> {
        self.running.iter().chain(&self.waiting).find(|s| s.id == id)
    }

    /// Blocks of a running sequence; empty for any other.
    pub fn blocks(&self, id: SeqId) -> &[BlockId] {
        self.running.iter().find(|s| s.id == id).map_or(&[], |s| &s.blocks)
    }

    /// Running sequences, in order of admission.
    pub fn running(&self) -> &[Sequence] {
        &self.running
    }

    /// Sequences in the queue.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The blocks.
    pub fn pool(&self) -> &BlockPool {
        &self.pool
    }

    /// Moves sequences from the queue's head to the running ones while the promise can be kept.
    fn admit(&mut self, batch: &mut Batch) {
        let block_tokens = self.limits.block_tokens;
        while self.running.len() < self.limits.parallel {
            let Some(seq) = self.waiting.front() else { return };
            let hits = seq.find_cached(&self.pool, block_tokens);
            // A cached block that is taken is no longer there to be evicted.
            let revived = hits.iter().filter(|(block, _)| self.pool.users(*block) == 0).count();
            let needed = seq.blocks_at_limit(block_tokens) - hits.len();
            let promised: usize = self.running.iter().map(|s| s.promised).sum();
            if self.pool.available() - revived < promised + needed {
                return;
            }
            let Some(mut seq) = self.waiting.pop_front() else { return };
            seq.promised = needed + hits.len();
            seq.attach(&hits, &mut self.pool, block_tokens);
            batch.admitted.push(seq.id);
            self.running.push(seq);
        }
    }

    /// Blocks published since, e.g. by the sequence this one waited for.
    fn attach_cached(&mut self, index: usize) {
        let hits = self.running[index].find_cached(&self.pool, self.limits.block_tokens);
        self.running[index].attach(&hits, &mut self.pool, self.limits.block_tokens);
    }

    fn must_wait(&self, index: usize, ready: &impl Fn(SeqId) -> bool) -> bool {
        let (earlier, rest) = self.running.split_at(index);
        earlier.iter().any(|other| ready(other.id) && rest[0].should_wait_for(other, self.limits.block_tokens))
    }

    /// Makes sure that the next `rows` tokens have blocks.
    fn take_blocks(&mut self, index: usize, rows: usize) {
        let seq = &mut self.running[index];
        let needed = (seq.computed + rows).div_ceil(self.limits.block_tokens);
        while seq.blocks.len() < needed {
            #[expect(clippy::expect_used, reason = "admission promised the blocks; the property tests hold it to that")]
            let block = self.pool.allocate().expect("promised blocks are available");
            seq.blocks.push(block);
            seq.promised -= 1;
        }
    }
}
