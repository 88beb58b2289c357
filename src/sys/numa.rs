//! Where memory lies on hosts with several NUMA nodes: policies for a thread and for a mapping, and what came of them.
//! Called by `arena` and by `engine` before it starts its threads. On one node all of it does nothing.

use super::topology::Topology;
use std::collections::BTreeMap;
use std::ffi::{c_int, c_ulong};
use std::fmt;
use std::io;
use std::ops::Range;

/// Over which nodes a model's memory is to lie.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Wish {
    /// Evenly over all nodes that have memory: what all threads read alike.
    #[default]
    Interleave,
    /// On this node alone, and its threads with it.
    Bind(usize),
    /// The rows of each large matrix where the threads run that use them, all else as with [`Wish::Interleave`].
    Partition,
}

/// A [`Wish`] on a host: the nodes by number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// The kernel's own: where the thread runs that touches a page first. All there is on one node.
    #[default]
    Local,
    /// Page by page over these.
    Interleave(Vec<usize>),
    /// On this one or not at all.
    Bind(usize),
    /// Of what is dealt to threads, each thread's [`share`] on its node, elsewhere rather than not at all; the rest page by
    /// page over these nodes. One node for each thread.
    Partition(Vec<usize>),
}

/// Most nodes that a mask holds; the kernel's own limit.
const MAX_NODES: usize = 1024;

/// What thread `index` of so many is dealt of so many items. Rows are placed and multiplied by this one rule, so that they
/// lie where they are used.
pub fn share(items: usize, threads: usize, index: usize) -> Range<usize> {
    items * index / threads..items * (index + 1) / threads
}

impl Wish {
    /// Reads `interleave`, `bind:N` or `partition`.
    ///
    /// # Errors
    /// What is wrong, and what to write.
    pub fn parse(text: &str) -> Result<Wish, String> {
        match text.split_once(':') {
            None if text == "interleave" => Ok(Wish::Interleave),
            Some(("bind", node)) => {
                node.parse().ok().filter(|node| *node < MAX_NODES).map(Wish::Bind).ok_or_else(|| {
                    format!("\"{node}\" is no NUMA node; write bind:0, or as omnictl status --topology shows")
                })
            }
            None if text == "partition" => Ok(Wish::Partition),
            _ => Err(format!("\"{text}\" is not known; write interleave, partition, or bind:N for one node")),
        }
    }

    /// What it means on this host, for so many threads, placed as [`Topology::placement`] says.
    ///
    /// # Errors
    /// A node that is not there, has no memory, or is withheld from this process; with those that are.
    pub fn on(&self, host: &Topology, threads: usize) -> Result<Policy, String> {
        let nodes: Vec<usize> =
            host.nodes.iter().filter(|node| node.memory > 0 && node.allowed).map(|node| node.id).collect();
        match self {
            Wish::Interleave if nodes.len() > 1 => Ok(Policy::Interleave(nodes)),
            Wish::Partition if nodes.len() > 1 => {
                let own = |id: &usize| host.cpus.iter().find(|cpu| cpu.id == *id).map(|cpu| cpu.node);
                // CPUs may be on a node without memory.
                let node = |id: &usize| own(id).filter(|node| nodes.contains(node)).unwrap_or(nodes[0]);
                Ok(Policy::Partition(host.placement().iter().take(threads).map(node).collect()))
            }
            Wish::Interleave | Wish::Partition => Ok(Policy::Local),
            Wish::Bind(0) if nodes.is_empty() => Ok(Policy::Local),
            Wish::Bind(node) if !nodes.contains(node) => {
                let there = super::affinity::format_list(&nodes);
                Err(format!("bind:{node}: there is no memory for this process on node {node}, only on {there}"))
            }
            Wish::Bind(_) if nodes.len() == 1 => Ok(Policy::Local),
            Wish::Bind(node) => Ok(Policy::Bind(*node)),
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Policy::Local => f.write_str("local"),
            Policy::Interleave(nodes) => write!(f, "interleave:{}", super::affinity::format_list(nodes)),
            Policy::Bind(node) => write!(f, "bind:{node}"),
            Policy::Partition(threads) => {
                f.write_str("partition")?;
                threads.chunk_by(|a, b| a == b).try_for_each(|run| write!(f, ":{}x{}", run[0], run.len()))
            }
        }
    }
}

