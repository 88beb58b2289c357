//! The compute threads: a parallel region deals `0..items` to all of them and returns when every item is done.
//!
//! Each thread owns a contiguous range and takes chunks from its front, so that it streams through memory; a thread that
//! runs dry takes chunks from the back of the fullest range, so that a preempted thread does not hold up the others. Nor
//! is a thread waited for that has not come to the region yet: the caller closes the gate when nothing is left to take
//! and waits only for those inside. Threads spin for [`SPIN`] after a region, then sleep on a futex.

use super::Error;
use crate::sys::affinity;
use std::any::Any;
use std::cell::UnsafeCell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a thread waits awake for the next region. The gaps between the regions of one token are shorter.
const SPIN: Duration = Duration::from_micros(40);

/// The gate is open: threads may enter the region.
const OPEN: u64 = 1 << 32;
/// Low half of the gate: threads inside.
const INSIDE: u64 = OPEN - 1;
/// One region later; the upper bits of the gate count them.
const EPOCH: u64 = 1 << 33;

type Body<'a> = &'a (dyn Fn(Range<usize>) + Sync);

/// A thread's share of the items, `start << 32 | end`, on a cache line of its own.
#[repr(align(128))]
struct Share(AtomicU64);

/// The region being run. Written while the gate is closed and nobody is inside.
struct Region {
    body: Option<Body<'static>>,
    grain: u32,
}

struct Shared {
    gate: AtomicU64,
    /// Counts regions modulo 2³²; what sleeping threads wait on.
    bell: AtomicU32,
    sleepers: AtomicU32,
    stop: AtomicBool,
    spin: bool,
    shares: Box<[Share]>,
    region: UnsafeCell<Region>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `region` is written by the caller only while the gate is closed and nobody is inside, and read only by threads
// inside; the gate's acquire and release order the two. Everything else is atomic or locked.
unsafe impl Sync for Shared {}
// SAFETY: the body in `region` is `Sync`, and only borrowed while its region runs.
unsafe impl Send for Shared {}

/// Persistent threads that run parallel regions together with the calling thread.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    /// One region at a time.
    turn: Mutex<()>,
    workers: Vec<JoinHandle<()>>,
}

impl Pool {
    /// Starts `threads - 1` threads; the caller of [`Pool::run`] is the remaining one. `cpus`: thread `i` is bound to
    /// `cpus[i % len]` (the calling thread of `new` to the first), none when empty. `spin`: wait awake for a while.
    pub(crate) fn new(threads: usize, cpus: &[usize], spin: bool) -> Result<Pool, Error> {
        let shared = Arc::new(Shared {
            gate: AtomicU64::new(0),
            bell: AtomicU32::new(0),
            sleepers: AtomicU32::new(0),
            stop: AtomicBool::new(false),
            spin,
            shares: (0..threads).map(|_| Share(AtomicU64::new(0))).collect(),
            region: UnsafeCell::new(Region { body: None, grain: 1 }),
            panic: Mutex::new(None),
        });
        let mut pool = Pool { shared, turn: Mutex::new(()), workers: Vec::new() };
        if let Some(&first) = cpus.first() {
            affinity::bind_current_thread(&[first]).map_err(|e| Error::Setting(e.to_string()))?;
        }
        for index in 1..threads {
            let (shared, cpu) = (Arc::clone(&pool.shared), cpus.get(index % cpus.len().max(1)).copied());
            let body = move || {
                // Checked for the first CPU above; a thread that cannot be bound still computes.
                let _ = cpu.map(|cpu| affinity::bind_current_thread(&[cpu]));
                shared.work(index);
            };
            let worker = std::thread::Builder::new().name(format!("compute-{index}")).spawn(body);
            pool.workers.push(worker.map_err(|source| Error::Thread { index, source })?);
        }
        Ok(pool)
    }

    /// Threads, the caller included.
    pub(crate) fn threads(&self) -> usize {
        self.shared.shares.len()
    }

