//! Many reads in flight from one thread, by io_uring. Called by `load`, which has plain threads for where the kernel, a
//! container's seccomp filter or `kernel.io_uring_disabled` refuses it.

use io_uring::{IoUring, opcode, types};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// A read at `offset` of `file`.
pub struct Read<'a, T> {
    /// What to read from.
    pub file: BorrowedFd<'a>,
    /// Where, in bytes.
    pub offset: u64,
    /// Filled from the front.
    pub into: &'a mut [u8],
    /// Bytes wanted, at most as many as `into` has.
    pub len: usize,
    /// The caller's own; given back with the outcome.
    pub tag: T,
}

/// An io_uring of its own for one sequence of reads.
pub struct Ring {
    uring: IoUring,
    depth: usize,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ring({} reads)", self.depth)
    }
}

impl Ring {
    /// A ring for `depth` reads at once.
    ///
    /// # Errors
    /// What the kernel says: `ENOSYS` or `EPERM` where io_uring is missing or forbidden.
    pub fn new(depth: usize) -> io::Result<Ring> {
        let entries = u32::try_from(depth.next_power_of_two()).map_err(io::Error::other)?;
        let mut uring = IoUring::new(entries)?;
        let mut probe = io_uring::Probe::new();
        uring.submitter().register_probe(&mut probe)?;
        if !probe.is_supported(opcode::Read::CODE) {
            return Err(io::Error::from_raw_os_error(libc::ENOSYS));
        }
        // A filter may let a ring be made and forbid its use.
        // SAFETY: an operation without descriptor or buffer.
        unsafe { uring.submission().push(&opcode::Nop::new().build()) }.map_err(io::Error::other)?;
        uring.submit_and_wait(1)?;
        uring.completion().for_each(drop);
        Ok(Ring { uring, depth })
    }

    /// Keeps up to `depth` reads in flight. `next(idle)` yields another read or none for now; with `idle`, when nothing
    /// is in flight, none means that there are no more. `done` gets every read back with the bytes that were read:
    /// fewer than asked for only where the file ends, or stops within a multiple of `sector`.
    ///
    /// # Errors
    /// When the kernel takes no requests; reads that were in flight have then ended, and `done` did not see them.
    pub fn drive<'a, T>(
        self,
        sector: usize,
        mut next: impl FnMut(bool) -> Option<Read<'a, T>>,
        mut done: impl FnMut(Read<'a, T>, io::Result<usize>),
    ) -> io::Result<()> {
        let mut slots = Slots { flying: (0..self.depth).map(|_| None).collect(), uring: self.uring, count: 0 };
        loop {
            while slots.count < slots.flying.len() {
                let Some(read) = next(slots.count == 0) else { break };
                slots.start(Flight { read, have: 0 })?;
            }
            if slots.count == 0 {
                return Ok(());
            }
            slots.wait()?;
            while let Some((mut flight, outcome)) = slots.landed() {
                match outcome {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => slots.start(flight)?,
                    Err(error) => done(flight.read, Err(error)),
                    Ok(bytes) => {
                        flight.have += bytes;
                        let ended = bytes == 0 || !flight.have.is_multiple_of(sector);
                        match ended || flight.have == flight.read.len {
                            true => done(flight.read, Ok(flight.have)),
                            false => slots.start(flight)?,
                        }
                    }
                }
            }
        }
    }
}

/// A read and how much of it has come.
struct Flight<'a, T> {
    read: Read<'a, T>,
    have: usize,
}

/// The reads in flight. Owns ring and buffers' borrows together: it is dropped only after the kernel let go of all.
struct Slots<'a, T> {
    flying: Vec<Option<Flight<'a, T>>>,
    uring: IoUring,
    /// Occupied slots, each a request queued or with the kernel.
    count: usize,
}

impl<'a, T> Slots<'a, T> {
    /// Queues the rest of a read; the kernel sees it at the next wait.
    fn start(&mut self, flight: Flight<'a, T>) -> io::Result<()> {
        let Some(slot) = self.flying.iter().position(Option::is_none) else {
            return Err(io::Error::other("more reads than slots"));
        };
        let rest = &mut flight.read.into[flight.have..flight.read.len];
        let len = u32::try_from(rest.len()).map_err(io::Error::other)?;
        let entry = opcode::Read::new(types::Fd(flight.read.file.as_raw_fd()), rest.as_mut_ptr(), len)
            .offset(flight.read.offset + flight.have as u64)
            .build()
            .user_data(slot as u64);
        // SAFETY: descriptor and buffer are borrowed for 'a by `flight`, which stays in its slot, untouched, until the
        // completion is taken; `drop` waits for that too.
        unsafe { self.uring.submission().push(&entry) }.map_err(io::Error::other)?;
        self.flying[slot] = Some(flight);
        self.count += 1;
        Ok(())
    }

