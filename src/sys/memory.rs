//! Memory: anonymous mappings for KV cache and buffers, and how much of it this process may still use. Called by `exec`,
//! `load` and `plan`; knows nothing of what is stored.

use memmap2::{Advice, MmapMut, MmapOptions};
use std::fs;
use std::io;
use std::ops::Range;
use std::path::Path;

/// Zeroed private memory, page-aligned, whose pages come into being when they are first written.
pub struct Mapping {
    map: MmapMut,
    bytes: Range<usize>,
}

/// Bytes of a huge page on x86-64.
const HUGE_PAGE: usize = 2 << 20;

impl Mapping {
    /// Reserves `bytes` of address space.
    ///
    /// # Errors
    /// What `mmap` says: usually the process's address-space limit.
    pub fn new(bytes: usize) -> io::Result<Mapping> {
        // From one huge page on it starts at a huge page's border, so that all of it but the end can lie on such pages.
        let slack = if bytes >= HUGE_PAGE { HUGE_PAGE } else { 0 };
        let len = bytes.checked_add(slack).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        // A mapping of nothing is an error to the kernel, not to us.
        let map = MmapOptions::new().len(len.max(1)).no_reserve_swap().map_anon()?;
        // Fewer TLB misses where the kernel grants it; where it does not, plain pages do.
        let _ = map.advise(Advice::HugePage);
        let start = if slack > 0 { map.as_ptr().align_offset(HUGE_PAGE) } else { 0 };
        Ok(Mapping { map, bytes: start..start + bytes })
    }

    /// The bytes, writable.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.map[self.bytes.clone()]
    }

    /// The whole numbers among the bytes, writable; a mapping starts at a page.
    pub fn as_mut_f32s(&mut self) -> &mut [f32] {
        // SAFETY: every bit pattern is a valid f32, and `align_to_mut` yields an aligned middle part within the bytes.
        unsafe { self.as_mut_slice().align_to_mut().1 }
    }
}

impl AsRef<[u8]> for Mapping {
    fn as_ref(&self) -> &[u8] {
        &self.map[self.bytes.clone()]
    }
}

impl std::fmt::Debug for Mapping {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Mapping({} bytes)", self.bytes.len())
    }
}

/// How much memory there is, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Of the host.
    pub total: u64,
    /// Usable without swapping: the host's estimate, and no more than the control groups allow.
    pub available: u64,
    /// What the tightest control group still allows, where one sets a limit.
    pub cgroup: Option<u64>,
    /// What this process may have when nobody else has any: the host's, and no more than the control groups allow besides
    /// reserved huge pages, which they do not count.
    pub most: u64,
}

impl Memory {
    /// The present figures.
    ///
    /// # Errors
    /// When `/proc/meminfo` cannot be read or does not hold them.
    pub fn now() -> io::Result<Memory> {
        Memory::read(Path::new("/"))
    }

    /// The figures in the files below `root`.
    ///
    /// # Errors
    /// As [`Memory::now`].
    pub fn read(root: &Path) -> io::Result<Memory> {
        let meminfo = fs::read_to_string(root.join("proc/meminfo"))?;
        let figure = |key| {
            kib_field(&meminfo, key)
                .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("/proc/meminfo has no {key}")))
        };
        let (total, host) = (figure("MemTotal:")?, figure("MemAvailable:")?);
        let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
        let mount = root.join("sys/fs/cgroup");
        let cgroup = least(&mount, &groups, group_free);
        let reserved = kib_field(&meminfo, "Hugetlb:").unwrap_or(0);
        let most = least(&mount, &groups, group_limit).map_or(total, |limit| limit.saturating_add(reserved).min(total));
        Ok(Memory { total, available: host.min(cgroup.unwrap_or(u64::MAX)), cgroup, most })
    }
}

/// Bytes usable on one NUMA node without swapping: free ones, and the page cache that the kernel drops first. `None` where
/// the kernel does not say. `root` is `/` but in tests.
pub fn available_on(root: &Path, node: usize) -> Option<u64> {
    let figure = |key| node_field(root, node, key);
    let cache = ["Active(file):", "Inactive(file):", "SReclaimable:"].into_iter().filter_map(figure).sum::<u64>();
    Some(figure("MemFree:")?.saturating_add(cache))
}