    /// Calls `body` with ranges that cover `0..items` once, each at most `grain` long, from all threads at once. Returns
    /// when all are done; a panic of `body` continues here. Must not be called from within `body`.
    pub(crate) fn run(&self, items: usize, grain: usize, body: Body<'_>) {
        let grain = grain.max(1);
        if self.workers.is_empty() || items <= grain {
            let mut start = 0;
            while start < items {
                let end = items.min(start + grain);
                body(start..end);
                start = end;
            }
            return;
        }
        assert!(u32::try_from(items).is_ok(), "{items} items in one region");
        let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.shared.open(items, grain, body);
        self.shared.take_all(0, body, grain);
        self.shared.close();
        let panic = self.shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(turn);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.ring();
        for worker in self.workers.drain(..) {
            // A worker catches the panics of bodies and has none of its own.
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// Deals the items and lets the threads in.
    fn open(&self, items: usize, grain: usize, body: Body<'_>) {
        let threads = self.shares.len();
        // SAFETY: only the lifetime changes; `close` returns after the last thread left, before `body` ends.
        let body = unsafe { std::mem::transmute::<Body<'_>, Body<'static>>(body) };
        // SAFETY: the gate is closed and nobody is inside (see `Sync`).
        unsafe { *self.region.get() = Region { body: Some(body), grain: grain as u32 } };
        for (i, share) in self.shares.iter().enumerate() {
            let (start, end) = (items * i / threads, items * (i + 1) / threads);
            share.0.store((start as u64) << 32 | end as u64, Ordering::Relaxed);
        }
        let closed = self.gate.load(Ordering::Relaxed);
        self.gate.store((closed & !INSIDE).wrapping_add(EPOCH) | OPEN, Ordering::SeqCst);
        self.ring();
    }

    /// Wakes the threads that sleep.
    fn ring(&self) {
        self.bell.fetch_add(1, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            futex(&self.bell, libc::FUTEX_WAKE, i32::MAX as u32);
        }
    }

    /// Lets nobody in any more and waits for those inside.
    fn close(&self) {
        self.gate.fetch_and(!OPEN, Ordering::AcqRel);
        let mut waited = 0u32;
        while self.gate.load(Ordering::Acquire) & INSIDE != 0 {
            waited += 1;
            if waited.is_multiple_of(256) || !self.spin {
                std::thread::yield_now();
            }
            std::hint::spin_loop();
        }
    }

    /// A thread's life: wait for a region, enter, help, leave.
    fn work(&self, index: usize) {
        let mut seen = 0;
        while !self.stop.load(Ordering::Acquire) {
            let Some(epoch) = self.enter(seen) else {
                self.wait(seen);
                continue;
            };
            seen = epoch;
            // SAFETY: this thread is inside, so the region stays as it is.
            let Region { body, grain } = unsafe { &*self.region.get() };
            if let Some(body) = *body {
                self.take_all(index, body, *grain as usize);
            }
            self.gate.fetch_sub(1, Ordering::Release);
        }
    }

    /// Enters the open region unless it is `seen` already; yields its epoch.
    fn enter(&self, seen: u64) -> Option<u64> {
        let enter = |gate: u64| (gate & OPEN != 0 && gate / EPOCH != seen).then_some(gate + 1);
        let before = self.gate.fetch_update(Ordering::AcqRel, Ordering::Acquire, enter).ok()?;
        Some(before / EPOCH)
    }

    /// Waits for a region after `seen`: awake for a while, then asleep. May return early.
    fn wait(&self, seen: u64) {
        let news = || {
            let gate = self.gate.load(Ordering::SeqCst);
            (gate & OPEN != 0 && gate / EPOCH != seen) || self.stop.load(Ordering::SeqCst)
        };
        let began = Instant::now();
        while self.spin && began.elapsed() < SPIN {
            for _ in 0..64 {
                if news() {
                    return;
                }
                std::hint::spin_loop();
            }
        }
        let bell = self.bell.load(Ordering::SeqCst);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        // A region opened after `bell` was read has changed it, so the futex does not sleep; one opened before is news.
        if !news() {
            futex(&self.bell, libc::FUTEX_WAIT, bell);
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }

    /// Takes chunks until none is left; a panic is kept for the caller and empties all shares.
    fn take_all(&self, index: usize, body: Body<'_>, grain: usize) {
        let result = catch_unwind(AssertUnwindSafe(|| {
            while let Some(range) = self.take(index, grain) {
                body(range);
            }
        }));
        if let Err(panic) = result {
            self.shares.iter().for_each(|share| share.0.store(0, Ordering::Relaxed));
            self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
        }
    }

    /// The next chunk: from the front of the own share, else from the back of the fullest one.
    fn take(&self, index: usize, grain: usize) -> Option<Range<usize>> {
        let split = |share: u64| ((share >> 32) as usize, (share & u64::from(u32::MAX)) as usize);
        let pack = |start: usize, end: usize| (start as u64) << 32 | end as u64;
        let front = |share: u64| {
            let (start, end) = split(share);
            (start < end).then(|| pack(end.min(start + grain), end))
        };
        if let Ok(before) = self.shares[index].0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, front) {
            let (start, end) = split(before);
            return Some(start..end.min(start + grain));
        }
        loop {
            let left = |share: &Share| {
                let (start, end) = split(share.0.load(Ordering::Relaxed));
                end.saturating_sub(start)
            };
            let fullest = self.shares.iter().max_by_key(|share| left(share)).filter(|share| left(share) > 0)?;
            let back = |share: u64| {
                let (start, end) = split(share);
                (start < end).then(|| pack(start, start.max(end.saturating_sub(grain))))
            };
            if let Ok(before) = fullest.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, back) {
                let (start, end) = split(before);
                return Some(start.max(end.saturating_sub(grain))..end);
            }
        }
    }
}

/// Waits on, or wakes the waiters of, a futex private to the process.
fn futex(word: &AtomicU32, operation: libc::c_int, value: u32) {
    let no_timeout = ptr::null::<libc::timespec>();
    // SAFETY: the word is valid and aligned for the call; the result only says whether anybody slept.
    unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), operation | libc::FUTEX_PRIVATE_FLAG, value, no_timeout);
    }
}
