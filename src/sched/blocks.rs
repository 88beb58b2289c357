//! The blocks of the paged KV cache: who uses which, and which hold a prefix worth keeping.
//!
//! A block is free, in use (by one or more sequences), or cached: unused, but published and still findable. A published
//! block's key is its tokens and the block before it, so a hit is exact: no hash stands in for the content. Cached
//! blocks are evicted least recently used first. A sequence lets go of its last block first, so a block always outlives
//! those that continue it and no published block is ever out of reach. Called by [`super::Scheduler`] alone.

use std::collections::{BTreeMap, HashMap};

/// Index of a block in the cache.
pub type BlockId = u32;

/// Names published content; never reused. 0 is the empty prefix.
pub type ContentId = u64;

/// The empty prefix.
pub const ROOT: ContentId = 0;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    before: ContentId,
    tokens: Box<[u32]>,
}

#[derive(Clone, Debug, Default)]
struct Block {
    users: u32,
    published: Option<(ContentId, Key)>,
    /// Key in `lru` while cached.
    stamp: u64,
}

/// All blocks and the published prefixes among them.
#[derive(Clone, Debug)]
pub struct BlockPool {
    blocks: Vec<Block>,
    /// A stack with the lowest number on top, so that untouched memory stays untouched.
    free: Vec<BlockId>,
    index: HashMap<Key, BlockId>,
    lru: BTreeMap<u64, BlockId>,
    next_content: ContentId,
    next_stamp: u64,
}

impl BlockPool {
    /// `count` free blocks.
    pub fn new(count: usize) -> Self {
        BlockPool {
            blocks: vec![Block::default(); count],
            free: (0..count as BlockId).rev().collect(),
            index: HashMap::new(),
            lru: BTreeMap::new(),
            next_content: ROOT + 1,
            next_stamp: 0,
        }
    }

    /// Blocks in all.
    pub fn total(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks that [`BlockPool::allocate`] can give: free or cached.
    pub fn available(&self) -> usize {
        self.free.len() + self.lru.len()
    }

    /// Blocks that sequences use.
    pub fn used(&self) -> usize {
        self.total() - self.available()
    }

    /// Unused blocks that hold a prefix.
    pub fn cached(&self) -> usize {
        self.lru.len()
    }

    /// Users of a block.
    pub fn users(&self, block: BlockId) -> u32 {
        self.blocks[block as usize].users
    }

    /// True when the block's content can be found, so that nobody may write to it.
    pub fn is_published(&self, block: BlockId) -> bool {
        self.blocks[block as usize].published.is_some()
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
        let (_, block) = self.lru.pop_first()?;
        if let Some((_, key)) = self.blocks[block as usize].published.take() {
            self.index.remove(&key);
        }
        Some(block)
    }

    /// The block that holds `tokens` behind the content `before`.
    pub fn find(&self, before: ContentId, tokens: &[u32]) -> Option<(BlockId, ContentId)> {
        let block = *self.index.get(&Key { before, tokens: tokens.into() })?;
        let (content, _) = self.blocks[block as usize].published.as_ref()?;
        Some((block, *content))
    }

    /// One more user.
    pub fn retain(&mut self, block: BlockId) {
        let entry = &mut self.blocks[block as usize];
        if entry.users == 0 {
            self.lru.remove(&entry.stamp);
        }
        entry.users += 1;
    }

    /// One user less; the last one leaves a published block cached, any other free.
    pub fn release(&mut self, block: BlockId) {
        let entry = &mut self.blocks[block as usize];
        debug_assert!(entry.users > 0, "block {block} is released more often than taken");
        entry.users = entry.users.saturating_sub(1);
        if entry.users > 0 {
            return;
        }
        if entry.published.is_some() {
            entry.stamp = self.next_stamp;
            self.next_stamp += 1;
            self.lru.insert(entry.stamp, block);
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
        let key = Key { before, tokens: tokens.into() };
        self.index.insert(key.clone(), block);
        self.blocks[block as usize].published = Some((content, key));
        (block, content)
    }

    /// Checks that the books balance; for tests.
    #[cfg(test)]
    pub fn audit(&self) {
        let users = |b: &BlockId| self.blocks[*b as usize].users;
        assert!(self.free.iter().all(|b| users(b) == 0 && !self.is_published(*b)));
        assert!(self.lru.values().all(|b| users(b) == 0 && self.is_published(*b)));
        let mut unused: Vec<_> = self.free.iter().chain(self.lru.values()).collect();
        unused.sort();
        unused.dedup();
        assert_eq!(unused.len(), self.available(), "a block is free twice");
        assert_eq!(unused.len(), self.blocks.iter().filter(|b| b.users == 0).count(), "a block is lost");
        assert_eq!(self.index.len(), self.blocks.iter().filter(|b| b.published.is_some()).count());
        let contents: Vec<_> = self.blocks.iter().filter_map(|b| b.published.as_ref().map(|p| p.0)).collect();
        for block in &self.blocks {
            if let Some((_, key)) = &block.published {
                assert!(key.before == ROOT || contents.contains(&key.before), "a published block is out of reach");
            }
        }
    }
}
