//! The compute threads: a parallel region deals `0..items` to all of them and returns when every item is done.
//!
//! ```text
//! caller ──opens──▶ gate of group 0   gate of group 1   …   gate of group n     one cache line each, with the region
//!                    │ │ … │            │ │ … │                │ │ … │
//!                    threads 0..16      threads 16..32         threads 16n..     arrive at their own group's gate only
//! ```
//! Each thread owns a contiguous range (or one of each [`Piece`]) and takes chunks from its front, so that it streams through memory; a thread that
//! runs dry takes chunks from the back of the fullest range of its group, then of other groups, so that a preempted
//! thread does not hold up the others. Nor is a thread waited for that has not come to the region yet: the caller closes
//! the gates when nothing is left to take and waits only for those inside. No line is written by more than a group's
//! threads and the caller. Threads spin for [`SPIN`] after a region, then sleep on their group's futex; who is woken
//! wakes the rest of the group.

use super::Error;
use super::deal::{Deal, Piece};
use crate::sys::affinity;
use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Threads that share a gate: no more than share an L3 cache on most hosts.
const GROUP: usize = 16;

/// How long a thread waits awake for the next region. The gaps between the regions of one token are shorter.
const SPIN: Duration = Duration::from_micros(40);

/// The gate is open: threads may enter the region.
const OPEN: u64 = 1 << 31;
/// Low part of the gate: threads inside.
const INSIDE: u64 = OPEN - 1;
/// The upper half of the gate counts regions, modulo 2³².
const EPOCH: u32 = 32;

/// Most chunks of one share: the counters of a share have 16 bits.
const CHUNKS: usize = u16::MAX as usize;

/// What a region does with a range of its items.
pub type Body<'a> = &'a (dyn Fn(Range<usize>) + Sync);

/// How much of a thread's range is taken: `epoch << 32 | from the front << 16 | from the back`, in chunks. Of another
/// epoch: nothing yet. On a cache line of its own; nobody has to deal, which would touch them all.
#[repr(align(128))]
struct Share(AtomicU64);

/// The region being run.
#[derive(Clone, Copy)]
struct Region {
    body: Option<Body<'static>>,
    deal: Deal<'static>,
    grain: usize,
}

/// Up to [`GROUP`] threads. What all of them read when a region starts lies on one line.
#[repr(align(128))]
struct Group {
    gate: AtomicU64,
    /// Written while the gate is closed and nobody is inside.
    region: UnsafeCell<Region>,
    rest: Rest,
}

/// What sleeping, waking and stealing need, on the group's second line.
#[repr(align(128))]
struct Rest {
    /// What sleeping threads wait on.
    bell: AtomicU32,
    sleepers: AtomicU32,
    /// The last region of which nothing is left to take here.
    dry: AtomicU32,
}

