//! NUMA nodes, clock, the share of the CPUs this process gets, and the instruction sets that the kernels use.

use super::{Check, Facts};
use crate::ctl::output::bytes;
use crate::ctl::root::Root;
use crate::ops::cpu::instruction_sets;
use crate::sys::affinity::format_list;
use crate::sys::topology::Topology;
use std::collections::BTreeSet;

const CPUS: &str = "sys/devices/system/cpu";

pub(super) fn checks(facts: &Facts) -> Vec<Check> {
    let disabled: BTreeSet<String> = facts.models().iter().flat_map(|model| model.disable_isa.clone()).collect();
    vec![
        numa(&facts.topology),
        governor(&facts.root, &facts.topology),
        boost(&facts.root),
        share(&facts.topology),
        sets(&instruction_sets(), &disabled.into_iter().collect::<Vec<_>>()),
    ]
}

/// The figures are the operators' own, on one socket (LESSONS, S-005).
fn numa(topology: &Topology) -> Check {
    let (nodes, sockets) = (topology.memory_nodes(), topology.sockets());
    let memory = bytes(topology.nodes.iter().map(|node| node.memory).sum());
    if nodes == 1 {
        return Check::ok("numa", format!("1 node, {memory}"));
    }
    let found = format!("{nodes} nodes on {sockets} socket{}, {memory}", if sockets == 1 { "" } else { "s" });
    let why = "each node reads only its own memory at full speed: NPS4 instead of NPS1 halved generation (5.2 against \
               10.9 tok/s) and prompts (10.5 against 20.5 tok/s)";
    let remedy = if nodes > sockets {
        "in the firmware set NUMA nodes per socket to NPS1 (Intel: sub-NUMA clustering off); until then keep \
         numa = \"interleave\" (the default), and see where weights lie: omnictl status"
    } else {
        "keep numa = \"interleave\" (the default), or small models on one socket with numa = \"bind:N\": omnictl status"
    };
    Check::warn("numa", found, why, remedy)
}

fn governor(root: &Root, topology: &Topology) -> Check {
    let mut governors = BTreeSet::new();
    for cpu in &topology.cpus {
        let directory = format!("{CPUS}/cpu{}/cpufreq", cpu.id);
        let Some(governor) = root.text(format!("{directory}/scaling_governor")) else { continue };
        // amd-pstate and intel_pstate in active mode call every policy powersave; their preference tells.
        let preference = root.text(format!("{directory}/energy_performance_preference"));
        governors.insert(match preference {
            Some(preference) if governor == "powersave" => format!("{governor}/{preference}"),
            _ => governor,
        });
    }
    let found = governors.iter().cloned().collect::<Vec<_>>().join(", ");
    if governors.is_empty() {
        return Check::ok("governor", "the clock is not controlled here");
    }
    if governors.iter().all(|governor| ["performance", "powersave/performance"].contains(&governor.as_str())) {
        return Check::ok("governor", found);
    }
    let why = "cores that clock down between tokens are slow when the next one comes";
    Check::warn("governor", found, why, "cpupower frequency-set -g performance")
}

fn boost(root: &Root) -> Check {
    let (file, on) =
        match (root.text(format!("{CPUS}/cpufreq/boost")), root.text(format!("{CPUS}/intel_pstate/no_turbo"))) {
            (Some(boost), _) => ("cpufreq/boost", boost == "1"),
            (None, Some(no_turbo)) => ("intel_pstate/no_turbo", no_turbo == "0"),
            (None, None) => return Check::ok("boost", "not controlled here"),
        };
    if on {
        return Check::ok("boost", "on");
    }
    let value = if file.ends_with("boost") { 1 } else { 0 };
    Check::warn("boost", "off", "cores stay at their base clock", format!("echo {value} > /{CPUS}/{file}"))
}

fn share(topology: &Topology) -> Check {
    let (may, all) = (topology.cpus.len(), topology.online().len());
    let cores = topology.physical_cores();
    let mut limits = Vec::new();
    if may < all {
        let ids: Vec<usize> = topology.cpus.iter().map(|cpu| cpu.id).collect();
        limits.push(format!("CPUs {} of {all} by affinity or cpuset", format_list(&ids)));
    }
    if let Some(quota) = topology.quota.filter(|quota| *quota < cores as f64) {
        limits.push(format!("{quota:.1} CPUs of time by the control group"));
    }
    if limits.is_empty() {
        let threads = topology.compute_threads();
        return Check::ok(
            "cpus",
            format!("all {all}; {threads} compute thread{}", if threads == 1 { "" } else { "s" }),
        );
    }
    let why = format!("{} compute threads by default instead of one for every core", topology.compute_threads());
    let remedy = "systemctl show omni-inferd -p AllowedCPUs -p CPUQuotaPerSecUSec";
    Check::warn("cpus", format!("only {}", limits.join(", ")), why, remedy)
}