/// Bytes of one NUMA node, as [`available_on`].
pub fn total_on(root: &Path, node: usize) -> Option<u64> {
    node_field(root, node, "MemTotal:")
}

fn node_field(root: &Path, node: usize, key: &str) -> Option<u64> {
    let text = fs::read_to_string(root.join(format!("sys/devices/system/node/node{node}/meminfo"))).ok()?;
    // Lines begin with "Node N ".
    text.lines().find_map(|line| kib_field(line.splitn(3, ' ').last()?, key))
}

/// Bytes of this process's memory that lie on huge pages, reserved and transparent ones; 0 where the kernel does not say.
pub fn huge_page_bytes() -> u64 {
    let rollup = fs::read_to_string("/proc/self/smaps_rollup").unwrap_or_default();
    let kinds = ["AnonHugePages:", "ShmemPmdMapped:", "Shared_Hugetlb:", "Private_Hugetlb:"];
    kinds.iter().filter_map(|kind| kib_field(&rollup, kind)).sum()
}

/// Lets this process write to at most `bytes` more of private memory than it has now (the kernel's `RLIMIT_DATA`).
/// An allocation beyond that fails, which ends this process and no other one. A tighter limit stays.
///
/// # Errors
/// When `/proc` cannot be read or the limit cannot be set.
pub fn limit_growth(bytes: u64) -> io::Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let status = fs::read_to_string("/proc/self/status")?;
    let now = kib_field(&status, "VmData:")
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/self/status has no VmData"))?;
    let (soft, hard) = getrlimit(Resource::RLIMIT_DATA)?;
    Ok(setrlimit(Resource::RLIMIT_DATA, soft.min(now.saturating_add(bytes)), hard)?)
}

/// Most bytes that this process ever had resident at once.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn peak_resident() -> io::Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    kib_field(&status, "VmHWM:")
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/self/status has no VmHWM"))
}

/// The value of `key` in `/proc/meminfo`'s format, in bytes.
fn kib_field(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(key))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok()?.checked_mul(1024)
}

/// File names and statistics keys of one control group version.
struct Names {
    limit: &'static str,
    usage: &'static str,
    file_cache: [&'static str; 2],
}

const V2: Names = Names { limit: "memory.max", usage: "memory.current", file_cache: ["active_file", "inactive_file"] };
const V1: Names = Names {
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    file_cache: ["total_active_file", "total_inactive_file"],
};

/// The least of what `of` says of the groups named in `groups` (the text of `/proc/self/cgroup`) and of all groups above
/// them. `root` is where the hierarchies are mounted.
fn least(root: &Path, groups: &str, of: fn(&Path, &Names) -> Option<u64>) -> Option<u64> {
    let mut least = None;
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next(), parts.next()?, parts.next()?);
        let (mount, names) = match controllers {
            "" => (root.to_path_buf(), V2),
            list if list.split(',').any(|c| c == "memory") => (root.join("memory"), V1),
            _ => continue,
        };
        let mut group = mount.join(path.trim_start_matches('/'));
        while group.starts_with(&mount) {
            if let Some(bytes) = of(&group, &names) {
                least = Some(least.map_or(bytes, |l: u64| l.min(bytes)));
            }
            if !group.pop() {
                break;
            }
        }
    }
    least
}

fn group_number(group: &Path, name: &str) -> Option<u64> {
    fs::read_to_string(group.join(name)).ok()?.trim().parse().ok()
}

/// `None` where the group sets no limit.
fn group_limit(group: &Path, names: &Names) -> Option<u64> {
    // Version 1 writes "no limit" as the largest number of pages.
    group_number(group, names.limit).filter(|limit| *limit < 1 << 62)
}

