//! The whole of doctor on made-up hosts, and on a host where every file is missing or nonsense.

use super::*;
use crate::ctl::root::fixture::Tree;

fn plain() -> Output {
    Output { json: false, color: false }
}

#[test]
fn a_host_without_any_file_is_examined_to_the_end() {
    let tree = Tree::new(&[]);
    let checks = examine(&Facts::gather(tree.clone(), None));
    assert!(checks.len() >= 18, "{checks:?}");
    let ids: std::collections::BTreeSet<&str> = checks.iter().map(|check| check.id.as_str()).collect();
    assert_eq!(ids.len(), checks.len(), "each check has its own name");
    assert!(checks.iter().all(|check| check.level != Level::Fail), "{checks:?}");
}

#[test]
fn nonsense_in_every_file_is_no_panic() {
    let files = [
        "proc/meminfo",
        "proc/self/status",
        "proc/self/cgroup",
        "proc/self/limits",
        "proc/self/mountinfo",
        "proc/cpuinfo",
        "proc/version",
        "proc/1/cgroup",
        "proc/1/environ",
        "proc/driver/nvidia/version",
        "proc/sys/vm/swappiness",
        "sys/kernel/mm/transparent_hugepage/enabled",
        "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages",
        "sys/bus/pci/devices/0000:01:00.0/vendor",
        "sys/devices/system/cpu/online",
        "sys/devices/system/cpu/cpufreq/boost",
    ];
    for text in ["", "\0", "99999999999999999999999 kB", "[", "- - - : : :", "a b c d e f g h - i\n"] {
        let tree = Tree::new(&files.map(|file| (file, text)));
        tree.write("sys/bus/pci/devices/0000:02:00.0/vendor", "0x10de");
        tree.write("sys/bus/pci/devices/0000:02:00.0/class", "0x030200");
        tree.write("sys/bus/pci/devices/0000:02:00.0/current_link_speed", text);
        assert!(examine(&Facts::gather(tree.clone(), None)).len() >= 18);
    }
}

#[test]
fn a_wrong_configuration_fails_with_its_reasons() {
    let tree = Tree::new(&[("etc/omni-inferd/config.toml", "[daemon]\ngruop = \"x\"\n[[model]]\nid = \"a\"\n")]);
    let checks = examine(&Facts::gather(tree.clone(), None));
    let check = &checks[0];
    assert_eq!((check.id.as_str(), check.level), ("configuration", Level::Fail));
    assert!(check.found.contains("did you mean `group`?") && check.found.contains("path: is missing"), "{check:?}");
    assert!(!check.found.contains('\n'), "one line per check");
}

#[test]
fn models_are_bound_and_their_weights_counted() {
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/models/omni-stories-q8_0.gguf");
    let tree = Tree::new(&[("srv/bad.gguf", "no model")]);
    let bad = tree.path("srv/bad.gguf");
    let text = format!(
        "[[model]]\nid = \"good\"\npath = \"{model}\"\n[[model]]\nid = \"bad\"\npath = \"{}\"\n",
        bad.display()
    );
    tree.write("etc/omni-inferd/config.toml", &text);
    let facts = Facts::gather(tree.clone(), None);
    let checks = examine(&facts);
    let find = |id: &str| checks.iter().find(|check| check.id == id).unwrap();
    assert!(find("configuration").found.ends_with("valid, 2 models"));
    assert_eq!((find("model good").level, find("model bad").level), (Level::Ok, Level::Fail));
    assert!(find("model good").found.ends_with(" MiB of weights, loaded on demand"), "{:?}", find("model good"));
    assert!(
        checks.iter().any(|check| check.id == "disk good") && checks.iter().any(|check| check.id.starts_with("space "))
    );
}

#[test]
fn lines_say_what_why_and_what_to_do() {
    let checks =
        [Check::ok("swap", "none"), Check::warn("boost", "off", "slow", "echo 1 > x"), Check::fail("a", "b", "c", "d")];
    let wanted = "\
ok    swap   none
warn  boost  off; slow; do: echo 1 > x
fail  a      b; c; do: d
1 ok, 1 warning, 1 failed
";
    assert_eq!(lines(&checks, plain()), wanted);
    assert!(lines(&checks, Output { json: false, color: true }).contains("\u{1b}[33mwarn"));
}
