//! A cursor over a prefix of a file. Knows the whole file's length, so that it can tell "fetch more" from "truncated".

use super::{Error, MAX_HEADER_BYTES};

/// Reads little-endian fields in order. Offsets in errors are from the start of the file.
#[derive(Clone)]
pub(super) struct Reader<'a> {
    prefix: &'a [u8],
    file_len: u64,
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(prefix: &'a [u8], file_len: u64) -> Self {
        // A caller that knows less than it holds is believed about the bytes.
        Reader { prefix, file_len: file_len.max(prefix.len() as u64), at: 0 }
    }

    /// Where the next field starts.
    pub(super) fn offset(&self) -> u64 {
        self.at as u64
    }

    /// Bytes of the prefix that are left: the bound on what may be allocated.
    pub(super) fn at_hand(&self) -> usize {
        self.prefix.len() - self.at
    }

    /// The next `len` bytes. `field` names them in an error and is only called for one.
    pub(super) fn take(&mut self, len: u64, field: impl FnOnce() -> String) -> Result<&'a [u8], Error> {
        if len <= self.at_hand() as u64 {
            // The cast is exact: `len` is at most a slice's length.
            let taken = &self.prefix[self.at..self.at + len as usize];
            self.at += taken.len();
            return Ok(taken);
        }
        Err(self.shortage(len, field()))
    }

    /// Fails early where `count` things of at least `each` bytes cannot fit into the rest of the file.
    pub(super) fn expect(&self, count: u64, each: u64, field: impl FnOnce() -> String) -> Result<(), Error> {
        let fits = count.checked_mul(each).and_then(|len| len.checked_add(self.offset()));
        match fits {
            Some(end) if end <= self.file_len => Ok(()),
            Some(needed) => {
                Err(Error::Truncated { field: field(), offset: self.offset(), needed, file_len: self.file_len })
            }
            None => Err(Error::Overflow { field: field(), offset: self.offset(), value: count }),
        }
    }

    fn shortage(&self, len: u64, field: String) -> Error {
        let offset = self.offset();
        let Some(needed) = offset.checked_add(len) else {
            return Error::Overflow { field, offset, value: len };
        };
        if needed > self.file_len {
            Error::Truncated { field, offset, needed, file_len: self.file_len }
        } else if needed > MAX_HEADER_BYTES {
            Error::HeaderTooLarge { field, offset, limit: MAX_HEADER_BYTES }
        } else {
            Error::NeedMore { field, offset, needed, have: self.prefix.len() as u64 }
        }
    }

    fn array<const N: usize>(&mut self, field: impl FnOnce() -> String) -> Result<[u8; N], Error> {
        let bytes = self.take(N as u64, field)?;
        let mut array = [0; N];
        array.copy_from_slice(bytes);
        Ok(array)
    }

    pub(super) fn u32(&mut self, field: impl FnOnce() -> String) -> Result<u32, Error> {
        self.array(field).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, field: impl FnOnce() -> String) -> Result<u64, Error> {
        self.array(field).map(u64::from_le_bytes)
    }

    /// A string: its length, then its bytes.
    pub(super) fn string(&mut self, field: impl Fn() -> String) -> Result<&'a [u8], Error> {
        let len = self.u64(|| format!("the length of {}", field()))?;
        self.take(len, field)
    }
}
