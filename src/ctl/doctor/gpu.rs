//! NVIDIA GPUs without asking CUDA: is there a driver, can the daemon open the devices, how fast are the links.

use super::{Check, Facts};
use crate::ctl::root::Root;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

const PCI: &str = "sys/bus/pci/devices";
pub(super) const VERSION: &str = "proc/driver/nvidia/version";

/// Groups that the packaged unit gives the daemon for devices.
const GROUPS: [&str; 2] = ["video", "render"];

/// A GPU's address on the bus.
pub(super) fn devices(root: &Root) -> Vec<String> {
    let is_gpu = |address: &String| {
        let text = |file: &str| root.text(format!("{PCI}/{address}/{file}")).unwrap_or_default();
        // Display (0x0300) and 3D (0x0302) controllers; the same card's sound device is none.
        text("vendor") == "0x10de" && text("class").starts_with("0x03")
    };
    root.names(PCI).into_iter().filter(is_gpu).collect()
}

pub(super) fn checks(facts: &Facts) -> Vec<Check> {
    let root = &facts.root;
    let devices = devices(root);
    let mut checks = vec![driver(root, &devices)];
    if root.exists(VERSION) && !devices.is_empty() {
        checks.push(nodes(root, devices.len(), &group_of));
    }
    checks.extend(devices.iter().map(|device| link(root, device)));
    checks
}

fn driver(root: &Root, devices: &[String]) -> Check {
    const ID: &str = "gpu-driver";
    if let Some(version) = root.text(VERSION) {
        let words = version.lines().next().unwrap_or_default().split_whitespace();
        let number =
            words.into_iter().find(|word| word.contains('.') && word.bytes().all(|b| b.is_ascii_digit() || b == b'.'));
        let number = number.unwrap_or("of unknown version");
        return match devices.len() {
            0 => Check::warn(
                ID,
                format!("NVIDIA {number}, but no GPU on the bus"),
                "models run on the CPU",
                "lspci -d 10de:",
            ),
            1 => Check::ok(ID, format!("NVIDIA {number}, 1 GPU")),
            count => Check::ok(ID, format!("NVIDIA {number}, {count} GPUs")),
        };
    }
    if devices.is_empty() {
        return Check::ok(ID, "no GPU: CPU only");
    }
    let held: Vec<String> = devices
        .iter()
        .map(|device| match root.link(format!("{PCI}/{device}/driver")) {
            Some(driver) => format!("{device} held by {driver}"),
            None => format!("{device} without a driver"),
        })
        .collect();
    let why = "without NVIDIA's driver models run on the CPU";
    let remedy = "apt install nvidia-driver (Ubuntu: ubuntu-drivers install), then reboot";
    Check::warn(ID, held.join(", "), why, remedy)
}

/// Name of a group, by number.
fn group_of(gid: u32) -> Option<String> {
    nix::unistd::Group::from_gid(nix::unistd::Gid::from_raw(gid)).ok().flatten().map(|group| group.name)
}

fn nodes(root: &Root, count: usize, group_of: &dyn Fn(u32) -> Option<String>) -> Check {
    const ID: &str = "gpu-devices";
    let files: Vec<String> = ["nvidiactl".to_string(), "nvidia-uvm".to_string()]
        .into_iter()
        .chain((0..count).map(|index| format!("nvidia{index}")))
        .collect();
    let missing: Vec<&str> =
        files.iter().filter(|file| !root.exists(format!("dev/{file}"))).map(String::as_str).collect();
    if !missing.is_empty() {
        let why = "CUDA opens them all, and the daemon may not create them";
        return Check::warn(ID, format!("missing in /dev: {}", missing.join(", ")), why, "nvidia-modprobe -c 0 -u");
    }
    for file in &files {
        let Ok(metadata) = root.path(format!("dev/{file}")).metadata() else { continue };
        let group = group_of(metadata.gid()).unwrap_or_else(|| metadata.gid().to_string());
        let by_group = metadata.mode() & 0o060 == 0o060 && GROUPS.contains(&group.as_str());
        if metadata.mode() & 0o006 != 0o006 && !by_group {
            let found = format!("/dev/{file} is for group {group}, mode {:o}", metadata.mode() & 0o777);
            let remedy = format!("systemctl edit omni-inferd, and add: SupplementaryGroups={group}");
            return Check::warn(ID, found, "the daemon is in the groups video and render only", remedy);
        }
    }
    Check::ok(ID, format!("{} nodes in /dev, open to the daemon", files.len()))
}

/// Generation and lanes of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Link {
    generation: u32,
    width: u32,
}

impl Link {
    fn read(directory: &Path, when: &str) -> Option<Link> {
        let text = |what: &str| std::fs::read_to_string(directory.join(format!("{when}_link_{what}"))).ok();
        let speed: f64 = text("speed")?.split_whitespace().next()?.parse().ok()?;
        let generation = [2.5, 5.0, 8.0, 16.0, 32.0, 64.0].iter().position(|rate| *rate == speed)? as u32 + 1;
        let width = text("width")?.trim().parse().ok()?;
        Some(Link { generation, width })
    }
}

impl std::fmt::Display for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Gen {} x{}", self.generation, self.width)
    }
}

