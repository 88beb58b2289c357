//! `status --topology`: the host's sockets, NUMA nodes, caches and cores, drawn, and what of it this process may use.
//! Asks no daemon.

use super::error::Error;
use super::output::{self, Output};
use crate::sys::affinity::format_list;
use crate::sys::memory::Memory;
use crate::sys::topology::{Kind, LogicalCpu, Node, Topology};
use serde::Serialize;
use std::collections::BTreeSet;
use std::fmt::Write as _;

/// What is shown: the topology, and figures that follow from it.
#[derive(Debug, Serialize)]
struct Host {
    sockets: usize,
    physical_cores: usize,
    compute_threads: usize,
    memory_nodes: usize,
    /// Bytes the control groups still allow, where they limit.
    memory_left: Option<u64>,
    #[serde(flatten)]
    topology: Topology,
}

/// Draws this host.
///
/// # Errors
/// Standard output cannot be written.
pub fn show(out: Output) -> Result<(), Error> {
    let topology = Topology::detect();
    let memory_left = Memory::now().ok().and_then(|memory| memory.cgroup);
    if !out.json {
        return out.write(&drawing(&topology, memory_left, out));
    }
    out.value(&Host {
        sockets: topology.sockets(),
        physical_cores: topology.physical_cores(),
        compute_threads: topology.compute_threads(),
        memory_nodes: topology.memory_nodes(),
        memory_left,
        topology,
    })
}

/// Sockets, below each its nodes, below each its caches with their cores; then what limits this process.
fn drawing(topology: &Topology, memory_left: Option<u64>, out: Output) -> String {
    let online = topology.online();
    let cores: BTreeSet<usize> = online.iter().map(|cpu| cpu.core).collect();
    let counts = [
        (topology.sockets(), "socket"),
        (topology.nodes.len(), "NUMA node"),
        (cores.len(), "core"),
        (online.len(), "thread"),
    ];
    let counts: Vec<String> = counts.iter().map(|(n, what)| format!("{n} {what}{}", plural(*n))).collect();
    let memory = output::bytes(topology.nodes.iter().map(|node| node.memory).sum());
    let mut text = format!("{}, {memory}\n", out.bold(&counts.join(", ")));
    let sockets: BTreeSet<usize> = online.iter().map(|cpu| cpu.socket).collect();
    for socket in sockets {
        let of_socket: Vec<LogicalCpu> = online.iter().filter(|cpu| cpu.socket == socket).copied().collect();
        let _ = writeln!(text, "socket {socket}");
        for node in topology.nodes.iter().filter(|node| of_socket.iter().any(|cpu| cpu.node == node.id)) {
            let _ = writeln!(text, "  {}", describe(node, out));
            let cpus: Vec<LogicalCpu> = of_socket.iter().filter(|cpu| cpu.node == node.id).copied().collect();
            draw_caches(&mut text, topology, &cpus);
        }
    }
    for node in topology.nodes.iter().filter(|node| !online.iter().any(|cpu| cpu.node == node.id)) {
        let _ = writeln!(text, "{}, no cores", describe(node, out));
    }
    for limit in limits(topology, memory_left) {
        let _ = writeln!(text, "this process: {limit}");
    }
    text
}

fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}

fn describe(node: &Node, out: Output) -> String {
    let (all, free) = (output::bytes(node.memory), output::bytes(node.free));
    let distances: Vec<String> = node.distances.iter().map(u32::to_string).collect();
    let distances = if distances.len() > 1 { format!(", distances {}", distances.join(" ")) } else { String::new() };
    format!("node {}: {all}, {free} free{}", node.id, out.dim(&distances))
}

/// A line per L3 domain; one line for all cores whose cache is unknown.
fn draw_caches(text: &mut String, topology: &Topology, cpus: &[LogicalCpu]) {
    let known = |cpu: &LogicalCpu| topology.l3_bytes.contains_key(&cpu.l3).then_some(cpu.l3);
    let domains: BTreeSet<Option<usize>> = cpus.iter().map(known).collect();
    for domain in domains {
        let cpus: Vec<LogicalCpu> = cpus.iter().filter(|cpu| known(cpu) == domain).copied().collect();
        let bytes = domain.and_then(|l3| topology.l3_bytes.get(&l3)).filter(|bytes| **bytes > 0);
        let cache = match (domain, bytes) {
            (Some(_), Some(bytes)) => format!("L3 {}: ", output::bytes(*bytes)),
            (Some(_), None) => "L3: ".into(),
            (None, _) => String::new(),
        };
        let _ = writeln!(text, "    {cache}{}", cores(&cpus));
    }
}

