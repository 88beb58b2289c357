//! Which items of a parallel region belong to which thread: one run each, or, where the rows of each matrix lie on the
//! nodes of the threads that use them, a run of each matrix.

use crate::sys::numa;
use std::ops::Range;

/// Items of a region that are rows of one matrix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Among those of the region.
    pub items: Range<usize>,
    /// What the first of them is in the matrix.
    pub first: usize,
    /// Items of the whole matrix.
    pub of: usize,
}

impl Piece {
    /// Those of its items, as items of the region, that lie with a thread: the thread's [`numa::share`] of the matrix.
    pub fn share(&self, threads: usize, index: usize) -> Range<usize> {
        let share = numa::share(self.of, threads, index);
        let place = |at: usize| (self.items.start + at.saturating_sub(self.first)).min(self.items.end);
        place(share.start)..place(share.end)
    }
}

/// How a region's items are dealt. A thread's share is counted from its own first item on.
#[derive(Clone, Copy)]
pub(super) enum Deal<'a> {
    /// One run for each of so many threads.
    Whole { items: usize, threads: usize },
    /// A thread's shares of all pieces, one after the other, and how many items that is for each thread.
    Pieces { pieces: &'a [Piece], shares: &'a [usize] },
}

impl Deal<'_> {
    /// How many items each thread is dealt of pieces.
    pub fn shares(pieces: &[Piece], threads: usize) -> Vec<usize> {
        (0..threads).map(|index| pieces.iter().map(|piece| piece.share(threads, index).len()).sum()).collect()
    }

    /// How many items a thread is dealt.
    pub fn share(&self, index: usize) -> usize {
        match *self {
            Deal::Whole { items, threads } => numa::share(items, threads, index).len(),
            Deal::Pieces { shares, .. } => shares[index],
        }
    }

    /// Calls `body` with the items of the region that a range of a thread's share stands for.
    pub fn each(&self, index: usize, range: Range<usize>, body: &(dyn Fn(Range<usize>) + Sync)) {
        match *self {
            Deal::Whole { items, threads } => {
                let start = numa::share(items, threads, index).start;
                body(start + range.start..start + range.end);
            }
            Deal::Pieces { pieces, shares } => {
                let mut before = 0;
                for piece in pieces {
                    let share = piece.share(shares.len(), index);
                    let (start, end) = (range.start.max(before), range.end.min(before + share.len()));
                    if start < end {
                        body(share.start + start - before..share.start + end - before);
                    }
                    before += share.len();
                    if before >= range.end {
                        return;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    /// What a thread is dealt, in the order in which it comes to it, some items at a time.
    fn dealt(deal: Deal<'_>, index: usize, grain: usize) -> Vec<usize> {
        let items = Mutex::new(Vec::new());
        for start in (0..deal.share(index)).step_by(grain) {
            let end = deal.share(index).min(start + grain);
            deal.each(index, start..end, &|range| items.lock().unwrap().extend(range));
        }
        items.into_inner().unwrap()
    }

    #[test]
    fn each_item_is_dealt_once_and_to_whom_it_lies_with() {
        // Two matrices of 10 and 7 items, then items 3 to 8 of one of 9, as of one expert's up behind its gate.
        let piece = |start: usize, len: usize, first, of| Piece { items: start..start + len, first, of };
        let pieces = [piece(0, 10, 0, 10), piece(10, 7, 0, 7), piece(17, 0, 0, 0), piece(17, 5, 3, 9)];
        for threads in [1, 2, 3, 4, 16] {
            let shares = Deal::shares(&pieces, threads);
            for grain in [1, 4, 100] {
                let mut all = Vec::new();
                for index in 0..threads {
                    let own = dealt(Deal::Pieces { pieces: &pieces, shares: &shares }, index, grain);
                    for &item in &own {
                        let piece = pieces.iter().find(|piece| piece.items.contains(&item)).unwrap();
                        let at = item - piece.items.start + piece.first;
                        assert!(numa::share(piece.of, threads, index).contains(&at), "{item} of {threads} threads");
                    }
                    all.extend(own);
                }
                all.sort_unstable();
                assert_eq!(all, (0..22).collect::<Vec<_>>(), "{threads} threads, {grain} at a time");
            }
            let whole: Vec<usize> =
                (0..threads).flat_map(|index| dealt(Deal::Whole { items: 22, threads }, index, 4)).collect();
            assert_eq!(whole, (0..22).collect::<Vec<_>>());
        }
    }
}