impl Policy {
    /// Mode and nodes as the system calls want them; `None`: there is nothing to set.
    fn raw(&self) -> Option<(c_int, Mask)> {
        let mut mask = [0; MAX_NODES / c_ulong::BITS as usize];
        let mut set = |node: usize| mask[node / c_ulong::BITS as usize] |= 1 << (node % c_ulong::BITS as usize);
        let mode = match self {
            Policy::Local => return None,
            Policy::Interleave(nodes) | Policy::Partition(nodes) => {
                nodes.iter().filter(|node| **node < MAX_NODES).for_each(|node| set(*node));
                libc::MPOL_INTERLEAVE
            }
            Policy::Bind(node) => {
                set((*node).min(MAX_NODES - 1));
                libc::MPOL_BIND
            }
        };
        Some((mode, mask))
    }

    /// Makes it the policy of this thread, and of those that it starts from now on.
    ///
    /// # Errors
    /// The kernel has no NUMA, or a node is withheld from this process.
    pub fn set_thread(&self) -> io::Result<()> {
        let Some((mode, mask)) = self.raw() else { return Ok(()) };
        // SAFETY: the mask is as long as the number of bits says and is only read.
        let status = unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, mask.as_ptr(), MAX_NODES) };
        if status < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// The parts of so many items, dealt to threads, that lie on one node each; none unless they are to be partitioned.
    pub fn parts(&self, items: usize) -> Vec<(Range<usize>, usize)> {
        let Policy::Partition(threads) = self else { return Vec::new() };
        let mut first = 0;
        let part = |run: &[usize]| {
            let last = first + run.len();
            let items = share(items, threads.len(), first).start..share(items, threads.len(), last - 1).end;
            first = last;
            (items, run[0])
        };
        threads.chunk_by(|a, b| a == b).map(part).collect()
    }

    /// Makes it the policy of a mapping's pages that are not there yet.
    pub(super) fn set_range(&self, bytes: &mut [u8]) -> io::Result<()> {
        let Some((mode, mask)) = self.raw() else { return Ok(()) };
        bind(bytes, mode, &mask)
    }
}

/// A set of nodes.
type Mask = [c_ulong; MAX_NODES / c_ulong::BITS as usize];

/// Has a mapping's pages that are not there yet come from a node, or from elsewhere when it has none.
pub(super) fn prefer(bytes: &mut [u8], node: usize) -> io::Result<()> {
    let mut mask = [0; MAX_NODES / c_ulong::BITS as usize];
    let node = node.min(MAX_NODES - 1);
    mask[node / c_ulong::BITS as usize] |= 1 << (node % c_ulong::BITS as usize);
    bind(bytes, libc::MPOL_PREFERRED, &mask)
}

