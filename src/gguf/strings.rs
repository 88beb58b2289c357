//! Arrays of byte strings in two allocations, however many there are: a vocabulary and its merges are some 300,000.

use std::ops::Index;

/// Byte strings end to end in one store. Vocabularies may hold invalid UTF-8.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Strings {
    bytes: Vec<u8>,
    /// End of each string in `bytes`.
    ends: Vec<usize>,
}

impl Strings {
    /// Room for `count` strings of `bytes` in all.
    pub(super) fn with_capacity(count: usize, bytes: usize) -> Strings {
        Strings { bytes: Vec::with_capacity(bytes), ends: Vec::with_capacity(count) }
    }

    /// Appends a string.
    pub fn push(&mut self, string: &[u8]) {
        self.bytes.extend_from_slice(string);
        self.ends.push(self.bytes.len());
    }

    /// Number of strings.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// True without strings.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Bytes of all strings.
    pub fn total_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// All strings in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        let mut start = 0;
        self.ends.iter().map(move |&end| &self.bytes[std::mem::replace(&mut start, end)..end])
    }
}

/// String `index`, which must be there.
impl Index<usize> for Strings {
    type Output = [u8];

    fn index(&self, index: usize) -> &[u8] {
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.bytes[start..self.ends[index]]
    }
}

impl<T: AsRef<[u8]>> FromIterator<T> for Strings {
    fn from_iter<I: IntoIterator<Item = T>>(strings: I) -> Strings {
        let mut all = Strings::default();
        strings.into_iter().for_each(|string| all.push(string.as_ref()));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_come_back_as_they_went_in() {
        let list: [&[u8]; 5] = [b"", b"a", b"\xff\0", b"", b"bc"];
        let strings: Strings = list.into_iter().collect();
        assert_eq!((strings.len(), strings.total_bytes(), strings.is_empty()), (5, 5, false));
        assert!(strings.iter().eq(list) && (0..5).all(|i| strings[i] == *list[i]));
        assert_eq!(Strings::default().iter().next(), None);
    }
}
