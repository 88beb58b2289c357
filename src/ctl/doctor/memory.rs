//! Huge pages, swap, kernel settings, and what limits memory.

use super::{Check, Facts};
use crate::ctl::output::bytes;
use crate::ctl::root::Root;
use crate::ctl::sysctl::settings;
use crate::sys::memory::Memory;

const HUGE: &str = "sys/kernel/mm/hugepages";
const THP: &str = "sys/kernel/mm/transparent_hugepage/enabled";
const SHARED_THP: &str = "sys/kernel/mm/transparent_hugepage/shmem_enabled";
const THP_UNIT: &str = "systemctl enable --now omni-inferd-thp.service";
const TUNE: &str = "omnictl tune --apply";

/// Swap that was used once and is not touched again does no harm.
const SWAP_LEFTOVER: u64 = 64 << 20;

pub(super) fn checks(facts: &Facts) -> Vec<Check> {
    let need = facts.needs.iter().filter_map(|need| need.bytes.as_ref().ok()).sum();
    let root = &facts.root;
    let mut checks = vec![huge_pages(root, need), transparent(root), shared(root, need)];
    checks.extend(sysctls(root));
    checks.extend([swap(root), locked(root), group(root)]);
    checks
}

/// Reserved huge pages: bytes in all, and a list of them by size.
fn reserved(root: &Root) -> (u64, String) {
    let mut total = 0u64;
    let mut parts = Vec::new();
    for name in root.names(HUGE) {
        let size = name.strip_prefix("hugepages-").and_then(|rest| rest.strip_suffix("kB"));
        let Some(size) = size.and_then(|kib| kib.parse::<u64>().ok()).and_then(|kib| kib.checked_mul(1024)) else {
            continue;
        };
        let count = |file: &str| root.number(format!("{HUGE}/{name}/{file}")).unwrap_or(0);
        let (pages, free) = (count("nr_hugepages"), count("free_hugepages"));
        if pages > 0 {
            total = total.saturating_add(size.saturating_mul(pages));
            parts.push(format!("{pages} of {} ({free} free)", bytes(size)));
        }
    }
    (total, parts.join(", "))
}

fn huge_pages(root: &Root, need: u64) -> Check {
    const ID: &str = "huge-pages";
    let (total, list) = reserved(root);
    let models = bytes(need);
    if total == 0 && need == 0 {
        return Check::ok(ID, "none reserved, no models configured");
    }
    if total == 0 {
        let why =
            format!("{models} of weights in 4 KiB pages cost a TLB miss every few rows, unless transparent ones help");
        return Check::warn(ID, "none reserved", why, TUNE);
    }
    if total < need {
        let why = format!("the models have {models} of weights; what does not fit lands on smaller pages");
        return Check::warn(ID, list, why, TUNE);
    }
    // Each model may leave a page unused at its end, and an eighth is not worth a reboot.
    let spare = total - need;
    if spare > need / 8 + (2 << 30) {
        let why = format!("{} more than the models need ({models}), lost to everything else", bytes(spare));
        return Check::warn(ID, list, why, TUNE);
    }
    Check::ok(ID, format!("{list}, for {models} of weights"))
}

/// What caches and buffers take.
fn transparent(root: &Root) -> Check {
    const ID: &str = "transparent-huge-pages";
    match root.chosen(THP).as_deref() {
        None => Check::ok(ID, "not in this kernel"),
        Some("madvise") => Check::ok(ID, "madvise: for who asks, as the caches do"),
        Some("never") => Check::warn(ID, "never", "KV caches land on 4 KiB pages", THP_UNIT),
        Some(other) => {
            let why = "the kernel compacts memory for every program, which stalls threads in the middle of a token";
            Check::warn(ID, other, why, THP_UNIT)
        }
    }
}

/// What weights beyond the reserved pages take: they lie in shared memory.
fn shared(root: &Root, need: u64) -> Check {
    const ID: &str = "shared-huge-pages";
    match root.chosen(SHARED_THP).as_deref() {
        None => Check::ok(ID, "not in this kernel"),
        Some(word @ ("never" | "deny")) if reserved(root).0 >= need => {
            Check::ok(ID, format!("{word}; the reserved huge pages suffice"))
        }
        Some("never") => {
            let why =
                "weights beyond the reserved huge pages begin on 4 KiB pages, and are moved to huge ones afterwards";
            Check::warn(ID, "never", why, THP_UNIT)
        }
        Some("deny") => Check::warn(ID, "deny", "weights beyond the reserved huge pages stay on 4 KiB pages", THP_UNIT),
        Some(other) => Check::ok(ID, format!("{other}: weights beyond the reserved huge pages take them")),
    }
}

