//! What a host has, as the planner sees it: memory and rates of its CPU and of each GPU, and the links between them. From
//! a TOML file (`omnictl plan --host`), whose keys carry their units, or from the host at hand. Pure: no file is read here.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Where bytes live and work is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Device {
    /// The host's memory and its cores.
    #[default]
    Cpu,
    /// A GPU, by its number from 0 in [`Host::gpus`].
    Gpu(usize),
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Gpu(number) => write!(f, "gpu{number}"),
        }
    }
}

impl std::str::FromStr for Device {
    type Err = String;

    /// `cpu`, or `gpu` and a number.
    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.strip_prefix("gpu").filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()));
        match (text, number.map(str::parse)) {
            ("cpu", _) => Ok(Device::Cpu),
            (_, Some(Ok(number))) => Ok(Device::Gpu(number)),
            _ => Err(format!("\"{text}\" is no device; write cpu, gpu0, gpu1, …")),
        }
    }
}

impl Serialize for Device {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What a device can do at most, as probed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Rates {
    /// Bytes per second that it reads from its memory.
    pub read: f64,
    /// Multiplications and additions of int8 numbers per second.
    pub ops: f64,
}

/// A GPU.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Gpu {
    /// Its name, for people.
    pub name: String,
    /// Bytes of memory that are free before anything is loaded.
    pub free: u64,
    /// Bytes that are never planned for: 10–15% of the memory, or what was configured.
    pub reserve: u64,
    /// Bytes that a process takes by using the GPU at all: the CUDA context and the kernels' code.
    pub overhead: u64,
    /// What it can do.
    pub rates: Rates,
    /// Bytes per second from pinned host memory to it.
    pub link: f64,
}

/// A host.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Host {
    /// Its name, for people.
    pub name: String,
    /// Bytes of memory that models may take.
    pub memory: u64,
    /// Physical cores: compute threads.
    pub cores: usize,
    /// What its cores can do together.
    pub cpu: Rates,
    /// Its GPUs, gpu0 first.
    pub gpus: Vec<Gpu>,
}

/// Share of a GPU's memory that is kept free unless the file says otherwise (LESSONS F-005: 10–15%).
const RESERVE_SHARE: f64 = 0.10;
/// A CUDA context with a few megabytes of kernels, in MiB, unless the file says otherwise.
const OVERHEAD_MIB: u64 = 500;
/// More than any host has: sums of sizes stay far from wrapping.
const MOST_BYTES: f64 = (1u64 << 50) as f64;
/// More cores than any host has.
const MOST_CORES: usize = 4096;
/// More GPUs than any host has.
const MOST_GPUS: usize = 16;

/// The file's form.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HostFile {
    name: String,
    memory_gib: f64,
    cpu: CpuFile,
    #[serde(default)]
    gpu: Vec<GpuFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CpuFile {
    cores: usize,
    read_gb_per_s: f64,
    int8_tera_ops: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GpuFile {
    name: String,
    memory_gib: f64,
    free_gib: Option<f64>,
    reserve: Option<f64>,
    reserve_mib: Option<u64>,
    overhead_mib: Option<u64>,
    read_gb_per_s: f64,
    int8_tera_ops: f64,
    link_gb_per_s: f64,
}

impl Host {
    /// Reads the text of a host file.
    ///
    /// # Errors
    /// What is wrong with it, with its line where the form is, and what to write.
    pub fn parse(text: &str) -> Result<Host, String> {
        let file: HostFile = toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())?;
        if file.gpu.len() > MOST_GPUS {
            return Err(format!("there are {} GPUs; at most {MOST_GPUS} are planned for", file.gpu.len()));
        }
        Ok(Host {
            name: file.name,
            memory: gib("memory_gib", file.memory_gib)?,
            cores: file.cpu.cores.clamp(1, MOST_CORES),
            cpu: rates("cpu", file.cpu.read_gb_per_s, file.cpu.int8_tera_ops)?,
            gpus: file.gpu.into_iter().enumerate().map(|(number, gpu)| gpu.read(number)).collect::<Result<_, _>>()?,
        })
    }

    /// The device's name for people.
    pub fn name_of(&self, device: Device) -> &str {
        match device {
            Device::Cpu => "host memory",
            Device::Gpu(number) => self.gpus.get(number).map_or("not there", |gpu| &gpu.name),
        }
    }

    /// What a device can do. A GPU that is not there is a mistake of the planner's.
    pub(super) fn rates_of(&self, device: Device) -> Rates {
        match device {
            Device::Cpu => self.cpu,
            Device::Gpu(number) => self.gpus[number].rates,
        }
    }

    /// Bytes per second between two devices: the slower link of those on the way, as all of it goes through host memory.
    pub(super) fn link(&self, from: Device, to: Device) -> f64 {
        let own = |device| match device {
            Device::Cpu => f64::INFINITY,
            Device::Gpu(number) => self.gpus[number].link,
        };
        own(from).min(own(to))
    }
}

impl GpuFile {
    fn read(self, number: usize) -> Result<Gpu, String> {
        let at = |key: &str| format!("gpu[{number}].{key}");
        let memory = gib(&at("memory_gib"), self.memory_gib)?;
        let free = self.free_gib.map_or(Ok(memory), |free| gib(&at("free_gib"), free))?;
        if free > memory {
            return Err(format!("{}: {} is more than the GPU's memory", at("free_gib"), self.free_gib.unwrap_or(0.0)));
        }
        let reserve = match (self.reserve, self.reserve_mib) {
            (Some(_), Some(_)) => return Err(format!("{}: write reserve or reserve_mib, not both", at("reserve"))),
            (_, Some(mib)) => mib.min(MOST_BYTES as u64 >> 20) << 20,
            (share, None) => {
                let share = share.unwrap_or(RESERVE_SHARE);
                if !(0.0..=0.9).contains(&share) {
                    return Err(format!("{}: {share} is no share from 0 to 0.9", at("reserve")));
                }
                (memory as f64 * share) as u64
            }
        };
        let link = rate(&at("link_gb_per_s"), self.link_gb_per_s, 1e9)?;
        let overhead = self.overhead_mib.unwrap_or(OVERHEAD_MIB).min(MOST_BYTES as u64 >> 20) << 20;
        let rates = rates(&format!("gpu[{number}]"), self.read_gb_per_s, self.int8_tera_ops)?;
        Ok(Gpu { name: self.name, free, reserve, overhead, rates, link })
    }
}

/// Bytes of a positive number of GiB.
fn gib(key: &str, value: f64) -> Result<u64, String> {
    let bytes = value * f64::from(1 << 30);
    match bytes {
        _ if (1.0..=MOST_BYTES).contains(&bytes) => Ok(bytes as u64),
        _ => Err(format!("{key}: {value} is no amount of memory; write GiB, for instance 64.0")),
    }
}

fn rates(at: &str, read: f64, ops: f64) -> Result<Rates, String> {
    let read = rate(&format!("{at}.read_gb_per_s"), read, 1e9)?;
    Ok(Rates { read, ops: rate(&format!("{at}.int8_tera_ops"), ops, 1e12)? })
}

/// A positive rate in its base unit.
fn rate(key: &str, value: f64, unit: f64) -> Result<f64, String> {
    match value.is_finite() && value > 0.0 {
        true => Ok(value * unit),
        false => Err(format!("{key}: {value} is no rate; it must be a number above 0")),
    }
}