/// `host`: the sets it has, best last; `disabled`: what a configured model does without.
fn sets(host: &[&str], disabled: &[String]) -> Check {
    let used = host.last().copied().unwrap_or("scalar");
    let less: Vec<&str> = disabled.iter().map(String::as_str).filter(|name| host.contains(name)).collect();
    if used == "scalar" {
        let why = "without AVX2, FMA and F16C the plain code runs, several times slower";
        return Check::warn(
            "instruction-sets",
            "none of use",
            why,
            "use a CPU of 2013 or later; in a VM pass the host's CPU through",
        );
    }
    if less.is_empty() {
        return Check::ok("instruction-sets", format!("{used} in use, of {}", host.join(" ")));
    }
    let found = format!("{} switched off by disable_isa, of {}", less.join(" "), host.join(" "));
    Check::warn(
        "instruction-sets",
        found,
        "models that switch sets off run on slower kernels",
        "remove disable_isa unless a set faults here",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::doctor::Level;
    use crate::ctl::root::fixture::Tree;
    use crate::sys::topology::{LogicalCpu, Node};

    fn host(cpus: usize, sockets: usize, nodes: usize) -> Topology {
        let cpu =
            |id| LogicalCpu { id, core: id, socket: id % sockets, node: id % nodes, l3: id, ..LogicalCpu::default() };
        let node = |id| Node { id, memory: 64 << 30, allowed: true, ..Node::default() };
        Topology { cpus: (0..cpus).map(cpu).collect(), nodes: (0..nodes).map(node).collect(), ..Topology::default() }
    }

    #[test]
    fn nodes_are_judged_by_what_they_cost() {
        assert_eq!(numa(&host(4, 1, 1)), Check::ok("numa", "1 node, 64.0 GiB"));
        let nps4 = numa(&host(4, 1, 4));
        assert_eq!((nps4.level, nps4.found.as_str()), (Level::Warn, "4 nodes on 1 socket, 256 GiB"));
        assert!(nps4.why.contains("5.2 against 10.9 tok/s") && nps4.why.contains("10.5 against 20.5 tok/s"));
        assert!(nps4.remedy.contains("NPS1"), "{nps4:?}");
        let two = numa(&host(4, 2, 2));
        assert!(two.level == Level::Warn && two.remedy.starts_with("keep numa = \"interleave\""), "{two:?}");
    }

    #[test]
    fn the_governor_should_be_performance() {
        let topology = host(2, 1, 1);
        let judge = |files: &[(&str, &str)]| {
            let files: Vec<(String, &str)> =
                files.iter().map(|(file, text)| (format!("{CPUS}/cpu{}", file), *text)).collect();
            let files: Vec<(&str, &str)> = files.iter().map(|(file, text)| (file.as_str(), *text)).collect();
            let check = governor(&Tree::new(&files), &topology);
            (check.level, check.found)
        };
        assert_eq!(judge(&[]).0, Level::Ok);
        let fast = ("0/cpufreq/scaling_governor", "performance\n");
        assert_eq!(judge(&[fast]), (Level::Ok, "performance".into()));
        let slow = judge(&[fast, ("1/cpufreq/scaling_governor", "schedutil\n")]);
        assert_eq!(slow, (Level::Warn, "performance, schedutil".into()));
        let active = |preference| {
            judge(&[
                ("0/cpufreq/scaling_governor", "powersave"),
                ("0/cpufreq/energy_performance_preference", preference),
            ])
        };
        assert_eq!(active("performance").0, Level::Ok);
        assert_eq!(active("balance_power"), (Level::Warn, "powersave/balance_power".into()));
    }

    #[test]
    fn boost_should_be_on() {
        let judge = |file: &str, text: &str| boost(&Tree::new(&[(&format!("{CPUS}/{file}"), text)])).level;
        assert_eq!(judge("cpufreq/boost", "1"), Level::Ok);
        assert_eq!(judge("cpufreq/boost", "0"), Level::Warn);
        assert_eq!(judge("intel_pstate/no_turbo", "0"), Level::Ok);
        assert_eq!(judge("intel_pstate/no_turbo", "1"), Level::Warn);
        assert_eq!(boost(&Tree::new(&[])).level, Level::Ok);
    }

    #[test]
    fn a_share_of_the_host_is_named() {
        let whole = host(4, 1, 1);
        assert_eq!(share(&whole), Check::ok("cpus", "all 4; 4 compute threads"));
        let part = share(&whole.restricted(&[1, 2]));
        assert_eq!((part.level, part.found.as_str()), (Level::Warn, "only CPUs 1-2 of 4 by affinity or cpuset"));
        let slowed = share(&Topology { quota: Some(1.5), ..whole.clone() });
        assert_eq!((slowed.level, slowed.found.as_str()), (Level::Warn, "only 1.5 CPUs of time by the control group"));
        assert_eq!(share(&Topology { quota: Some(64.0), ..whole }).level, Level::Ok);
    }

    #[test]
    fn sets_in_use_are_listed() {
        let all = ["avx2", "avx512", "avx512vnni", "avx512bf16"];
        assert_eq!(
            sets(&all, &[]),
            Check::ok("instruction-sets", "avx512bf16 in use, of avx2 avx512 avx512vnni avx512bf16")
        );
        let off = sets(&all, &["avx512".into()]);
        assert!(off.level == Level::Warn && off.found.starts_with("avx512 switched off"), "{off:?}");
        assert_eq!(sets(&["avx2"], &["avx512".into()]).level, Level::Ok, "what the host lacks cannot be missed");
        assert_eq!(sets(&[], &[]).level, Level::Warn);
    }
}
