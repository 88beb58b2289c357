//! The answer when a model does not fit on a host: bytes per device and category, and the nearest plans that would fit.

use super::Device;
use super::layout::DeviceBytes;
use super::overrides::Fixed;
use super::planner::{attempt, longest, search};
use super::reasons::tokens;
use super::setting::{Ask, Held, Setting};
use super::show::{mib, table};
use serde::Serialize;
use std::fmt;

/// A model that does not fit.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Shortage {
    /// Its name.
    pub model: String,
    /// How it was to be run.
    pub setting: Setting,
    /// The CPU was to compute nothing.
    pub gpu_only: bool,
    /// Bytes on each device if GPUs took what they can and the host had room for the rest.
    pub devices: Vec<DeviceBytes>,
    /// Bytes that are wanted on all of them, headroom included.
    pub wanted: u64,
    /// Bytes for which there is no room.
    pub missing: u64,
    /// What would fit.
    pub ways: Vec<Way>,
}

/// A change that makes it fit.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Way {
    /// The change.
    pub what: String,
    /// Predicted tokens per second with it.
    pub rate: f64,
}

impl std::error::Error for Shortage {}

impl Shortage {
    /// Counts what is missing with a context of `context` tokens, and looks for what would fit.
    pub(super) fn new(ask: &Ask, fixed: &Fixed, context: usize) -> Shortage {
        let micro_batch = ask.request.micro_batch.unwrap_or(512).clamp(1, context);
        let setting = Setting { context, parallel: ask.request.parallel, micro_batch, kv: ask.request.kv };
        let mut open = ask.clone();
        open.request.gpu_only = false;
        let devices = search(&open, fixed, &setting, true).fullest();
        let over = |bytes: &DeviceBytes| bytes.total().saturating_sub(bytes.available);
        let cpu = devices.first().map_or(0, |cpu| match ask.request.gpu_only {
            true => cpu.weights() + cpu.kv + cpu.state - cpu.embedding,
            false => over(cpu),
        });
        Shortage {
            model: ask.parts.name.clone(),
            setting,
            gpu_only: ask.request.gpu_only,
            wanted: devices.iter().filter(|bytes| bytes.taken() > 0).map(DeviceBytes::total).sum(),
            missing: devices.iter().skip(1).filter(|gpu| gpu.taken() > 0).map(over).sum::<u64>() + cpu,
            devices,
            ways: ways(ask, fixed, context),
        }
    }
}

/// Changes of one thing each that make it fit, the least painful first.
fn ways(ask: &Ask, fixed: &Fixed, context: usize) -> Vec<Way> {
    let mut ways = Vec::new();
    let mut look = |what: String, changed: &Ask, fixed: &Fixed| {
        ways.extend(attempt(changed, fixed, context).map(|attempt| Way { what, rate: attempt.rate() }));
    };
    let changed = |change: &dyn Fn(&mut Ask)| {
        let mut changed = ask.clone();
        change(&mut changed);
        changed
    };
    if ask.request.gpu_only {
        look("the CPU takes its share".into(), &changed(&|ask| ask.request.gpu_only = false), fixed);
    }
    if let Some(asked) = ask.request.micro_batch {
        for size in [256, 128, 64].into_iter().filter(|size| *size < asked) {
            look(format!("a micro-batch of {size}"), &changed(&|ask| ask.request.micro_batch = Some(size)), fixed);
        }
    }
    for kv in &ask.request.smaller_kv {
        look(format!("a KV cache of type {kv}"), &changed(&|ask| ask.request.kv = kv), fixed);
    }
    for parallel in [ask.request.parallel / 2, 1].into_iter().filter(|n| *n > 0 && *n < ask.request.parallel) {
        let what = format!("{parallel} {} at once", if parallel == 1 { "sequence" } else { "sequences" });
        look(what, &changed(&|ask| ask.request.parallel = parallel), fixed);
    }
    if ask.held != Held::default() {
        look("other models unloaded".into(), &changed(&|ask| ask.held = Held::default()), fixed);
    }
    if !ask.request.rules.is_empty() {
        look("nothing placed by hand".into(), ask, &Fixed::default());
    }
    if let Some((context, attempt)) = longest(ask, fixed, context) {
        ways.push(Way { what: format!("a context of at most {context} tokens"), rate: attempt.rate() });
    }
    // A half and one are the same change of two.
    ways.dedup_by(|next, before| next.what == before.what);
    ways
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let only = if self.gpu_only { " on GPUs alone" } else { "" };
        writeln!(f, "{} does not fit{only}: {} MiB are missing", self.model, mib(self.missing))?;
        writeln!(f, "  {}", self.setting)?;
        writeln!(
            f,
            "\n{}",
            table(&self.devices, &|device| match device {
                Device::Cpu if self.gpu_only => "(cpu)".into(),
                _ => device.to_string(),
            })
        )?;
        if self.gpu_only {
            writeln!(f, "\nwhat stands under (cpu) has no room on a GPU; only the embedding may stay there")?;
        }
        match self.ways.is_empty() {
            true => write!(f, "\nno change of one setting makes it fit: free memory, or take a smaller quantisation"),
            false => {
                write!(f, "\nwhat fits:")?;
                self.ways.iter().try_for_each(|way| write!(f, "\n  {}: {} tok/s predicted", way.what, tokens(way.rate)))
            }
        }
    }
}
