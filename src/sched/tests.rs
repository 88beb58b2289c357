//! The scheduler against a model of the memory it manages: every slot remembers which prefix was written to it.

use super::*;
use proptest::prelude::*;
use std::collections::{HashMap, HashSet};

const BLOCK: usize = 4;

fn limits(blocks: usize, parallel: usize, chunk: usize) -> Limits {
    Limits {
        blocks,
        block_tokens: BLOCK,
        parallel,
        prefill_chunk: chunk,
        prompt_logits: 3,
        context: 32,
        snapshots: None,
    }
}

fn job(id: SeqId, prompt: &[u32], max_tokens: usize) -> Job {
    Job { id, prompt: prompt.to_vec(), max_tokens, cache: true, prompt_logits: false }
}

/// Runs steps as the engine would, with a "model" whose next token is a function of the tokens before.
struct Host {
    sched: Scheduler,
    limits: Limits,
    batch: Batch,
    /// What each slot holds: the whole prefix up to and with its token.
    memory: HashMap<(BlockId, usize), Vec<u32>>,
    evaluated: usize,
    done: HashMap<SeqId, Vec<u32>>,
    trace: Vec<Batch>,
}

impl Host {
    fn new(limits: Limits) -> Self {
        let (batch, memory, done, trace) = Default::default();
        Host { sched: Scheduler::new(limits), limits, batch, memory, evaluated: 0, done, trace }
    }

    fn next_token(tokens: &[u32]) -> u32 {
        tokens.iter().fold(1u32, |h, t| h.wrapping_mul(31).wrapping_add(*t)) % 3
    }

    /// One step; checks everything a step must keep. False when nothing could run.
    fn step(&mut self, ready: impl Fn(SeqId) -> bool) -> bool {
        self.sched.plan(&mut self.batch, ready);
        let batch = self.batch.clone();
        self.check_batch(&batch);
        for item in &batch.items {
            let tokens = self.sched.get(item.seq).expect("planned sequences exist").tokens().to_vec();
            let blocks = self.sched.blocks(item.seq).to_vec();
            for p in item.start..item.start + item.rows {
                self.memory.insert((blocks[p / BLOCK], p % BLOCK), tokens[..=p].to_vec());
            }
            for p in 0..item.start + item.rows {
                let slot = &self.memory[&(blocks[p / BLOCK], p % BLOCK)];
                assert_eq!(slot, &tokens[..=p], "position {p} of {} reads another prefix", item.seq);
            }
            self.evaluated += item.rows;
        }
        self.sched.complete(&batch);
        for item in &batch.items {
            let seq = self.sched.get(item.seq).expect("planned sequences exist");
            if seq.in_prefill() {
                continue;
            }
            let end = if seq.is_full() {
                true
            } else {
                let token = Self::next_token(seq.tokens());
                self.sched.push_token(item.seq, token)
            };
            if end {
                let seq = self.sched.remove(item.seq).expect("it ran");
                self.done.insert(item.seq, seq.tokens().to_vec());
            }
        }
        self.sched.pool().audit();
        let progress = !batch.items.is_empty();
        self.trace.push(batch);
        progress
    }

    fn check_batch(&self, batch: &Batch) {
        assert!(batch.tokens.len() <= self.limits.max_rows());
        let logits: usize = batch.items.iter().map(|i| [0, 1, i.rows][i.logits as usize]).sum();
        assert!(logits <= self.limits.max_logit_rows());
        let mut written = HashSet::new();
        let mut row = 0;
        for item in &batch.items {
            assert_eq!((item.first_row, item.rows > 0), (row, true));
            row += item.rows;
            let blocks = self.sched.blocks(item.seq);
            for p in item.start..item.start + item.rows {
                let block = blocks[p / BLOCK];
                assert_eq!(self.sched.pool().users(block), 1, "a shared block is written");
                assert!(!self.sched.pool().is_published(block), "a published block is written");
                assert!(written.insert((block, p % BLOCK)), "two rows write one slot");
            }
        }
        let users: usize = self.sched.running().iter().map(|s| s.blocks().len()).sum();
        let counted: u32 = (0..self.limits.blocks).map(|b| self.sched.pool().users(b as BlockId)).sum();
        assert_eq!(users, counted as usize, "users of blocks and blocks of users differ");
    }

    fn run_to_end(&mut self) {
        let mut steps = 0;
        while self.step(|_| true) {
            steps += 1;
            assert!(steps < 10_000, "it does not end");
        }
        assert_eq!((self.sched.waiting(), self.sched.running().len()), (0, 0), "something never ran");
        assert_eq!(self.sched.pool().used(), 0, "blocks are lost");
    }
}

fn expected(prompt: &[u32], max_tokens: usize, context: usize) -> Vec<u32> {
    let mut tokens = prompt.to_vec();
    while tokens.len() < (prompt.len() + max_tokens).min(context) {
        tokens.push(Host::next_token(&tokens));
    }
    tokens
}

#[derive(Clone, Debug)]
enum Action {
    Submit { prompt: Vec<u32>, max_tokens: usize, cache: bool, prompt_logits: bool },
    Cancel(usize),
    Step(u64),
}

fn action() -> impl Strategy<Value = Action> {
    // Few distinct tokens: many shared prefixes.
    let prompt = prop::collection::vec(0u32..2, 1..31);
    prop_oneof![
        3 => (prompt, 0usize..40, prop::bool::weighted(0.8), prop::bool::weighted(0.2)).prop_map(
            |(prompt, max_tokens, cache, prompt_logits)| Action::Submit { prompt, max_tokens, cache, prompt_logits }),
        1 => (0usize..30).prop_map(Action::Cancel),
        6 => any::<u64>().prop_map(Action::Step),
    ]
}