/// What a group with a limit still allows. Page cache is counted as free: the kernel drops it first.
fn group_free(group: &Path, names: &Names) -> Option<u64> {
    let (limit, usage) = (group_limit(group, names)?, group_number(group, names.usage)?);
    let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    let cache: u64 = stat
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(key, _)| names.file_cache.contains(key))
        .filter_map(|(_, value)| value.trim().parse::<u64>().ok())
        .sum();
    Some(limit.saturating_sub(usage.saturating_sub(cache)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_zeroed_aligned_and_writable() {
        let mut mapping = Mapping::new(10_000).unwrap();
        assert_eq!((mapping.as_ref().len(), mapping.as_ref().as_ptr() as usize % 4096), (10_000, 0));
        assert!(mapping.as_ref().iter().all(|b| *b == 0));
        mapping.as_mut_slice()[9_999] = 7;
        assert_eq!(mapping.as_ref()[9_999], 7);
        assert_eq!(Mapping::new(0).unwrap().as_ref().len(), 0);
    }

    #[test]
    fn an_impossible_mapping_is_an_error() {
        assert!(Mapping::new(usize::MAX / 2).is_err());
    }

    #[test]
    fn the_host_has_memory() {
        let memory = Memory::now().unwrap();
        assert!(memory.available > 0 && memory.available <= memory.total);
    }

    #[test]
    fn a_nodes_memory_is_what_is_free_and_what_is_cached() {
        let root = tempfile::tempdir().unwrap();
        let node = root.path().join("sys/devices/system/node/node2");
        fs::create_dir_all(&node).unwrap();
        let lines = [("MemTotal", 900), ("MemFree", 500), ("Active(file)", 30), ("Inactive(file)", 20), ("Shmem", 7)];
        let text: String = lines.map(|(key, kib)| format!("Node 2 {key}:   {kib} kB\n")).concat();
        fs::write(node.join("meminfo"), text).unwrap();
        assert_eq!((available_on(root.path(), 2), available_on(root.path(), 3)), (Some(550 << 10), None));
        assert_eq!((total_on(root.path(), 2), total_on(root.path(), 3)), (Some(900 << 10), None));
    }

    #[test]
    fn the_tightest_group_counts_and_page_cache_is_free() {
        let root = tempfile::tempdir().unwrap();
        let leaf = root.path().join("system.slice/omni.service");
        fs::create_dir_all(&leaf).unwrap();
        let group = |dir: &Path, max: &str, current: &str| {
            fs::write(dir.join("memory.max"), max).unwrap();
            fs::write(dir.join("memory.current"), current).unwrap();
        };
        let groups = "0::/system.slice/omni.service\n";
        assert_eq!(least(root.path(), groups, group_free), None);
        group(&leaf, "max\n", "10\n");
        assert_eq!(least(root.path(), groups, group_free), None);
        group(leaf.parent().unwrap(), "1000\n", "900\n");
        fs::write(leaf.parent().unwrap().join("memory.stat"), "anon 600\nactive_file 100\ninactive_file 200\n")
            .unwrap();
        assert_eq!(least(root.path(), groups, group_free), Some(400));
        group(&leaf, "250\n", "100\n");
        assert_eq!(least(root.path(), groups, group_free), Some(150));
        assert_eq!(least(root.path(), groups, group_limit), Some(250), "whoever has it now");
    }

    #[test]
    fn what_a_group_never_allows_is_known() {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        put("proc/meminfo", "MemTotal: 900 kB\nMemAvailable: 700 kB\nHugetlb: 100 kB\n");
        put("proc/self/cgroup", "0::/a\n");
        let read = || Memory::read(root.path()).unwrap();
        assert_eq!((read().available, read().most), (700 << 10, 900 << 10));
        put("sys/fs/cgroup/a/memory.max", "204800\n");
        put("sys/fs/cgroup/a/memory.current", "102400\n");
        assert_eq!((read().available, read().most), (100 << 10, 300 << 10), "besides reserved pages");
    }

    #[test]
    fn version_one_groups_are_read_too() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("memory/docker/abc");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("memory.limit_in_bytes"), "5000\n").unwrap();
        fs::write(dir.join("memory.usage_in_bytes"), "4000\n").unwrap();
        fs::write(root.path().join("memory/memory.limit_in_bytes"), "9223372036854771712\n").unwrap();
        let groups = "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n";
        assert_eq!(least(root.path(), groups, group_free), Some(1000));
    }
}
