//! The engine thread: take requests, drop cancelled ones, let the scheduler choose a step, run it, draw and send.

use super::FinishReason;
use super::shared::Shared;
use super::stream::{Drawn, Stream, Submission};
use crate::exec::{self, Executor, SeqSlice, StateSave, StateUse};
use crate::sample::{SampleError, Scratch};
use crate::sched::{Batch, Item, Limits, Rows, Scheduler, SeqId};
use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

/// Between two signs of life when there is nothing to do.
const IDLE: Duration = Duration::from_millis(100);
/// Between two looks at channels that are all full.
const STALLED: Duration = Duration::from_millis(2);

/// All state of a running model.
pub(super) struct Engine {
    exec: Executor,
    sched: Scheduler,
    streams: BTreeMap<SeqId, Stream>,
    next_id: SeqId,
    inbox: Receiver<Submission>,
    shared: Arc<Shared>,
    batch: Batch,
    logit_rows: Vec<usize>,
    scratch: Scratch,
}

impl Engine {
    pub(super) fn new(exec: Executor, limits: Limits, inbox: Receiver<Submission>, shared: Arc<Shared>) -> Engine {
        let vocab = exec.hparams().vocab;
        shared.update(|stats| stats.kv_blocks_total = limits.blocks);
        Engine {
            exec,
            sched: Scheduler::new(limits),
            streams: BTreeMap::new(),
            next_id: 0,
            inbox,
            shared,
            batch: Batch::new(&limits),
            logit_rows: Vec::with_capacity(limits.max_logit_rows()),
            scratch: Scratch::new(vocab),
        }
    }

    /// Bytes that [`Engine::new`] reserves for a model with `vocab` tokens.
    pub(super) fn bytes(limits: &Limits, vocab: usize) -> u64 {
        let logit_rows = (limits.max_logit_rows() as u64).saturating_mul(size_of::<usize>() as u64);
        [Scheduler::bytes(limits), Batch::bytes(limits), Scratch::bytes(vocab)]
            .into_iter()
            .fold(logit_rows, u64::saturating_add)
    }

    /// Bytes that executor and engine hold for their steps, the KV cache aside.
    fn reserved(&self) -> u64 {
        let logit_rows = (self.logit_rows.capacity() * size_of::<usize>()) as u64;
        let own = self.sched.reserved() + self.batch.reserved() + self.scratch.reserved() + logit_rows;
        self.exec.buffer_bytes() + own
    }

    /// Runs until the last handle is gone. A bug that panics ends every stream with an error and marks the engine dead.
    pub(super) fn run(mut self) {
        let outcome = catch_unwind(AssertUnwindSafe(|| while self.turn() {}));
        let reason = match outcome {
            Ok(()) => "the model is shutting down".to_string(),
            Err(panic) => {
                self.shared.die();
                format!("the engine stopped by a bug: {}; the model must be loaded again", panic_text(&*panic))
            }
        };
        self.shared.close();
        self.shared.update(|stats| (stats.running, stats.kv_blocks_used) = (0, 0));
        for (_, stream) in std::mem::take(&mut self.streams) {
            stream.fail(reason.clone());
        }
        while let Ok(submission) = self.inbox.try_recv() {
            Stream::new(0, submission).0.fail(reason.clone());
        }
    }

    /// One round of the loop; false when nobody holds a handle any more.
    fn turn(&mut self) -> bool {
        self.shared.beat();
        if !self.receive() {
            return false;
        }
        self.drop_cancelled();
        let streams = &self.streams;
        self.sched.plan(&mut self.batch, |id| streams.get(&id).is_some_and(Stream::has_room));
        let now = Instant::now();
        for id in &self.batch.admitted {
            if let Some(stream) = self.streams.get_mut(id) {
                stream.admit(now);
            }
        }
        for restore in &self.batch.restores {
            self.exec.copy_state(restore.from, restore.to);
        }
        if !self.batch.items.is_empty() {
            self.announce();
            self.step();
        }
        self.report();
        true
    }

