//! How fast the disks of the model files are, and how much room is left.

use super::{Check, Facts};
use crate::ctl::output::bytes;
use crate::ctl::root::Root;
use nix::sys::statvfs::statvfs;
use std::path::{Path, PathBuf};

/// File systems that live on another machine.
const NETWORK: [&str; 12] = [
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "ceph",
    "fuse.ceph",
    "fuse.sshfs",
    "fuse.glusterfs",
    "fuse.rclone",
    "lustre",
    "afs",
    "9p",
];

/// Room that logs, downloads and upgrades need.
const LITTLE: u64 = 1 << 30;
const NOTHING: u64 = 16 << 20;

/// Mapped devices are followed so deep (a volume on an encrypted partition on a RAID).
const DEPTH: usize = 5;

pub(super) fn checks(facts: &Facts) -> Vec<Check> {
    let mut checks = Vec::new();
    for model in facts.models() {
        let path = std::fs::canonicalize(&model.path).unwrap_or_else(|_| model.path.clone());
        checks.push(disk(&facts.root, &model.id, &path));
    }
    let mut places: Vec<PathBuf> = vec![facts.root.directory().to_path_buf()];
    places.extend(facts.models().iter().filter_map(|model| model.path.parent().map(Path::to_path_buf)));
    places.dedup();
    checks.extend(places.iter().filter_map(|place| {
        let room = statvfs(place).ok()?;
        Some(space(place, room.blocks_available() * room.fragment_size(), room.blocks() * room.fragment_size()))
    }));
    checks
}

fn space(place: &Path, free: u64, total: u64) -> Check {
    let id = format!("space {}", place.display());
    let found = format!("{} of {} free", bytes(free), bytes(total));
    let remedy = format!("du -xh --max-depth=2 {} | sort -h | tail", place.display());
    if free < NOTHING && total > 0 {
        return Check::fail(id, found, "logs and sockets can no longer be written", remedy);
    }
    if free < LITTLE {
        return Check::warn(id, found, "logs, downloads and upgrades need room", remedy);
    }
    Check::ok(id, found)
}

/// What a file lies on.
struct Mount {
    device: String,
    kind: String,
    source: String,
}

fn disk(root: &Root, id: &str, path: &Path) -> Check {
    let id = format!("disk {id}");
    if path.starts_with("/home") || path.starts_with("/root") {
        let why = "the packaged unit hides home directories from the daemon (ProtectHome)";
        return Check::warn(id, path.display().to_string(), why, format!("mv {} /srv/models/", path.display()));
    }
    let Some(mount) = mount_of(root, path) else {
        return Check::ok(id, "the kernel does not tell what it lies on");
    };
    let copy = "copy the model to a local NVMe disk";
    if NETWORK.contains(&mount.kind.as_str()) {
        let why = "a load takes as long as the network needs, and a broken connection ends it";
        return Check::warn(id, format!("{} from {}", mount.kind, mount.source), why, copy);
    }
    if ["tmpfs", "ramfs"].contains(&mount.kind.as_str()) {
        let why = "the file takes the memory that its weights need, too";
        return Check::warn(id, mount.kind, why, copy);
    }
    class(root, &id, &mount).unwrap_or_else(|| Check::ok(id, format!("{} on {}", mount.kind, mount.source)))
}

fn class(root: &Root, id: &str, mount: &Mount) -> Option<Check> {
    let by_number = format!("sys/dev/block/{}", mount.device);
    let by_name = || format!("sys/class/block/{}", mount.source.rsplit('/').next().unwrap_or_default());
    // Btrfs and ZFS have no device number of their own.
    let device = if root.exists(&by_number) { by_number } else { by_name() };
    let disks = disks(root, &root.path(&device).canonicalize().ok()?, DEPTH);
    let names = disks.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
    if disks.is_empty() {
        return None;
    }
    if disks.iter().any(|(name, rotates)| *rotates && !name.starts_with("vd")) {
        let why = "a turning disk reads some 0.2 GB/s: half an hour for a model of 377 GB";
        return Some(Check::warn(id, format!("turning disk ({names})"), why, "copy the model to an NVMe disk"));
    }
    let kind = match disks.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>() {
        names if names.iter().all(|name| name.starts_with("nvme")) => "NVMe",
        names if names.iter().all(|name| name.starts_with("vd") || name.starts_with("xvd")) => "virtual disk",
        _ => "solid state, not NVMe: some 0.5 GB/s on SATA",
    };
    Some(Check::ok(id, format!("{kind} ({names}, {})", mount.kind)))
}

/// Whole disks below a block device with whether they turn: a partition's disk, the members of a mapped device.
fn disks(root: &Root, device: &Path, depth: usize) -> Vec<(String, bool)> {
    let slaves = root.names(device.join("slaves").strip_prefix(root.directory()).unwrap_or(device));
    if depth > 0 && !slaves.is_empty() {
        let member = |name: String| device.join("slaves").join(name).canonicalize().ok();
        return slaves.into_iter().filter_map(member).flat_map(|member| disks(root, &member, depth - 1)).collect();
    }
    let whole = if device.join("partition").exists() { device.parent().unwrap_or(device) } else { device };
    let rotates = std::fs::read_to_string(whole.join("queue/rotational"));
    let name = whole.file_name().map(|name| name.to_string_lossy().into_owned());
    name.zip(rotates.ok()).map(|(name, text)| (name, text.trim() == "1")).into_iter().collect()
}

