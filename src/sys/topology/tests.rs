//! Trees of files as Linux shows them, to the topology they stand for.

use super::*;
use std::fs;

/// A tree of files as Linux shows them.
struct Tree(tempfile::TempDir);

impl Tree {
    fn new() -> Self {
        Tree(tempfile::tempdir().unwrap())
    }

    fn write(&self, file: &str, text: &str) {
        let file = self.0.path().join(file);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }

    /// CPUs of one socket, each list the siblings of one core, all behind one L3.
    fn cores(&self, socket: usize, l3: &str, siblings: &[&str]) {
        for list in siblings {
            for id in affinity::parse_list(list).unwrap() {
                let cpu = format!("sys/devices/system/cpu/cpu{id}");
                self.write(&format!("{cpu}/topology/thread_siblings_list"), &format!("{list}\n"));
                self.write(&format!("{cpu}/topology/physical_package_id"), &format!("{socket}\n"));
                self.write(&format!("{cpu}/cache/index0/level"), "1\n");
                self.write(&format!("{cpu}/cache/index3/level"), "3\n");
                self.write(&format!("{cpu}/cache/index3/shared_cpu_list"), &format!("{l3}\n"));
                self.write(&format!("{cpu}/cache/index3/size"), "32768K\n");
            }
        }
    }

    fn node(&self, id: usize, cpus: &str, gib: u64, distances: &str) {
        let node = format!("sys/devices/system/node/node{id}");
        self.write(&format!("{node}/cpulist"), &format!("{cpus}\n"));
        let kib = gib << 20;
        let meminfo = format!("Node {id} MemTotal:       {kib} kB\nNode {id} MemFree:        {} kB\n", kib / 2);
        self.write(&format!("{node}/meminfo"), &meminfo);
        self.write(&format!("{node}/distance"), &format!("{distances}\n"));
    }

    fn online(&self, list: &str) {
        self.write("sys/devices/system/cpu/online", &format!("{list}\n"));
    }

    fn read(&self, allowed: &str) -> Topology {
        Topology::read(self.0.path(), &affinity::parse_list(allowed).unwrap_or_default())
    }
}

#[test]
fn one_node_with_siblings() {
    let tree = Tree::new();
    tree.cores(0, "0-1,4-5", &["0,4", "1,5"]);
    tree.node(0, "0-1,4-5", 64, "10");
    tree.online("0-1,4-5");
    let topology = tree.read("0-1,4-5");
    assert_eq!(topology.placement(), [0, 1, 4, 5], "siblings come after the cores");
    assert_eq!((topology.compute_threads(), topology.sockets(), topology.memory_nodes()), (2, 1, 1));
    let node = Node { id: 0, memory: 64 << 30, free: 32 << 30, distances: vec![10], allowed: true };
    assert_eq!((topology.nodes.clone(), topology.withheld.len()), (vec![node], 0));
    assert_eq!(topology.l3_bytes, BTreeMap::from([(0, 32 << 20)]));
    let few = topology.restricted(&[4, 5]);
    assert_eq!((few.placement(), few.online().len()), (vec![4, 5], 4));
    assert_eq!(topology.restricted(&[4]).compute_threads(), 1);
    assert_eq!(tree.read("").compute_threads(), 1);
}

#[test]
fn four_nodes_of_one_socket() {
    let tree = Tree::new();
    let distances = ["10 12 12 12", "12 10 12 12", "12 12 10 12", "12 12 12 10"];
    for (id, distances) in distances.into_iter().enumerate() {
        let (cpu, cpus) = (2 * id, format!("{}-{}", 2 * id, 2 * id + 1));
        tree.cores(0, &cpus, &[&cpu.to_string(), &(cpu + 1).to_string()]);
        tree.node(id, &cpus, 96, distances);
    }
    let topology = tree.read("0-7");
    assert_eq!((topology.sockets(), topology.memory_nodes(), topology.l3_bytes.len()), (1, 4, 4));
    assert_eq!(topology.nodes[2].distances, [12, 12, 10, 12]);
    let nodes: Vec<usize> = topology.cpus.iter().map(|cpu| cpu.node).collect();
    assert_eq!(nodes, [0, 0, 1, 1, 2, 2, 3, 3]);
    let l3: Vec<usize> = topology.cpus.iter().map(|cpu| cpu.l3).collect();
    assert_eq!(l3, [0, 0, 2, 2, 4, 4, 6, 6]);
}

#[test]
fn two_sockets_and_a_node_without_cpus() {
    let tree = Tree::new();
    tree.cores(0, "0-1", &["0", "1"]);
    tree.cores(1, "2-3", &["2", "3"]);
    tree.node(0, "0-1", 128, "10 21 17");
    tree.node(1, "2-3", 128, "21 10 28");
    tree.node(2, "", 256, "17 28 10");
    let topology = tree.read("0-3");
    assert_eq!((topology.sockets(), topology.memory_nodes()), (2, 3));
    assert_eq!(topology.cpus[3], LogicalCpu { id: 3, core: 3, socket: 1, node: 1, l3: 2, kind: Kind::Performance });
    assert_eq!((topology.nodes[2].memory, topology.nodes[2].distances.as_slice()), (256 << 30, &[17, 28, 10][..]));
}