struct Shared {
    groups: Box<[Group]>,
    shares: Box<[Share]>,
    stop: AtomicBool,
    spin: bool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: a group's `region` is written by the caller only while its gate is closed and nobody is inside, and read only
// by threads inside; the gate's acquire and release order the two. Everything else is atomic or locked.
unsafe impl Sync for Shared {}
// SAFETY: the bodies in `groups` are `Sync`, and only borrowed while their region runs.
unsafe impl Send for Shared {}

/// Persistent threads that run parallel regions together with the calling thread.
pub struct Pool {
    shared: Arc<Shared>,
    /// One region at a time; the number of the last one.
    turn: Mutex<u32>,
    workers: Vec<JoinHandle<()>>,
    apart: bool,
}

thread_local! {
    /// The pool in whose region this thread is, by address.
    static INSIDE_OF: Cell<*const Shared> = const { Cell::new(ptr::null()) };
}

impl Pool {
    /// Starts `threads - 1` threads; the caller of [`Pool::run`] is the remaining one. `cpus`: thread `i` is bound to
    /// `cpus[i % len]` (the calling thread of `new` to the first), none when empty; consecutive ones should be close to
    /// each other. `spin`: wait awake for a while.
    ///
    /// # Errors
    /// [`Error::Setting`] when the first CPU cannot be had, [`Error::Thread`] when a thread cannot start.
    pub fn new(threads: usize, cpus: &[usize], spin: bool) -> Result<Pool, Error> {
        let shared = Arc::new(Shared {
            groups: (0..threads.div_ceil(GROUP)).map(|_| Group::new()).collect(),
            shares: (0..threads).map(|_| Share(AtomicU64::new(0))).collect(),
            stop: AtomicBool::new(false),
            spin,
            panic: Mutex::new(None),
        });
        let mut pool = Pool { shared, turn: Mutex::new(0), workers: Vec::new(), apart: false };
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

    /// Whether rows of weights are dealt with [`Pool::run_pieces`].
    pub fn dealing_apart(mut self, apart: bool) -> Pool {
        self.apart = apart;
        self
    }

    /// As [`Pool::dealing_apart`] was told.
    pub fn deals_apart(&self) -> bool {
        self.apart
    }

    /// Threads, the caller included.
    pub fn threads(&self) -> usize {
        self.shared.shares.len()
    }

    /// Calls `body` with ranges that cover `0..items` once, each at most `grain` long, from all threads at once. Returns
    /// when all are done; a panic of `body` continues here.
    ///
    /// # Panics
    /// When called from within a body of this pool, which would wait for itself.
    pub fn run(&self, items: usize, grain: usize, body: Body<'_>) {
        assert!(INSIDE_OF.get() != Arc::as_ptr(&self.shared), "a parallel region within a region of the same threads");
        let grain = grain.max(1);
        if self.workers.is_empty() || items <= grain {
            return (0..items).step_by(grain).for_each(|start| body(start..items.min(start + grain)));
        }
        let most = (CHUNKS * grain).saturating_mul(self.threads());
        if items > most {
            for start in (0..items).step_by(most) {
                self.run(most.min(items - start), grain, &|range| body(start + range.start..start + range.end));
            }
            return;
        }
        self.deal(Deal::Whole { items, threads: self.threads() }, grain, body);
    }

    /// As [`Pool::run`], for the items of `pieces`, which follow each other; each thread owns its share of each.
    ///
    /// # Panics
    /// As [`Pool::run`].
    pub fn run_pieces(&self, pieces: &[Piece], grain: usize, body: Body<'_>) {
        let items = pieces.last().map_or(0, |piece| piece.items.end);
        if self.workers.is_empty() || items <= grain {
            return self.run(items, grain, body);
        }
        let shares = Deal::shares(pieces, self.threads());
        let longest = shares.iter().copied().max().unwrap_or(0);
        self.deal(Deal::Pieces { pieces, shares: &shares }, grain.max(longest.div_ceil(CHUNKS)), body);
    }

    fn deal(&self, deal: Deal<'_>, grain: usize, body: Body<'_>) {
        assert!(INSIDE_OF.get() != Arc::as_ptr(&self.shared), "a parallel region within a region of the same threads");
        let mut turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        *turn = turn.wrapping_add(1);
        // SAFETY: only the lifetimes change; `close` returns after the last thread left, before `body` and `deal` end.
        let (body, deal) = unsafe {
            (std::mem::transmute::<Body<'_>, Body<'static>>(body), std::mem::transmute::<Deal<'_>, Deal<'static>>(deal))
        };
        let region = Region { body: Some(body), deal, grain };
        self.shared.open(*turn, region);
        self.shared.take_all(*turn, 0, region);
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
        for group in &self.shared.groups {
            group.ring(i32::MAX as u32);
        }
        for worker in self.workers.drain(..) {
            // A worker catches the panics of bodies and has none of its own.
            let _ = worker.join();
        }
    }
}

impl Group {
    fn new() -> Group {
        let rest = Rest { bell: AtomicU32::new(0), sleepers: AtomicU32::new(0), dry: AtomicU32::new(0) };
        let region = UnsafeCell::new(Region { body: None, deal: Deal::Whole { items: 0, threads: 1 }, grain: 1 });
        Group { gate: AtomicU64::new(0), region, rest }
    }

    /// Wakes up to `count` of the threads that sleep.
    fn ring(&self, count: u32) {
        self.rest.bell.fetch_add(1, Ordering::SeqCst);
        futex(&self.rest.bell, libc::FUTEX_WAKE, count);
    }

    /// Whether a region after `seen` is open.
    fn has_news(&self, seen: u32) -> bool {
        let gate = self.gate.load(Ordering::SeqCst);
        gate & OPEN != 0 && (gate >> EPOCH) as u32 != seen
    }

    /// Enters the open region unless it is `seen` already; yields its epoch.
    fn enter(&self, seen: u32) -> Option<u32> {
        let enter = |gate: u64| (gate & OPEN != 0 && (gate >> EPOCH) as u32 != seen).then_some(gate + 1);
        let before = self.gate.fetch_update(Ordering::AcqRel, Ordering::Acquire, enter).ok()?;
        Some((before >> EPOCH) as u32)
    }
}

impl Shared {
    /// Lets the threads in.
    fn open(&self, epoch: u32, region: Region) {
        for group in &self.groups {
            // SAFETY: the gate is closed and nobody is inside (see `Sync`).
            unsafe { *group.region.get() = region };
            group.gate.store(u64::from(epoch) << EPOCH | OPEN, Ordering::Release);
        }
        // Either a thread that is about to sleep sees the open gate, or it is seen here: see `wait`.
        fence(Ordering::SeqCst);
        for group in &self.groups {
            if group.rest.sleepers.load(Ordering::SeqCst) > 0 {
                // These wake the others. Two, lest one of them finds its CPU taken.
                group.ring(2);
            }
        }
    }

    /// Lets nobody in any more and waits for those inside.
    fn close(&self) {
        for group in &self.groups {
            group.gate.fetch_and(!OPEN, Ordering::AcqRel);
        }
        for group in &self.groups {
            let mut waited = 0u32;
            while group.gate.load(Ordering::Acquire) & INSIDE != 0 {
                waited += 1;
                if waited.is_multiple_of(256) || !self.spin {
                    std::thread::yield_now();
                }
                std::hint::spin_loop();
            }
        }
    }

