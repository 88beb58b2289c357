//! sysfs, procfs and cgroupfs to a [`Topology`]. Every file may be missing or malformed: then what it would have told
//! takes its default.

use super::{Kind, LogicalCpu, Node, Topology};
use crate::sys::affinity;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const CPUS: &str = "sys/devices/system/cpu";
const NODES: &str = "sys/devices/system/node";

/// Cache directories of a CPU that are looked through for the L3.
const CACHES: usize = 8;

pub(super) fn topology(root: &Path, allowed: &[usize]) -> Topology {
    let nodes = nodes(root);
    // CPUs in no node's list, as on a kernel without NUMA, belong to the first one.
    let first = nodes.first().map_or(0, |(node, _)| node.id);
    let node_of = |id| nodes.iter().find(|(_, cpus)| cpus.contains(&id)).map_or(first, |(node, _)| node.id);
    let small = list(&root.join("sys/devices/cpu_atom/cpus"));
    let mut l3_bytes = BTreeMap::new();
    let mut describe = |id: usize| {
        let core = core_of(root, id);
        let l3 = l3_of(root, id);
        l3_bytes.extend(l3);
        LogicalCpu {
            id,
            core,
            socket: socket_of(root, id),
            node: node_of(id),
            l3: l3.map_or(core, |(l3, _)| l3),
            kind: if small.contains(&id) { Kind::Efficiency } else { Kind::Performance },
        }
    };
    let cpus = allowed.iter().map(|&id| describe(id)).collect();
    let online = list(&root.join(CPUS).join("online"));
    let withheld = online.into_iter().filter(|id| !allowed.contains(id)).map(&mut describe).collect();
    let nodes = nodes.into_iter().map(|(node, _)| node).collect();
    Topology { cpus, withheld, nodes, l3_bytes, quota: quota(root) }
}

/// A file that holds a list of numbers; empty when it does not.
fn list(file: &Path) -> Vec<usize> {
    fs::read_to_string(file).ok().and_then(|text| affinity::parse_list(text.trim()).ok()).unwrap_or_default()
}

/// The smallest sibling of a CPU.
fn core_of(root: &Path, id: usize) -> usize {
    let siblings = list(&root.join(format!("{CPUS}/cpu{id}/topology/thread_siblings_list")));
    siblings.first().copied().unwrap_or(id)
}

/// Negative where the firmware does not number them: one socket then.
fn socket_of(root: &Path, id: usize) -> usize {
    let file = root.join(format!("{CPUS}/cpu{id}/topology/physical_package_id"));
    fs::read_to_string(file).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// The smallest CPU that shares the L3 of a CPU, and the cache's bytes.
fn l3_of(root: &Path, id: usize) -> Option<(usize, u64)> {
    (0..CACHES).find_map(|index| {
        let cache = root.join(format!("{CPUS}/cpu{id}/cache/index{index}"));
        let text = |name: &str| fs::read_to_string(cache.join(name)).ok();
        if text("level")?.trim() != "3" {
            return None;
        }
        let shared = list(&cache.join("shared_cpu_list"));
        Some((*shared.first()?, text("size").as_deref().and_then(cache_bytes).unwrap_or(0)))
    })
}

/// `32768K`, `32M`.
fn cache_bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &text[digits.len()..] {
        "" => 0,
        "K" => 10,
        "M" => 20,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// Nodes with their CPUs, by number. A host that tells of none has one, with all memory.
fn nodes(root: &Path) -> Vec<(Node, Vec<usize>)> {
    let entries = fs::read_dir(root.join(NODES)).into_iter().flatten().flatten();
    let number = |name: &str| name.strip_prefix("node")?.parse::<usize>().ok();
    let mut ids: Vec<usize> = entries.filter_map(|entry| number(entry.file_name().to_str()?)).collect();
    ids.sort_unstable();
    let memory = memories_allowed(root);
    let mut nodes: Vec<_> = ids.into_iter().map(|id| node(root, id, memory.as_deref())).collect();
    if nodes.is_empty() {
        let text = fs::read_to_string(root.join("proc/meminfo")).unwrap_or_default();
        let bytes = |key| field(&text, key).unwrap_or(0);
        let (memory, free) = (bytes("MemTotal:"), bytes("MemFree:"));
        nodes.push((Node { id: 0, memory, free, distances: vec![10], allowed: true }, Vec::new()));
    }
    nodes
}

fn node(root: &Path, id: usize, allowed: Option<&[usize]>) -> (Node, Vec<usize>) {
    let directory = root.join(format!("{NODES}/node{id}"));
    let meminfo = fs::read_to_string(directory.join("meminfo")).unwrap_or_default();
    let distances = fs::read_to_string(directory.join("distance")).unwrap_or_default();
    let node = Node {
        id,
        memory: field(&meminfo, "MemTotal:").unwrap_or(0),
        free: field(&meminfo, "MemFree:").unwrap_or(0),
        distances: distances.split_whitespace().filter_map(|word| word.parse().ok()).collect(),
        allowed: allowed.is_none_or(|allowed| allowed.contains(&id)),
    };
    (node, list(&directory.join("cpulist")))
}

/// Bytes of `KEY N kB`, wherever the key stands in its line: node files begin it with `Node 0`.
fn field(text: &str, key: &str) -> Option<u64> {
    let mut words = text.lines().find(|line| line.contains(key))?.split_whitespace();
    words.find(|word| *word == key)?;
    words.next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// The nodes the cpuset grants, where the kernel says.
fn memories_allowed(root: &Path) -> Option<Vec<usize>> {
    let status = fs::read_to_string(root.join("proc/self/status")).ok()?;
    let nodes = status.lines().find_map(|line| line.strip_prefix("Mems_allowed_list:"))?;
    affinity::parse_list(nodes.trim()).ok()
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
