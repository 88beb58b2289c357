//! What NVIDIA's driver itself says through its `nvidia-smi`: the newest CUDA it serves, memory errors, persistence mode.
//! Reported, never set.

use super::{Check, Facts};
use crate::ctl::root::Root;
use std::path::Path;
use std::process::{Command, Stdio};

const ID: &str = "gpu-cuda";
/// What is asked for each GPU, in this order.
const QUERY: &str =
    "pci.bus_id,persistence_mode,ecc.errors.uncorrected.volatile.total,ecc.errors.corrected.volatile.total";

pub(super) fn checks(facts: &Facts) -> Vec<Check> {
    if !facts.root.exists(super::gpu::VERSION) || super::gpu::devices(&facts.root).is_empty() {
        return Vec::new();
    }
    let (head, gpus) = (
        ask(&facts.root, &["-q", "-d", "COMPUTE"]),
        ask(&facts.root, &[&format!("--query-gpu={QUERY}"), "--format=csv,noheader,nounits"]),
    );
    let mut checks = vec![cuda(head.as_deref())];
    checks.extend(gpus.iter().flat_map(|text| text.lines()).flat_map(gpu));
    checks
}

/// The program's output; `None` where there is no such program, it fails, or another host's files are looked at.
fn ask(root: &Root, arguments: &[&str]) -> Option<String> {
    if root.directory() != Path::new("/") {
        return None;
    }
    let mut command = Command::new("nvidia-smi");
    let output = command.args(arguments).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

fn cuda(text: Option<&str>) -> Check {
    let version = |line: &str| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == "CUDA Version").then(|| value.trim().to_owned())
    };
    match text.and_then(|text| text.lines().find_map(version)) {
        Some(version) => Check::ok(ID, format!("the driver serves CUDA {version}")),
        None => Check::warn(
            ID,
            "nvidia-smi does not answer",
            "CUDA version, memory errors and persistence mode are not known",
            "apt install the driver's utilities (nvidia-smi), then: nvidia-smi",
        ),
    }
}

/// A line of `QUERY`: memory errors and persistence mode of a GPU.
fn gpu(line: &str) -> Vec<Check> {
    let mut fields = line.split(',').map(str::trim);
    let (Some(bus), Some(persistence), Some(fatal), Some(mended)) =
        (fields.next(), fields.next(), fields.next(), fields.next())
    else {
        return Vec::new();
    };
    vec![errors(bus, fatal.parse().ok(), mended.parse().ok()), persists(bus, persistence)]
}

fn errors(bus: &str, fatal: Option<u64>, mended: Option<u64>) -> Check {
    let id = format!("gpu-ecc {bus}");
    match (fatal, mended) {
        (Some(0), Some(0)) => Check::ok(id, "no memory errors since the driver started"),
        (Some(0), Some(mended)) => {
            let why = "each was corrected; many of them announce others that are not";
            Check::warn(id, format!("{mended} corrected memory errors"), why, "nvidia-smi -q -d ECC,PAGE_RETIREMENT")
        }
        (Some(fatal), _) => Check::warn(
            id,
            format!("{fatal} memory errors that could not be corrected"),
            "what was computed with that memory is wrong, and programs that used it were ended",
            "nvidia-smi -q -d ECC,PAGE_RETIREMENT; nvidia-smi -r or a reboot retires the rows; else replace the card",
        ),
        (None, _) => Check::ok(id, "the card counts no memory errors"),
    }
}

fn persists(bus: &str, mode: &str) -> Check {
    let id = format!("gpu-persistence {bus}");
    if mode == "Disabled" {
        let why = "without it the driver forgets the GPU when its last user ends, and each start waits seconds for it";
        return Check::warn(id, "off", why, "systemctl enable --now nvidia-persistenced, or: nvidia-smi -pm 1");
    }
    Check::ok(id, if mode == "Enabled" { "on" } else { "not told" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::doctor::Level;

    #[test]
    fn the_newest_cuda_is_told() {
        let head = "\n==============NVSMI LOG==============\n\nDriver Version                            : 580.65.06\n\
            CUDA Version                              : 13.0\n\nAttached GPUs                             : 1\n";
        assert_eq!(cuda(Some(head)), Check::ok(ID, "the driver serves CUDA 13.0"));
        assert_eq!((cuda(Some("strange")).level, cuda(None).level), (Level::Warn, Level::Warn));
    }

    #[test]
    fn memory_errors_and_persistence_are_reported() {
        let judge = |line| gpu(line).into_iter().map(|check| (check.level, check.found)).collect::<Vec<_>>();
        let well = [(Level::Ok, "no memory errors since the driver started".into()), (Level::Ok, "on".into())];
        assert_eq!(judge("00000000:01:00.0, Enabled, 0, 0"), well);
        assert_eq!(judge("00000000:01:00.0, Enabled, 0, 7")[0], (Level::Warn, "7 corrected memory errors".into()));
        assert_eq!(judge("00000000:01:00.0, Enabled, 2, 7")[0].0, Level::Warn);
        let plain = judge("00000000:02:00.0, Disabled, [N/A], [N/A]");
        assert_eq!(plain[0], (Level::Ok, "the card counts no memory errors".into()));
        assert_eq!(plain[1], (Level::Warn, "off".into()));
        assert_eq!(judge("No devices were found"), []);
    }
}
