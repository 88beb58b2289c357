//! The heap: a limit on what one piece of work may hold, and giving back what a burst left behind.
//!
//! [`within`] is for work on input that nobody vouches for, done by code that cannot fail an allocation (a template
//! engine, a parser from elsewhere). Stable Rust offers no way back from a failed allocation but the end of the
//! process, so the work gets a thread of its own, and the allocation that would go over the limit never returns: the
//! thread sleeps for the rest of the process's life with what it holds, which is less than the limit. Who calls must
//! therefore bound how often that may happen.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io;
use std::ptr;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// The system's allocator, with the meter that [`within`] reads. A program that wants the limit makes it its
/// `#[global_allocator]`; in others `within` runs the work unlimited.
pub struct Metered;

#[cfg(test)]
#[global_allocator]
static HEAP: Metered = Metered;

/// No limit.
const UNMETERED: i64 = i64::MAX;

thread_local! {
    /// Bytes that this thread may still take.
    static LEFT: Cell<i64> = const { Cell::new(UNMETERED) };
    /// Whom to tell when they are used up; null while there is no limit.
    static GATE: Cell<*const Gate> = const { Cell::new(ptr::null()) };
}

/// Where the metered thread and its caller meet.
#[derive(Default)]
struct Gate {
    phase: Mutex<Phase>,
    changed: Condvar,
}

#[derive(Clone, Copy, Default, PartialEq)]
enum Phase {
    #[default]
    Running,
    Done,
    Over,
}

impl Gate {
    fn set(&self, phase: Phase) {
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner) = phase;
        self.changed.notify_one();
    }

    fn wait(&self) -> Phase {
        let phase = self.phase.lock().unwrap_or_else(PoisonError::into_inner);
        let running = |phase: &mut Phase| *phase == Phase::Running;
        *self.changed.wait_while(phase, running).unwrap_or_else(PoisonError::into_inner)
    }
}

/// Books `bytes` more (less, when negative) for this thread; does not return when they are not there.
fn book(bytes: i64) {
    // A thread's last frees come after its locals are gone; no limit is in force then.
    let over = LEFT.try_with(|left| match left.get() {
        UNMETERED => false,
        rest if rest < bytes => true,
        rest => {
            left.set(rest - bytes);
            false
        }
    });
    if over == Ok(true) {
        stand_still();
    }
}

#[cold]
fn stand_still() -> ! {
    // What follows may allocate.
    LEFT.set(UNMETERED);
    // SAFETY: set by `within`'s thread to the gate that the thread itself keeps alive below this frame.
    if let Some(gate) = unsafe { GATE.get().as_ref() } {
        gate.set(Phase::Over);
    }
    loop {
        std::thread::park();
    }
}

fn signed(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(UNMETERED)
}

// SAFETY: every call is passed on to the system's allocator unchanged; the meter touches no allocated memory.
unsafe impl GlobalAlloc for Metered {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        book(signed(layout.size()));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        book(signed(layout.size()));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        book(signed(size) - signed(layout.size()));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        book(-signed(layout.size()));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Why metered work gave no result.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// It wanted more than the limit; its thread sleeps with what it held.
    #[error("it took more than {limit} bytes of memory")]
    Over {
        /// In bytes.
        limit: usize,
    },
    /// There is no thread to be had.
    #[error("no thread could be started: {0}")]
    Thread(#[from] io::Error),
}

/// Runs `work` on a thread of its own that may hold `limit` bytes of heap beyond what it was given, and waits for it.
/// Costs some 30 µs. A panic of the work is the caller's.
///
/// # Errors
/// See [`Failure`].
pub fn within<R: Send + 'static>(limit: usize, work: impl FnOnce() -> R + Send + 'static) -> Result<R, Failure> {
    struct Done(Arc<Gate>);
    impl Drop for Done {
        fn drop(&mut self) {
            LEFT.set(UNMETERED);
            GATE.set(ptr::null());
            self.0.set(Phase::Done);
        }
    }
    let gate = Arc::new(Gate::default());
    let theirs = gate.clone();
    let thread = std::thread::Builder::new().name("metered".into()).stack_size(4 << 20).spawn(move || {
        let done = Done(theirs);
        GATE.set(Arc::as_ptr(&done.0));
        LEFT.set(signed(limit));
        work()
    })?;
    match gate.wait() {
        Phase::Over => Err(Failure::Over { limit }),
        Phase::Done | Phase::Running => thread.join().map_err(|panic| std::panic::resume_unwind(panic)),
    }
}

/// Returns free pages in the middle of the heap to the kernel, which `free` alone does not do. Takes some milliseconds
/// per hundred MiB. Does nothing where the C library is not glibc. Called by the proxy once a crowd of connections is
/// gone; never on a path that somebody waits for.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim may be called at any time from any thread and touches free memory only.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 1 << 20;

    #[test]
    fn work_within_the_limit_gives_its_result() {
        // Much in sum, little at once.
        let sum = within(LIMIT, || (0..1000).map(|n| vec![n; 64 << 10].len()).sum::<usize>());
        assert_eq!(sum.unwrap(), 1000 * (64 << 10));
        let panics = std::panic::catch_unwind(|| within(LIMIT, || panic!("as asked")));
        assert!(panics.is_err());
    }

    #[test]
    fn work_over_the_limit_ends_there() {
        let at_once = within(LIMIT, || Vec::<u8>::with_capacity(LIMIT + 1).capacity());
        assert!(matches!(at_once, Err(Failure::Over { limit: LIMIT })));
        let doubling = within(LIMIT, || {
            let mut text = String::from("x");
            loop {
                text = format!("{text}{text}");
            }
        });
        assert!(matches!(doubling, Err::<(), _>(Failure::Over { .. })));
        let many = within(LIMIT, || (0..).map(|n: u64| Box::new([n; 100])).collect::<Vec<_>>().len());
        assert!(matches!(many, Err(Failure::Over { .. })));
        assert!(vec![0u8; 2 * LIMIT].len() > LIMIT, "other threads have no limit");
    }
}