fn sysctls(root: &Root) -> Vec<Check> {
    let check = |setting: crate::ctl::sysctl::Setting| {
        let id = format!("sysctl {}", setting.key);
        match root.number(setting.file()) {
            None => Check::ok(id, "not in this kernel"),
            Some(value) if value == setting.value => Check::ok(id, value.to_string()),
            Some(value) => {
                Check::warn(id, format!("{value} instead of {}", setting.value), setting.reason_in_short(), TUNE)
            }
        }
    };
    settings().into_iter().map(check).collect()
}

fn swap(root: &Root) -> Check {
    let (total, free) = (root.meminfo("SwapTotal").unwrap_or(0), root.meminfo("SwapFree").unwrap_or(0));
    let used = total.saturating_sub(free);
    if total == 0 {
        return Check::ok("swap", "none");
    }
    if used <= SWAP_LEFTOVER {
        return Check::ok("swap", format!("{}, {} in use", bytes(total), bytes(used)));
    }
    let why = "memory was short: if weights are in it, each token waits for the disk";
    let remedy = "look who: grep VmSwap /proc/[0-9]*/status; when memory allows: swapoff -a && swapon -a";
    Check::warn("swap", format!("{} of {} in use", bytes(used), bytes(total)), why, remedy)
}

/// The daemon's own limit when it runs, else this shell's.
fn locked(root: &Root) -> Check {
    let pids = root.names("proc").into_iter().filter(|name| name.bytes().all(|b| b.is_ascii_digit()));
    let daemon = pids.into_iter().find(|pid| root.text(format!("proc/{pid}/comm")).as_deref() == Some("omni-inferd"));
    let (whose, limits) = match &daemon {
        Some(pid) => (format!("omni-inferd (pid {pid})"), format!("proc/{pid}/limits")),
        None => ("this shell".to_string(), "proc/self/limits".to_string()),
    };
    let text = root.text(limits).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Max locked memory"));
    match line.and_then(|line| line.split_whitespace().next()) {
        None => Check::ok("memlock", "the kernel does not tell"),
        Some("unlimited") => Check::ok("memlock", format!("unlimited for {whose}")),
        Some(limit) => {
            let limit = limit.parse().map_or_else(|_| limit.to_string(), bytes);
            let why = "weights could not be locked in memory";
            let remedy =
                "start it by its unit, which lifts the limit (systemctl start omni-inferd), or: ulimit -l unlimited";
            Check::warn("memlock", format!("{limit} for {whose}"), why, remedy)
        }
    }
}

