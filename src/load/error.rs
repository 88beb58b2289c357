//! What can go wrong between a path and weights in memory.

use crate::{gguf, model, ops};
use std::io;
use std::path::PathBuf;

/// Why a file could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be opened.
    #[error("cannot open {}: {source}", path.display())]
    Open {
        /// File.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A file of a split set is not there.
    #[error("{} is missing: part {number} of {count} of this model ({source}); put all parts into one directory", path.display())]
    MissingPart {
        /// The file expected.
        path: PathBuf,
        /// Which part, from 1.
        number: u16,
        /// Parts in all.
        count: u16,
        /// The system's reason.
        source: io::Error,
    },
    /// The header is wrong.
    #[error("{}: {source}", path.display())]
    Gguf {
        /// File.
        path: PathBuf,
        /// What is wrong with it.
        source: gguf::Error,
    },
    /// The parts of a split set do not fit together.
    #[error("{}: {source}", path.display())]
    Split {
        /// First file.
        path: PathBuf,
        /// What does not fit.
        source: gguf::Error,
    },
    /// The model cannot be run.
    #[error("{}: {source}", path.display())]
    Model {
        /// First file.
        path: PathBuf,
        /// Why.
        source: model::Error,
    },
    /// Reading the header failed.
    #[error("cannot read the header of {}: {source}", path.display())]
    Header {
        /// File.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Reading weights failed.
    #[error("cannot read {} at offset {offset} (tensor {tensor}): {source}", path.display())]
    Read {
        /// File.
        path: PathBuf,
        /// What was read.
        tensor: String,
        /// Where, in bytes.
        offset: u64,
        /// The system's reason.
        source: io::Error,
    },
    /// The file ended while it was read.
    #[error("{} ended at byte {end} while bytes up to {wanted} were expected (tensor {tensor}): it was truncated while it was read", path.display())]
    Short {
        /// File.
        path: PathBuf,
        /// What was read.
        tensor: String,
        /// Where it ended.
        end: u64,
        /// What was to be read.
        wanted: u64,
    },
    /// Size or modification time differ from those at the start.
    #[error("{} changed while it was read; load it again when it is complete", path.display())]
    Changed {
        /// File.
        path: PathBuf,
    },
    /// No address space for the weights.
    #[error("cannot reserve {bytes} bytes for the weights: {source}")]
    Memory {
        /// Wanted.
        bytes: usize,
        /// The system's reason.
        source: io::Error,
    },
    /// No thread to read with.
    #[error("cannot start a thread to read with: {source}; raise the limit on processes")]
    Thread {
        /// The system's reason.
        source: io::Error,
    },
    /// io_uring, which worked before, takes no reads.
    #[error("the kernel takes no reads: {source}")]
    Ring {
        /// The system's reason.
        source: io::Error,
    },
    /// A tensor no operation takes.
    #[error(transparent)]
    Tensor(#[from] ops::Error),
}