    /// Hands the queue to the kernel and waits for a completion.
    fn wait(&self) -> io::Result<()> {
        loop {
            match self.uring.submit_and_wait(1) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Short of memory for requests: those in flight give theirs back.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY)) => {
                    std::thread::yield_now();
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// A read that has ended.
    fn landed(&mut self) -> Option<(Flight<'a, T>, io::Result<usize>)> {
        let entry = self.uring.completion().next()?;
        let flight = self.flying.get_mut(entry.user_data() as usize)?.take()?;
        self.count -= 1;
        let outcome = usize::try_from(entry.result()).map_err(|_| io::Error::from_raw_os_error(-entry.result()));
        Some((flight, outcome))
    }
}

impl<T> Drop for Slots<'_, T> {
    fn drop(&mut self) {
        while self.count > 0 {
            if self.wait().is_err() {
                // The kernel still writes to buffers that are about to be freed, and nobody can stop it.
                std::process::abort();
            }
            while self.landed().is_some() {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    /// Bytes that tell their place.
    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i * 31 + (i >> 8)) as u8).collect()
    }

    fn file(bytes: &[u8]) -> std::fs::File {
        use std::io::Write;
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn reads_overtake_each_other_and_all_arrive() {
        const LEN: usize = 1000;
        let bytes = pattern(100 * LEN - 7);
        let file = file(&bytes);
        let mut got = vec![0u8; 100 * LEN];
        let mut parts = got.chunks_mut(LEN).enumerate();
        let (mut flying, mut most, mut short) = (0usize, 0, Vec::new());
        let counter = std::cell::RefCell::new((&mut flying, &mut most));
        Ring::new(5)
            .unwrap()
            .drive(
                1,
                |idle| {
                    let mut counter = counter.borrow_mut();
                    assert_eq!(idle, *counter.0 == 0);
                    let (i, into) = parts.next()?;
                    *counter.0 += 1;
                    *counter.1 = (*counter.1).max(*counter.0);
                    Some(Read { file: file.as_fd(), offset: (i * LEN) as u64, into, len: LEN, tag: i })
                },
                |read, outcome| {
                    *counter.borrow_mut().0 -= 1;
                    if outcome.unwrap() < LEN {
                        short.push(read.tag);
                    }
                },
            )
            .unwrap();
        assert_eq!((flying, most), (0, 5));
        assert_eq!(short, [99], "only the file's end is short");
        assert!(got[..bytes.len()] == bytes[..]);
    }

    #[test]
    fn a_failed_read_comes_back_with_its_reason() {
        let write_only = std::fs::OpenOptions::new().write(true).open("/dev/null").unwrap();
        let mut buffer = [0u8; 16];
        let mut reads = vec![Read { file: write_only.as_fd(), offset: 0, into: &mut buffer, len: 16, tag: "tag" }];
        let mut seen = None;
        let next = |_| reads.pop();
        Ring::new(2).unwrap().drive(1, next, |read, outcome| seen = Some((read.tag, outcome))).unwrap();
        let (tag, outcome) = seen.unwrap();
        assert_eq!((tag, outcome.unwrap_err().raw_os_error()), ("tag", Some(libc::EBADF)));
    }

    #[test]
    fn a_panic_waits_for_the_reads_in_flight() {
        let (read_end, write_end) = nix::unistd::pipe().unwrap();
        let mut buffer = [0u8; 4];
        let mut reads = vec![buffer.split_at_mut(2).0];
        let late = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(50));
            nix::unistd::write(&write_end, b"ab").unwrap();
        });
        let drive = AssertUnwindSafe(|| {
            let next = |_| match reads.pop() {
                Some(into) => Some(Read { file: read_end.as_fd(), offset: 0, into, len: 2, tag: () }),
                None => panic!("no more"),
            };
            Ring::new(2).unwrap().drive(1, next, |_, _| ())
        });
        assert!(catch_unwind(drive).is_err());
        late.join().unwrap();
        assert_eq!(&buffer, b"ab\0\0");
    }
}
