//! Listening TCP sockets inherited from a service manager (`LISTEN_FDS`, socket activation). Called once at start by
//! the proxy; opens nothing itself.

use std::io;
use std::net::TcpListener;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// Takes the listeners a service manager passed to this process, in its order; none when there is no such manager. The
/// second call yields none. Errors: malformed variables, or a descriptor that is no listening stream socket.
pub fn inherited_tcp() -> io::Result<Vec<TcpListener>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Ok(Vec::new());
    }
    let mut listeners = Vec::new();
    for number in sd_notify::listen_fds()? {
        nix::fcntl::fcntl(borrow(number), nix::fcntl::F_GETFD)
            .map_err(|error| io::Error::new(io::ErrorKind::NotFound, format!("descriptor {number}: {error}")))?;
        // SAFETY: the descriptor is open (checked above), the protocol hands it to this process alone, and `TAKEN`
        // makes sure that only one owner is ever made of it.
        let owned = unsafe { OwnedFd::from_raw_fd(number) };
        if !nix::sys::socket::getsockopt(&owned, nix::sys::socket::sockopt::AcceptConn)? {
            let what = format!("descriptor {number} from LISTEN_FDS does not listen; set Accept=no in the socket unit");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        let listener = TcpListener::from(owned);
        listener.local_addr().map_err(|error| {
            io::Error::new(error.kind(), format!("descriptor {number} from LISTEN_FDS is no TCP socket: {error}"))
        })?;
        listeners.push(listener);
    }
    Ok(listeners)
}

/// A descriptor number as something that can be asked about.
fn borrow(number: i32) -> std::os::fd::BorrowedFd<'static> {
    // SAFETY: only used for `F_GETFD`, which fails cleanly with EBADF on a number that is not open.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(number) }
}