/// The mount with the longest matching path; of several over each other the last.
fn mount_of(root: &Root, path: &Path) -> Option<Mount> {
    let text = root.text("proc/self/mountinfo")?;
    let mut best: Option<(usize, Mount)> = None;
    for line in text.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let (left, right): (Vec<&str>, Vec<&str>) = (left.split(' ').collect(), right.split(' ').collect());
        let (Some(device), Some(point), [kind, source, ..]) = (left.get(2), left.get(4), right.as_slice()) else {
            continue;
        };
        let point = unescape(point);
        if path.starts_with(&point) && best.as_ref().is_none_or(|(length, _)| point.len() >= *length) {
            let mount = Mount { device: (*device).into(), kind: (*kind).into(), source: (*source).into() };
            best = Some((point.len(), mount));
        }
    }
    best.map(|(_, mount)| mount)
}

/// Blanks and backslashes in mountinfo are octal.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::doctor::Level;
    use crate::ctl::root::fixture::Tree;

    const MOUNTS: &str = "\
22 1 259:2 / / rw - ext4 /dev/nvme0n1p2 rw
23 22 8:1 / /srv rw - xfs /dev/sda1 rw
24 22 0:50 / /srv/my\\040nfs rw - nfs4 box:/models rw
25 22 0:51 / /dev/shm rw - tmpfs tmpfs rw
26 22 253:0 / /data rw - ext4 /dev/mapper/data rw
27 22 0:52 / /pool rw - btrfs /dev/sdb rw
28 22 252:0 / /guest rw - ext4 /dev/vda rw
";

    fn host() -> Tree {
        let tree = Tree::new(&[("proc/self/mountinfo", MOUNTS)]);
        for (name, rotational) in [("nvme0n1", "0"), ("nvme1n1", "0"), ("sda", "1\n"), ("sdb", "0"), ("vda", "1")] {
            tree.write(&format!("sys/devices/x/{name}/queue/rotational"), rotational);
        }
        tree.write("sys/devices/x/nvme0n1/nvme0n1p2/partition", "2");
        tree.write("sys/devices/x/sda/sda1/partition", "1");
        tree.symlink("sys/dev/block/259:2", "sys/devices/x/nvme0n1/nvme0n1p2");
        tree.symlink("sys/dev/block/8:1", "sys/devices/x/sda/sda1");
        tree.symlink("sys/dev/block/252:0", "sys/devices/x/vda");
        tree.symlink("sys/class/block/sdb", "sys/devices/x/sdb");
        tree.symlink("sys/devices/virtual/dm-0/slaves/nvme0n1", "sys/devices/x/nvme0n1");
        tree.symlink("sys/devices/virtual/dm-0/slaves/nvme1n1", "sys/devices/x/nvme1n1");
        tree.symlink("sys/dev/block/253:0", "sys/devices/virtual/dm-0");
        tree
    }

    #[test]
    fn disks_are_told_by_speed() {
        let tree = host();
        for (path, level, found) in [
            ("/models/a.gguf", Level::Ok, "NVMe (nvme0n1, ext4)"),
            ("/srv/a.gguf", Level::Warn, "turning disk (sda)"),
            ("/srv/my nfs/a.gguf", Level::Warn, "nfs4 from box:/models"),
            ("/dev/shm/a.gguf", Level::Warn, "tmpfs"),
            ("/data/a.gguf", Level::Ok, "NVMe (nvme0n1, nvme1n1, ext4)"),
            ("/pool/a.gguf", Level::Ok, "solid state, not NVMe: some 0.5 GB/s on SATA (sdb, btrfs)"),
            ("/guest/a.gguf", Level::Ok, "virtual disk (vda, ext4)"),
            ("/home/me/a.gguf", Level::Warn, "/home/me/a.gguf"),
        ] {
            let check = disk(&tree, "m", Path::new(path));
            assert_eq!((check.id.as_str(), check.level, check.found.as_str()), ("disk m", level, found), "{path}");
        }
        assert_eq!(disk(&Tree::new(&[]), "m", Path::new("/x")).level, Level::Ok);
        let bare = Tree::new(&[("proc/self/mountinfo", MOUNTS)]);
        assert_eq!(disk(&bare, "m", Path::new("/x")).found, "ext4 on /dev/nvme0n1p2");
    }

    #[test]
    fn little_room_is_a_warning_and_none_a_failure() {
        let level = |free| space(Path::new("/srv"), free, 1 << 40).level;
        assert_eq!([level(1 << 39), level(100 << 20), level(0)], [Level::Ok, Level::Warn, Level::Fail]);
    }
}
