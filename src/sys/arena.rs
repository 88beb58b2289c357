//! Memory for weights that may outlive its process: files without a name (memfd), mapped side by side. It lies on the
//! largest pages there are: of 1 GiB and 2 MiB as many as are reserved and free, the rest on transparent ones where the
//! kernel grants them, else on 4 KiB. Called by `load`; knows nothing of what is stored. Where nobody will keep it, the
//! rest is plain private memory, for which kernels grant transparent pages more readily than for shared one.
//!
//! ```text
//! addresses  | pages of 1 GiB | pages of 2 MiB | the rest |
//! files      | segment 0      | segment 1      | segment 2|      those of no bytes are left out
//! ```
//! An [`Arena`] is written once and then [frozen](Arena::freeze): its files are sealed, so that whoever gets their
//! descriptors, in this process or a later one, can trust that nobody changes them.

use super::numa::{self, Policy};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::collections::BTreeMap;
use std::ffi::c_int;
use std::fs;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::ptr;
use std::sync::OnceLock;

/// Bytes of the plain page.
const PAGE: usize = 4 << 10;
/// Bytes of the large pages, as hugetlb and transparent ones have them.
const LARGE: usize = 2 << 20;
/// Bytes of the largest ones.
const GIANT: usize = 1 << 30;
/// Most threads that bring pages into being.
const FAULTERS: usize = 16;
/// Bytes that one of them takes at a time.
const PORTION: usize = 64 << 20;

/// Seals that a frozen segment has at least, besides one against writing.
const FIXED: SealFlag = SealFlag::F_SEAL_SHRINK.union(SealFlag::F_SEAL_GROW);

/// A file of an arena.
#[derive(Debug)]
pub struct Segment {
    /// None: private memory.
    file: Option<OwnedFd>,
    /// Bytes of its pages as reserved; 4096 where the kernel decides.
    pub page: usize,
    /// Length, in whole pages.
    pub bytes: usize,
}

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
struct Mapped {
    reserved: Reserved,
    /// Where in the reserved range the first byte stands.
    offset: usize,
    segments: Vec<Segment>,
    /// Bytes in use, from the first one on.
    bytes: usize,
}

impl Mapped {
    /// Reserves addresses for `bytes`, so that pages of `align` bytes can start there.
    fn reserve(bytes: usize, align: usize) -> io::Result<Mapped> {
        let too_many = || io::Error::from_raw_os_error(libc::ENOMEM);
        let whole = bytes.checked_next_multiple_of(LARGE).and_then(|n| n.max(LARGE).checked_add(align));
        let reserved = Reserved::new(whole.filter(|n| *n <= isize::MAX as usize).ok_or_else(too_many)?)?;
        let offset = reserved.start.align_offset(align);
        Ok(Mapped { reserved, offset, segments: Vec::new(), bytes })
    }

