//! Bare metal, or what stands between this process and it.

use super::{Check, Facts};
use crate::ctl::root::Root;

const ID: &str = "environment";

/// The kernel version that gVisor shows to programs, whatever the real one is.
const GVISOR: &str = "Sun Jan 10 15:06:54 PST 2016";

pub(super) fn checks(facts: &Facts) -> Vec<Check> {
    vec![check(&facts.root)]
}

fn check(root: &Root) -> Check {
    let version = root.text("proc/version").unwrap_or_default();
    if version.contains(GVISOR) || version.contains("gVisor") {
        let why = "its kernel in user space knows neither huge pages nor NUMA and reaches no GPU but by its own proxy, \
                   and each system call costs more";
        return Check::warn(ID, "gVisor", why, "run on the host itself: apt install ./omni-inferd_*.deb");
    }
    if version.to_ascii_lowercase().contains("microsoft") {
        let why = "huge pages, NUMA placement and CUDA's virtual memory are limited, and half of the memory belongs to \
                   Windows";
        return Check::warn(ID, "WSL", why, "raise memory= in .wslconfig, or run on Linux itself");
    }
    let hosts = "run on the host itself: apt install ./omni-inferd_*.deb";
    let limits = "limits, sysctls and huge pages are those its host grants, and a GPU appears only when passed through";
    match container(root) {
        Some(name) => Check::warn(ID, format!("inside a container ({name})"), limits, hosts),
        None if hypervisor(root) => {
            Check::ok(ID, "a virtual machine: huge pages, NUMA nodes and PCIe are what its host shows")
        }
        None => Check::ok(ID, "bare metal"),
    }
}

/// What a container manager left for its guests to see.
fn container(root: &Root) -> Option<String> {
    if root.exists(".dockerenv") {
        return Some("docker".into());
    }
    if root.exists("run/.containerenv") {
        return Some("podman".into());
    }
    // systemd's own record: lxc, docker, systemd-nspawn and others.
    if let Some(name) = root.text("run/systemd/container").filter(|name| !name.is_empty()) {
        return Some(name);
    }
    let environment = root.text("proc/1/environ").unwrap_or_default();
    if let Some(name) = environment.split('\0').find_map(|entry| entry.strip_prefix("container=")) {
        return Some(name.to_string());
    }
    let groups = root.text("proc/1/cgroup").unwrap_or_default();
    let known = [("/docker", "docker"), ("/lxc", "lxc"), ("kubepods", "kubernetes"), ("libpod", "podman")];
    let named = known.iter().find(|(mark, _)| groups.contains(mark)).map(|(_, name)| (*name).to_string());
    let lxcfs = || root.text("proc/self/mountinfo").is_some_and(|mounts| mounts.contains("lxcfs"));
    named.or_else(|| lxcfs().then(|| "lxc".into()))
}

/// The CPU says so.
fn hypervisor(root: &Root) -> bool {
    let cpuinfo = root.text("proc/cpuinfo").unwrap_or_default();
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    flags.split_whitespace().any(|flag| flag == "hypervisor")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::doctor::Level;
    use crate::ctl::root::fixture::Tree;

    fn found(files: &[(&str, &str)]) -> (Level, String) {
        let check = check(&Tree::new(files));
        assert_eq!(check.why.is_empty(), check.level == Level::Ok);
        (check.level, check.found)
    }

    #[test]
    fn containers_are_recognised() {
        let gvisor = "Linux version 4.4.0 #1 SMP Sun Jan 10 15:06:54 PST 2016";
        let wsl = "Linux version 5.15.153.1-microsoft-standard-WSL2";
        for (files, wanted) in [
            (("proc/version", gvisor), "gVisor"),
            (("proc/version", wsl), "WSL"),
            ((".dockerenv", ""), "inside a container (docker)"),
            (("run/.containerenv", ""), "inside a container (podman)"),
            (("run/systemd/container", "lxc\n"), "inside a container (lxc)"),
            (("proc/1/environ", "TERM=linux\0container=lxc\0"), "inside a container (lxc)"),
            (("proc/1/cgroup", "0::/docker/3f1\n"), "inside a container (docker)"),
            (("proc/self/mountinfo", "1 2 0:5 / /proc/cpuinfo - fuse.lxcfs lxcfs rw"), "inside a container (lxc)"),
        ] {
            assert_eq!(found(&[files]), (Level::Warn, wanted.to_string()));
        }
    }

    #[test]
    fn metal_and_machines_are_well() {
        assert_eq!(found(&[]), (Level::Ok, "bare metal".into()));
        assert_eq!(found(&[("proc/version", "Linux version 6.12.0"), ("run/systemd/container", "")]).1, "bare metal");
        assert!(found(&[("proc/cpuinfo", "flags\t\t: fpu hypervisor avx2\n")]).1.starts_with("a virtual machine"));
    }
}
