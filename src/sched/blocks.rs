//! The blocks of the paged KV cache: who uses which, and which hold a prefix worth keeping.
//!
//! A block is free, in use (by one or more sequences), or cached: unused, but published and still findable. A published
//! block's key is its tokens and the block before it, so a hit is exact: no hash stands in for the content. Cached
//! blocks are evicted least recently used first. A sequence lets go of its last block first, so a block always outlives
//! those that continue it and no published block is ever out of reach. Called by [`super::Scheduler`] alone.
//!
//! All memory is reserved at the start: published tokens lie in one array, and the blocks themselves are the links of the
//! index's chains and of the list of cached ones.

use std::hash::{DefaultHasher, Hasher};

/// Index of a block in the cache.
pub type BlockId = u32;

/// Names published content; never reused. 0 is the empty prefix.
pub type ContentId = u64;

/// The empty prefix.
pub const ROOT: ContentId = 0;

/// No block.
const NONE: BlockId = BlockId::MAX;

#[derive(Clone, Debug)]
struct Block {
    users: u32,
    /// What it holds; [`ROOT`] unless published.
    content: ContentId,
    /// What comes before its content.
    before: ContentId,
    /// The next one in its chain of the index, while published.
    next: BlockId,
    /// Its neighbours among the cached ones.
    older: BlockId,
    newer: BlockId,
}

impl Block {
    const EMPTY: Block = Block { users: 0, content: ROOT, before: ROOT, next: NONE, older: NONE, newer: NONE };
}

/// All blocks and the published prefixes among them.
#[derive(Clone, Debug)]
pub struct BlockPool {
    blocks: Vec<Block>,
    /// Tokens of the published blocks, `[blocks, block_tokens]`.
    tokens: Vec<u32>,
    block_tokens: usize,
    /// A stack with the lowest number on top, so that untouched memory stays untouched.
    free: Vec<BlockId>,
    /// Heads of the chains, by hash of the key; as many as the blocks, up to a power of two.
    index: Vec<BlockId>,
    /// Ends of the list of cached blocks.
    oldest: BlockId,
    newest: BlockId,
    cached: usize,
    next_content: ContentId,
}

impl BlockPool {
    /// `count` free blocks of `block_tokens` tokens.
    pub fn new(count: usize, block_tokens: usize) -> Self {
        BlockPool {
            blocks: vec![Block::EMPTY; count],
            tokens: vec![0; count * block_tokens],
            block_tokens,
            free: (0..count as BlockId).rev().collect(),
            index: vec![NONE; chains(count)],
            oldest: NONE,
            newest: NONE,
            cached: 0,
            next_content: ROOT + 1,
        }
    }

    /// Bytes that [`BlockPool::new`] reserves.
    pub fn bytes(count: usize, block_tokens: usize) -> u64 {
        let per_block = size_of::<Block>() + size_of::<BlockId>() + size_of::<u32>().saturating_mul(block_tokens);
        let index = (chains(count) as u64).saturating_mul(size_of::<BlockId>() as u64);
        (count as u64).saturating_mul(per_block as u64).saturating_add(index)
    }

    /// Bytes reserved.
    pub fn reserved(&self) -> u64 {
        let BlockPool { blocks, tokens, free, index, .. } = self;
        let words = tokens.capacity() + free.capacity() + index.capacity();
        (size_of::<Block>() * blocks.capacity() + size_of::<u32>() * words) as u64
    }