#[test]
fn a_cpuset_withholds_cpus_and_nodes() {
    let tree = Tree::new();
    tree.cores(0, "0-3", &["0", "1"]);
    tree.cores(0, "2-3", &["2", "3"]);
    tree.node(0, "0-1", 8, "10 12");
    tree.node(1, "2-3", 8, "12 10");
    tree.online("0-3");
    tree.write("proc/self/status", "Name:\tx\nCpus_allowed_list:\t2-3\nMems_allowed_list:\t1\n");
    let topology = tree.read("2-3");
    let allowed: Vec<bool> = topology.nodes.iter().map(|node| node.allowed).collect();
    assert_eq!(allowed, [false, true]);
    assert_eq!(topology.withheld.iter().map(|cpu| (cpu.id, cpu.node)).collect::<Vec<_>>(), [(0, 0), (1, 0)]);
    assert_eq!((topology.placement(), topology.online().len()), (vec![2, 3], 4));
}

#[test]
fn small_cores_come_after_the_fast_ones() {
    let tree = Tree::new();
    tree.cores(0, "0-5", &["0", "1", "2,3", "4,5"]);
    tree.write("sys/devices/cpu_core/cpus", "2-5\n");
    tree.write("sys/devices/cpu_atom/cpus", "0-1\n");
    let topology = tree.read("0-5");
    assert_eq!(topology.placement(), [2, 4, 0, 1, 3, 5]);
    assert_eq!(topology.cpus[0].kind, Kind::Efficiency);
}

#[test]
fn without_numa_there_is_one_node_with_all_memory() {
    let tree = Tree::new();
    tree.write("proc/meminfo", "MemTotal:       1024 kB\nMemFree:         512 kB\n");
    let topology = tree.read("0-1");
    let node = Node { id: 0, memory: 1 << 20, free: 512 << 10, distances: vec![10], allowed: true };
    assert_eq!((topology.nodes, topology.cpus[1].node), (vec![node], 0));
    let nothing = Tree::new().read("0-1");
    assert_eq!((nothing.placement(), nothing.nodes.len(), nothing.memory_nodes()), (vec![0, 1], 1, 1));
}

#[test]
fn nonsense_in_the_files_is_as_good_as_nothing() {
    let tree = Tree::new();
    for file in ["topology/thread_siblings_list", "topology/physical_package_id", "cache/index3/level"] {
        tree.write(&format!("sys/devices/system/cpu/cpu0/{file}"), "-1\u{fffd}");
    }
    tree.write("sys/devices/system/cpu/cpu1/cache/index0/level", "3");
    tree.write("sys/devices/system/cpu/cpu1/cache/index0/shared_cpu_list", "1");
    tree.write("sys/devices/system/cpu/cpu1/cache/index0/size", "99999999999999999999M");
    tree.write("sys/devices/system/node/nodex/meminfo", "?");
    tree.write("sys/devices/system/node/node0/meminfo", "Node 0 MemTotal: lots kB");
    tree.write("sys/devices/system/node/node0/distance", "near");
    let topology = tree.read("0-1");
    assert_eq!(topology.cpus[0], LogicalCpu::default());
    assert_eq!((topology.l3_bytes.get(&1), topology.nodes[0].memory), (Some(&0), 0));
}

#[test]
fn the_tightest_quota_counts() {
    let tree = Tree::new();
    tree.write("proc/self/cgroup", "0::/a/b\n");
    tree.write("sys/fs/cgroup/a/b/cpu.max", "max 100000\n");
    tree.write("sys/fs/cgroup/a/cpu.max", "150000 100000\n");
    let topology = tree.read("0-3");
    assert_eq!(topology.quota, Some(1.5));
    assert_eq!(topology.compute_threads(), 2);
}

#[test]
fn version_one_counts_too() {
    let tree = Tree::new();
    tree.write("proc/self/cgroup", "4:memory:/x\n3:cpu,cpuacct:/x\n");
    tree.write("sys/fs/cgroup/cpu/x/cpu.cfs_quota_us", "-1\n");
    tree.write("sys/fs/cgroup/cpu/x/cpu.cfs_period_us", "100000\n");
    assert_eq!(tree.read("0").quota, None);
    tree.write("sys/fs/cgroup/cpu/x/cpu.cfs_quota_us", "100000\n");
    assert_eq!(tree.read("0-1").compute_threads(), 1);
}

#[test]
fn this_host_has_a_cpu() {
    let topology = Topology::detect();
    assert!(!topology.placement().is_empty());
    assert!(topology.compute_threads() <= topology.cpus.len());
    assert!(topology.cpus.iter().all(|cpu| topology.nodes.iter().any(|node| node.id == cpu.node)));
}
