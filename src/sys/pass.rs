//! Messages with descriptors between processes (`SCM_RIGHTS`, unix(7)). Called by worker and daemon for the vault, and
//! by `notify` to give descriptors to the service manager.

use nix::cmsg_space;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, socketpair,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Most descriptors of a message.
pub const MAX_DESCRIPTORS: usize = 8;

/// Descriptors that the kernel lets through with one message.
const MOST_DESCRIPTORS: usize = 253;

/// A message and the descriptors that came with it.
pub type Received = (Vec<u8>, Vec<OwnedFd>);

/// Two ends of a channel that keeps messages apart; both close on exec.
///
/// # Errors
/// Out of descriptors.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?)
}

/// Sends a message with at most [`MAX_DESCRIPTORS`] descriptors, of which the other side gets copies.
///
/// # Errors
/// The other side is gone, or the message is too long for the socket's buffer.
pub fn send(socket: BorrowedFd<'_>, message: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let numbers: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&numbers)];
    let control = if numbers.is_empty() { &[][..] } else { &rights[..] };
    let parts = [IoSlice::new(message)];
    let sent = sendmsg::<()>(socket.as_raw_fd(), &parts, control, MsgFlags::MSG_NOSIGNAL, None)?;
    if sent == message.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// The next message, of at most `limit` bytes; `None` when the other side is gone.
///
/// # Errors
/// A message that is longer or brings more descriptors than allowed, or what `recvmsg` says (`WouldBlock` included).
pub fn receive(socket: BorrowedFd<'_>, limit: usize) -> io::Result<Option<Received>> {
    let mut message = vec![0; limit];
    // Room for as many as the kernel lets through: those that do not fit would be lost, those that fit before them leak.
    let mut space = cmsg_space!([RawFd; MOST_DESCRIPTORS]);
    let mut parts = [IoSliceMut::new(&mut message)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let received = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    let (length, flags) = (received.bytes, received.flags);
    let mut descriptors = Vec::new();
    for control in received.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = control {
            // SAFETY: the kernel made these descriptors for this process with this message; nothing else knows them.
            descriptors.extend(numbers.into_iter().map(|number| unsafe { OwnedFd::from_raw_fd(number) }));
        }
    }
    if flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC) || descriptors.len() > MAX_DESCRIPTORS {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message that is longer than allowed"));
    }
    message.truncate(length);
    // Messages are never empty, so nothing means the end.
    Ok((length > 0).then_some((message, descriptors)))
}

/// Copies of descriptors, to be handed on.
///
/// # Errors
/// Out of descriptors.
pub fn copies<F: AsFd>(descriptors: &[F]) -> io::Result<Vec<OwnedFd>> {
    descriptors.iter().map(|descriptor| descriptor.as_fd().try_clone_to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, Write};

    #[test]
    fn messages_keep_apart_and_bring_descriptors() {
        let (ours, theirs) = pair().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"weights").unwrap();
        send(ours.as_fd(), b"keep", &[file.as_fd(), file.as_fd()]).unwrap();
        send(ours.as_fd(), b"find", &[]).unwrap();
        let (message, descriptors) = receive(theirs.as_fd(), 100).unwrap().unwrap();
        assert_eq!((message.as_slice(), descriptors.len()), (&b"keep"[..], 2));
        drop(file);
        let mut copy = std::fs::File::from(copies(&descriptors).unwrap().remove(1));
        copy.rewind().unwrap();
        let mut text = String::new();
        copy.read_to_string(&mut text).unwrap();
        assert_eq!(text, "weights");
        let (message, descriptors) = receive(theirs.as_fd(), 100).unwrap().unwrap();
        assert_eq!((message.as_slice(), descriptors.len()), (&b"find"[..], 0));
        send(ours.as_fd(), &[7; 101], &[]).unwrap();
        assert_eq!(receive(theirs.as_fd(), 100).unwrap_err().kind(), io::ErrorKind::InvalidData);
        drop(ours);
        assert!(receive(theirs.as_fd(), 100).unwrap().is_none());
        assert!(send(theirs.as_fd(), b"x", &[]).is_err());
    }
}