fn group(root: &Root) -> Check {
    const ID: &str = "memory-limit";
    let Ok(memory) = Memory::read(root.directory()) else {
        return Check::warn(ID, "/proc/meminfo cannot be read", "no model can be planned", "mount -t proc proc /proc");
    };
    let of = bytes(memory.total);
    match memory.cgroup {
        Some(left) if left < memory.total => {
            let why = "models are planned for that, not for the host's memory";
            let remedy = "systemctl show omni-inferd -p MemoryMax -p MemoryHigh";
            Check::warn(ID, format!("the control group leaves {} of {of}", bytes(left)), why, remedy)
        }
        _ => Check::ok(ID, format!("none below the host's {of}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::doctor::Level;
    use crate::ctl::root::fixture::Tree;

    fn huge(size: u64, pages: u64) -> Tree {
        let directory = format!("{HUGE}/hugepages-{size}kB");
        let tree = Tree::new(&[(&format!("{directory}/nr_hugepages"), &pages.to_string())]);
        tree.write(&format!("{directory}/free_hugepages"), "1\n");
        tree
    }

    #[test]
    fn huge_pages_are_as_many_as_the_models_need() {
        let judge = |pages, need| {
            let check = huge_pages(&huge(2048, pages), need);
            (check.level, check.found)
        };
        assert_eq!(judge(0, 0), (Level::Ok, "none reserved, no models configured".into()));
        assert_eq!(judge(0, 4 << 30).0, Level::Warn);
        assert_eq!(judge(1024, 4 << 30), (Level::Warn, "1024 of 2.00 MiB (1 free)".into()));
        assert_eq!(judge(2049, 4 << 30).0, Level::Ok);
        assert_eq!(judge(65_536, 4 << 30).0, Level::Warn, "a constant by habit");
        let gigantic = huge_pages(&huge(1 << 20, 5), 5 << 30);
        assert_eq!(
            (gigantic.level, gigantic.found.as_str()),
            (Level::Ok, "5 of 1.00 GiB (1 free), for 5.00 GiB of weights")
        );
        assert_eq!(
            huge_pages(&Tree::new(&[(&format!("{HUGE}/hugepages-oddkB/nr_hugepages"), "x")]), 0).level,
            Level::Ok
        );
    }

    #[test]
    fn transparent_pages_are_for_who_asks() {
        let judge = |text: &str| transparent(&Tree::new(&[(THP, text)])).level;
        assert_eq!(judge("always [madvise] never\n"), Level::Ok);
        assert_eq!(judge("[always] madvise never\n"), Level::Warn);
        assert_eq!(judge("always madvise [never]\n"), Level::Warn);
        assert_eq!(transparent(&Tree::new(&[])).level, Level::Ok);
        let judge = |text: &str, need| shared(&Tree::new(&[(SHARED_THP, text)]), need).level;
        assert_eq!(judge("always within_size [advise] never deny force\n", 1), Level::Ok);
        assert_eq!(judge("always within_size advise [never] deny force\n", 1), Level::Warn);
        assert_eq!(judge("always within_size advise never [deny] force\n", 1), Level::Warn);
        assert_eq!(judge("always within_size advise [never] deny force\n", 0), Level::Ok);
        assert_eq!(shared(&Tree::new(&[]), 1).level, Level::Ok);
    }

    #[test]
    fn kernel_settings_are_compared_with_the_shipped_file() {
        let levels = |tree: &Tree| sysctls(tree).iter().map(|check| check.level).collect::<Vec<_>>();
        let tree = Tree::new(&[("proc/sys/vm/swappiness", "60\n"), ("proc/sys/vm/dirty_ratio", "40\n")]);
        assert_eq!(levels(&tree), [Level::Warn, Level::Ok, Level::Ok, Level::Ok, Level::Ok]);
        let first = &sysctls(&tree)[0];
        assert_eq!((first.id.as_str(), first.found.as_str()), ("sysctl vm.swappiness", "60 instead of 1"));
        for setting in settings() {
            tree.write(&setting.file(), &setting.value.to_string());
        }
        assert_eq!(levels(&tree), [Level::Ok; 5]);
    }

    #[test]
    fn used_swap_is_a_warning() {
        let judge = |total: u64, free: u64| {
            let text = format!("SwapTotal: {total} kB\nSwapFree: {free} kB\n");
            swap(&Tree::new(&[("proc/meminfo", &text)])).level
        };
        assert_eq!(judge(0, 0), Level::Ok);
        assert_eq!(judge(8 << 20, 8 << 20), Level::Ok);
        assert_eq!(judge(8 << 20, 6 << 20), Level::Warn);
    }

    #[test]
    fn locked_memory_is_the_daemons_where_one_runs() {
        let limits =
            |value: &str| format!("Limit  Soft Limit  Hard Limit  Units\nMax locked memory  {value}  {value}  bytes\n");
        let tree = Tree::new(&[("proc/self/limits", &limits("8388608"))]);
        assert_eq!((locked(&tree).level, locked(&tree).found.as_str()), (Level::Warn, "8.00 MiB for this shell"));
        tree.write("proc/77/comm", "omni-inferd\n");
        tree.write("proc/77/limits", &limits("unlimited"));
        assert_eq!(locked(&tree), Check::ok("memlock", "unlimited for omni-inferd (pid 77)"));
        assert_eq!(locked(&Tree::new(&[])).level, Level::Ok);
    }

    #[test]
    fn control_groups_that_limit_memory_are_named() {
        let tree = Tree::new(&[("proc/meminfo", "MemTotal: 1048576 kB\nMemAvailable: 1000000 kB\n")]);
        assert_eq!(group(&tree).level, Level::Ok);
        tree.write("proc/self/cgroup", "0::/x\n");
        tree.write("sys/fs/cgroup/x/memory.max", "536870912\n");
        tree.write("sys/fs/cgroup/x/memory.current", "0\n");
        assert_eq!(group(&tree).found, "the control group leaves 512 MiB of 1.00 GiB");
        assert_eq!(group(&Tree::new(&[])).level, Level::Warn);
    }
}
