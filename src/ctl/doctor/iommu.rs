//! What stands between two GPUs that copy to each other: an IOMMU that translates, and bridges that send everything up
//! to the root (ACS). Of no concern with one GPU or none.

use super::{Check, Facts, gpu};
use crate::ctl::root::Root;
use std::collections::BTreeSet;
use std::path::Path;

/// Where extended capabilities begin in a device's configuration space (PCIe base specification, 7.6).
const EXTENDED: usize = 0x100;
/// Access Control Services, and the bits of its control register that redirect peer-to-peer requests and completions.
const ACS: u16 = 0x000d;
const ACS_CONTROL: usize = 6;
const REDIRECT: u16 = 0b1100;

pub(super) fn checks(facts: &Facts) -> Vec<Check> {
    let devices = gpu::devices(&facts.root);
    vec![iommu(&facts.root, &devices), acs(&facts.root, &devices)]
}

fn iommu(root: &Root, devices: &[String]) -> Check {
    const ID: &str = "iommu";
    let kinds: BTreeSet<String> = devices
        .iter()
        .filter_map(|device| root.text(format!("sys/bus/pci/devices/{device}/iommu_group/type")))
        .collect();
    let found = match kinds.len() {
        0 if root.names("sys/class/iommu").is_empty() => "off".to_string(),
        0 => "on".to_string(),
        _ => format!("on: {}", kinds.iter().cloned().collect::<Vec<_>>().join(", ")),
    };
    if devices.len() < 2 || !kinds.iter().any(|kind| kind.starts_with("DMA")) {
        return Check::ok(ID, found);
    }
    let why = "addresses are translated for each copy between GPUs";
    Check::warn(ID, found, why, "add iommu=pt to GRUB_CMDLINE_LINUX in /etc/default/grub, then: update-grub && reboot")
}

fn acs(root: &Root, devices: &[String]) -> Check {
    const ID: &str = "acs";
    if devices.len() < 2 {
        return Check::ok(ID, "of no concern: fewer than two GPUs");
    }
    let mut bridges = BTreeSet::new();
    for device in devices {
        let Ok(path) = root.path(format!("sys/bus/pci/devices/{device}")).canonicalize() else { continue };
        let above = path.ancestors().skip(1).take_while(|directory| directory.join("config").exists());
        bridges.extend(above.map(Path::to_path_buf));
    }
    let mut redirecting = Vec::new();
    let mut unread = false;
    for bridge in &bridges {
        let bytes = std::fs::read(bridge.join("config")).unwrap_or_default();
        // Only root may read beyond the header.
        unread |= bytes.len() <= EXTENDED;
        if acs_control(&bytes).is_some_and(|control| control & REDIRECT != 0) {
            redirecting.extend(bridge.file_name().map(|name| name.to_string_lossy().into_owned()));
        }
    }
    if let Some(first) = redirecting.first() {
        let why = "copies between GPUs go up to the root complex instead of straight across the switch";
        let remedy =
            format!("setpci -s {first} ECAP_ACS+6.w=0000, or ACS off in the firmware; keep it where VMs share devices");
        return Check::warn(ID, format!("redirects at {}", redirecting.join(", ")), why, remedy);
    }
    if unread && !bridges.is_empty() {
        return Check::ok(ID, "not readable: run omnictl doctor as root to see");
    }
    Check::ok(ID, format!("no redirection at {} bridges", bridges.len()))
}

/// The ACS control register of a device's configuration space, where it has one.
fn acs_control(config: &[u8]) -> Option<u16> {
    let word = |at: usize| Some(u16::from_le_bytes([*config.get(at)?, *config.get(at + 1)?]));
    let mut at = EXTENDED;
    // Capabilities are a list within 4 KiB, at least 8 bytes each; a broken list may be a ring.
    for _ in 0..480 {
        let (id, rest) = (word(at)?, word(at + 2)?);
        if id == ACS {
            return word(at + ACS_CONTROL);
        }
        at = usize::from(rest >> 4);
        if at < EXTENDED {
            return None;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::doctor::Level;
    use crate::ctl::root::fixture::Tree;

    const TWO: [&str; 2] = ["0000:01:00.0", "0000:02:00.0"];

    fn names(devices: &[&str]) -> Vec<String> {
        devices.iter().map(|device| (*device).to_string()).collect()
    }

    /// Two extended capabilities: advanced errors (1), then ACS with this control register.
    fn config(control: u16) -> Vec<u8> {
        let mut bytes = vec![0; 4096];
        bytes[0x100..0x104].copy_from_slice(&(0x0001u32 | 1 << 16 | 0x140 << 20).to_le_bytes());
        bytes[0x140..0x144].copy_from_slice(&(u32::from(ACS) | 1 << 16).to_le_bytes());
        bytes[0x146..0x148].copy_from_slice(&control.to_le_bytes());
        bytes
    }

    #[test]
    fn translation_matters_to_several_gpus() {
        let tree = Tree::new(&[("sys/class/iommu/dmar0/x", "")]);
        for device in TWO {
            tree.write(&format!("sys/bus/pci/devices/{device}/iommu_group/type"), "DMA-FQ\n");
        }
        assert_eq!(iommu(&tree, &names(&TWO[..1])), Check::ok("iommu", "on: DMA-FQ"));
        assert_eq!(iommu(&tree, &names(&TWO)).level, Level::Warn);
        for device in TWO {
            tree.write(&format!("sys/bus/pci/devices/{device}/iommu_group/type"), "identity\n");
        }
        assert_eq!(iommu(&tree, &names(&TWO)).level, Level::Ok);
        assert_eq!(iommu(&Tree::new(&[]), &[]), Check::ok("iommu", "off"));
    }

    #[test]
    fn redirecting_bridges_are_found() {
        let judge = |bytes: &[u8]| {
            let tree = Tree::new(&[]);
            let port = "sys/devices/pci0000:00/0000:00:01.0";
            for device in TWO {
                tree.symlink(&format!("sys/bus/pci/devices/{device}"), &format!("{port}/{device}"));
            }
            std::fs::write(tree.path(port).join("config"), bytes).unwrap();
            acs(&tree, &names(&TWO))
        };
        assert_eq!(judge(&config(0b1100)).found, "redirects at 0000:00:01.0");
        assert_eq!(judge(&config(0b0001)), Check::ok("acs", "no redirection at 1 bridges"));
        assert!(judge(&[0; 64]).found.starts_with("not readable"), "an ordinary user sees the header only");
        assert_eq!(acs(&Tree::new(&[]), &names(&TWO[..1])).level, Level::Ok);
    }

    #[test]
    fn broken_capability_lists_end() {
        let mut ring = vec![0; 4096];
        ring[0x100..0x104].copy_from_slice(&(0x0001u32 | 0x100 << 20).to_le_bytes());
        assert_eq!(acs_control(&ring), None);
        assert_eq!(acs_control(&[]), None);
        assert_eq!(acs_control(&config(7)[..0x147]), None);
        assert_eq!(acs_control(&config(7)), Some(7));
    }
}
