//! Descriptors that a process was started with. Called by a worker, which gets two from its daemon.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// First of the descriptors handed to a child.
const FIRST: RawFd = 3;

/// Takes the two descriptors a worker is started with: 3, then 4. Both are closed in programs it may start itself.
///
/// Must be the first thing the process does, and only once: a descriptor opened before could have one of the numbers.
///
/// # Errors
/// One of them is not open.
pub fn take_pair() -> io::Result<[OwnedFd; 2]> {
    for fd in [FIRST, FIRST + 1] {
        // SAFETY: F_SETFD takes a plain number; one that is not open gives EBADF.
        if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: both are open, the parent opened them for us, and by this function's contract nothing else in the process
    // knows of them.
    Ok(unsafe { [OwnedFd::from_raw_fd(FIRST), OwnedFd::from_raw_fd(FIRST + 1)] })
}
