//! The scheduler itself: queue, running sequences, and the choice of each step's rows.

use super::Limits;
use super::blocks::{BlockId, BlockPool, ContentId};
use super::sequence::{Job, SeqId, Sequence};
use super::snapshots::{Saved, SnapshotPool};
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
    /// Slot of its recurrent state; 0 for a model without.
    pub slot: usize,
    /// A snapshot to be made in this step.
    pub save: Option<Save>,
}

/// A snapshot of recurrent state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Save {
    /// Behind so many rows of the item.
    pub rows: usize,
    /// Slot that it goes to.
    pub slot: usize,
}

/// A sequence goes on from a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restore {
    /// Slot of the snapshot.
    pub from: usize,
    /// Slot of the sequence.
    pub to: usize,
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
    /// Recurrent states to be copied before the step, in this order, and even when it has no rows.
    pub restores: Vec<Restore>,
}

impl Batch {
    /// An empty batch with room for the largest one.
    pub fn new(limits: &Limits) -> Batch {
        Batch {
            items: Vec::with_capacity(limits.parallel),
            tokens: Vec::with_capacity(limits.max_rows()),
            admitted: Vec::with_capacity(limits.parallel),
            restores: Vec::with_capacity(most_restores(limits)),
        }
    }

    /// Bytes that [`Batch::new`] reserves.
    pub fn bytes(limits: &Limits) -> u64 {
        let per_sequence = (size_of::<Item>() + size_of::<SeqId>()) as u64;
        let tokens = (limits.max_rows() as u64).saturating_mul(size_of::<u32>() as u64);
        let restores = (most_restores(limits) as u64).saturating_mul(size_of::<Restore>() as u64);
        (limits.parallel as u64).saturating_mul(per_sequence).saturating_add(tokens).saturating_add(restores)
    }

    /// Bytes reserved.
    pub fn reserved(&self) -> u64 {
        let Batch { items, tokens, admitted, restores } = self;
        let per_sequence = size_of::<Item>() * items.capacity() + size_of::<SeqId>() * admitted.capacity();
        let restores = size_of::<Restore>() * restores.capacity();
        (per_sequence + size_of::<u32>() * tokens.capacity() + restores) as u64
    }

    fn clear(&mut self) {
        self.items.clear();
        self.tokens.clear();
        self.admitted.clear();
        self.restores.clear();
    }

    fn push(&mut self, seq: &Sequence, rows: usize, logits: Rows, save: Option<Save>) {
        let (id, first_row) = (seq.id, self.tokens.len());
        self.items.push(Item { seq: id, first_row, rows, start: seq.computed, logits, slot: seq.slot, save });
        self.tokens.extend_from_slice(&seq.tokens[seq.computed..seq.computed + rows]);
    }
}

/// Most restores of a step: a sequence may go on from a snapshot when it is admitted and, having waited, again.
fn most_restores(limits: &Limits) -> usize {
    limits.snapshots.map_or(0, |_| limits.parallel.saturating_mul(2))
}

