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

mod mapped;
mod pages;
mod sealed;

pub use pages::reserved_for;
pub use sealed::{Segment, check_sealed, sealed_file};

use super::numa::{self, Policy};
use mapped::{Mapped, WRITABLE, advise};
use nix::sys::memfd::MFdFlags;
use pages::{GIANT, LARGE, PAGE, can_populate, free_pages, transparent};
use sealed::{create, seal};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// A part of an arena, and the node that it should lie on.
pub type Part = (Range<usize>, usize);

/// The policy of an arena, and its parts with nodes of their own.
type Places<'a> = (&'a Policy, &'a [Part]);

/// Bytes that are brought into being between two signs of life.
const STEP: usize = 1 << 30;

/// Writable memory; see the module.
#[derive(Debug)]
pub struct Arena {
    mapped: Mapped,
    /// Pages that come into being as they are written, or by [`Faults::populate`].
    plain: Range<usize>,
}

/// Pages of an arena that are not there yet. Zeroing them takes as long as reading what goes there: both are done at once.
#[derive(Debug)]
pub struct Faults<'a> {
    mapped: &'a Mapped,
    plain: Range<usize>,
    stop: AtomicBool,
}

impl Faults<'_> {
    /// Brings them into being, from front to back, by several threads; others may write to them meanwhile. What the kernel
    /// refuses comes into being as it is written, if at all.
    pub fn populate(&self) {
        for at in self.plain.clone().step_by(STEP).take_while(|_| !self.stop.load(Ordering::Relaxed)) {
            if self.mapped.advise(at..(at + STEP).min(self.plain.end), libc::MADV_POPULATE_WRITE).is_err() {
                return;
            }
        }
    }

    /// Ends it: nobody wants them any more.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Arena {
    /// Zeroed memory of `bytes`, placed by `policy`; `parts` of it rather on nodes of their own. `kept`: its descriptors
    /// will be handed on. Reserved pages are there already; as they take a while, `wait` is called meanwhile.
    ///
    /// # Errors
    /// No addresses, no descriptors, or no memory.
    pub fn new(bytes: usize, places: Places<'_>, kept: bool, wait: &mut dyn FnMut()) -> io::Result<Arena> {
        let (policy, _) = places;
        let free = |page| if can_populate() { free_pages(Path::new("/"), page, policy) } else { 0 };
        let giants = free(GIANT).min(bytes / GIANT);
        let mut mapped = Mapped::reserve(bytes, if giants > 0 { GIANT } else { LARGE })?;
        mapped.add_reserved(GIANT, giants, places, wait)?;
        let rest = bytes - mapped.held();
        mapped.add_reserved(LARGE, free(LARGE).min(rest.div_ceil(LARGE)), places, wait)?;
        let rest = bytes.saturating_sub(mapped.held());
        let reserved = mapped.held();
        if rest > 0 || mapped.segments.is_empty() {
            mapped.add_plain(rest.max(1).next_multiple_of(PAGE), places, kept)?;
        }
        Ok(Arena { plain: reserved..mapped.held(), mapped })
    }

    /// The bytes, writable, and those of their pages that are not there yet.
    pub fn as_mut(&mut self) -> (&mut [u8], Faults<'_>) {
        let faults = Faults { mapped: &self.mapped, plain: self.plain.clone(), stop: AtomicBool::new(false) };
        // SAFETY: `bytes` from the start on are mapped readable and writable, initialised (to zero) by the kernel, and
        // borrowed through `self` alone; faults change none.
        (unsafe { std::slice::from_raw_parts_mut(self.mapped.start(), self.mapped.bytes) }, faults)
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
        let Arena { mapped, .. } = self;
        let mut at = 0;
        for segment in &mapped.segments {
            if let Some(file) = &segment.file {
                // A seal against writing wants no writable mapping to be left.
                mapped.unmap(at..at + segment.bytes)?;
                seal(file)?;
            }
            at += segment.bytes;
        }
        Frozen::of(mapped)
    }
}