fn bind(bytes: &mut [u8], mode: c_int, mask: &Mask) -> io::Result<()> {
    let flags: c_int = 0;
    // SAFETY: the range is ours (`bytes` borrows it), its pages keep their contents; the mask is only read.
    let status = unsafe {
        libc::syscall(libc::SYS_mbind, bytes.as_mut_ptr(), bytes.len(), mode, mask.as_ptr(), MAX_NODES, flags)
    };
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Bytes of the pages that this process has mapped in `addresses`, by node: what the kernel really did
/// (`/proc/self/numa_maps`). Empty where the kernel has no NUMA.
pub fn bytes_by_node(addresses: Range<usize>) -> BTreeMap<usize, u64> {
    by_node(&std::fs::read_to_string("/proc/self/numa_maps").unwrap_or_default(), addresses)
}

/// Whether pages of this process that are there lie on one node, as the kernel says of each of them (`move_pages`).
pub(super) fn on_one_node(addresses: Range<usize>, page: usize) -> bool {
    let mut pages: Vec<*mut libc::c_void> = addresses.step_by(page).map(|at| at as *mut libc::c_void).collect();
    let mut nodes = vec![-1 as c_int; pages.len()];
    let (none, flags): (*const c_int, c_int) = (std::ptr::null(), 0);
    // SAFETY: without nodes to move to nothing is moved; both lists are as long as their number says, and only the second
    // one is written to.
    let status = unsafe {
        libc::syscall(libc::SYS_move_pages, 0, pages.len(), pages.as_mut_ptr(), none, nodes.as_mut_ptr(), flags)
    };
    if status < 0 {
        // A kernel without the call has one node.
        return io::Error::last_os_error().raw_os_error() == Some(libc::ENOSYS);
    }
    let mut there = nodes.into_iter().filter(|node| *node >= 0);
    there.next().is_none_or(|first| there.all(|node| node == first))
}

fn by_node(maps: &str, addresses: Range<usize>) -> BTreeMap<usize, u64> {
    let mut nodes = BTreeMap::new();
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let start = words.next().and_then(|word| usize::from_str_radix(word, 16).ok());
        if !start.is_some_and(|start| addresses.contains(&start)) {
            continue;
        }
        let field = |key| line.split_whitespace().find_map(|word| word.strip_prefix(key)?.parse::<u64>().ok());
        let page = field("kernelpagesize_kB=").unwrap_or(4) << 10;
        for (node, pages) in words.filter_map(|word| word.strip_prefix('N')?.split_once('=')) {
            if let (Ok(node), Ok(pages)) = (node.parse(), pages.parse::<u64>()) {
                *nodes.entry(node).or_default() += pages.saturating_mul(page);
            }
        }
    }
    nodes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::topology::{LogicalCpu, Node};

    fn host(nodes: &[(usize, u64)]) -> Topology {
        let node = |&(id, memory): &(usize, u64)| Node { id, memory, allowed: true, ..Node::default() };
        Topology { nodes: nodes.iter().map(node).collect(), ..Topology::default() }
    }

    #[test]
    fn wishes_are_read_and_meet_the_host() {
        assert_eq!(Wish::parse("interleave"), Ok(Wish::Interleave));
        assert_eq!(Wish::parse("bind:3"), Ok(Wish::Bind(3)));
        for bad in ["bind", "bind:x", "bind:9999", "spread", ""] {
            assert!(Wish::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(Wish::parse("partition"), Ok(Wish::Partition));
        let four = host(&[(0, 1), (1, 1), (2, 0), (3, 1)]);
        assert_eq!(Wish::Interleave.on(&four, 4), Ok(Policy::Interleave(vec![0, 1, 3])), "not where no memory is");
        assert_eq!(Wish::Bind(1).on(&four, 4), Ok(Policy::Bind(1)));
        assert!(Wish::Bind(2).on(&four, 4).unwrap_err().contains("only on 0-1,3"));
        let one = host(&[(0, 1)]);
        assert_eq!((Wish::Interleave.on(&one, 4), Wish::Bind(0).on(&one, 4)), (Ok(Policy::Local), Ok(Policy::Local)));
    }

    #[test]
    fn parts_follow_the_shares_of_threads() {
        let cpu = |id| LogicalCpu { id, core: id, node: id / 2, ..LogicalCpu::default() };
        let two = Topology { cpus: (0..4).map(cpu).collect(), ..host(&[(0, 1), (1, 1)]) };
        let policy = Wish::Partition.on(&two, 3).unwrap();
        assert_eq!((&policy, policy.to_string().as_str()), (&Policy::Partition(vec![0, 0, 1]), "partition:0x2:1x1"));
        assert_eq!(policy.parts(300), [(0..200, 0), (200..300, 1)], "two threads of three on the first");
        assert_eq!(policy.parts(0), [(0..0, 0), (0..0, 1)]);
        assert_eq!(Policy::Interleave(vec![0, 1]).parts(9), []);
        assert_eq!(Wish::Partition.on(&host(&[(0, 1)]), 3), Ok(Policy::Local), "one node has all rows");
    }

    #[test]
    fn pages_are_asked_for_their_node() {
        let bytes = vec![1u8; 1 << 20];
        let start = (bytes.as_ptr() as usize).next_multiple_of(4096);
        assert!(on_one_node(start..start + 4096, 4096), "a page lies on one node");
        assert!(on_one_node(0..4096, 4096), "what is not there lies nowhere");
    }

    #[test]
    fn nodes_are_summed_over_the_mappings_of_a_range() {
        let maps = "1000 interleave:0-1 file=/memfd:a huge dirty=3 N0=2 N1=1 kernelpagesize_kB=2048\n\
            3000 default file=/x N1=5 kernelpagesize_kB=4\n9000 default N0=7 kernelpagesize_kB=4\nbroken\n";
        let wanted = BTreeMap::from([(0, 4 << 20), (1, (2 << 20) + (20 << 10))]);
        assert_eq!(by_node(maps, 0x1000..0x4000), wanted);
        assert_eq!(by_node("", 0..9), BTreeMap::new());
    }
}
