//! Descriptors that a process was started with. Called by a worker, which gets them from its daemon.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Descriptors that a worker is started with: its socket, its control channel, its channel to the vault.
pub const COUNT: usize = 3;

/// First of them.
const FIRST: RawFd = 3;

/// Takes the descriptors a worker is started with: 3 and the next ones. They are closed in programs it may start itself.
///
/// Must be the first thing the process does, and only once: a descriptor opened before could have one of the numbers.
///
/// # Errors
/// One of them is not open.
pub fn take() -> io::Result<[OwnedFd; COUNT]> {
    let numbers: [RawFd; COUNT] = std::array::from_fn(|i| FIRST + i as RawFd);
    for fd in numbers {
        // SAFETY: F_SETFD takes a plain number; one that is not open gives EBADF.
        if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: all are open, the parent opened them for us, and by this function's contract nothing else in the process
    // knows of them.
    Ok(numbers.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }))
}