impl Mapped {
    /// Adds a segment of at most `pages` reserved pages; of fewer or none where they cannot be had after all.
    fn add_reserved(
        &mut self,
        page: usize,
        pages: usize,
        places: Places<'_>,
        wait: &mut dyn FnMut(),
    ) -> io::Result<()> {
        let mut pages = pages;
        while pages > 0 {
            let (at, bytes) = (self.held(), pages * page);
            let size = if page == GIANT { MFdFlags::MFD_HUGE_1GB } else { MFdFlags::MFD_HUGE_2MB };
            // Reserved pages may be withheld from this process, or gone meanwhile: then the next size serves.
            let Ok(file) = create(MFdFlags::MFD_HUGETLB | size, bytes) else { return Ok(()) };
            let there = self.map(file.as_fd(), bytes, WRITABLE).and_then(|()| {
                let range = at..at + bytes;
                self.place(range.clone(), page, places)?;
                self.populate(range, wait)
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
    fn add_plain(&mut self, bytes: usize, places: Places<'_>, kept: bool) -> io::Result<()> {
        let range = self.held()..self.held() + bytes;
        let file = if kept { Some(create(MFdFlags::empty(), bytes)?) } else { None };
        match &file {
            Some(file) => self.map(file.as_fd(), bytes, WRITABLE)?,
            None => self.map_private(range.clone(), WRITABLE)?,
        }
        self.segments.push(Segment { file, page: PAGE, bytes });
        self.place(range.clone(), PAGE, places)?;
        // Refused where there are no transparent huge pages; plain ones do.
        let _ = self.advise(range, libc::MADV_HUGEPAGE);
        Ok(())
    }

    /// Says where the pages of a segment are to come from.
    fn place(&mut self, segment: Range<usize>, page: usize, (policy, parts): Places<'_>) -> io::Result<()> {
        policy.set_range(self.range_mut(segment.clone()))?;
        // Borders within a page go to its start; those of plain pages leave room for transparent ones.
        let whole = |at: usize| (at / page.max(LARGE) * page.max(LARGE)).clamp(segment.start, segment.end);
        for (part, node) in parts {
            let (start, end) = (whole(part.start), whole(part.end));
            if start < end {
                numa::prefer(self.range_mut(start..end), *node)?;
            }
        }
        Ok(())
    }

    /// Brings reserved pages into being, which shows whether they are there.
    fn populate(&self, range: Range<usize>, wait: &mut dyn FnMut()) -> io::Result<()> {
        for at in range.clone().step_by(STEP) {
            wait();
            self.advise(at..(at + STEP).min(range.end), libc::MADV_POPULATE_WRITE)?;
        }
        Ok(())
    }

    /// Bytes of a segment that was just mapped writable.
    fn range_mut(&mut self, range: Range<usize>) -> &mut [u8] {
        // SAFETY: the caller mapped the range writable; `self` is borrowed for as long as the slice lives.
        unsafe { std::slice::from_raw_parts_mut(self.start().add(range.start), range.len()) }
    }
}

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
        let mut mapped = Mapped::reserve(held, align)?;
        (mapped.segments, mapped.bytes) = (segments, bytes);
        Frozen::of(mapped)
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
        Ok(Frozen { mapped })
    }

    /// Enters all pages in the page tables, which costs less than a fault for each of them when they are first read. On plain
    /// pages that takes a tenth of a second for each GB; others may read meanwhile.
    pub fn touch(&self) {
        let _ = self.mapped.advise(0..self.mapped.held(), libc::MADV_POPULATE_READ);
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
    /// gave none at first. What is spread over NUMA nodes page by page stays so: a huge page lies on one, and the kernel would
    /// take the same one each time. Takes some milliseconds for each; meanwhile others may read, and nothing changes for
    /// them.
    pub fn collapse(&self) {
        let mut at = self.mapped.start() as usize;
        for segment in &self.mapped.segments {
            let end = at + segment.bytes;
            if segment.page == PAGE {
                for start in (at.next_multiple_of(LARGE)..end).step_by(LARGE).take_while(|start| start + LARGE <= end) {
                    if !numa::on_one_node(start..start + LARGE, PAGE) {
                        continue;
                    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(bytes: usize) -> Arena {
        let mut arena = Arena::new(bytes, (&Policy::Local, &[]), true, &mut || ()).unwrap();
        assert!(arena.as_mut().0.iter().all(|byte| *byte == 0));
        arena.as_mut().0.iter_mut().enumerate().for_each(|(i, byte)| *byte = (i % 251) as u8);
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
        assert_eq!(Arena::new(0, (&Policy::Local, &[]), true, &mut || ()).unwrap().freeze().unwrap().as_ref().len(), 0);
        assert!(Arena::new(usize::MAX / 2, (&Policy::Local, &[]), true, &mut || ()).is_err());
    }

    #[test]
    fn what_nobody_keeps_is_private() {
        let mut arena = Arena::new(3 << 20, (&Policy::Local, &[]), false, &mut || ()).unwrap();
        arena.as_mut().0[3_000_000] = 9;
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
}
