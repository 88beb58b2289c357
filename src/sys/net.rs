//! Unix sockets: binding with stale files told from live daemons, and who is on the other side. Called by the daemon.

use nix::fcntl::{Flock, FlockArg};
use nix::unistd::{Gid, Group, Uid, User};
use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Longest path of a Unix socket, without the final zero (`sun_path`, unix(7)).
pub const MAX_SOCKET_PATH: usize = 107;

/// Why a socket could not be bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody answers there.
    #[error("{} is served by another process; stop that one, or choose another socket", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// A file that is no socket stands there; it is left alone.
    #[error("{} exists and is not a socket; remove it, or choose another socket", path.display())]
    NotASocket {
        /// The file.
        path: PathBuf,
    },
    /// The kernel's limit.
    #[error("the path of the socket, {}, has {length} bytes and may have {MAX_SOCKET_PATH}; choose a shorter one", path.display())]
    TooLong {
        /// The socket.
        path: PathBuf,
        /// Its length in bytes.
        length: usize,
    },
    /// The socket's directory belongs to somebody else, who could replace the socket.
    #[error("{} belongs to user {owner} and may be written by others; choose another socket", path.display())]
    ForeignDirectory {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// Anything else.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
}

/// A bound socket that this process alone may serve. Dropping it removes the files.
#[derive(Debug)]
pub struct Bound {
    path: PathBuf,
    socket: Option<FileId>,
    /// Held for the life of the daemon: two that start at once cannot both take a stale file for theirs.
    lock: Flock<File>,
}

/// A file whatever its name: device and inode.
type FileId = (u64, u64);

fn file_id(path: &Path) -> Option<FileId> {
    std::fs::symlink_metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

impl Bound {
    /// Binds `path`, after removing a socket file that nobody serves. A missing directory is made, for this user only
    /// when it lies in a place where anybody may write.
    ///
    /// # Errors
    /// [`BindError::InUse`] when somebody answers there; see the variants.
    pub fn bind(path: &Path) -> Result<(Self, UnixListener), BindError> {
        let length = path.as_os_str().len();
        if length > MAX_SOCKET_PATH {
            return Err(BindError::TooLong { path: path.into(), length });
        }
        let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        prepare_directory(directory)?;
        let mut bound = Self { path: path.into(), socket: None, lock: lock(path)? };
        let listener = bound.listen()?;
        Ok((bound, listener))
    }

    fn listen(&mut self) -> Result<UnixListener, BindError> {
        remove_stale(&self.path)?;
        let path = &self.path;
        let failed = |source| BindError::Io { action: "bind", path: path.clone(), source };
        let listener = UnixListener::bind(path).map_err(failed)?;
        self.socket = file_id(path);
        Ok(listener)
    }

    /// Whether the socket's file is gone, or another stands in its place: nobody can connect any more.
    pub fn is_lost(&self) -> bool {
        self.socket.is_none() || file_id(&self.path) != self.socket
    }

    /// Binds the path again when its file [is lost](Self::is_lost). What stands there is replaced when nobody serves it.
    ///
    /// # Errors
    /// As [`Bound::bind`].
    pub fn rebind(&mut self) -> Result<UnixListener, BindError> {
        if holds(&self.lock, &self.path) {
            return self.listen();
        }
        // The lock's file went, too: another daemon may have made, and locked, its own.
        let (bound, listener) = Self::bind(&self.path)?;
        *self = bound;
        Ok(listener)
    }

    /// Gives the socket to the members of a group (mode 0660), or, without one, to this user alone (0600).
    ///
    /// # Errors
    /// The group cannot be set by this user; the socket then stays with mode 0600.
    pub fn share(&self, group: Option<u32>) -> io::Result<()> {
        let mode = |mode| std::fs::set_permissions(&self.path, std::fs::Permissions::from_mode(mode));
        mode(0o600)?;
        if let Some(gid) = group {
            std::os::unix::fs::chown(&self.path, None, Some(gid))?;
            mode(0o660)?;
        }
        Ok(())
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        // The lock's file goes last and under the lock, so that a successor either waits for it or makes its own.
        if !self.is_lost() {
            let _ = std::fs::remove_file(&self.path);
        }
        if holds(&self.lock, &self.path) {
            let _ = std::fs::remove_file(lock_path(&self.path));
        }
    }
}

fn lock_path(socket: &Path) -> PathBuf {
    socket.with_added_extension("lock")
}

/// Whether this lock is the one that others would find.
fn holds(lock: &Flock<File>, socket: &Path) -> bool {
    lock.metadata().is_ok_and(|held| file_id(&lock_path(socket)) == Some((held.dev(), held.ino())))
}

fn lock(socket: &Path) -> Result<Flock<File>, BindError> {
    let path = lock_path(socket);
    let fail = |action, source| BindError::Io { action, path: path.clone(), source };
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).write(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    let file = options.open(&path).map_err(|error| fail("open", error))?;
    let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::errno::Errno::EWOULDBLOCK => BindError::InUse { path: socket.into() },
        other => fail("lock", other.into()),
    })?;
    // A daemon that ended between our open and our lock took its file with it: what we hold then guards nothing.
    if holds(&lock, socket) { Ok(lock) } else { Err(BindError::InUse { path: socket.into() }) }
}

