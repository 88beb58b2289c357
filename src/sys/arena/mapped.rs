//! A range of addresses with files, or private memory, mapped into it one after the other.

use super::pages::LARGE;
use super::sealed::Segment;
use std::ffi::c_int;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

/// Most threads that bring pages into being.
const FAULTERS: usize = 16;
/// Bytes that one of them takes at a time.
const PORTION: usize = 64 << 20;

pub(super) const WRITABLE: c_int = libc::PROT_READ | libc::PROT_WRITE;

/// Addresses that nobody else has, given back at the end.
#[derive(Debug)]
struct Reserved {
    start: *mut u8,
    bytes: usize,
}

// SAFETY: a range of addresses belongs to no thread.
unsafe impl Send for Reserved {}
// SAFETY: as above; what is written there is guarded by the owner's borrow.
unsafe impl Sync for Reserved {}

impl Reserved {
    fn new(bytes: usize) -> io::Result<Reserved> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that is there.
        let start = unsafe { libc::mmap(ptr::null_mut(), bytes, libc::PROT_NONE, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Reserved { start: start.cast(), bytes })
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        // SAFETY: the range is ours alone and nobody borrows from it any more.
        unsafe { libc::munmap(self.start.cast(), self.bytes) };
    }
}

/// Segments mapped one after the other.
#[derive(Debug)]
pub(super) struct Mapped {
    reserved: Reserved,
    /// Where in the reserved range the first byte stands.
    offset: usize,
    pub segments: Vec<Segment>,
    /// Bytes in use, from the first one on.
    pub bytes: usize,
}

impl Mapped {
    /// Reserves addresses for `bytes`, so that pages of `align` bytes can start there.
    pub fn reserve(bytes: usize, align: usize) -> io::Result<Mapped> {
        let too_many = || io::Error::from_raw_os_error(libc::ENOMEM);
        let whole = bytes.checked_next_multiple_of(LARGE).and_then(|n| n.max(LARGE).checked_add(align));
        let reserved = Reserved::new(whole.filter(|n| *n <= isize::MAX as usize).ok_or_else(too_many)?)?;
        let offset = reserved.start.align_offset(align);
        Ok(Mapped { reserved, offset, segments: Vec::new(), bytes })
    }

    /// Bytes that the segments hold.
    pub fn held(&self) -> usize {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    /// Maps a file behind the segments there are.
    pub fn map(&self, file: BorrowedFd<'_>, bytes: usize, protection: c_int) -> io::Result<()> {
        self.map_at(self.held(), file, bytes, protection)
    }

    pub fn map_at(&self, at: usize, file: BorrowedFd<'_>, bytes: usize, protection: c_int) -> io::Result<()> {
        let room = self.reserved.bytes - self.offset;
        assert!(at.checked_add(bytes).is_some_and(|end| end <= room), "segments stay within what was reserved");
        let flags = libc::MAP_SHARED | libc::MAP_FIXED;
        // SAFETY: the range lies within the reserved one (asserted), of which nobody borrows while segments are mapped:
        // `Arena` and `Frozen` hand out borrows only when they are complete.
        let mapped = unsafe {
            let address = self.reserved.start.add(self.offset + at);
            libc::mmap(address.cast(), bytes, protection, flags, file.as_raw_fd(), 0)
        };
        if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Takes whatever is mapped at a range away, the addresses stay reserved.
    pub fn unmap(&self, range: Range<usize>) -> io::Result<()> {
        self.map_private(range, libc::PROT_NONE)
    }

    /// Maps fresh private memory at a range, in place of what is there.
    pub fn map_private(&self, range: Range<usize>, protection: c_int) -> io::Result<()> {
        let room = self.reserved.bytes - self.offset;
        assert!(range.end <= room, "segments stay within what was reserved");
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
        // SAFETY: as in `map_at`.
        let mapped = unsafe {
            let address = self.reserved.start.add(self.offset + range.start);
            libc::mmap(address.cast(), range.len(), protection, flags, -1, 0)
        };
        if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    pub fn start(&self) -> *mut u8 {
        // SAFETY: the offset lies within the reserved range.
        unsafe { self.reserved.start.add(self.offset) }
    }

    /// All that is mapped, in use or not, as addresses.
    pub fn addresses(&self) -> Range<usize> {
        let start = self.start() as usize;
        start..start + self.held()
    }

    /// Advises the kernel on a range of segments, by several threads at once. The first refusal ends it.
    pub fn advise(&self, range: Range<usize>, advice: c_int) -> io::Result<()> {
        let start = self.start() as usize;
        let portions: Vec<Range<usize>> =
            range.clone().step_by(PORTION).map(|at| start + at..start + (at + PORTION).min(range.end)).collect();
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(FAULTERS).min(portions.len());
        let next = std::sync::atomic::AtomicUsize::new(0);
        let work = || -> io::Result<()> {
            while let Some(portion) = portions.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
                advise(portion.clone(), advice)?;
            }
            Ok(())
        };
        if threads <= 1 {
            return work();
        }
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            let ended = workers.into_iter().map(|worker| worker.join().unwrap_or(Err(io::ErrorKind::Other.into())));
            ended.fold(Ok(()), Result::and)
        })
    }
}

/// `madvise` on addresses of ours. Only such advice that keeps the bytes as they are.
pub(super) fn advise(addresses: Range<usize>, advice: c_int) -> io::Result<()> {
    let harmless = [libc::MADV_HUGEPAGE, libc::MADV_POPULATE_READ, libc::MADV_POPULATE_WRITE, libc::MADV_COLLAPSE];
    assert!(harmless.contains(&advice), "advice that changes no byte");
    loop {
        // SAFETY: advice of this kind (asserted) changes no byte, wherever it points.
        let status = unsafe { libc::madvise(addresses.start as *mut libc::c_void, addresses.len(), advice) };
        match io::Error::last_os_error() {
            _ if status == 0 => return Ok(()),
            error if matches!(error.kind(), io::ErrorKind::Interrupted) => {}
            error => return Err(error),
        }
    }
}