/// Queue, running sequences, KV blocks and snapshots of recurrent state.
#[derive(Clone, Debug)]
pub struct Scheduler {
    limits: Limits,
    pool: BlockPool,
    /// Of models with recurrent state.
    snapshots: Option<SnapshotPool>,
    /// Slots that no running sequence has.
    free_slots: Vec<usize>,
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
            snapshots: limits.snapshots.map(|count| SnapshotPool::new(limits.parallel, count)),
            free_slots: (0..limits.parallel).rev().collect(),
            waiting: VecDeque::new(),
            running: Vec::with_capacity(limits.parallel),
        }
    }

    /// Bytes that [`Scheduler::new`] reserves. A request's own tokens come and go with it and are not among them.
    pub fn bytes(limits: &Limits) -> u64 {
        let per_sequence = (size_of::<Sequence>() + size_of::<usize>()) as u64;
        let running = (limits.parallel as u64).saturating_mul(per_sequence);
        let snapshots = limits.snapshots.map_or(0, SnapshotPool::bytes);
        BlockPool::bytes(limits.blocks, limits.block_tokens).saturating_add(running).saturating_add(snapshots)
    }

    /// Bytes reserved.
    pub fn reserved(&self) -> u64 {
        let running = size_of::<Sequence>() * self.running.capacity() + size_of::<usize>() * self.free_slots.capacity();
        let snapshots = self.snapshots.as_ref().map_or(0, SnapshotPool::reserved);
        self.pool.reserved() + running as u64 + snapshots
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
        self.free_slots.push(seq.slot);
        Some(seq)
    }

    /// Chooses the next step's rows. A sequence for which `ready` is false stays where it is (its reader is slow).
    /// The batch is empty when nothing can run.
    pub fn plan(&mut self, batch: &mut Batch, ready: impl Fn(SeqId) -> bool) {
        batch.clear();
        if let Some(snapshots) = &mut self.snapshots {
            snapshots.begin_step();
        }
        self.admit(batch);
        let mut logit_rows = self.limits.max_logit_rows();
        for index in 0..self.running.len() {
            let seq = &self.running[index];
            if !seq.in_prefill() && seq.computed < seq.tokens.len() && ready(seq.id) {
                self.take_blocks(index, 1);
                let save = self.plan_snapshot(index, 1);
                batch.push(&self.running[index], 1, Rows::Last, save);
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
            self.attach_cached(index, batch);
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
        let end = seq.computed + rows;
        if self.snapshot_points(index, end).count() > 1 {
            // A step makes one snapshot of a sequence.
            rows = self.snapshot_points(index, end).min().map_or(rows, |point| point - seq.computed);
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
        let save = self.plan_snapshot(index, rows);
        batch.push(&self.running[index], rows, logits, save);
        rows
    }

    /// Where a snapshot of a prompt is due on the way to position `end`: before its last tokens, where published blocks
    /// end that it could not go on from, and where prompts that wait for it part from it.
    fn snapshot_points(&self, index: usize, end: usize) -> impl Iterator<Item = usize> {
        let (seq, block) = (&self.running[index], self.limits.block_tokens);
        let wanted = self.snapshots.is_some() && seq.cache && seq.in_prefill();
        let later = self.running[index + 1..].iter().filter(|later| later.in_prefill());
        let shared = later.map(move |later| later.common_with(seq, block));
        let own = [seq.last_border(block), seq.parting];
        // Equal ones count once: the first of each.
        let all = own.into_iter().chain(shared.filter(move |point| !own.contains(point)));
        let twice = own[0] == own[1];
        let all = all.skip(usize::from(twice));
        all.filter(move |&point| wanted && point > seq.computed && point <= end)
    }

    /// The snapshot of a sequence that is due within its next `rows` tokens.
    fn plan_snapshot(&mut self, index: usize, rows: usize) -> Option<Save> {
        let (seq, block) = (&self.running[index], self.limits.block_tokens);
        let end = seq.computed + rows;
        let (point, latest) = match seq.in_prefill() {
            true => (self.snapshot_points(index, end).min()?, None),
            false if seq.cache && end.is_multiple_of(block) => (end, seq.latest),
            false => return None,
        };
        let rows = point - seq.computed;
        let slot = self.snapshots.as_mut()?.take(latest)?;
        Some(Save { rows, slot })
    }

    /// Books a step that was evaluated: its tokens are in the cache, full blocks are published.
    pub fn complete(&mut self, batch: &Batch) {
        for item in &batch.items {
            if let Some(seq) = self.running.iter_mut().find(|s| s.id == item.seq) {
                seq.computed = item.start + item.rows;
                seq.publish(&mut self.pool, self.limits.block_tokens);
            }
        }
        let Some(snapshots) = &mut self.snapshots else { return };
        for (item, save) in batch.items.iter().filter_map(|item| Some((item, item.save?))) {
            let Some(seq) = self.running.iter_mut().find(|s| s.id == item.seq) else { continue };
            let point = item.start + save.rows;
            let Some(&content) = seq.contents.get(point / self.limits.block_tokens - 1) else { continue };
            let saved = snapshots.publish(save.slot, content);
            if point > seq.prompt {
                seq.latest = Some(saved);
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

    /// Snapshots of recurrent state that are held.
    pub fn snapshots(&self) -> usize {
        self.snapshots.as_ref().map_or(0, SnapshotPool::held)
    }

    /// Moves sequences from the queue's head to the running ones while the promise can be kept.
    fn admit(&mut self, batch: &mut Batch) {
        let block_tokens = self.limits.block_tokens;
        while self.running.len() < self.limits.parallel {
            let Some(seq) = self.waiting.front() else { return };
            let found = self.find_cached(seq);
            // A cached block that is taken is no longer there to be evicted.
            let revived = found.hits.iter().filter(|(block, _)| self.pool.users(*block) == 0).count();
            let needed = seq.blocks_at_limit(block_tokens) - found.hits.len();
            let promised: usize = self.running.iter().map(|s| s.promised).sum();
            if self.pool.available() - revived < promised + needed {
                return;
            }
            let Some(mut seq) = self.waiting.pop_front() else { return };
            seq.promised = needed + found.hits.len();
            // As many slots as sequences at once.
            seq.slot = self.free_slots.pop().unwrap_or_default();
            batch.admitted.push(seq.id);
            self.attach(&mut seq, found, batch);
            self.running.push(seq);
        }
    }

    /// Blocks published since, e.g. by the sequence this one waited for.
    fn attach_cached(&mut self, index: usize, batch: &mut Batch) {
        let found = self.find_cached(&self.running[index]);
        if found.hits.is_empty() {
            return;
        }
        let mut seq = self.running.remove(index);
        self.attach(&mut seq, found, batch);
        self.running.insert(index, seq);
    }

    /// What a sequence could go on from.
    fn find_cached(&self, seq: &Sequence) -> Found {
        let mut hits = seq.find_cached(&self.pool, self.limits.block_tokens);
        let Some(snapshots) = &self.snapshots else { return Found { hits, ..Found::default() } };
        let (snapshot, end) = seq.cut_to_snapshot(&mut hits, snapshots, self.limits.block_tokens);
        Found { hits, snapshot, end }
    }

    fn attach(&mut self, seq: &mut Sequence, found: Found, batch: &mut Batch) {
        seq.attach(&found.hits, &mut self.pool, self.limits.block_tokens);
        seq.parting = seq.parting.max(found.end);
        if let (Some(saved), Some(snapshots)) = (found.snapshot, &mut self.snapshots) {
            let from = snapshots.touch(saved);
            batch.restores.push(Restore { from, to: seq.slot });
        }
    }

    fn must_wait(&self, index: usize, ready: &impl Fn(SeqId) -> bool) -> bool {
        let (earlier, rest) = self.running.split_at(index);
        let (seq, block) = (&rest[0], self.limits.block_tokens);
        earlier.iter().filter(|other| ready(other.id)).any(|other| match self.snapshots {
            None => seq.should_wait_for(other, block),
            Some(_) => seq.should_wait_for_state_of(other, block),
        })
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

/// Published blocks that continue a sequence.
#[derive(Default)]
struct Found {
    hits: Vec<(BlockId, ContentId)>,
    /// Recurrent state behind the last of them.
    snapshot: Option<Saved>,
    /// Tokens up to the end of all that were found, snapshot or not.
    end: usize,
}
