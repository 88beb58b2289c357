//! Finds the literals of special tokens in a text: leftmost, then longest.

/// A set of literals, sorted; searched by narrowing the range of those that share the bytes read so far.
#[derive(Debug, Default)]
pub(super) struct Literals {
    /// Sorted, non-empty, unique.
    sorted: Vec<(Vec<u8>, u32)>,
    /// Which bytes some literal begins with.
    begins: Vec<bool>,
}

/// A literal in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) begin: usize,
    pub(super) end: usize,
    pub(super) id: u32,
}

impl Literals {
    /// Empty literals are left out, and of duplicates the first id is kept.
    pub(super) fn new<'v>(literals: impl Iterator<Item = (&'v [u8], u32)>) -> Self {
        let mut sorted: Vec<(Vec<u8>, u32)> = literals
            .filter(|(bytes, _)| std::str::from_utf8(bytes).is_ok_and(|text| !text.is_empty()))
            .map(|(bytes, id)| (bytes.to_vec(), id))
            .collect();
        sorted.sort();
        sorted.dedup_by(|later, earlier| later.0 == earlier.0);
        let mut begins = vec![false; 256];
        sorted.iter().for_each(|(bytes, _)| begins[bytes[0] as usize] = true);
        Self { sorted, begins }
    }

    /// The first literal in `text` from byte `from` on.
    pub(super) fn first(&self, text: &[u8], from: usize) -> Option<Found> {
        if self.sorted.is_empty() {
            return None;
        }
        let candidates = (from..text.len()).filter(|&at| self.begins[text[at] as usize]);
        candidates.into_iter().find_map(|begin| {
            let (length, id) = self.longest_at(&text[begin..])?;
            Some(Found { begin, end: begin + length, id })
        })
    }

    /// The id of exactly this literal.
    pub(super) fn find(&self, literal: &[u8]) -> Option<u32> {
        let at = self.sorted.binary_search_by(|(bytes, _)| bytes.as_slice().cmp(literal)).ok()?;
        Some(self.sorted[at].1)
    }

    fn longest_at(&self, text: &[u8]) -> Option<(usize, u32)> {
        let mut range = &self.sorted[..];
        let mut longest = None;
        for (depth, &byte) in text.iter().enumerate() {
            let at_depth = |entry: &(Vec<u8>, u32)| entry.0.get(depth).copied();
            let begin = range.partition_point(|entry| at_depth(entry) < Some(byte));
            let end = range.partition_point(|entry| at_depth(entry) <= Some(byte));
            range = &range[begin..end];
            match range.first() {
                None => break,
                // The shortest of the range comes first.
                Some((bytes, id)) if bytes.len() == depth + 1 => longest = Some((depth + 1, *id)),
                Some(_) => {}
            }
        }
        longest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leftmost_then_longest_wins() {
        let list: [(&[u8], u32); 4] = [(b"<a>", 1), (b"<a>b", 2), (b"x", 3), (b"", 4)];
        let literals = Literals::new(list.into_iter());
        assert_eq!(literals.first(b"..<a>bx", 0), Some(Found { begin: 2, end: 6, id: 2 }));
        assert_eq!(literals.first(b"..<a>cx", 3), Some(Found { begin: 6, end: 7, id: 3 }));
        assert_eq!(literals.first(b"<a", 0), None);
        assert_eq!(literals.find(b"<a>"), Some(1));
        assert_eq!(Literals::default().first(b"abc", 0), None);
    }
}