fn prepare_directory(directory: &Path) -> Result<(), BindError> {
    if !directory.exists() {
        // Only the last part is private: the socket's group must be able to pass through /run/omni-inferd.
        let shared = directory.starts_with("/run") && !directory.starts_with("/run/user");
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(if shared { 0o755 } else { 0o700 })
            .create(directory)
            .map_err(|source| BindError::Io { action: "make the directory", path: directory.into(), source })?;
    }
    let metadata = std::fs::metadata(directory).map_err(|source| BindError::Io {
        action: "look at",
        path: directory.into(),
        source,
    })?;
    let ours = [0, nix::unistd::geteuid().as_raw()].contains(&metadata.uid());
    let sticky_or_closed = metadata.mode() & 0o002 == 0 || metadata.mode() & 0o1000 != 0;
    if ours || sticky_or_closed && !directory.starts_with("/tmp") {
        return Ok(());
    }
    Err(BindError::ForeignDirectory { path: directory.into(), owner: metadata.uid() })
}

fn remove_stale(path: &Path) -> Result<(), BindError> {
    let metadata = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(BindError::Io { action: "look at", path: path.into(), source }),
    };
    if !metadata.file_type().is_socket() {
        return Err(BindError::NotASocket { path: path.into() });
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)
            .map_err(|source| BindError::Io { action: "remove the stale socket", path: path.into(), source }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // A full backlog or a missing permission also means that somebody is there.
        Ok(_) | Err(_) => Err(BindError::InUse { path: path.into() }),
    }
}

/// Supplementary groups of the process on the other side, as they were when it connected (`SO_PEERGROUPS`, Linux 4.13).
///
/// # Errors
/// The socket is not connected, or the kernel does not know the option.
pub fn peer_groups(socket: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut groups: Vec<libc::gid_t> = vec![0; 64];
    loop {
        let mut bytes = libc::socklen_t::try_from(size_of_val(groups.as_slice())).map_err(io::Error::other)?;
        // SAFETY: `groups` is valid for writes of `bytes` bytes, and the kernel writes no more than that.
        let status = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut bytes,
            )
        };
        let count = bytes as usize / size_of::<libc::gid_t>();
        if status == 0 {
            groups.truncate(count);
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        // Too small a buffer: the kernel tells the size it wants. No process has more than NGROUPS_MAX (65536).
        if error.raw_os_error() != Some(libc::ERANGE) || count <= groups.len() || count > 65_536 {
            return Err(error);
        }
        groups.resize(count, 0);
    }
}

/// Groups of a user by the user database: primary and supplementary. May read files or ask a directory server.
pub fn groups_of_user(uid: u32) -> Vec<u32> {
    let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
    let Some((name, gid)) = user.and_then(|user| Some((CString::new(user.name).ok()?, user.gid))) else {
        return Vec::new();
    };
    let groups = nix::unistd::getgrouplist(&name, gid).unwrap_or_else(|_| vec![gid]);
    groups.into_iter().map(Gid::as_raw).collect()
}

/// Number of a group; `None` when there is no such group.
pub fn group_id(name: &str) -> Option<u32> {
    Group::from_name(name).ok().flatten().map(|group| group.gid.as_raw())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_stale_file_is_replaced_and_a_live_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("omni.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let (bound, listener) = Bound::bind(&path).unwrap();
        assert!(matches!(Bound::bind(&path), Err(BindError::InUse { .. })));
        drop((bound, listener));
        assert!(!path.exists(), "the socket file is removed with the daemon");

        let _foreign = UnixListener::bind(&path).unwrap();
        assert!(matches!(Bound::bind(&path), Err(BindError::InUse { .. })));
    }

    #[test]
    fn a_lost_socket_is_bound_again_and_never_a_live_ones_place_taken() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/omni.sock");
        let (mut bound, first) = Bound::bind(&path).unwrap();
        assert!(!bound.is_lost());
        // Deleted; the whole directory deleted; replaced by a file that nobody serves.
        let lose: [fn(&Path); 3] = [
            |path| std::fs::remove_file(path).unwrap(),
            |path| std::fs::remove_dir_all(path.parent().unwrap()).unwrap(),
            |path| {
                std::fs::remove_file(path).unwrap();
                drop(UnixListener::bind(path).unwrap());
            },
        ];
        let mut listeners = vec![first];
        for lose in lose {
            lose(&path);
            assert!(bound.is_lost());
            listeners.push(bound.rebind().unwrap());
            assert!(!bound.is_lost() && UnixStream::connect(&path).is_ok());
            assert!(matches!(Bound::bind(&path), Err(BindError::InUse { .. })), "the lock is held again");
        }
        std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
        let (other, _listener) = Bound::bind(&path).unwrap();
        assert!(bound.is_lost());
        assert!(matches!(bound.rebind(), Err(BindError::InUse { .. })));
        drop(bound);
        assert!(!other.is_lost(), "what is another's stays");
    }

    #[test]
    fn files_of_others_are_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notes.txt");
        std::fs::write(&path, "mine").unwrap();
        assert!(matches!(Bound::bind(&path), Err(BindError::NotASocket { .. })));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
        let long = directory.path().join("x".repeat(120));
        assert!(matches!(Bound::bind(&long), Err(BindError::TooLong { .. })));
    }

    #[test]
    fn modes_follow_the_group() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deeper/omni.sock");
        let (bound, _listener) = Bound::bind(&path).unwrap();
        let mode = || std::fs::metadata(&path).unwrap().mode() & 0o777;
        bound.share(None).unwrap();
        assert_eq!(mode(), 0o600);
        bound.share(Some(nix::unistd::getegid().as_raw())).unwrap();
        assert_eq!(mode(), 0o660);
    }

    #[test]
    fn peers_have_groups() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let mut own: Vec<u32> = nix::unistd::getgroups().unwrap().into_iter().map(Gid::as_raw).collect();
        let mut peer = peer_groups(ours.as_fd()).unwrap();
        own.sort_unstable();
        peer.sort_unstable();
        assert_eq!(peer, own);
        assert!(groups_of_user(0).contains(&0));
        assert_eq!(group_id("root"), Some(0));
        assert_eq!(group_id("no-such-group-here"), None);
    }
}
