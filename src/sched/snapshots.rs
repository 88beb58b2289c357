//! Which slots hold a snapshot of recurrent state, and of what: the state behind a published block, named by its content.
//!
//! A snapshot is copied into a sequence's own slot before it goes on, so none is ever in use: the least recently used one
//! gives way to a new one. One whose block is gone cannot be found any more and ages with the others. Called by
//! [`super::Scheduler`] alone; all memory is reserved at the start.

use super::blocks::{ContentId, ROOT};

/// A snapshot that was made: its slot, and what it was made of. The slot may hold another one by now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Saved {
    index: usize,
    content: ContentId,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// [`ROOT`] while it holds nothing.
    content: ContentId,
    /// When it was made or used last.
    used: u64,
    /// It is written to in this step.
    taken: bool,
}

impl Entry {
    const EMPTY: Entry = Entry { content: ROOT, used: 0, taken: false };
}

/// The slots of snapshots.
#[derive(Clone, Debug)]
pub struct SnapshotPool {
    /// The first one's slot.
    first: usize,
    entries: Vec<Entry>,
    clock: u64,
}

impl SnapshotPool {
    /// `count` empty slots from `first` on.
    pub fn new(first: usize, count: usize) -> Self {
        SnapshotPool { first, entries: vec![Entry::EMPTY; count], clock: 0 }
    }

    /// Bytes that [`SnapshotPool::new`] reserves.
    pub fn bytes(count: usize) -> u64 {
        (count as u64).saturating_mul(size_of::<Entry>() as u64)
    }

    /// Bytes reserved.
    pub fn reserved(&self) -> u64 {
        (size_of::<Entry>() * self.entries.capacity()) as u64
    }

    /// Slots that hold a snapshot.
    pub fn held(&self) -> usize {
        self.entries.iter().filter(|entry| entry.content != ROOT).count()
    }

    /// The snapshot behind the block of that content.
    pub fn find(&self, content: ContentId) -> Option<Saved> {
        let index = self.entries.iter().position(|entry| entry.content == content)?;
        Some(Saved { index, content })
    }

    /// Notes the use of a snapshot that was found, and yields its slot.
    pub fn touch(&mut self, saved: Saved) -> usize {
        self.clock += 1;
        self.entries[saved.index].used = self.clock;
        self.first + saved.index
    }

    /// What was taken before and not published, because its sequence went away, is empty.
    pub fn begin_step(&mut self) {
        self.entries.iter_mut().filter(|entry| entry.taken).for_each(|entry| *entry = Entry::EMPTY);
    }

    /// A slot to write to in this step: that of `replaced` if it still holds that snapshot, else an empty or the least
    /// recently used one. It holds nothing until [`SnapshotPool::publish`]. `None` when all are taken in this step.
    pub fn take(&mut self, replaced: Option<Saved>) -> Option<usize> {
        let own = replaced.filter(|saved| self.entries[saved.index].content == saved.content).map(|saved| saved.index);
        let free = || (0..self.entries.len()).filter(|&index| !self.entries[index].taken);
        let index = own.or_else(|| free().min_by_key(|&index| self.entries[index].used))?;
        self.clock += 1;
        self.entries[index] = Entry { content: ROOT, used: self.clock, taken: true };
        Some(self.first + index)
    }

    /// A slot that was taken holds the state behind `content` now. An older snapshot of the same is forgotten.
    pub fn publish(&mut self, slot: usize, content: ContentId) -> Saved {
        self.entries.iter_mut().filter(|entry| entry.content == content).for_each(|entry| *entry = Entry::EMPTY);
        let index = slot - self.first;
        self.entries[index] = Entry { content, taken: false, ..self.entries[index] };
        Saved { index, content }
    }
}