    /// Takes what lies in the inbox. Waits a moment when the last round had nothing to run.
    fn receive(&mut self) -> bool {
        if self.batch.items.is_empty() {
            let wait = if self.streams.is_empty() { IDLE } else { STALLED };
            match self.inbox.recv_timeout(wait) {
                Ok(submission) => self.accept(submission),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
        loop {
            match self.inbox.try_recv() {
                Ok(submission) => self.accept(submission),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn accept(&mut self, submission: Submission) {
        let id = self.next_id;
        self.next_id += 1;
        let (stream, job) = Stream::new(id, submission);
        self.streams.insert(id, stream);
        self.sched.submit(job);
        self.shared.update(|stats| stats.requests_total += 1);
    }

    /// Forgets requests whose reader went away, queued ones too.
    fn drop_cancelled(&mut self) {
        let sched = &mut self.sched;
        let before = self.streams.len();
        self.streams.retain(|id, stream| {
            let keep = !stream.is_cancelled();
            if !keep {
                sched.remove(*id);
            }
            keep
        });
        let cancelled = (before - self.streams.len()) as u64;
        if cancelled > 0 {
            self.shared.update(|stats| stats.cancelled_total += cancelled);
        }
    }

    /// Tells a stream whose first chunk comes now what it starts from. Not before: a sequence that waits for another's
    /// blocks does not know yet how many it will find.
    fn announce(&mut self) {
        for item in &self.batch.items {
            let (Some(seq), Some(stream)) = (self.sched.get(item.seq), self.streams.get_mut(&item.seq)) else {
                continue;
            };
            // Nothing evaluated yet: what lies before the chunk came from the cache.
            if item.start == seq.cached() {
                stream.prefilled(seq.cached(), seq.prompt_len());
            }
        }
    }

    /// Evaluates the batch and gives every stream what came of it.
    fn step(&mut self) {
        let started = Instant::now();
        let Engine { exec, sched, batch, logit_rows, streams, scratch, shared, .. } = self;
        logit_rows.clear();
        let mut seqs = Vec::with_capacity(batch.items.len());
        let mut states = Vec::with_capacity(batch.items.len());
        for item in &batch.items {
            let blocks = sched.blocks(item.seq);
            seqs.push(SeqSlice { first_row: item.first_row, rows: item.rows, start: item.start, blocks });
            let save = item.save.map(|save| StateSave { rows: save.rows, slot: save.slot });
            states.push(StateUse { slot: item.slot, save });
            logit_rows.extend(wanted(item));
        }
        let vocab = exec.hparams().vocab;
        let step = exec::Batch { tokens: &batch.tokens, seqs: &seqs, states: &states, logit_rows };
        let mut logits = exec.forward(&step, &mut || shared.beat());
        drop(seqs);
        sched.complete(batch);
        count_time(shared, batch, sched, started.elapsed());

        for item in &batch.items {
            let (own, rest) = logits.split_at(wanted(item).len() * vocab);
            logits = rest;
            let Some(stream) = streams.get_mut(&item.seq) else { continue };
            let before = stream.completion();
            let outcome = advance(stream, sched, item, own, vocab, scratch);
            let drawn = (stream.completion() - before) as u64;
            let ended = !matches!(outcome, Ok(None));
            let cached = sched.get(item.seq).map_or(0, |seq| seq.cached());
            // Before the last event goes out: who has read it finds it counted.
            shared.update(|stats| {
                stats.completion_tokens_total += drawn;
                stats.cached_tokens_total += if ended { cached as u64 } else { 0 };
            });
            let end = match outcome {
                Ok(None) => continue,
                Ok(Some(reason)) => Ok(reason),
                Err(error) => Err(error),
            };
            let (Some(stream), Some(seq)) = (streams.remove(&item.seq), sched.remove(item.seq)) else { continue };
            let now = Instant::now();
            shared.served(stream.served(now));
            match end {
                Ok(reason) => stream.finish(reason, seq.prompt_len(), seq.cached(), now),
                Err(error) => stream.fail(error.to_string()),
            }
        }
    }

    fn report(&self) {
        let (running, waiting) = (self.sched.running().len(), self.sched.waiting());
        let pool = self.sched.pool();
        let scratch = self.reserved();
        self.shared.update(|stats| {
            stats.running = running;
            stats.waiting = waiting;
            stats.scratch_bytes = scratch;
            stats.kv_blocks_used = pool.used();
            stats.kv_blocks_cached = pool.cached();
            stats.state_snapshots = self.sched.snapshots();
        });
    }
}

/// Gives a stream its part of a step; `Some` when it ends.
fn advance(
    stream: &mut Stream,
    sched: &mut Scheduler,
    item: &Item,
    logits: &[f32],
    vocab: usize,
    scratch: &mut Scratch,
) -> Result<Option<FinishReason>, SampleError> {
    let Some(seq) = sched.get(item.seq) else { return Ok(None) };
    let prompt = seq.prompt_len();
    if item.start < prompt {
        stream.add_prompt_logprobs(seq, item.start, logits, vocab, scratch)?;
        stream.prefilled(seq.computed().min(prompt), prompt);
        if seq.in_prefill() {
            return Ok(None);
        }
        stream.end_prefill(Instant::now());
        if !stream.generates() {
            return Ok(Some(FinishReason::Length));
        }
    }
    let last = &logits[logits.len() - vocab..];
    Ok(match stream.draw(last, scratch)? {
        Drawn::Stop(id) => Some(FinishReason::Stop(id)),
        Drawn::Token(id) => sched.push_token(item.seq, id).then_some(FinishReason::Length),
    })
}

/// The rows of an item that want logits.
fn wanted(item: &Item) -> std::ops::Range<usize> {
    let end = item.first_row + item.rows;
    match item.logits {
        Rows::None => end..end,
        Rows::Last => end - 1..end,
        Rows::All => item.first_row..end,
    }
}

/// Books tokens and time; a step that does both is shared out by rows.
fn count_time(shared: &Shared, batch: &Batch, sched: &Scheduler, took: Duration) {
    let mut prefill = 0;
    let mut decode = 0;
    for item in &batch.items {
        let Some(seq) = sched.get(item.seq) else { continue };
        let from_prompt = item.rows.min(seq.prompt_len().saturating_sub(item.start));
        prefill += from_prompt;
        decode += item.rows - from_prompt;
    }
    let share = prefill as f64 / (prefill + decode).max(1) as f64;
    shared.update(|stats| {
        stats.steps_total += 1;
        stats.prompt_tokens_total += prefill as u64;
        stats.prefill_seconds_total += took.as_secs_f64() * share;
        stats.decode_seconds_total += took.as_secs_f64() * (1.0 - share);
    });
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no reason given")
}
