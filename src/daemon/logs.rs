//! The last log lines of a model (or of the daemon itself), for `/control/v1/logs`: a ring of bounded length with
//! readers that follow. Lines are shared, not copied.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::broadcast;

/// Lines kept.
pub const RING_LINES: usize = 2000;
/// Bytes of a line that are kept.
pub const LINE_BYTES: usize = 8 << 10;
/// Lines a follower may lag behind before it misses some.
const FOLLOW_LINES: usize = 256;

/// The ring. Clones share it.
#[derive(Clone, Debug)]
pub struct Logs {
    ring: Arc<Mutex<VecDeque<Arc<str>>>>,
    follow: broadcast::Sender<Arc<str>>,
}

impl Default for Logs {
    fn default() -> Self {
        Self { ring: Arc::default(), follow: broadcast::channel(FOLLOW_LINES).0 }
    }
}

impl Logs {
    /// Adds a line; the oldest goes when the ring is full.
    pub fn push(&self, line: impl Into<Arc<str>>) {
        let line = line.into();
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        if ring.len() == RING_LINES {
            ring.pop_front();
        }
        ring.push_back(line.clone());
        // Sent under the lock, so that a follower who takes both sees each line once.
        let _ = self.follow.send(line);
    }

    /// The last `count` lines, oldest first, and those that come after them.
    pub fn tail(&self, count: usize) -> (Vec<Arc<str>>, broadcast::Receiver<Arc<str>>) {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let lines = ring.iter().skip(ring.len().saturating_sub(count)).cloned().collect();
        (lines, self.follow.subscribe())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_keeps_the_last_lines_and_followers_see_each_once() {
        let logs = Logs::default();
        for number in 0..RING_LINES + 5 {
            logs.push(format!("line {number}"));
        }
        assert_eq!(logs.tail(usize::MAX).0.len(), RING_LINES);
        let (lines, mut follow) = logs.tail(2);
        assert_eq!(lines.iter().map(AsRef::as_ref).collect::<Vec<&str>>(), ["line 2003", "line 2004"]);
        logs.push("new");
        assert_eq!(follow.try_recv().unwrap().as_ref(), "new");
        assert!(follow.try_recv().is_err());
    }
}
