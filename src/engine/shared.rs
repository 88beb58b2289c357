//! What the engine thread and its handles share: counters, the heartbeat, and whether requests are taken.

use super::Stats;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

const OPEN: u8 = 0;
const CLOSING: u8 = 1;
const DEAD: u8 = 2;

/// One per engine.
pub(super) struct Shared {
    pub context: usize,
    pub vocab: usize,
    pub parallel: usize,
    pub queue: usize,
    status: AtomicU8,
    in_flight: AtomicUsize,
    stats: Mutex<Stats>,
    born: Instant,
    /// Milliseconds after `born`.
    beat: AtomicU64,
    /// Smoothed time from admission to end of a request, milliseconds.
    service: AtomicU64,
}

impl Shared {
    pub(super) fn new(context: usize, vocab: usize, parallel: usize, queue: usize) -> Shared {
        Shared {
            context,
            vocab,
            parallel,
            queue,
            status: AtomicU8::new(OPEN),
            in_flight: AtomicUsize::new(0),
            stats: Mutex::default(),
            born: Instant::now(),
            beat: AtomicU64::new(0),
            service: AtomicU64::new(1000),
        }
    }

    /// Requests that may be waiting or running at once.
    pub(super) fn capacity(&self) -> usize {
        self.queue + self.parallel
    }

    /// Takes a place among the requests in flight, given back when the ticket is dropped. `None` when all are taken.
    pub(super) fn ticket(self: &Arc<Self>) -> Option<Ticket> {
        let take = |n| (n < self.capacity()).then_some(n + 1);
        self.in_flight.fetch_update(Relaxed, Relaxed, take).ok()?;
        Some(Ticket(self.clone()))
    }

    pub(super) fn is_open(&self) -> bool {
        self.status.load(Relaxed) == OPEN
    }

    pub(super) fn is_dead(&self) -> bool {
        self.status.load(Relaxed) == DEAD
    }

    pub(super) fn close(&self) {
        self.status.fetch_max(CLOSING, Relaxed);
    }

    pub(super) fn die(&self) {
        self.status.store(DEAD, Relaxed);
    }

    /// Called by the engine thread whenever it makes progress.
    pub(super) fn beat(&self) {
        self.beat.store(self.born.elapsed().as_millis() as u64, Relaxed);
    }

    /// Changes the figures; the lock is held for the change alone.
    pub(super) fn update(&self, change: impl FnOnce(&mut Stats)) {
        change(&mut self.stats.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// The figures now. Requests that the engine has not seen yet count as waiting.
    pub(super) fn stats(&self) -> Stats {
        let mut stats = self.stats.lock().unwrap_or_else(PoisonError::into_inner).clone();
        stats.waiting = self.in_flight.load(Relaxed).saturating_sub(stats.running);
        let now = self.born.elapsed().as_millis() as u64;
        stats.beat_age_ms = now.saturating_sub(self.beat.load(Relaxed));
        stats
    }

    /// A request took so long from admission to end.
    pub(super) fn served(&self, took: Duration) {
        let before = self.service.load(Relaxed);
        self.service.store((before * 7 + took.as_millis() as u64) / 8, Relaxed);
    }

    /// When a place may be free: the usual time of a request, shared by those that run at once. 1 to 60 s.
    pub(super) fn retry_after(&self) -> Duration {
        let milliseconds = self.service.load(Relaxed) / self.parallel.max(1) as u64;
        Duration::from_secs(milliseconds.div_ceil(1000).clamp(1, 60))
    }
}

/// A place among the requests in flight.
pub(super) struct Ticket(Arc<Shared>);

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Relaxed);
    }
}
