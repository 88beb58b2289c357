//! The host's shape: sockets, NUMA nodes, L3 domains, cores with their SMT siblings, and what of it control groups and
//! cpusets leave to this process. What a sensible number and order of compute threads follows from. `ops` and `omnictl`
//! read it; `read` takes it from sysfs, where anything missing counts as "no limit", "a core of its own" or "one node".

mod read;
#[cfg(test)]
mod tests;

use super::affinity;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

/// What a core was built for, on CPUs that mix them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The fast kind, and every core of CPUs with one kind only.
    #[default]
    Performance,
    /// The small kind of a hybrid CPU.
    Efficiency,
}

/// One logical CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LogicalCpu {
    /// Its number.
    pub id: usize,
    /// Smallest number among the CPUs of its physical core; equal for SMT siblings.
    pub core: usize,
    /// Its socket, as the firmware numbers them.
    pub socket: usize,
    /// Its NUMA node.
    pub node: usize,
    /// Smallest number among the CPUs that share its L3 cache; its core where there is none.
    pub l3: usize,
    /// Kind of its core.
    pub kind: Kind,
}

/// A NUMA node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Node {
    /// Its number.
    pub id: usize,
    /// Bytes of memory; 0 where the kernel does not say.
    pub memory: u64,
    /// Bytes of it that nobody uses now.
    pub free: u64,
    /// Cost of reaching each node of [`Topology::nodes`], in their order; 10 is the node itself (ACPI SLIT).
    pub distances: Vec<u32>,
    /// Whether the cpuset lets this process have memory from here.
    pub allowed: bool,
}

/// The host, and what of it this process may use.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Topology {
    /// Allowed logical CPUs, by number.
    pub cpus: Vec<LogicalCpu>,
    /// CPUs that are online but withheld from this process by its affinity or cpuset, by number.
    pub withheld: Vec<LogicalCpu>,
    /// NUMA nodes by number, at least one; those without CPUs (memory expanders) included.
    pub nodes: Vec<Node>,
    /// Bytes of each L3 cache by [`LogicalCpu::l3`].
    pub l3_bytes: BTreeMap<usize, u64>,
    /// CPUs' worth of time the cgroup grants, where it limits.
    pub quota: Option<f64>,
}

impl Topology {
    /// Reads this host.
    pub fn detect() -> Topology {
        Topology::read(Path::new("/"), &affinity::available())
    }

    /// Reads the files below `root` for `allowed` CPUs.
    pub fn read(root: &Path, allowed: &[usize]) -> Topology {
        read::topology(root, allowed)
    }

    /// One CPU per physical core first, the fast kind before the small one, then their siblings: the order in which
    /// threads take them.
    pub fn placement(&self) -> Vec<usize> {
        let mut by_core: BTreeMap<(Kind, usize), Vec<usize>> = BTreeMap::new();
        for cpu in &self.cpus {
            by_core.entry((cpu.kind, cpu.core)).or_default().push(cpu.id);
        }
        let deepest = by_core.values().map(Vec::len).max().unwrap_or(0);
        (0..deepest).flat_map(|i| by_core.values().filter_map(move |cpus| cpus.get(i).copied())).collect()
    }

    /// Physical cores among the allowed CPUs, at least 1.
    pub fn physical_cores(&self) -> usize {
        count(self.cpus.iter().map(|cpu| cpu.core)).max(1)
    }

    /// Compute threads that use the host well: one per physical core, not more than the quota (rounded) can feed.
    pub fn compute_threads(&self) -> usize {
        let quota = self.quota.map_or(usize::MAX, |q| q.round() as usize);
        self.physical_cores().min(quota).max(1)
    }

    /// The same host, restricted to `cpus`.
    pub fn restricted(&self, cpus: &[usize]) -> Topology {
        let (kept, dropped): (Vec<_>, Vec<_>) = self.cpus.iter().partition(|cpu| cpus.contains(&cpu.id));
        let mut withheld = [self.withheld.clone(), dropped].concat();
        withheld.sort_unstable_by_key(|cpu| cpu.id);
        Topology { cpus: kept, withheld, ..self.clone() }
    }

    /// Every online CPU, allowed or not, by number.
    pub fn online(&self) -> Vec<LogicalCpu> {
        let mut all = [self.cpus.clone(), self.withheld.clone()].concat();
        all.sort_unstable_by_key(|cpu| cpu.id);
        all
    }

    /// Sockets of the host.
    pub fn sockets(&self) -> usize {
        count(self.online().iter().map(|cpu| cpu.socket)).max(1)
    }

    /// Nodes that have memory: weights spread over more than one are read across the links between them. At least 1.
    pub fn memory_nodes(&self) -> usize {
        self.nodes.iter().filter(|node| node.memory > 0).count().max(1)
    }
}

/// How many different values there are.
fn count(values: impl Iterator<Item = usize>) -> usize {
    values.collect::<std::collections::BTreeSet<_>>().len()
}