    /// Blocks in all.
    pub fn total(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks that [`BlockPool::allocate`] can give: free or cached.
    pub fn available(&self) -> usize {
        self.free.len() + self.cached
    }

    /// Blocks that sequences use.
    pub fn used(&self) -> usize {
        self.total() - self.available()
    }

    /// Unused blocks that hold a prefix.
    pub fn cached(&self) -> usize {
        self.cached
    }

    /// Users of a block.
    pub fn users(&self, block: BlockId) -> u32 {
        self.blocks[block as usize].users
    }

    /// True when the block's content can be found, so that nobody may write to it.
    pub fn is_published(&self, block: BlockId) -> bool {
        self.blocks[block as usize].content != ROOT
    }

    /// A block with one user and no content: a free one, else the least recently used cached one.
    pub fn allocate(&mut self) -> Option<BlockId> {
        let block = match self.free.pop() {
            Some(block) => block,
            None => self.evict()?,
        };
        self.blocks[block as usize].users = 1;
        Some(block)
    }

    fn evict(&mut self) -> Option<BlockId> {
        let block = (self.oldest != NONE).then_some(self.oldest)?;
        self.leave_cached(block);
        self.leave_index(block);
        self.blocks[block as usize] = Block::EMPTY;
        Some(block)
    }

    /// The block that holds `tokens` behind the content `before`.
    pub fn find(&self, before: ContentId, tokens: &[u32]) -> Option<(BlockId, ContentId)> {
        let mut at = self.index[self.chain(before, tokens)];
        while at != NONE {
            let block = &self.blocks[at as usize];
            if block.before == before && self.tokens(at) == tokens {
                return Some((at, block.content));
            }
            at = block.next;
        }
        None
    }

    /// One more user.
    pub fn retain(&mut self, block: BlockId) {
        if self.users(block) == 0 {
            self.leave_cached(block);
        }
        self.blocks[block as usize].users += 1;
    }

    /// One user less; the last one leaves a published block cached, any other free.
    pub fn release(&mut self, block: BlockId) {
        let entry = &mut self.blocks[block as usize];
        debug_assert!(entry.users > 0, "block {block} is released more often than taken");
        entry.users = entry.users.saturating_sub(1);
        if entry.users > 0 {
            return;
        }
        if self.is_published(block) {
            self.join_cached(block);
        } else {
            self.free.push(block);
        }
    }

    /// Publishes a full block that its one user has just finished. When the same content is there already, the user
    /// gets that block instead and its own is released.
    pub fn publish(&mut self, block: BlockId, before: ContentId, tokens: &[u32]) -> (BlockId, ContentId) {
        if let Some((existing, content)) = self.find(before, tokens) {
            self.retain(existing);
            self.release(block);
            return (existing, content);
        }
        let content = self.next_content;
        self.next_content += 1;
        self.tokens[block as usize * self.block_tokens..][..self.block_tokens].copy_from_slice(tokens);
        let chain = self.chain(before, tokens);
        let next = std::mem::replace(&mut self.index[chain], block);
        let entry = &mut self.blocks[block as usize];
        (entry.content, entry.before, entry.next) = (content, before, next);
        (block, content)
    }

    /// Tokens of a published block.
    fn tokens(&self, block: BlockId) -> &[u32] {
        &self.tokens[block as usize * self.block_tokens..][..self.block_tokens]
    }

    /// The chain a key belongs to.
    fn chain(&self, before: ContentId, tokens: &[u32]) -> usize {
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(before);
        tokens.iter().for_each(|&token| hasher.write_u32(token));
        // The cast drops what the mask would.
        hasher.finish() as usize & (self.index.len() - 1)
    }

    fn leave_index(&mut self, block: BlockId) {
        let Block { before, next, .. } = self.blocks[block as usize];
        let chain = self.chain(before, self.tokens(block));
        if self.index[chain] == block {
            self.index[chain] = next;
            return;
        }
        let mut at = self.index[chain];
        while at != NONE {
            let entry = &mut self.blocks[at as usize];
            if entry.next == block {
                entry.next = next;
                return;
            }
            at = entry.next;
        }
    }

    /// Puts a block at the newest end of the cached ones.
    fn join_cached(&mut self, block: BlockId) {
        let before = std::mem::replace(&mut self.newest, block);
        let entry = &mut self.blocks[block as usize];
        (entry.older, entry.newer) = (before, NONE);
        match before {
            NONE => self.oldest = block,
            before => self.blocks[before as usize].newer = block,
        }
        self.cached += 1;
    }

    fn leave_cached(&mut self, block: BlockId) {
        let Block { older, newer, .. } = self.blocks[block as usize];
        match older {
            NONE => self.oldest = newer,
            older => self.blocks[older as usize].newer = newer,
        }
        match newer {
            NONE => self.newest = older,
            newer => self.blocks[newer as usize].older = older,
        }
        self.cached -= 1;
    }

    /// Checks that the books balance; for tests.
    #[cfg(test)]
    pub fn audit(&self) {
        let mut cached = Vec::new();
        let mut at = self.oldest;
        while at != NONE {
            cached.push(at);
            at = self.blocks[at as usize].newer;
        }
        assert_eq!((cached.len(), cached.last()), (self.cached, (self.newest != NONE).then_some(&self.newest)));
        assert!(self.free.iter().all(|b| self.users(*b) == 0 && !self.is_published(*b)));
        assert!(cached.iter().all(|b| self.users(*b) == 0 && self.is_published(*b)));
        let mut unused: Vec<_> = self.free.iter().chain(&cached).collect();
        unused.sort();
        unused.dedup();
        assert_eq!(unused.len(), self.available(), "a block is free twice");
        assert_eq!(unused.len(), self.blocks.iter().filter(|b| b.users == 0).count(), "a block is lost");
        let published: Vec<BlockId> = (0..self.total() as BlockId).filter(|b| self.is_published(*b)).collect();
        let contents: Vec<_> = published.iter().map(|b| self.blocks[*b as usize].content).collect();
        for &block in &published {
            let before = self.blocks[block as usize].before;
            assert_eq!(self.find(before, self.tokens(block)).map(|hit| hit.0), Some(block), "it cannot be found");
            assert!(before == ROOT || contents.contains(&before), "a published block is out of reach");
        }
        let chained = |mut at: BlockId| {
            std::iter::from_fn(move || {
                let block = (at != NONE).then_some(at)?;
                at = self.blocks[block as usize].next;
                Some(block)
            })
        };
        assert_eq!(self.index.iter().flat_map(|&head| chained(head)).count(), published.len());
        assert_eq!(self.reserved(), Self::bytes(self.total(), self.block_tokens), "memory grew");
    }
}

/// Chains of an index over `count` blocks.
fn chains(count: usize) -> usize {
    count.checked_next_power_of_two().unwrap_or(count)
}
