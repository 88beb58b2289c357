//! Listening sockets inherited from a service manager (`LISTEN_FDS`, sd_listen_fds(3)): Unix ones for the daemon, TCP ones
//! for the proxy, each called once at start. Opens nothing itself.

use std::io;
use std::net::TcpListener;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};

/// The Unix sockets passed to this process, in the manager's order; none without one, and none from a second call.
///
/// # Errors
/// Malformed variables, or a descriptor that is no listening Unix socket.
pub fn inherited_unix() -> io::Result<Vec<UnixListener>> {
    inherited("Unix", |fd| {
        let listener = UnixListener::from(fd);
        listener.local_addr().map(|_| listener)
    })
}

/// The TCP sockets passed to this process, in the manager's order; none without one, and none from a second call.
///
/// # Errors
/// Malformed variables, or a descriptor that is no listening TCP socket.
pub fn inherited_tcp() -> io::Result<Vec<TcpListener>> {
    inherited("TCP", |fd| {
        let listener = TcpListener::from(fd);
        listener.local_addr().map(|_| listener)
    })
}

/// Takes the descriptors, which works once, and makes each a listener of `kind`.
fn inherited<T>(kind: &str, listener: impl Fn(OwnedFd) -> io::Result<T>) -> io::Result<Vec<T>> {
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
        listeners.push(listener(owned).map_err(|error| {
            io::Error::new(error.kind(), format!("descriptor {number} from LISTEN_FDS is no {kind} socket: {error}"))
        })?);
    }
    Ok(listeners)
}

/// A descriptor number as something that can be asked about.
fn borrow(number: i32) -> std::os::fd::BorrowedFd<'static> {
    // SAFETY: only used for `F_GETFD`, which fails cleanly with EBADF on a number that is not open.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(number) }
}
