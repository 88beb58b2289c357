//! One request as the scheduler sees it: tokens, how many are evaluated, and the blocks that hold their keys and values.

use super::Limits;
use super::blocks::{BlockId, BlockPool, ContentId, ROOT};
use super::snapshots::{Saved, SnapshotPool};

/// Names a sequence; given by the caller, unique.
pub type SeqId = u64;

/// What the caller wants evaluated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// Name.
    pub id: SeqId,
    /// At least one token, fewer than the context.
    pub prompt: Vec<u32>,
    /// Most tokens to generate; the context bounds it too.
    pub max_tokens: usize,
    /// May reuse published blocks and publish its own.
    pub cache: bool,
    /// Logits of every prompt token are wanted, so nothing is reused.
    pub prompt_logits: bool,
}

/// A waiting or running sequence.
#[derive(Clone, Debug)]
pub struct Sequence {
    pub(super) id: SeqId,
    pub(super) tokens: Vec<u32>,
    pub(super) prompt: usize,
    /// Most tokens, prompt and output.
    pub(super) limit: usize,
    /// Tokens whose keys and values are in the cache.
    pub(super) computed: usize,
    pub(super) cached: usize,
    pub(super) blocks: Vec<BlockId>,
    /// Contents of the leading blocks that are published.
    pub(super) contents: Vec<ContentId>,
    /// Blocks it was promised and has not taken.
    pub(super) promised: usize,
    pub(super) cache: bool,
    pub(super) prompt_logits: bool,
    /// Its slot of recurrent state while it runs.
    pub(super) slot: usize,
    /// Where it meets the end of published blocks that it had to evaluate again for want of a snapshot.
    pub(super) parting: usize,
    /// Its snapshot of what it generated last, to be replaced by the next one.
    pub(super) latest: Option<Saved>,
    /// Hash of the prompt's first `i + 1` blocks, to see who is computing the same.
    chain: Vec<u64>,
}

impl Sequence {
    pub(super) fn new(job: Job, limits: &Limits) -> Self {
        let limit = job.prompt.len().saturating_add(job.max_tokens).min(limits.context.max(job.prompt.len()));
        let chain = if job.cache { chain_hashes(&job.prompt, limits.block_tokens) } else { Vec::new() };
        Sequence {
            id: job.id,
            prompt: job.prompt.len(),
            tokens: job.prompt,
            limit,
            computed: 0,
            cached: 0,
            blocks: Vec::new(),
            contents: Vec::new(),
            promised: 0,
            cache: job.cache,
            prompt_logits: job.prompt_logits,
            slot: 0,
            parting: 0,
            latest: None,
            chain,
        }
    }

    /// Name.
    pub fn id(&self) -> SeqId {
        self.id
    }

    /// Prompt and output so far.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Tokens of the prompt.
    pub fn prompt_len(&self) -> usize {
        self.prompt
    }

    /// Tokens whose keys and values are in the cache.
    pub fn computed(&self) -> usize {
        self.computed
    }

    /// Prompt tokens taken from published blocks.
    pub fn cached(&self) -> usize {
        self.cached
    }

    /// Its blocks: token `p` lies in block `p / block_tokens`.
    pub fn blocks(&self) -> &[BlockId] {
        &self.blocks
    }

    /// True until the whole prompt is evaluated.
    pub fn in_prefill(&self) -> bool {
        self.computed < self.prompt
    }

    /// True when it may not grow any more.
    pub fn is_full(&self) -> bool {
        self.tokens.len() >= self.limit
    }

    /// Prompt blocks that may come from the cache: full ones, without the last token.
    pub(super) fn reusable_blocks(&self, block_tokens: usize) -> usize {
        if self.cache && !self.prompt_logits { (self.prompt - 1) / block_tokens } else { 0 }
    }

    /// Blocks it needs when it grows to its limit.
    pub(super) fn blocks_at_limit(&self, block_tokens: usize) -> usize {
        self.limit.div_ceil(block_tokens)
    }

