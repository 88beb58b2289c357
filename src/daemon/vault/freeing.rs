//! Giving memory back. Closing the last descriptor of hundreds of gibibytes takes the kernel tens of seconds, so it is
//! done on a thread of its own; meanwhile what is on its way is known, and nobody lets go of more than is needed.

use super::held::Held;
use crate::sys::notify;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long the service manager may take to close its copies. Until then closing ours frees nothing, and the manager would
/// stand still while it frees.
const MANAGER: Duration = Duration::from_secs(30);

/// Memory by what it is good for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Bytes {
    /// On pages of 4 KiB and transparent huge ones: anybody's.
    pub plain: u64,
    /// On reserved pages: other weights' only.
    pub reserved: u64,
}

impl Bytes {
    /// What somebody gains by it who can use `reserved` bytes on reserved pages at most; takes these from `reserved`.
    pub fn gain(self, reserved: &mut u64) -> u64 {
        let taken = self.reserved.min(*reserved);
        *reserved -= taken;
        self.plain.saturating_add(taken)
    }
}

/// What is on its way.
#[derive(Debug, Default)]
pub(super) struct Freeing {
    bytes: Mutex<Bytes>,
}

impl Freeing {
    /// Memory that will be free soon.
    pub fn under_way(&self) -> Bytes {
        *self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes the descriptors of images that the service manager was told to forget.
    pub fn close(self: &Arc<Self>, images: Vec<Held>) {
        if images.is_empty() {
            return;
        }
        let stored = images.iter().any(|image| image.stored);
        let closing = self.hold(images);
        let body = move || {
            if stored {
                notify::barrier(MANAGER);
            }
            drop(closing);
        };
        // Without a thread they were closed here and now.
        if let Err(error) = std::thread::Builder::new().name("free".into()).spawn(body) {
            tracing::debug!(%error, "no thread to free memory on");
        }
    }

    /// Counts images as on their way until the answer is dropped, and they with it.
    pub(super) fn hold(self: &Arc<Self>, images: Vec<Held>) -> Closing {
        let mut bytes = Bytes::default();
        // What a worker has mapped stays until it ends.
        for image in images.iter().filter(|image| image.users.is_empty()) {
            bytes.plain += image.takes().plain;
            bytes.reserved += image.takes().reserved;
        }
        {
            let mut sum = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
            (sum.plain, sum.reserved) = (sum.plain + bytes.plain, sum.reserved + bytes.reserved);
        }
        Closing { images, bytes, freeing: self.clone() }
    }
}

/// Images that are closed when this is dropped, wherever that is.
pub(super) struct Closing {
    images: Vec<Held>,
    bytes: Bytes,
    freeing: Arc<Freeing>,
}

impl Drop for Closing {
    fn drop(&mut self) {
        self.images.clear();
        let mut sum = self.freeing.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        (sum.plain, sum.reserved) = (sum.plain - self.bytes.plain, sum.reserved - self.bytes.reserved);
    }
}
