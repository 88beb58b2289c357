//! Which pages there are: sizes, how many are reserved and free, how many the kernel gave unasked.

use super::mapped::{Mapped, WRITABLE};
use super::sealed::create;
use crate::sys::numa::Policy;
use nix::sys::memfd::MFdFlags;
use std::fs;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::OnceLock;

/// Bytes of the plain page.
pub(super) const PAGE: usize = 4 << 10;
/// Bytes of the large pages, as hugetlb and transparent ones have them.
pub(super) const LARGE: usize = 2 << 20;
/// Bytes of the largest ones.
pub(super) const GIANT: usize = 1 << 30;

/// Whether pages can be brought into being by request, and their lack then is an error instead of a signal (Linux 5.14).
pub(super) fn can_populate() -> bool {
    static CAN: OnceLock<bool> = OnceLock::new();
    *CAN.get_or_init(|| {
        let try_it = || -> io::Result<()> {
            let mapped = Mapped::reserve(PAGE, PAGE)?;
            mapped.map(create(MFdFlags::empty(), PAGE)?.as_fd(), PAGE, WRITABLE)?;
            mapped.advise(0..PAGE, libc::MADV_POPULATE_WRITE)
        };
        try_it().is_ok()
    })
}

/// Bytes of an arena of `bytes`, placed by `policy`, that reserved pages would hold now. Nobody else counts these pages
/// as available, and nothing but arenas takes them.
pub fn reserved_for(bytes: u64, policy: &Policy) -> u64 {
    if !can_populate() {
        return 0;
    }
    let (giants, larges) = shares(bytes, |page| free_pages(Path::new("/"), page, policy) as u64);
    giants.saturating_mul(GIANT as u64).saturating_add(larges.saturating_mul(LARGE as u64)).min(bytes)
}

/// How many pages of 1 GiB and of 2 MiB an arena takes of those that are `free`: of the former only what it fills.
fn shares(bytes: u64, free: impl Fn(usize) -> u64) -> (u64, u64) {
    let giants = free(GIANT).min(bytes / GIANT as u64);
    let rest = bytes - giants * GIANT as u64;
    (giants, free(LARGE).min(rest.div_ceil(LARGE as u64)))
}

/// Reserved pages of a size that nobody has claimed and that `policy` lets an arena have.
pub(super) fn free_pages(root: &Path, page: usize, policy: &Policy) -> usize {
    let pool = format!("hugepages/hugepages-{}kB", page >> 10);
    let number =
        |file: &Path| -> usize { fs::read_to_string(file).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0) };
    let all = root.join("sys/kernel/mm").join(&pool);
    let free = number(&all.join("free_hugepages")).saturating_sub(number(&all.join("resv_hugepages")));
    match policy {
        // Other policies fall back to pages of other nodes.
        Policy::Bind(node) => {
            let node = root.join(format!("sys/devices/system/node/node{node}")).join(pool);
            free.min(number(&node.join("free_hugepages")))
        }
        Policy::Local | Policy::Interleave(_) | Policy::Partition(_) => free,
    }
}

/// Bytes on transparent huge pages among the mappings that start in `addresses`, from the text of `/proc/self/smaps`.
pub(super) fn transparent(maps: &str, addresses: Range<usize>) -> usize {
    let mut inside = false;
    let mut bytes = 0;
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        if let Some((start, _)) = first.split_once('-') {
            inside = usize::from_str_radix(start, 16).is_ok_and(|start| addresses.contains(&start));
        } else if inside && ["AnonHugePages:", "ShmemPmdMapped:", "FilePmdMapped:"].contains(&first) {
            bytes += words.next().and_then(|kib| kib.parse::<usize>().ok()).unwrap_or(0) << 10;
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arena_is_credited_with_no_more_pages_than_it_takes() {
        let free = |giants, larges| move |page| if page == GIANT { giants } else { larges };
        let (large, giant) = (LARGE as u64, GIANT as u64);
        assert_eq!(shares(giant / 2, free(3, 0)), (0, 0), "it would not fill the page");
        assert_eq!(shares(2 * giant + 5 * large + 1, free(1, 10_000)), (1, 512 + 6));
        assert_eq!(shares(2 * giant + 5 * large + 1, free(9, 3)), (2, 3));
        assert_eq!(shares(0, free(9, 9)), (0, 0));
        assert!(reserved_for(5, &Policy::Local) <= 5);
    }

    #[test]
    fn free_reserved_pages_are_those_that_nobody_claimed() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("sys/kernel/mm/hugepages/hugepages-2048kB");
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("free_hugepages"), "7\n").unwrap();
        assert_eq!(
            (free_pages(root.path(), LARGE, &Policy::Local), free_pages(root.path(), GIANT, &Policy::Local)),
            (7, 0)
        );
        fs::write(directory.join("resv_hugepages"), "5\n").unwrap();
        assert_eq!(free_pages(root.path(), LARGE, &Policy::Interleave(vec![0, 1])), 2);
        let node = root.path().join("sys/devices/system/node/node1/hugepages/hugepages-2048kB");
        fs::create_dir_all(&node).unwrap();
        fs::write(node.join("free_hugepages"), "1\n").unwrap();
        let bound = |node| free_pages(root.path(), LARGE, &Policy::Bind(node));
        assert_eq!((bound(0), bound(1)), (0, 1), "only those of its node");
    }

    #[test]
    fn transparent_pages_are_counted_by_mapping() {
        let maps = "1000-2000 r--s 0 00:01 1 /memfd:omni\nSize: 4 kB\nShmemPmdMapped: 4096 kB\nFilePmdMapped: 0 kB\n\
            9000-a000 r--s 0 00:01 1 /memfd:omni\nShmemPmdMapped: 2048 kB\n";
        assert_eq!(transparent(maps, 0x1000..0x2000), 4 << 20);
        assert_eq!(transparent(maps, 0x1000..0xa000), 6 << 20);
    }
}