    /// The published blocks that continue what it has, in order.
    pub(super) fn find_cached(&self, pool: &BlockPool, block_tokens: usize) -> Vec<(BlockId, ContentId)> {
        let mut found = Vec::new();
        if !self.computed.is_multiple_of(block_tokens) || self.contents.len() * block_tokens != self.computed {
            return found;
        }
        let mut before = self.contents.last().copied().unwrap_or(ROOT);
        for index in self.computed / block_tokens..self.reusable_blocks(block_tokens) {
            let Some(hit) = pool.find(before, &self.tokens[index * block_tokens..][..block_tokens]) else { break };
            found.push(hit);
            before = hit.1;
        }
        found
    }

    /// Leaves of what [`Sequence::find_cached`] found what a snapshot ends: that snapshot, if there is one, and where the
    /// found blocks end.
    pub(super) fn cut_to_snapshot(
        &self,
        hits: &mut Vec<(BlockId, ContentId)>,
        snapshots: &SnapshotPool,
        block_tokens: usize,
    ) -> (Option<Saved>, usize) {
        let end = self.computed + hits.len() * block_tokens;
        let found = hits.iter().enumerate().rev().find_map(|(i, hit)| Some((i + 1, snapshots.find(hit.1)?)));
        hits.truncate(found.map_or(0, |(len, _)| len));
        (found.map(|(_, saved)| saved), end)
    }

    /// The block border behind which only the last tokens of the prompt lie.
    pub(super) fn last_border(&self, block_tokens: usize) -> usize {
        (self.prompt - 1) / block_tokens * block_tokens
    }

    /// Tokens, in whole blocks, with which both prompts begin as far as this one may reuse them.
    pub(super) fn common_with(&self, other: &Sequence, block_tokens: usize) -> usize {
        let reusable = self.reusable_blocks(block_tokens);
        let same = self.chain[..reusable.min(self.chain.len())].iter().zip(&other.chain);
        same.take_while(|(a, b)| a == b).count() * block_tokens
    }

    /// Takes what [`Sequence::find_cached`] found.
    pub(super) fn attach(&mut self, hits: &[(BlockId, ContentId)], pool: &mut BlockPool, block_tokens: usize) {
        for &(block, content) in hits {
            pool.retain(block);
            self.blocks.push(block);
            self.contents.push(content);
            self.computed += block_tokens;
            self.cached += block_tokens;
        }
        self.promised -= hits.len().min(self.promised);
    }

    /// Publishes the blocks that are full by now.
    pub(super) fn publish(&mut self, pool: &mut BlockPool, block_tokens: usize) {
        while self.cache && self.contents.len() < self.computed / block_tokens {
            let index = self.contents.len();
            let before = self.contents.last().copied().unwrap_or(ROOT);
            let tokens = &self.tokens[index * block_tokens..][..block_tokens];
            let (block, content) = pool.publish(self.blocks[index], before, tokens);
            self.blocks[index] = block;
            self.contents.push(content);
        }
    }

    /// True when `earlier` is about to publish the block this one needs next.
    pub(super) fn should_wait_for(&self, earlier: &Sequence, block_tokens: usize) -> bool {
        let next = self.computed / block_tokens;
        self.computed.is_multiple_of(block_tokens)
            && next < self.reusable_blocks(block_tokens)
            && earlier.cache
            && earlier.in_prefill()
            && earlier.chain.get(next) == Some(&self.chain[next])
    }

    /// True when `earlier` is about to reach a point that this one can go on from: it will pause there for a snapshot.
    pub(super) fn should_wait_for_state_of(&self, earlier: &Sequence, block_tokens: usize) -> bool {
        let common = self.common_with(earlier, block_tokens);
        earlier.cache && earlier.in_prefill() && common > self.computed.max(earlier.computed)
    }

    /// Lets go of all blocks, the last one first (see [`BlockPool`]).
    pub(super) fn release(&mut self, pool: &mut BlockPool) {
        while let Some(block) = self.blocks.pop() {
            pool.release(block);
        }
        self.contents.clear();
        self.promised = 0;
    }
}

/// FNV-1a over the tokens, sampled at the end of each full block. A collision only makes a sequence wait for a block
/// that then does not fit; what is reused is compared token by token.
fn chain_hashes(tokens: &[u32], block_tokens: usize) -> Vec<u64> {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    tokens
        .chunks_exact(block_tokens)
        .map(|block| {
            for &token in block {
                hash = (hash ^ u64::from(token)).wrapping_mul(0x0100_0000_01b3);
            }
            hash
        })
        .collect()
}
