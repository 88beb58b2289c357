//! What can be wrong with a GGUF file, with the facts: offset, field, key or tensor, and what was expected.

/// Why bytes are no GGUF this reader takes.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Only a prefix was given and more of the file is needed: see [`Error::fetch`].
    #[error("{field} at offset {offset} needs the first {needed} bytes of the file; {have} were read")]
    NeedMore {
        /// What was being read.
        field: String,
        /// Where it starts.
        offset: u64,
        /// Bytes of the file, from its start, without which parsing cannot go on.
        needed: u64,
        /// Bytes given.
        have: u64,
    },
    /// The file itself ends too early, or claims more than it holds.
    #[error(
        "the file is truncated or corrupt: {field} at offset {offset} would end at byte {needed}, the file has \
         {file_len}; download or copy it again"
    )]
    Truncated {
        /// What was being read.
        field: String,
        /// Where it starts.
        offset: u64,
        /// Where it would end.
        needed: u64,
        /// Bytes of the file.
        file_len: u64,
    },
    /// A length or count beyond any file.
    #[error("{field} at offset {offset} is {value}, more than any file can hold; the file is corrupt")]
    Overflow {
        /// The field.
        field: String,
        /// Where it stands.
        offset: u64,
        /// Its value.
        value: u64,
    },
    /// Header, metadata and directory are larger than [`super::MAX_HEADER_BYTES`].
    #[error("{field} at offset {offset} would make the header larger than {limit} bytes; the file is corrupt")]
    HeaderTooLarge {
        /// What was being read.
        field: String,
        /// Where it starts.
        offset: u64,
        /// The limit.
        limit: u64,
    },
    /// Not "GGUF" at the start.
    #[error("not a GGUF file: it starts with \"{found}\", expected \"GGUF\"{}", magic_hint(.found))]
    Magic {
        /// First bytes, at most four, escaped.
        found: String,
    },
    /// Another version.
    #[error("GGUF version {found} at offset 4 is not supported (2 and 3 are){}", version_hint(*.found))]
    Version {
        /// As read, little-endian.
        found: u32,
    },
    /// A value that the format forbids.
    #[error("{field} at offset {offset}: {problem}")]
    Invalid {
        /// The field, with its key or tensor.
        field: String,
        /// Where it stands.
        offset: u64,
        /// What is wrong.
        problem: String,
    },
    /// A key or tensor name occurs twice.
    #[error("{what} {name:?} at offset {offset} occurs a second time")]
    Duplicate {
        /// `key` or `tensor`.
        what: &'static str,
        /// Its name.
        name: String,
        /// Where the second one stands; 0 where files of a split set repeat a tensor.
        offset: u64,
    },
    /// A tensor is wrong in itself.
    #[error("tensor {tensor:?}: {problem}")]
    Tensor {
        /// Its name.
        tensor: String,
        /// What is wrong.
        problem: String,
    },
    /// A tensor lies beyond the end of the file.
    #[error(
        "tensor {tensor:?} ends at byte {end} but the file has {file_len}: it is incomplete; download or copy it again"
    )]
    OutOfFile {
        /// Its name.
        tensor: String,
        /// Where its data ends.
        end: u64,
        /// Bytes of the file.
        file_len: u64,
    },
    /// A metadata key has another type than asked for.
    #[error("key {key:?} is {found}, expected {expected}")]
    WrongType {
        /// The key.
        key: String,
        /// What was asked for.
        expected: &'static str,
        /// What the file has.
        found: String,
    },
    /// A metadata key that must be there is not.
    #[error("key {key:?} is missing")]
    MissingKey {
        /// The key.
        key: String,
    },
    /// The files given are no complete split set.
    #[error("split set: {problem}")]
    Split {
        /// What is wrong.
        problem: String,
    },
}

impl Error {
    /// The bytes from the start of the file that are needed to go on, where only a prefix was given: fetch them and
    /// parse again. `None` when the file itself is at fault.
    pub fn fetch(&self) -> Option<u64> {
        match self {
            Error::NeedMore { needed, .. } => Some(*needed),
            _ => None,
        }
    }
}

/// From [`super::parse_growing`]: the file is wrong, or could not be read.
#[derive(Debug, thiserror::Error)]
pub enum GrowError<E> {
    /// The bytes are wrong.
    #[error(transparent)]
    Parse(#[from] Error),
    /// The caller's fetch failed.
    #[error("{0}")]
    Fetch(E),
}

/// Says what other file the first bytes betray.
fn magic_hint(found: &str) -> &'static str {
    match found {
        "tjgg" | "ggjt" | "fmgg" | "lmgg" | "ggml" => "; this is a format older than GGUF: convert the model again",
        "PK\\x03\\x04" => "; this is a zip or PyTorch file: convert it to GGUF",
        "" => "; the file is empty",
        "vers" => "; this is a Git LFS pointer: fetch the file itself",
        "<!DO" | "<htm" => "; this is a web page: use the file's download address",
        _ => "",
    }
}

/// Says why a version is refused.
fn version_hint(found: u32) -> &'static str {
    match found {
        1 => "; convert the model again",
        2.. if found.swap_bytes() <= 3 => "; the file is big-endian: convert it to little-endian",
        0 => "; the file is corrupt",
        _ => "; it may need a newer release",
    }
}