    /// Bytes that the segments hold.
    fn held(&self) -> usize {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    /// Maps a file behind the segments there are.
    fn map(&self, file: BorrowedFd<'_>, bytes: usize, protection: c_int) -> io::Result<()> {
        self.map_at(self.held(), file, bytes, protection)
    }

    fn map_at(&self, at: usize, file: BorrowedFd<'_>, bytes: usize, protection: c_int) -> io::Result<()> {
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
    fn unmap(&self, range: Range<usize>) -> io::Result<()> {
        self.map_private(range, libc::PROT_NONE)
    }

    /// Maps fresh private memory at a range, in place of what is there.
    fn map_private(&self, range: Range<usize>, protection: c_int) -> io::Result<()> {
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

    fn start(&self) -> *mut u8 {
        // SAFETY: the offset lies within the reserved range.
        unsafe { self.reserved.start.add(self.offset) }
    }

    /// All that is mapped, in use or not, as addresses.
    fn addresses(&self) -> Range<usize> {
        let start = self.start() as usize;
        start..start + self.held()
    }

    /// Advises the kernel on a range of segments, by several threads at once. The first refusal ends it.
    fn advise(&self, range: Range<usize>, advice: c_int) -> io::Result<()> {
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
fn advise(addresses: Range<usize>, advice: c_int) -> io::Result<()> {
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

/// Writable memory; see the module.
#[derive(Debug)]
pub struct Arena {
    mapped: Mapped,
}

impl Arena {
    /// Zeroed memory of `bytes`, placed by `policy`, its pages there already. `kept`: its descriptors will be handed on.
    ///
    /// # Errors
    /// No addresses, no descriptors, or no memory.
    pub fn new(bytes: usize, policy: &Policy, kept: bool) -> io::Result<Arena> {
        let free = |page| if can_populate() { free_pages(Path::new("/"), page) } else { 0 };
        let giants = free(GIANT).min(bytes / GIANT);
        let mut mapped = Mapped::reserve(bytes, if giants > 0 { GIANT } else { LARGE })?;
        mapped.add_reserved(GIANT, giants, policy)?;
        let rest = bytes - mapped.held();
        mapped.add_reserved(LARGE, free(LARGE).min(rest.div_ceil(LARGE)), policy)?;
        let rest = bytes.saturating_sub(mapped.held());
        if rest > 0 || mapped.segments.is_empty() {
            mapped.add_plain(rest.max(1).next_multiple_of(PAGE), policy, kept)?;
        }
        Ok(Arena { mapped })
    }

    /// The bytes, writable.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: `bytes` from the start on are mapped readable and writable, initialised (to zero) by the kernel, and
        // borrowed through `self` alone.
        unsafe { std::slice::from_raw_parts_mut(self.mapped.start(), self.mapped.bytes) }
    }

    /// Bytes on each node; see [`numa::bytes_by_node`].
    pub fn nodes(&self) -> BTreeMap<usize, u64> {
        numa::bytes_by_node(self.mapped.addresses())
    }

    /// Ends writing, for everybody and for ever.
    ///
    /// # Errors
    /// What the kernel says to sealing, or to mapping anew.
    pub fn freeze(self) -> io::Result<Frozen> {
        let Arena { mapped } = self;
        let mut at = 0;
        for segment in &mapped.segments {
            if let Some(file) = &segment.file {
                // A seal against writing wants no writable mapping to be left.
                mapped.unmap(at..at + segment.bytes)?;
                fcntl(file, FcntlArg::F_ADD_SEALS(FIXED | against_writing() | SealFlag::F_SEAL_SEAL))?;
            }
            at += segment.bytes;
        }
        Frozen::of(mapped)
    }
}

impl Mapped {
    /// Adds a segment of at most `pages` reserved pages; of fewer or none where they cannot be had after all.
    fn add_reserved(&mut self, page: usize, pages: usize, policy: &Policy) -> io::Result<()> {
        let mut pages = pages;
        while pages > 0 {
            let (at, bytes) = (self.held(), pages * page);
            let size = if page == GIANT { MFdFlags::MFD_HUGE_1GB } else { MFdFlags::MFD_HUGE_2MB };
            // Reserved pages may be withheld from this process, or gone meanwhile: then the next size serves.
            let Ok(file) = create(MFdFlags::MFD_HUGETLB | size, bytes) else { return Ok(()) };
            let there = self.map(file.as_fd(), bytes, WRITABLE).and_then(|()| {
                let range = at..at + bytes;
                policy.set_range(self.range_mut(range.clone()))?;
                self.advise(range, libc::MADV_POPULATE_WRITE)
            });
            if there.is_ok() {
                self.segments.push(Segment { file: Some(file), page, bytes });
                return Ok(());
            }
            self.unmap(at..at + bytes)?;
            pages /= 2;
        }
        Ok(())
    }

    /// Adds a segment of pages that nobody reserved.
    fn add_plain(&mut self, bytes: usize, policy: &Policy, kept: bool) -> io::Result<()> {
        let range = self.held()..self.held() + bytes;
        let file = if kept { Some(create(MFdFlags::empty(), bytes)?) } else { None };
        match &file {
            Some(file) => self.map(file.as_fd(), bytes, WRITABLE)?,
            None => self.map_private(range.clone(), WRITABLE)?,
        }
        self.segments.push(Segment { file, page: PAGE, bytes });
        policy.set_range(self.range_mut(range.clone()))?;
        // Refused where there are no transparent huge pages; plain ones do.
        let _ = self.advise(range.clone(), libc::MADV_HUGEPAGE);
        match self.advise(range, libc::MADV_POPULATE_WRITE) {
            // Before Linux 5.14 pages come into being as they are written.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            done => done,
        }
    }

    /// Bytes of a segment that was just mapped writable.
    fn range_mut(&mut self, range: Range<usize>) -> &mut [u8] {
        // SAFETY: the caller mapped the range writable; `self` is borrowed for as long as the slice lives.
        unsafe { std::slice::from_raw_parts_mut(self.start().add(range.start), range.len()) }
    }
}

const WRITABLE: c_int = libc::PROT_READ | libc::PROT_WRITE;

/// Memory that nobody writes to any more.
#[derive(Debug)]
pub struct Frozen {
    mapped: Mapped,
}

impl Frozen {
    /// Maps segments again that were frozen in another process: their descriptors and the bytes in use of them.
    ///
    /// # Errors
    /// A descriptor that is no sealed memory file, segments that are too short, or what the kernel says.
    pub fn adopt(files: Vec<OwnedFd>, bytes: usize) -> io::Result<Frozen> {
        let segments = files.into_iter().map(Segment::of_sealed).collect::<io::Result<Vec<_>>>()?;
        let align = segments.iter().map(|segment| segment.page).max().unwrap_or(PAGE).max(LARGE);
        let held = segments.iter().try_fold(0usize, |sum, segment| sum.checked_add(segment.bytes));
        let Some(held) = held.filter(|held| *held >= bytes) else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the segments are shorter than what they should hold",
            ));
        };
        let mapped = Mapped::reserve(held, align)?;
        Frozen::of(Mapped { segments, bytes, ..mapped })
    }

    /// Maps sealed segments for reading.
    fn of(mapped: Mapped) -> io::Result<Frozen> {
        let mut at = 0;
        for segment in &mapped.segments {
            if let Some(file) = &segment.file {
                mapped.map_at(at, file.as_fd(), segment.bytes, libc::PROT_READ)?;
            }
            if segment.page == PAGE {
                let start = mapped.start() as usize + at;
                let _ = advise(start..start + segment.bytes, libc::MADV_HUGEPAGE);
            }
            at += segment.bytes;
        }
        // What a step needs is found in the page tables, rather than in a fault for each page at the first token.
        let _ = mapped.advise(0..at, libc::MADV_POPULATE_READ);
        Ok(Frozen { mapped })
    }

    /// The files, in their order.
    pub fn segments(&self) -> &[Segment] {
        &self.mapped.segments
    }

    /// Bytes on pages of each size, as they are mapped now: reserved pages, transparent huge ones, plain ones.
    pub fn pages(&self) -> BTreeMap<usize, u64> {
        let mut pages = BTreeMap::new();
        let mut add = |page, bytes: usize| {
            if bytes > 0 {
                *pages.entry(page).or_default() += bytes as u64;
            }
        };
        let maps = fs::read_to_string("/proc/self/smaps").unwrap_or_default();
        let mut at = self.mapped.start() as usize;
        for segment in &self.mapped.segments {
            let large = match segment.page {
                PAGE => transparent(&maps, at..at + segment.bytes).min(segment.bytes),
                _ => 0,
            };
            add(LARGE, large);
            add(segment.page, segment.bytes - large);
            at += segment.bytes;
        }
        pages
    }

    /// Moves what lies on plain pages to transparent huge ones, as far as the kernel finds some; it does so also where it
    /// gave none at first. Takes some milliseconds for each; meanwhile others may read, and nothing changes for them.
    pub fn collapse(&self) {
        let mut at = self.mapped.start() as usize;
        for segment in &self.mapped.segments {
            let end = at + segment.bytes;
            if segment.page == PAGE {
                for start in (at.next_multiple_of(LARGE)..end).step_by(LARGE).take_while(|start| start + LARGE <= end) {
                    match advise(start..start + LARGE, libc::MADV_COLLAPSE) {
                        // None to be had just now; the next range may be luckier.
                        Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {}
                        // Before Linux 6.1, or forbidden.
                        Err(_) => return,
                        Ok(()) => {}
                    }
                }
            }
            at = end;
        }
    }
}

impl AsRef<[u8]> for Frozen {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: `bytes` from the start on are mapped readable, and sealed: no process can write to them or cut them
        // short.
        unsafe { std::slice::from_raw_parts(self.mapped.start(), self.mapped.bytes) }
    }
}

impl Segment {
    /// Its file; `None`: private memory, which cannot be handed on.
    pub fn file(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(AsFd::as_fd)
    }

