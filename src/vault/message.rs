//! What a worker and its daemon tell each other about images: one JSON object per message, descriptors beside it. The
//! worker asks, the daemon answers each question in turn.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Longest message.
pub const MESSAGE_BYTES: usize = 64 << 10;

/// Worker to daemon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case")]
pub enum Ask {
    /// An image of this file in this variant. Answered by [`Answer::Image`] or [`Answer::Nothing`].
    Find {
        /// As the worker was told to load it.
        path: PathBuf,
        /// See [`super::Manifest::variant`].
        variant: String,
    },
    /// The image just found does not match. Answered by [`Answer::Nothing`].
    Reject {
        /// The image.
        id: String,
        /// What is different.
        reason: String,
    },
    /// An image to be kept: the manifest's descriptor, then each segment's. Answered by [`Answer::Nothing`].
    Keep,
    /// Memory is wanted that images take which nobody uses. Answered by [`Answer::Freed`].
    Reclaim {
        /// How much at least.
        bytes: u64,
        /// How much of it may lie on reserved pages, which only weights use.
        reserved: u64,
    },
}

/// Daemon to worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum Answer {
    /// There it is: the manifest's descriptor, then each segment's.
    Image {
        /// Its name.
        id: String,
    },
    /// Nothing to hand over.
    Nothing,
    /// Images were let go. Their memory is free after a while: giving it back takes the kernel some time.
    Freed {
        /// Bytes that will be free, those of which the wisher can make use.
        bytes: u64,
    },
}
