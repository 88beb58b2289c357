//! The service manager's notification protocol (sd_notify(3)). Everything here does nothing when `NOTIFY_SOCKET` is not
//! set; a message that cannot be sent is logged and costs nothing else. Called by the daemon and the proxy.

use super::pass;
use sd_notify::NotifyState;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::time::Duration;

/// The process answers on its sockets.
pub fn ready() {
    send(&[NotifyState::Ready]);
}

/// The configuration is being read again; [`ready`] ends it. Carries the clock as `Type=notify-reload` demands.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => send(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "the monotonic clock cannot be read; the reload is not announced"),
    }
}

/// The process is about to end.
pub fn stopping() {
    send(&[NotifyState::Stopping]);
}

/// One line for `systemctl status`. Line breaks, which would start a new field, become spaces.
pub fn status(line: &str) {
    send(&[NotifyState::Status(&line.replace(['\n', '\r'], " "))]);
}

/// The process is alive.
pub fn watchdog() {
    send(&[NotifyState::Watchdog]);
}

/// The process needs longer than the manager's own time limit to start or stop: `by` more from now.
pub fn extend_timeout(by: Duration) {
    send(&[NotifyState::ExtendTimeoutUsec(u32::try_from(by.as_micros()).unwrap_or(u32::MAX))]);
}

/// How often the service manager wants to hear [`watchdog`] at least; `None`: it does not watch this process.
pub fn watchdog_interval() -> Option<Duration> {
    std::env::var_os("NOTIFY_SOCKET")?;
    sd_notify::watchdog_enabled().filter(|interval| !interval.is_zero())
}

/// Whether standard error is a stream of the journal. `JOURNAL_STREAM` names its device and inode (systemd.exec(5)); a
/// process whose stderr was redirected since then inherits the variable all the same.
pub fn stderr_is_journal() -> bool {
    let Some(named) = std::env::var_os("JOURNAL_STREAM") else { return false };
    let stat = nix::sys::stat::fstat(std::io::stderr());
    stat.is_ok_and(|stat| named.to_str() == Some(format!("{}:{}", stat.st_dev, stat.st_ino).as_str()))
}

/// The variables of this protocol and of socket activation; a child must not inherit them, lest it speak for its parent.
pub const VARIABLES: [&str; 7] =
    ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "JOURNAL_STREAM"];

/// Gives a descriptor to the service manager, which hands it to the next process of this service by this name. Answers
/// whether there is a manager that was told; it keeps no more than the unit's `FileDescriptorStoreMax=`.
pub fn store(name: &str, descriptor: BorrowedFd<'_>) -> bool {
    // Memory files never report an error; without FDPOLL=0 the manager would ask for that all the same.
    send_with(&format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0\n"), &[descriptor])
}

/// Takes all descriptors of this name back from the service manager.
pub fn forget(name: &str) {
    send_with(&format!("FDSTOREREMOVE=1\nFDNAME={name}\n"), &[]);
}

/// Waits until the service manager has done what it was told so far, `most` at most. Blocks.
pub fn barrier(most: Duration) {
    let wait = || -> std::io::Result<()> {
        // The manager closes its end when it comes to this message.
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_read_timeout(Some(most))?;
        if send_with("BARRIER=1", &[theirs.as_fd()]) {
            drop(theirs);
            (&ours).read_exact(&mut [0])?;
        }
        Ok(())
    };
    match wait() {
        Err(error) if error.kind() != std::io::ErrorKind::UnexpectedEof => {
            tracing::debug!(%error, "the service manager was not waited for");
        }
        _ => {}
    }
}

fn send_with(message: &str, descriptors: &[BorrowedFd<'_>]) -> bool {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return false };
    let sent = UnixDatagram::unbound().and_then(|socket| {
        socket.connect(path)?;
        pass::send(socket.as_fd(), message.as_bytes(), descriptors)
    });
    if let Err(error) = &sent {
        tracing::warn!(%error, "the service manager could not be given a descriptor");
    }
    sent.is_ok()
}

fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager could not be told");
    }
}