    /// Takes a descriptor for a segment, if it is a memory file that cannot change any more.
    fn of_sealed(file: OwnedFd) -> io::Result<Segment> {
        check_sealed(file.as_fd())?;
        let stat = nix::sys::stat::fstat(&file)?;
        let statfs = nix::sys::statfs::fstatfs(&file)?;
        // Files of reserved pages tell the page as their block; others have the plain one.
        let page = usize::try_from(statfs.block_size()).unwrap_or(PAGE).max(PAGE);
        let bytes = usize::try_from(stat.st_size).unwrap_or(0);
        if bytes == 0 || !page.is_power_of_two() || page > GIANT || !bytes.is_multiple_of(page) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a segment of {bytes} bytes")));
        }
        Ok(Segment { file: Some(file), page, bytes })
    }
}

/// A memory file with these bytes that nobody can change any more.
///
/// # Errors
/// No descriptors or no memory.
pub fn sealed_file(content: &[u8]) -> io::Result<OwnedFd> {
    use std::io::Write;
    let mut file = fs::File::from(create(MFdFlags::empty(), 0)?);
    file.write_all(content)?;
    fcntl(&file, FcntlArg::F_ADD_SEALS(FIXED | SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SEAL))?;
    Ok(file.into())
}

/// Whether a descriptor is a memory file that nobody can write to or cut short any more.
///
/// # Errors
/// It is not: what it lacks.
pub fn check_sealed(file: BorrowedFd<'_>) -> io::Result<()> {
    let seals = SealFlag::from_bits_truncate(fcntl(file, FcntlArg::F_GET_SEALS)?);
    let written = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_FUTURE_WRITE;
    if !seals.contains(FIXED) || !seals.intersects(written) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a memory file that could still be changed"));
    }
    Ok(())
}

