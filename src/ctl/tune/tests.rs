//! Plans for made-up hosts; applying and rolling back on trees of files.

use super::plan::{Action, DROP_IN};
use super::*;
use crate::ctl::root::fixture::Tree;
use crate::ctl::weights::Need;

const THP: &str = "sys/kernel/mm/transparent_hugepage/enabled";
const SHARED: &str = "sys/kernel/mm/transparent_hugepage/shmem_enabled";
const PAGES: &str = "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
const UNIT: &str = "usr/lib/systemd/system/omni-inferd-thp.service";
const LINK: &str = "etc/systemd/system/multi-user.target.wants/omni-inferd-thp.service";

fn host() -> Tree {
    Tree::new(&[
        ("proc/sys/vm/swappiness", "60\n"),
        ("proc/sys/vm/dirty_ratio", "40\n"),
        ("proc/meminfo", "MemTotal: 67108864 kB\n"),
        (THP, "[always] madvise never\n"),
        (SHARED, "always within_size advise [never] deny force\n"),
        (PAGES, "0\n"),
        (UNIT, ""),
    ])
}

fn need(id: &str, bytes: u64, preload: bool) -> Need {
    Need { id: id.into(), path: "/srv/m.gguf".into(), preload, bytes: Ok(bytes) }
}

fn changed(plan: &Plan) -> Vec<(&str, &str, &str)> {
    plan.changes.iter().map(|change| (change.what.as_str(), change.from.as_str(), change.to.as_str())).collect()
}

#[test]
fn only_what_differs_changes() {
    let tree = host();
    let plan = Plan::new(&tree, &[], PageSize::None);
    let wanted = [
        ("vm.swappiness", "60", "1"),
        ("transparent huge pages", "always", "madvise"),
        ("transparent huge pages of shared memory", "never", "advise"),
        ("omni-inferd-thp.service", "disabled", "enabled"),
        ("/etc/sysctl.d/60-omni-inferd.conf", "absent", "these settings"),
    ];
    assert_eq!(changed(&plan), wanted);
    assert!(plan.changes.iter().all(|change| !change.why.is_empty()));
    assert_eq!(tree.text("proc/sys/vm/swappiness").unwrap(), "60", "a plan changes nothing");
    std::fs::remove_file(tree.path(UNIT)).unwrap();
    assert!(Plan::new(&tree, &[], PageSize::None).notes[0].contains("is not installed"));
    assert_eq!(changed(&Plan::new(&Tree::new(&[]), &[], PageSize::None)).len(), 1, "only the drop-in without any file");
}

#[test]
fn huge_pages_follow_the_models() {
    let tree = host();
    let pages = |needs: &[Need], size| {
        let plan = Plan::new(&tree, needs, size);
        let change = plan.changes.iter().find(|change| change.file == PAGES);
        (change.map(|change| change.to.clone()), plan.notes.join("\n"), plan)
    };
    let two = [need("a", (4 << 30) + 1, true), need("b", 1 << 30, false)];
    let (count, notes, plan) = pages(&two, PageSize::Mega2);
    assert_eq!((count.as_deref(), notes.as_str()), (Some("2561"), ""), "each model rounded up");
    let drop_in = &plan.changes.iter().find(|change| change.action == Action::Write).unwrap().value;
    assert!(drop_in.contains("vm.swappiness = 1\n") && drop_in.ends_with("\nvm.nr_hugepages = 2561\n"), "{drop_in}");
    assert_eq!(pages(&two, PageSize::None).0, None);

    let (count, notes, _) = pages(&[need("a", 10 << 30, true), need("b", 60 << 30, false)], PageSize::Mega2);
    assert!(count.as_deref() == Some("5120") && notes.contains("only for the models loaded at start"), "{notes}");
    let (count, notes, _) = pages(&[need("a", 64 << 30, true)], PageSize::Mega2);
    assert!(count.is_none() && notes.contains("do not fit into nine tenths of 64.0 GiB"), "{notes}");
    let broken = Need { bytes: Err("no GGUF".into()), ..need("x", 0, true) };
    assert!(pages(&[broken], PageSize::Mega2).1.contains("x is not counted: no GGUF"));
}