    /// A thread's life: wait for a region, enter, help, leave.
    fn work(&self, index: usize) {
        let group = &self.groups[index / GROUP];
        let mut seen = 0;
        while !self.stop.load(Ordering::Acquire) {
            let Some(epoch) = group.enter(seen) else {
                self.wait(group, seen);
                continue;
            };
            seen = epoch;
            // SAFETY: this thread is inside, so the region stays as it is.
            let region = unsafe { *group.region.get() };
            self.take_all(epoch, index, region);
            group.gate.fetch_sub(1, Ordering::Release);
        }
    }

    /// Waits for a region after `seen`: awake for a while, then asleep. May return early.
    fn wait(&self, group: &Group, seen: u32) {
        let news = || group.has_news(seen) || self.stop.load(Ordering::SeqCst);
        let began = Instant::now();
        while self.spin && began.elapsed() < SPIN {
            for _ in 0..64 {
                if news() {
                    return;
                }
                std::hint::spin_loop();
            }
        }
        let Rest { bell, sleepers, .. } = &group.rest;
        let heard = bell.load(Ordering::SeqCst);
        sleepers.fetch_add(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        // A region opened after the bell was read rings it, so the futex does not sleep; one opened before is news.
        let slept = !news();
        if slept {
            futex(bell, libc::FUTEX_WAIT, heard);
        }
        let others = sleepers.fetch_sub(1, Ordering::SeqCst) - 1;
        if slept && others > 0 && group.has_news(seen) {
            group.ring(others);
        }
    }

    /// Takes chunks until none is left; a panic is kept for the caller and empties all shares.
    fn take_all(&self, epoch: u32, index: usize, region: Region) {
        let Some(body) = region.body else { return };
        let outside = INSIDE_OF.replace(self);
        let result = catch_unwind(AssertUnwindSafe(|| {
            while let Some((owner, range)) = self.take(epoch, index, &region) {
                region.deal.each(owner, range, body);
            }
        }));
        INSIDE_OF.set(outside);
        if let Err(panic) = result {
            let empty = u64::from(epoch) << 32 | (CHUNKS as u64) << 16;
            self.shares.iter().for_each(|share| share.0.store(empty, Ordering::Relaxed));
            self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
        }
    }

    /// The next chunk, and whose share it is of: from the front of the own share, else from the back of the fullest one of
    /// the nearest group that has any.
    fn take(&self, epoch: u32, index: usize, region: &Region) -> Option<(usize, Range<usize>)> {
        if let Some(range) = self.claim(epoch, index, region, false) {
            return Some((index, range));
        }
        let (own, groups) = (index / GROUP, self.groups.len());
        for group in (0..groups).map(|i| (own + i) % groups) {
            let dry = &self.groups[group].rest.dry;
            while dry.load(Ordering::Relaxed) != epoch {
                let members = group * GROUP..self.shares.len().min((group + 1) * GROUP);
                // Each is looked at once: the fullest may be empty a moment later while another one is not.
                let left = members.map(|member| (self.left(epoch, member, region), member));
                let Some((_, fullest)) = left.max().filter(|(left, _)| *left > 0) else {
                    // Shares only shrink, so nobody needs to look again.
                    dry.store(epoch, Ordering::Relaxed);
                    break;
                };
                if let Some(range) = self.claim(epoch, fullest, region, true) {
                    return Some((fullest, range));
                }
            }
        }
        None
    }

    /// Chunks that nobody has taken of a share.
    fn left(&self, epoch: u32, index: usize, region: &Region) -> usize {
        let chunks = region.deal.share(index).div_ceil(region.grain);
        let (front, back) = taken(self.shares[index].0.load(Ordering::Relaxed), epoch);
        chunks.saturating_sub(front + back)
    }

    /// Takes a chunk from the front or the back of a share, if there is one. Counted from the share's start.
    fn claim(&self, epoch: u32, index: usize, region: &Region, from_back: bool) -> Option<Range<usize>> {
        let share = region.deal.share(index);
        let chunks = share.div_ceil(region.grain);
        let more = |share: u64| {
            let (front, back) = taken(share, epoch);
            let now = if from_back { (front, back + 1) } else { (front + 1, back) };
            (front + back < chunks).then_some(u64::from(epoch) << 32 | (now.0 as u64) << 16 | now.1 as u64)
        };
        let before = self.shares[index].0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        let (front, back) = taken(before, epoch);
        let chunk = if from_back { chunks - 1 - back } else { front };
        let start = chunk * region.grain;
        Some(start..share.min(start + region.grain))
    }
}

/// Chunks taken from the front and from the back of a share.
fn taken(share: u64, epoch: u32) -> (usize, usize) {
    match (share >> 32) as u32 == epoch {
        true => ((share >> 16) as usize & CHUNKS, share as usize & CHUNKS),
        false => (0, 0),
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