fn create(flags: MFdFlags, bytes: usize) -> io::Result<OwnedFd> {
    let file = memfd_create(c"omni-weights", flags | MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    if bytes > 0 {
        nix::unistd::ftruncate(&file, i64::try_from(bytes).map_err(io::Error::other)?)?;
    }
    Ok(file)
}

/// The strongest seal against writing that still lets a file be mapped shared for reading; before Linux 6.7 that was not
/// the full one.
fn against_writing() -> SealFlag {
    static SEAL: OnceLock<SealFlag> = OnceLock::new();
    let mappable = || -> io::Result<()> {
        let file = sealed_file(&[0; PAGE])?;
        Mapped::reserve(PAGE, PAGE)?.map(file.as_fd(), PAGE, libc::PROT_READ)
    };
    *SEAL.get_or_init(|| match mappable() {
        Ok(()) => SealFlag::F_SEAL_WRITE,
        Err(_) => SealFlag::F_SEAL_FUTURE_WRITE,
    })
}

/// Whether pages can be brought into being by request, and their lack then is an error instead of a signal (Linux 5.14).
fn can_populate() -> bool {
    static CAN: OnceLock<bool> = OnceLock::new();
    *CAN.get_or_init(|| {
        let try_it = || -> io::Result<()> {
            let mapped = Mapped::reserve(PAGE, PAGE)?;
            mapped.map(create(MFdFlags::empty(), PAGE)?.as_fd(), PAGE, WRITABLE)?;
            mapped.advise(0..PAGE, libc::MADV_POPULATE_WRITE)
        };
        try_it().is_ok()
    })
}

/// Bytes of reserved pages that an arena would take now. Nobody else counts them as available.
pub fn free_reserved() -> u64 {
    let bytes = |page| free_pages(Path::new("/"), page).saturating_mul(page) as u64;
    if can_populate() { bytes(GIANT).saturating_add(bytes(LARGE)) } else { 0 }
}

/// Reserved pages of a size that nobody has claimed.
fn free_pages(root: &Path, page: usize) -> usize {
    let directory = root.join(format!("sys/kernel/mm/hugepages/hugepages-{}kB", page >> 10));
    let number = |file: &str| -> usize {
        fs::read_to_string(directory.join(file)).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    };
    number("free_hugepages").saturating_sub(number("resv_hugepages"))
}

/// Bytes on transparent huge pages among the mappings that start in `addresses`, from the text of `/proc/self/smaps`.
fn transparent(maps: &str, addresses: Range<usize>) -> usize {
    let mut inside = false;
    let mut bytes = 0;
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        if let Some((start, _)) = first.split_once('-') {
            inside = usize::from_str_radix(start, 16).is_ok_and(|start| addresses.contains(&start));
        } else if inside && ["AnonHugePages:", "ShmemPmdMapped:", "FilePmdMapped:"].contains(&first) {
            bytes += words.next().and_then(|kib| kib.parse::<usize>().ok()).unwrap_or(0) << 10;
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(bytes: usize) -> Arena {
        let mut arena = Arena::new(bytes, &Policy::Local, true).unwrap();
        assert!(arena.as_mut_slice().iter().all(|byte| *byte == 0));
        arena.as_mut_slice().iter_mut().enumerate().for_each(|(i, byte)| *byte = (i % 251) as u8);
        arena
    }

    fn copies(frozen: &Frozen) -> Vec<OwnedFd> {
        let files: Vec<_> = frozen.segments().iter().filter_map(Segment::file).collect();
        crate::sys::pass::copies(&files).unwrap()
    }

    fn is_filled(frozen: &Frozen) -> bool {
        frozen.as_ref().iter().enumerate().all(|(i, byte)| *byte == (i % 251) as u8)
    }

    #[test]
    fn what_was_written_is_frozen_and_found_again() {
        for bytes in [1, 5000, (5 << 20) + 77] {
            let frozen = filled(bytes).freeze().unwrap();
            assert!(frozen.as_ref().len() == bytes && is_filled(&frozen));
            assert_eq!(
                frozen.pages().values().sum::<u64>(),
                frozen.segments().iter().map(|s| s.bytes as u64).sum::<u64>()
            );
            let files = copies(&frozen);
            drop(frozen);
            let again = Frozen::adopt(files, bytes).unwrap();
            assert!(is_filled(&again));
            again.collapse();
            assert!(is_filled(&again), "moved to other pages, the bytes are the same");
            assert!(Frozen::adopt(copies(&again), usize::MAX / 2).is_err());
        }
        assert_eq!(Arena::new(0, &Policy::Local, true).unwrap().freeze().unwrap().as_ref().len(), 0);
        assert!(Arena::new(usize::MAX / 2, &Policy::Local, true).is_err());
    }

    #[test]
    fn what_nobody_keeps_is_private() {
        let mut arena = Arena::new(3 << 20, &Policy::Local, false).unwrap();
        arena.as_mut_slice()[3_000_000] = 9;
        let frozen = arena.freeze().unwrap();
        assert_eq!((frozen.as_ref()[3_000_000], frozen.as_ref().len()), (9, 3 << 20));
        let plain = frozen.segments().iter().filter(|segment| segment.page == PAGE);
        assert!(plain.clone().all(|segment| segment.file().is_none()));
        assert_eq!(frozen.pages().values().sum::<u64>(), frozen.segments().iter().map(|s| s.bytes as u64).sum::<u64>());
    }

    #[test]
    fn nobody_writes_to_what_is_frozen() {
        use std::os::unix::fs::FileExt;
        let frozen = filled(10_000).freeze().unwrap();
        let file = fs::File::from(frozen.segments()[0].file().unwrap().try_clone_to_owned().unwrap());
        assert!(file.write_at(&[1], 0).is_err() && file.set_len(1).is_err() && file.set_len(1 << 20).is_err());
        let writable = Mapped::reserve(PAGE, PAGE).unwrap();
        assert!(writable.map(file.as_fd(), PAGE, WRITABLE).is_err());
        assert!(check_sealed(sealed_file(b"text").unwrap().as_fd()).is_ok());
        let open = create(MFdFlags::empty(), PAGE).unwrap();
        assert!(check_sealed(open.as_fd()).is_err() && Frozen::adopt(vec![open], 1).is_err());
        assert!(Frozen::adopt(vec![tempfile::tempfile().unwrap().into()], 1).is_err());
    }

    #[test]
    fn free_reserved_pages_are_those_that_nobody_claimed() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("sys/kernel/mm/hugepages/hugepages-2048kB");
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("free_hugepages"), "7\n").unwrap();
        assert_eq!((free_pages(root.path(), LARGE), free_pages(root.path(), GIANT)), (7, 0));
        fs::write(directory.join("resv_hugepages"), "5\n").unwrap();
        assert_eq!(free_pages(root.path(), LARGE), 2);
    }

    #[test]
    fn transparent_pages_are_counted_by_mapping() {
        let maps = "1000-2000 r--s 0 00:01 1 /memfd:omni\nSize: 4 kB\nShmemPmdMapped: 4096 kB\nFilePmdMapped: 0 kB\n\
            9000-a000 r--s 0 00:01 1 /memfd:omni\nShmemPmdMapped: 2048 kB\n";
        assert_eq!(transparent(maps, 0x1000..0x2000), 4 << 20);
        assert_eq!(transparent(maps, 0x1000..0xa000), 6 << 20);
    }
}