#[test]
fn one_gib_pages_come_with_the_kernels_command_line() {
    let tree = host();
    let needs = [need("a", (4 << 30) + (5 << 20), true), need("b", (3 << 30) + 1, true)];
    let plan = Plan::new(&tree, &needs, PageSize::Giga1);
    assert!(plan.notes[0].contains("has none of 1 GiB"), "{:?}", plan.notes);
    tree.write("sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages", "0");
    let plan = Plan::new(&tree, &needs, PageSize::Giga1);
    assert!(plan.notes[0].starts_with("needs a reboot") && plan.notes[0].contains("hugepagesz=1G hugepages=7"));
    assert!(changed(&plan).contains(&("huge pages of 2 MiB", "0", "4")), "the rest: {:?}", changed(&plan));
    tree.write("sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages", "7");
    assert_eq!(Plan::new(&tree, &needs, PageSize::Giga1).notes, Vec::<String>::new());
}

#[test]
fn applied_twice_and_rolled_back_everything_is_as_before() {
    let tree = host();
    tree.write(DROP_IN, "# the operator's own\nvm.swappiness = 60\n");
    let needs = [need("a", 4 << 30, true)];
    let plan = Plan::new(&tree, &needs, PageSize::Mega2);
    assert_eq!(state::apply(&tree, &plan).unwrap(), Vec::<String>::new());
    assert_eq!((tree.text("proc/sys/vm/swappiness").unwrap(), tree.text(PAGES).unwrap()), ("1".into(), "2048".into()));
    assert_eq!(
        (tree.text(THP).unwrap().as_str(), tree.link(LINK).as_deref()),
        ("madvise", Some("omni-inferd-thp.service"))
    );
    // The kernel would show all modes.
    tree.write(THP, "always [madvise] never\n");
    tree.write(SHARED, "always within_size [advise] never deny force\n");
    assert_eq!(Plan::new(&tree, &needs, PageSize::Mega2).changes, [], "nothing is left to change");

    tree.write("proc/sys/vm/swappiness", "30");
    let second = Plan::new(&tree, &[need("a", 2 << 30, true)], PageSize::Mega2);
    state::apply(&tree, &second).unwrap();
    assert_eq!((tree.text("proc/sys/vm/swappiness").unwrap(), tree.text(PAGES).unwrap()), ("1".into(), "1024".into()));

    assert_eq!(state::rollback(&tree).unwrap().len(), 6);
    assert_eq!((tree.text("proc/sys/vm/swappiness").unwrap(), tree.text(PAGES).unwrap()), ("60".into(), "0".into()));
    assert_eq!((tree.text(THP).unwrap().as_str(), tree.link(LINK)), ("always", None));
    assert!(tree.text(DROP_IN).unwrap().starts_with("# the operator's own"));
    assert!(!tree.exists(state::SAVED));
    assert_eq!(state::rollback(&tree).unwrap(), Vec::<String>::new());
}

#[test]
fn what_was_is_written_down_before_anything_changes() {
    let tree = host();
    // A directory in the way of the state file.
    std::fs::create_dir_all(tree.path(state::SAVED).join("x")).unwrap();
    let plan = Plan::new(&tree, &[], PageSize::None);
    assert!(state::apply(&tree, &plan).is_err());
    assert_eq!(tree.text("proc/sys/vm/swappiness").unwrap(), "60");
    assert!(!tree.exists(DROP_IN));
}

#[test]
fn what_cannot_be_set_is_told_and_the_rest_is_changed() {
    let tree = host();
    let mut plan = Plan::new(&tree, &[], PageSize::None);
    plan.changes[0].file = "proc/sys/vm/absent/value".into();
    let failed = state::apply(&tree, &plan).unwrap();
    assert!(failed.len() == 1 && failed[0].starts_with("vm.swappiness stays at 60: "), "{failed:?}");
    assert_eq!(tree.text(THP).unwrap(), "madvise");
    let error = state::rollback(&tree).unwrap_err().to_string();
    assert!(error.starts_with("not restored: vm.swappiness") && tree.exists(state::SAVED), "{error}");
    tree.write(state::SAVED, "{");
    assert!(state::rollback(&tree).unwrap_err().to_string().contains("is damaged"));
}
