//! Memory files that nobody can change any more.

use super::mapped::Mapped;
use super::pages::{GIANT, PAGE};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

/// Seals that a frozen segment has at least, besides one against writing.
const FIXED: SealFlag = SealFlag::F_SEAL_SHRINK.union(SealFlag::F_SEAL_GROW);

/// A file of an arena.
#[derive(Debug)]
pub struct Segment {
    /// None: private memory.
    pub(super) file: Option<OwnedFd>,
    /// Bytes of its pages as reserved; 4096 where the kernel decides.
    pub page: usize,
    /// Length, in whole pages.
    pub bytes: usize,
}

impl Segment {
    /// Its file; `None`: private memory, which cannot be handed on.
    pub fn file(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(AsFd::as_fd)
    }

    /// Takes a descriptor for a segment, if it is a memory file that cannot change any more.
    pub(super) fn of_sealed(file: OwnedFd) -> io::Result<Segment> {
        check_sealed(file.as_fd())?;
        let stat = nix::sys::stat::fstat(&file)?;
        let statfs = nix::sys::statfs::fstatfs(&file)?;
        // Files of reserved pages tell the page as their block; others have the plain one.
        let page = usize::try_from(statfs.block_size()).unwrap_or(PAGE).max(PAGE);
        let bytes = usize::try_from(stat.st_size).unwrap_or(0);
        if bytes == 0 || !page.is_power_of_two() || page > GIANT || !bytes.is_multiple_of(page) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a segment of {bytes} bytes")));
        }
        Ok(Segment { file: Some(file), page, bytes })
    }
}

/// A memory file with these bytes that nobody can change any more.
///
/// # Errors
/// No descriptors or no memory.
pub fn sealed_file(content: &[u8]) -> io::Result<OwnedFd> {
    use std::io::Write;
    let mut file = fs::File::from(create(MFdFlags::empty(), 0)?);
    file.write_all(content)?;
    fcntl(&file, FcntlArg::F_ADD_SEALS(FIXED | SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SEAL))?;
    Ok(file.into())
}

/// Whether a descriptor is a memory file that nobody can write to or cut short any more.
///
/// # Errors
/// It is not: what it lacks.
pub fn check_sealed(file: BorrowedFd<'_>) -> io::Result<()> {
    let seals = SealFlag::from_bits_truncate(fcntl(file, FcntlArg::F_GET_SEALS)?);
    let written = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_FUTURE_WRITE;
    if !seals.contains(FIXED) || !seals.intersects(written) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a memory file that could still be changed"));
    }
    Ok(())
}

pub(super) fn create(flags: MFdFlags, bytes: usize) -> io::Result<OwnedFd> {
    let file = memfd_create(c"omni-weights", flags | MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    if bytes > 0 {
        nix::unistd::ftruncate(&file, i64::try_from(bytes).map_err(io::Error::other)?)?;
    }
    Ok(file)
}

/// Ends writing to a file that nobody has mapped writable, for everybody and for ever.
pub(super) fn seal(file: &OwnedFd) -> io::Result<()> {
    fcntl(file, FcntlArg::F_ADD_SEALS(FIXED | against_writing() | SealFlag::F_SEAL_SEAL))?;
    Ok(())
}

/// The strongest seal against writing that still lets a file be mapped shared for reading; before Linux 6.7 that was not
/// the full one.
fn against_writing() -> SealFlag {
    static SEAL: OnceLock<SealFlag> = OnceLock::new();
    let mappable = || -> io::Result<()> {
        let file = sealed_file(&[0; PAGE])?;
        Mapped::reserve(PAGE, PAGE)?.map(file.as_fd(), PAGE, libc::PROT_READ)
    };
    *SEAL.get_or_init(|| match mappable() {
        Ok(()) => SealFlag::F_SEAL_WRITE,
        Err(_) => SealFlag::F_SEAL_FUTURE_WRITE,
    })
}