fn play(limits: Limits, actions: &[Action]) -> Host {
    let mut host = Host::new(limits);
    let mut jobs = HashMap::new();
    for (nth, action) in actions.iter().enumerate() {
        match action {
            Action::Submit { prompt, max_tokens, cache, prompt_logits } => {
                let id = nth as SeqId;
                jobs.insert(id, (prompt.clone(), *max_tokens));
                host.sched.submit(Job {
                    id,
                    prompt: prompt.clone(),
                    max_tokens: *max_tokens,
                    cache: *cache,
                    prompt_logits: *prompt_logits,
                });
            }
            Action::Cancel(id) => {
                host.sched.remove(*id as SeqId);
                jobs.remove(&(*id as SeqId));
                host.sched.pool().audit();
            }
            Action::Step(mask) => {
                host.step(|id| mask >> (id % 64) & 1 == 1);
            }
        }
    }
    host.run_to_end();
    for (id, (prompt, max_tokens)) in jobs {
        let tokens = host.done.get(&id).unwrap_or_else(|| panic!("{id} did not end"));
        assert_eq!(tokens, &expected(&prompt, max_tokens, limits.context));
    }
    host
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn any_history_keeps_the_books_and_the_texts(
        actions in prop::collection::vec(action(), 1..60),
        blocks in 8usize..30, parallel in 1usize..6, chunk in 1usize..20,
    ) {
        let first = play(limits(blocks, parallel, chunk), &actions);
        let second = play(limits(blocks, parallel, chunk), &actions);
        prop_assert_eq!(first.trace, second.trace, "the same history gave other batches");
    }
}

#[test]
fn a_prompt_seen_before_is_not_evaluated_again() {
    let mut host = Host::new(limits(16, 2, 64));
    let prompt: Vec<u32> = (0..12).collect();
    host.sched.submit(job(1, &prompt, 2));
    host.run_to_end();
    assert_eq!(host.evaluated, 13, "12 of the prompt, one of the output");
    host.sched.submit(job(2, &prompt, 2));
    host.step(|_| true);
    // Two full blocks are reused; the third holds the last token and is evaluated.
    assert_eq!(host.sched.get(2).expect("runs").cached(), 8);
    host.run_to_end();
    assert_eq!(host.evaluated, 13 + 5);
}

#[test]
fn twins_wait_for_the_first_ones_prefix() {
    let mut host = Host::new(limits(32, 4, 8));
    let prompt: Vec<u32> = (0..18).collect();
    for id in 0..4 {
        host.sched.submit(job(id, &prompt, 1));
    }
    host.run_to_end();
    assert_eq!(host.evaluated, 18 + 3 * 2, "the others evaluate the last, unfinished block only");
}

#[test]
fn a_twin_takes_over_when_the_first_is_cancelled() {
    let mut host = Host::new(limits(32, 2, 4));
    let prompt: Vec<u32> = (0..18).collect();
    host.sched.submit(job(0, &prompt, 1));
    host.sched.submit(job(1, &prompt, 1));
    host.step(|_| true);
    host.sched.remove(0);
    host.run_to_end();
    assert_eq!((host.done.len(), host.evaluated), (1, 18));
}

#[test]
fn admission_keeps_its_promise_and_the_order() {
    // 8 blocks of 4: the first may grow to 24 tokens (6 blocks), the second needs 3, the third would fit but waits.
    let mut host = Host::new(limits(8, 4, 64));
    host.sched.submit(job(0, &[7, 7, 7, 7], 20));
    host.sched.submit(job(1, &[1; 9], 1));
    host.sched.submit(job(2, &[2], 1));
    host.step(|_| true);
    assert_eq!((host.sched.running().len(), host.sched.waiting()), (1, 2));
    host.run_to_end();
    assert_eq!(host.done.len(), 3);
}

#[test]
fn decoding_goes_on_while_a_long_prompt_is_evaluated() {
    let mut host = Host::new(limits(32, 2, 4));
    host.sched.submit(job(0, &[1], 20));
    host.step(|_| true);
    host.sched.submit(job(1, &[2; 24], 1));
    for _ in 0..5 {
        host.step(|_| true);
        assert_eq!(host.batch.items[0].seq, 0);
        assert_eq!(host.batch.items[1].rows, 4);
    }
    host.run_to_end();
}

#[test]
fn a_stalled_reader_stalls_nobody_else() {
    let mut host = Host::new(limits(32, 2, 4));
    host.sched.submit(job(0, &[1], 10));
    host.sched.submit(job(1, &[1], 10));
    for _ in 0..20 {
        host.step(|id| id == 1);
    }
    assert!(host.done.contains_key(&1));
    host.run_to_end();
    assert_eq!(host.done[&0], host.done[&1]);
}

#[test]
fn the_least_recently_used_prefix_goes_first() {
    let mut host = Host::new(limits(8, 1, 64));
    for (id, token) in [(0, 1u32), (1, 2), (2, 1)] {
        host.sched.submit(job(id, &[token; 13], 1));
        host.run_to_end();
    }
    // Three blocks each are cached; the third prompt refreshed the first one's. 20 tokens need 5 of 8 blocks.
    host.sched.submit(job(3, &[9; 19], 1));
    host.run_to_end();
    let before = host.evaluated;
    host.sched.submit(job(4, &[1; 13], 1));
    host.run_to_end();
    assert_eq!(host.evaluated - before, 1, "the refreshed prefix is still there");
}
