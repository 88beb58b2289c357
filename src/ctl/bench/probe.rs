//! `omnictl bench --probe`: what this host can do at most, per number of threads, in turns; and its disk.

use super::disk::DiskRate;
use super::row::median;
use super::{Error, disk};
use crate::ctl::output::Output;
use crate::exec::CpuOptions;
use crate::ops::cpu::Cpu;
use crate::sys::memory::{Mapping, Memory};
use comfy_table::Cell;
use serde::Serialize;
use std::path::Path;
use std::time::Duration;

/// Bytes that are read: beyond any cache, within any host.
const READ_BYTES: usize = 1 << 30;
/// The same where it must not take long.
const QUICK_READ_BYTES: usize = 256 << 20;
/// Turns of the thread counts.
const ROUNDS: usize = 7;
/// The same where it must not take long.
const QUICK_ROUNDS: usize = 3;
/// Of a multiplication.
const INT8_TIME: Duration = Duration::from_millis(40);

/// Limits with some number of threads.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Limits {
    /// Threads.
    pub threads: usize,
    /// Read bandwidth of memory, GB/s: median and best of the rounds.
    pub read: f64,
    #[allow(missing_docs)]
    pub read_best: f64,
    /// Multiplications and additions of int8 numbers in registers, GOP/s: median and best.
    pub int8: f64,
    #[allow(missing_docs)]
    pub int8_best: f64,
    /// The instruction that did it.
    pub instruction: &'static str,
}

/// All of a host.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Kernels in use.
    pub isa: String,
    /// Per number of threads.
    pub limits: Vec<Limits>,
    /// The disk, or why it could not be measured.
    pub disk: Result<DiskRate, String>,
}

/// Probes memory and arithmetic with each backend.
///
/// # Errors
/// When a backend is refused or there is no memory to read.
pub fn limits(backends: &[CpuOptions]) -> Result<Vec<Limits>, Error> {
    measure(backends, READ_BYTES, ROUNDS)
}

/// Probes memory and arithmetic with one backend in a fraction of a second, less exactly.
///
/// # Errors
/// As [`limits`].
pub fn quick(backend: &CpuOptions) -> Result<Limits, Error> {
    let one = measure(std::slice::from_ref(backend), QUICK_READ_BYTES, QUICK_ROUNDS)?;
    one.into_iter().next().ok_or_else(|| Error::Usage("no backend to be probed".into()))
}

fn measure(backends: &[CpuOptions], most_bytes: usize, rounds: usize) -> Result<Vec<Limits>, Error> {
    let cpus = backends.iter().map(Cpu::new).collect::<Result<Vec<_>, _>>()?;
    let available = Memory::now().map_or(u64::MAX, |memory| memory.available);
    let bytes = most_bytes.min((available / 4) as usize);
    let mut memory = Mapping::new(bytes).map_err(|source| Error::NoMemory { bytes, source })?;
    if let Some(most) = cpus.iter().max_by_key(|cpu| cpu.threads()) {
        most.touch(memory.as_mut_slice());
    }
    let mut samples = vec![(Vec::new(), Vec::new(), ""); cpus.len()];
    for _ in 0..rounds {
        for (cpu, (reads, rates, instruction)) in cpus.iter().zip(&mut samples) {
            reads.push(cpu.probe_read(memory.as_ref()));
            let rate = cpu.probe_int8(INT8_TIME);
            rates.push(rate.gops);
            *instruction = rate.instruction;
        }
    }
    let best = |samples: &[f64]| samples.iter().copied().fold(0.0, f64::max);
    let limits = cpus.iter().zip(samples).map(|(cpu, (reads, rates, instruction))| Limits {
        threads: cpu.threads(),
        read: median(&reads),
        read_best: best(&reads),
        int8: median(&rates),
        int8_best: best(&rates),
        instruction,
    });
    Ok(limits.collect())
}

/// Memory, arithmetic and the disk of `file` or of `dir`.
///
/// # Errors
/// As [`limits`]; a disk that cannot be measured is part of the report.
pub fn report(backends: &[CpuOptions], file: Option<&Path>, dir: &Path) -> Result<Report, Error> {
    let isa = backends.first().map(Cpu::new).transpose()?.map_or("", |cpu| cpu.isa()).to_owned();
    let limits = limits(backends)?;
    Ok(Report { isa, limits, disk: disk::probe(file, dir).map_err(|error| error.to_string()) })
}

impl Report {
    /// For people.
    pub fn table(&self, out: Output) -> String {
        let columns = [
            ("THREADS", true),
            ("READ GB/S", true),
            ("BEST", true),
            ("INT8 GOP/S", true),
            ("BEST", true),
            ("INSTRUCTION", false),
        ];
        let cells = self.limits.iter().map(|row| {
            [
                row.threads.to_string(),
                format!("{:.1}", row.read),
                format!("{:.1}", row.read_best),
                format!("{:.0}", row.int8),
                format!("{:.0}", row.int8_best),
                row.instruction.to_owned(),
            ]
            .map(Cell::new)
            .into()
        });
        let disk = match &self.disk {
            Ok(disk) => format!(
                "disk {}: {:.2} GB/s one direct read of 4 MiB after the other, {:.2} GB/s eight at once",
                disk.path, disk.sequential, disk.concurrent
            ),
            Err(why) => format!("disk: not measured: {why}"),
        };
        format!("{}\n{disk}", out.table(&columns, cells))
    }
}