fn link(root: &Root, device: &str) -> Check {
    let id = format!("pcie {device}");
    let directory: PathBuf = root.path(format!("{PCI}/{device}"));
    let directory = directory.canonicalize().unwrap_or(directory);
    let (Some(now), Some(own)) = (Link::read(&directory, "current"), Link::read(&directory, "max")) else {
        return Check::ok(id, "the link's speed is not told");
    };
    // The slot may offer less than the card wants.
    let slot = directory.parent().and_then(|port| Link::read(port, "max")).unwrap_or(own);
    let possible = Link { generation: own.generation.min(slot.generation), width: own.width.min(slot.width) };
    let limited = if possible == own { String::new() } else { format!(", the card itself could do {own}") };
    let found = format!("{now} now, {possible} possible{limited}");
    if now.width < possible.width {
        let why = "fewer lanes: loading and every hop between CPU and GPU take longer";
        return Check::warn(id, found, why, "reseat the card, check riser and slot; firmware: bifurcation");
    }
    if now.generation < possible.generation {
        let why = "an idle GPU slows its link to save power; under load this would cost bandwidth";
        let remedy =
            format!("look again under load: cat /{PCI}/{device}/current_link_speed; firmware: PCIe generation");
        return Check::warn(id, found, why, remedy);
    }
    if possible != own {
        return Check::warn(
            id,
            found,
            "the slot or the firmware limits the card",
            "use a faster slot; firmware: PCIe generation of the slot",
        );
    }
    Check::ok(id, found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::doctor::Level;
    use crate::ctl::root::fixture::Tree;
    use std::os::unix::fs::PermissionsExt;

    const CARD: &str = "0000:01:00.0";
    const NVRM: &str =
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\nGCC version: 13.2\n";

    fn host(gpus: usize) -> Tree {
        let tree = Tree::new(&[("sys/bus/pci/devices/0000:00:1f.0/vendor", "0x8086\n")]);
        for bus in 1..=gpus {
            tree.write(&format!("{PCI}/0000:0{bus}:00.0/vendor"), "0x10de\n");
            tree.write(&format!("{PCI}/0000:0{bus}:00.0/class"), "0x030000\n");
            tree.write(&format!("{PCI}/0000:0{bus}:00.1/vendor"), "0x10de\n");
            tree.write(&format!("{PCI}/0000:0{bus}:00.1/class"), "0x040300\n");
        }
        tree
    }

    #[test]
    fn drivers_and_their_absence() {
        let judge = |tree: &Tree| {
            let check = driver(tree, &devices(tree));
            (check.level, check.found)
        };
        assert_eq!(judge(&host(0)), (Level::Ok, "no GPU: CPU only".into()));
        let tree = host(2);
        assert_eq!(judge(&tree), (Level::Warn, "0000:01:00.0 without a driver, 0000:02:00.0 without a driver".into()));
        tree.symlink(&format!("{PCI}/{CARD}/driver"), "sys/bus/pci/drivers/nouveau");
        assert!(judge(&tree).1.starts_with("0000:01:00.0 held by nouveau"));
        tree.write(VERSION, NVRM);
        assert_eq!(judge(&tree), (Level::Ok, "NVIDIA 580.65.06, 2 GPUs".into()));
        assert_eq!(judge(&Tree::new(&[(VERSION, "strange")])).0, Level::Warn);
    }

    #[test]
    fn device_nodes_are_there_and_open() {
        let tree = host(1);
        let judge = |group: &'static str| nodes(&tree, 1, &move |_| Some(group.into()));
        assert_eq!(judge("root").found, "missing in /dev: nvidiactl, nvidia-uvm, nvidia0");
        for file in ["nvidiactl", "nvidia-uvm", "nvidia0"] {
            tree.write(&format!("dev/{file}"), "");
            std::fs::set_permissions(tree.path(format!("dev/{file}")), PermissionsExt::from_mode(0o666)).unwrap();
        }
        assert_eq!(judge("root"), Check::ok("gpu-devices", "3 nodes in /dev, open to the daemon"));
        std::fs::set_permissions(tree.path("dev/nvidia0"), PermissionsExt::from_mode(0o660)).unwrap();
        assert_eq!(judge("render").level, Level::Ok);
        let closed = judge("vglusers");
        assert_eq!(
            (closed.level, closed.found.as_str()),
            (Level::Warn, "/dev/nvidia0 is for group vglusers, mode 660")
        );
    }

    #[test]
    fn links_below_what_is_possible_are_named() {
        let judge = |now: (&str, &str), own: (&str, &str), slot: (&str, &str)| {
            let tree = host(0);
            let port = "sys/devices/pci0000:00/0000:00:01.0";
            for (directory, when, (speed, width)) in [
                (format!("{port}/{CARD}"), "current", now),
                (format!("{port}/{CARD}"), "max", own),
                (port.into(), "max", slot),
            ] {
                tree.write(&format!("{directory}/{when}_link_speed"), &format!("{speed} GT/s PCIe\n"));
                tree.write(&format!("{directory}/{when}_link_width"), &format!("{width}\n"));
            }
            tree.symlink(&format!("{PCI}/{CARD}"), &format!("{port}/{CARD}"));
            let check = link(&tree, CARD);
            (check.level, check.found)
        };
        let full = ("32.0", "16");
        assert_eq!(judge(full, full, full), (Level::Ok, "Gen 5 x16 now, Gen 5 x16 possible".into()));
        assert_eq!(judge(("32.0", "8"), full, full), (Level::Warn, "Gen 5 x8 now, Gen 5 x16 possible".into()));
        assert_eq!(judge(("2.5", "16"), full, full).1, "Gen 1 x16 now, Gen 5 x16 possible");
        let forced = judge(("16.0", "16"), full, ("16.0", "16"));
        assert_eq!(
            forced,
            (Level::Warn, "Gen 4 x16 now, Gen 4 x16 possible, the card itself could do Gen 5 x16".into())
        );
        assert_eq!(link(&host(1), CARD).level, Level::Ok, "a virtual GPU tells nothing");
        assert_eq!(judge(("Unknown", "0"), full, full).0, Level::Ok);
    }
}
