//! Which CPUs share a physical core, and how much CPU time the cgroup grants: what a sensible number of compute threads
//! follows from. Reads sysfs and cgroupfs; anything missing there counts as "no limit" or "a core of its own".

use super::affinity;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// One logical CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogicalCpu {
    /// Its number.
    pub id: usize,
    /// Smallest number among the CPUs of its physical core; equal for SMT siblings.
    pub core: usize,
}

/// The CPUs this process may use.
#[derive(Clone, Debug, PartialEq)]
pub struct Topology {
    /// Allowed logical CPUs, by number.
    pub cpus: Vec<LogicalCpu>,
    /// CPUs' worth of time the cgroup grants, where it limits.
    pub quota: Option<f64>,
}

impl Topology {
    /// Reads this host.
    pub fn detect() -> Topology {
        Topology::read(Path::new("/"), &affinity::allowed())
    }

    /// Reads the files below `root` for `allowed` CPUs.
    pub fn read(root: &Path, allowed: &[usize]) -> Topology {
        let cpus = allowed.iter().map(|&id| LogicalCpu { id, core: core_of(root, id) }).collect();
        Topology { cpus, quota: quota(root) }
    }

    /// One CPU per physical core first, then their siblings: the order in which threads take them.
    pub fn placement(&self) -> Vec<usize> {
        let mut by_core: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for cpu in &self.cpus {
            by_core.entry(cpu.core).or_default().push(cpu.id);
        }
        let deepest = by_core.values().map(Vec::len).max().unwrap_or(0);
        (0..deepest).flat_map(|i| by_core.values().filter_map(move |cpus| cpus.get(i).copied())).collect()
    }

    /// Physical cores among the allowed CPUs, at least 1.
    pub fn physical_cores(&self) -> usize {
        let mut cores: Vec<usize> = self.cpus.iter().map(|c| c.core).collect();
        cores.sort_unstable();
        cores.dedup();
        cores.len().max(1)
    }

    /// Compute threads that use the host well: one per physical core, not more than the quota (rounded) can feed.
    pub fn compute_threads(&self) -> usize {
        let quota = self.quota.map_or(usize::MAX, |q| q.round() as usize);
        self.physical_cores().min(quota).max(1)
    }

    /// The same host, restricted to `cpus`.
    pub fn restricted(&self, cpus: &[usize]) -> Topology {
        Topology { cpus: self.cpus.iter().filter(|c| cpus.contains(&c.id)).copied().collect(), quota: self.quota }
    }
}

/// The smallest sibling of a CPU.
fn core_of(root: &Path, id: usize) -> usize {
    let file = root.join(format!("sys/devices/system/cpu/cpu{id}/topology/thread_siblings_list"));
    let siblings = fs::read_to_string(file).ok().and_then(|text| affinity::parse_list(text.trim()).ok());
    siblings.and_then(|s| s.first().copied()).unwrap_or(id)
}

/// The tightest CPU limit on the way from this process's cgroup to the root, version 2 or 1.
fn quota(root: &Path) -> Option<f64> {
    let own = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mut tightest: Option<f64> = None;
    for line in own.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let is_cpu = controllers.split(',').any(|c| c == "cpu");
        if !controllers.is_empty() && !is_cpu {
            continue;
        }
        let mount = root.join(if is_cpu { "sys/fs/cgroup/cpu" } else { "sys/fs/cgroup" });
        let mut dir: PathBuf = mount.join(path.trim_start_matches('/'));
        loop {
            let limit = if is_cpu { limit_v1(&dir) } else { limit_v2(&dir) };
            tightest = match (tightest, limit) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
            if dir == mount || !dir.pop() {
                break;
            }
        }
    }
    tightest
}

/// `cpu.max`: `QUOTA PERIOD` or `max PERIOD`.
fn limit_v2(dir: &Path) -> Option<f64> {
    let text = fs::read_to_string(dir.join("cpu.max")).ok()?;
    let (quota, period) = text.trim().split_once(' ')?;
    ratio(quota.parse().ok()?, period.parse().ok()?)
}

/// `cpu.cfs_quota_us` (-1: none) over `cpu.cfs_period_us`.
fn limit_v1(dir: &Path) -> Option<f64> {
    let number = |name: &str| fs::read_to_string(dir.join(name)).ok()?.trim().parse::<f64>().ok();
    ratio(number("cpu.cfs_quota_us")?, number("cpu.cfs_period_us")?)
}

fn ratio(quota: f64, period: f64) -> Option<f64> {
    (quota > 0.0 && period > 0.0).then(|| quota / period)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, file: &str, text: &str) {
        let file = root.join(file);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }

    #[test]
    fn siblings_come_after_the_cores() {
        let root = tempfile::tempdir().unwrap();
        for (cpu, siblings) in [(0, "0,4\n"), (1, "1,5\n"), (4, "0,4\n"), (5, "1,5\n")] {
            let file = format!("sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
            write(root.path(), &file, siblings);
        }
        let topology = Topology::read(root.path(), &[0, 1, 4, 5]);
        assert_eq!(topology.placement(), [0, 1, 4, 5]);
        assert_eq!(topology.compute_threads(), 2);
        assert_eq!(topology.restricted(&[4, 5]).placement(), [4, 5]);
        assert_eq!(topology.restricted(&[4]).compute_threads(), 1);
        assert_eq!(Topology::read(root.path(), &[]).compute_threads(), 1);
    }

    #[test]
    fn the_tightest_quota_counts() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "proc/self/cgroup", "0::/a/b\n");
        write(root.path(), "sys/fs/cgroup/a/b/cpu.max", "max 100000\n");
        write(root.path(), "sys/fs/cgroup/a/cpu.max", "150000 100000\n");
        let topology = Topology::read(root.path(), &[0, 1, 2, 3]);
        assert_eq!(topology.quota, Some(1.5));
        assert_eq!(topology.compute_threads(), 2);
    }

    #[test]
    fn version_one_counts_too() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "proc/self/cgroup", "4:memory:/x\n3:cpu,cpuacct:/x\n");
        write(root.path(), "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us", "-1\n");
        write(root.path(), "sys/fs/cgroup/cpu/x/cpu.cfs_period_us", "100000\n");
        assert_eq!(Topology::read(root.path(), &[0]).quota, None);
        write(root.path(), "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us", "100000\n");
        assert_eq!(Topology::read(root.path(), &[0, 1]).compute_threads(), 1);
    }

    #[test]
    fn this_host_has_a_cpu() {
        let topology = Topology::detect();
        assert!(!topology.placement().is_empty());
        assert!(topology.compute_threads() <= topology.cpus.len());
    }
}