/// `cores 0-7, siblings 96-103`; hybrid CPUs: `cores 0-7, siblings 8-15, efficiency cores 16-23`.
fn cores(cpus: &[LogicalCpu]) -> String {
    let list = |wanted: &dyn Fn(&LogicalCpu) -> bool| -> String {
        format_list(&cpus.iter().filter(|cpu| wanted(cpu)).map(|cpu| cpu.id).collect::<Vec<_>>())
    };
    let parts = [
        ("cores", list(&|cpu| cpu.id == cpu.core && cpu.kind == Kind::Performance)),
        ("siblings", list(&|cpu| cpu.id != cpu.core)),
        ("efficiency cores", list(&|cpu| cpu.id == cpu.core && cpu.kind == Kind::Efficiency)),
    ];
    let parts = parts.iter().filter(|(_, list)| !list.is_empty());
    parts.map(|(what, list)| format!("{what} {list}")).collect::<Vec<_>>().join(", ")
}

/// What affinity, cpuset and control groups take away; nothing on an undivided host.
fn limits(topology: &Topology, memory_left: Option<u64>) -> Vec<String> {
    let mut limits = Vec::new();
    if !topology.withheld.is_empty() {
        let ids = |cpus: &[LogicalCpu]| format_list(&cpus.iter().map(|cpu| cpu.id).collect::<Vec<_>>());
        let (may, all) = (topology.cpus.len(), topology.online().len());
        limits.push(format!("CPUs {} ({may} of {all}; affinity or cpuset)", ids(&topology.cpus)));
    }
    if topology.nodes.iter().any(|node| !node.allowed) {
        let nodes: Vec<usize> = topology.nodes.iter().filter(|node| node.allowed).map(|node| node.id).collect();
        limits.push(format!("memory of nodes {} only (cpuset)", format_list(&nodes)));
    }
    limits.extend(topology.quota.map(|quota| format!("{quota:.1} CPUs of time (control group)")));
    limits.extend(memory_left.map(|left| format!("{} of memory left (control group)", output::bytes(left))));
    limits
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn plain() -> Output {
        Output { json: false, color: false }
    }

    fn cpu(id: usize, core: usize, socket: usize, node: usize, l3: usize) -> LogicalCpu {
        LogicalCpu { id, core, socket, node, l3, kind: Kind::Performance }
    }

    fn node(id: usize, gib: u64, distances: &[u32]) -> Node {
        Node { id, memory: gib << 30, free: gib << 29, distances: distances.into(), allowed: true }
    }

    #[test]
    fn sockets_nodes_and_caches_are_drawn() {
        let topology = Topology {
            cpus: vec![cpu(0, 0, 0, 0, 0), cpu(1, 1, 0, 0, 1), cpu(2, 2, 1, 1, 2), cpu(4, 0, 0, 0, 0)],
            nodes: vec![node(0, 64, &[10, 21, 17]), node(1, 64, &[21, 10, 17]), node(2, 256, &[17, 17, 10])],
            l3_bytes: BTreeMap::from([(0, 32 << 20), (1, 32 << 20), (2, 0)]),
            ..Topology::default()
        };
        let wanted = "\
2 sockets, 3 NUMA nodes, 3 cores, 4 threads, 384 GiB
socket 0
  node 0: 64.0 GiB, 32.0 GiB free, distances 10 21 17
    L3 32.0 MiB: cores 0, siblings 4
    L3 32.0 MiB: cores 1
socket 1
  node 1: 64.0 GiB, 32.0 GiB free, distances 21 10 17
    L3: cores 2
node 2: 256 GiB, 128 GiB free, distances 17 17 10, no cores
";
        assert_eq!(drawing(&topology, None, plain()), wanted);
    }

    #[test]
    fn limits_and_small_cores_are_named() {
        let small = LogicalCpu { kind: Kind::Efficiency, ..cpu(3, 3, 0, 0, 3) };
        let mut withheld = node(1, 8, &[12, 10]);
        withheld.allowed = false;
        let topology = Topology {
            cpus: vec![cpu(0, 0, 0, 0, 0), cpu(1, 0, 0, 0, 0)],
            withheld: vec![cpu(2, 2, 0, 0, 2), small],
            nodes: vec![node(0, 8, &[10, 12]), withheld],
            quota: Some(1.5),
            ..Topology::default()
        };
        let drawing = drawing(&topology, Some(3 << 30), plain());
        let wanted = "\
    cores 0,2, siblings 1, efficiency cores 3
node 1: 8.00 GiB, 4.00 GiB free, distances 12 10, no cores
this process: CPUs 0-1 (2 of 4; affinity or cpuset)
this process: memory of nodes 0 only (cpuset)
this process: 1.5 CPUs of time (control group)
this process: 3.00 GiB of memory left (control group)
";
        assert!(drawing.ends_with(wanted), "{drawing}");
    }
}
