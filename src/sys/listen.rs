//! Listening sockets inherited from a service manager (`LISTEN_FDS`, sd_listen_fds(3)): Unix ones for the daemon, TCP ones
//! for the proxy, each called once at start; and
//! descriptors that an earlier process left with the manager. Opens nothing itself.

use std::io;
use std::net::TcpListener;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};

/// Descriptors that the service manager passed.
#[derive(Debug)]
pub struct Inherited<T> {
    /// Listening sockets, in the manager's order.
    pub listeners: Vec<T>,
    /// Those that an earlier process of this service [stored](super::notify::store), with their names.
    pub stored: Vec<(String, OwnedFd)>,
}

/// The Unix sockets passed to this process, and the descriptors whose name starts with `stored`; none without a manager,
/// and none from a second call.
///
/// # Errors
/// Malformed variables, or a descriptor that is neither.
pub fn inherited_unix(stored: &str) -> io::Result<Inherited<UnixListener>> {
    inherited("Unix", Some(stored), |fd| {
        let listener = UnixListener::from(fd);
        listener.local_addr().map(|_| listener)
    })
}

/// The TCP sockets passed to this process, in the manager's order; none without one, and none from a second call.
///
/// # Errors
/// Malformed variables, or a descriptor that is no listening TCP socket.
pub fn inherited_tcp() -> io::Result<Vec<TcpListener>> {
    let inherited = inherited("TCP", None, |fd| {
        let listener = TcpListener::from(fd);
        listener.local_addr().map(|_| listener)
    })?;
    Ok(inherited.listeners)
}

/// Takes the descriptors, which works once, and makes each a listener of `kind`, but for those of a `stored` name.
fn inherited<T>(
    kind: &str,
    stored: Option<&str>,
    listener: impl Fn(OwnedFd) -> io::Result<T>,
) -> io::Result<Inherited<T>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let mut inherited = Inherited { listeners: Vec::new(), stored: Vec::new() };
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Ok(inherited);
    }
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let names = names.split(':').map(str::to_owned).chain(std::iter::repeat(String::new()));
    for (number, name) in sd_notify::listen_fds()?.zip(names) {
        nix::fcntl::fcntl(borrow(number), nix::fcntl::F_GETFD)
            .map_err(|error| io::Error::new(io::ErrorKind::NotFound, format!("descriptor {number}: {error}")))?;
        // SAFETY: the descriptor is open (checked above), the protocol hands it to this process alone, and `TAKEN`
        // makes sure that only one owner is ever made of it.
        let owned = unsafe { OwnedFd::from_raw_fd(number) };
        if stored.is_some_and(|stored| name.starts_with(stored)) {
            inherited.stored.push((name, owned));
            continue;
        }
        if !nix::sys::socket::getsockopt(&owned, nix::sys::socket::sockopt::AcceptConn)? {
            let what = format!("descriptor {number} from LISTEN_FDS does not listen; set Accept=no in the socket unit");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        inherited.listeners.push(listener(owned).map_err(|error| {
            io::Error::new(error.kind(), format!("descriptor {number} from LISTEN_FDS is no {kind} socket: {error}"))
        })?);
    }
    Ok(inherited)
}

/// A descriptor number as something that can be asked about.
fn borrow(number: i32) -> std::os::fd::BorrowedFd<'static> {
    // SAFETY: only used for `F_GETFD`, which fails cleanly with EBADF on a number that is not open.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(number) }
}
