//! `omnictl bench FILE --load`: how long a file takes from the disk to where its weights live, and how much memory it took
//! at most. In a process of its own, because the peak is the process's.

use super::Error;
use crate::ctl::output::bytes;
use crate::exec::{self, CpuOptions, Layouts};
use crate::load::{self, Source};
use crate::plan::{self, Needs, Wish};
use crate::sys::memory::peak_resident;
use crate::sys::numa::Policy;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::Path;
use std::time::Instant;

/// One load.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cold {
    /// From opening the file to the last weight in place.
    pub seconds: f64,
    /// Bytes of weights.
    pub bytes: u64,
    /// Gigabytes per second.
    pub gigabytes_per_second: f64,
    /// Most bytes that were resident at once, by the kernel's account.
    pub peak_resident: u64,
}

/// Loads a file and forgets it.
///
/// # Errors
/// As loading; a refusal when it does not fit.
pub fn load(file: &Path) -> Result<Cold, Error> {
    let began = Instant::now();
    let source = Source::open(file)?;
    let model = source.bind()?;
    let available = load::available(model.weight_bytes(), &Policy::Local).map_err(Error::Memory)?;
    let wish = Wish { context: Some(1), parallel: 1 };
    // The weights are all that will be reserved.
    let needs = |_, _| Needs::default();
    plan::place(&model.hparams, model.weight_bytes(), &wish, available, needs)?;
    let bytes = model.weight_bytes();
    let layouts = Layouts::new(&CpuOptions::default()).map_err(exec::Error::from)?;
    let loaded = source.load(model, &|dtype, rows, cols| layouts.of(dtype, rows, cols), &mut |_| ())?;
    let seconds = began.elapsed().as_secs_f64();
    drop(loaded);
    let peak_resident = peak_resident().map_err(Error::Memory)?;
    Ok(Cold { seconds, bytes, gigabytes_per_second: bytes as f64 / seconds / 1e9, peak_resident })
}

/// The same in a new process.
///
/// # Errors
/// [`Error::Child`] with its words.
pub fn load_apart(file: &Path) -> Result<Cold, Error> {
    let own = std::env::current_exe()?;
    let done = std::process::Command::new(own).arg("bench").arg(file).args(["--load", "--json"]).output()?;
    if !done.status.success() {
        return Err(Error::Child(String::from_utf8_lossy(&done.stderr).trim().to_owned()));
    }
    serde_json::from_slice(&done.stdout).map_err(|error| Error::Child(error.to_string()))
}

impl fmt::Display for Cold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} of weights in {:.2} s, {:.2} GB/s; {} resident at most, {} beyond the weights",
            bytes(self.bytes),
            self.seconds,
            self.gigabytes_per_second,
            bytes(self.peak_resident),
            bytes(self.peak_resident.saturating_sub(self.bytes))
        )
    }
}
