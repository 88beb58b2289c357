//! What is asked of the planner, and what those who reserve memory say that a setting takes.

use super::Device;
use super::host::Host;
use super::overrides::Rule;
use super::parts::Parts;
use serde::Serialize;

/// How a model is to be run, as far as bytes depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Setting {
    /// Tokens per sequence.
    pub context: usize,
    /// Sequences at once.
    pub parallel: usize,
    /// Most prompt tokens per step.
    pub micro_batch: usize,
    /// Element type of the KV cache, as settings name it.
    pub kv: &'static str,
}

/// Bytes that a setting takes besides the weights, as those count them who will reserve them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// KV cache of all layers; those that have one have as much each.
    pub kv: u64,
    /// Recurrent state of all sequences and snapshots.
    pub state: u64,
    /// Matrices made from those of the file; layers with attention have as much each.
    pub made: u64,
    /// Step buffers where the host computes layers.
    pub cpu_buffers: u64,
    /// Step buffers of a GPU that computes layers.
    pub gpu_buffers: u64,
    /// What the host keeps whoever computes: queues, batches, sampling.
    pub engine: u64,
}

impl Counts {
    /// The same, each bounded far beyond any memory: their sums do not wrap.
    pub(super) fn bounded(self) -> Counts {
        let bound = |bytes: u64| bytes.min(u64::MAX >> 6);
        Counts {
            kv: bound(self.kv),
            state: bound(self.state),
            made: bound(self.made),
            cpu_buffers: bound(self.cpu_buffers),
            gpu_buffers: bound(self.gpu_buffers),
            engine: bound(self.engine),
        }
    }
}

/// Bytes that other models hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Of the host's memory.
    pub cpu: u64,
    /// Of each GPU's; missing ones are 0.
    pub gpus: Vec<u64>,
}

impl Held {
    /// On one device.
    pub fn on(&self, device: Device) -> u64 {
        match device {
            Device::Cpu => self.cpu,
            Device::Gpu(number) => self.gpus.get(number).copied().unwrap_or(0),
        }
    }

    /// Notes a further claim.
    pub fn add(&mut self, device: Device, bytes: u64) {
        match device {
            Device::Cpu => self.cpu = self.cpu.saturating_add(bytes),
            Device::Gpu(number) => {
                self.gpus.resize(self.gpus.len().max(number + 1), 0);
                self.gpus[number] = self.gpus[number].saturating_add(bytes);
            }
        }
    }
}

/// What is wanted; what is not said is chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Tokens per sequence; `None`: what the model was trained for, at most [`super::DEFAULT_CONTEXT`] and what fits.
    pub context: Option<usize>,
    /// Sequences at once.
    pub parallel: usize,
    /// Most prompt tokens per step; `None`: 512, or fewer where that makes more fit.
    pub micro_batch: Option<usize>,
    /// Element type of the KV cache.
    pub kv: &'static str,
    /// Smaller types that the model allows, for advice; the largest first.
    pub smaller_kv: Vec<&'static str>,
    /// The CPU computes nothing.
    pub gpu_only: bool,
    /// Most bytes of a device.
    pub limits: Vec<(Device, u64)>,
    /// What the operator places by hand.
    pub rules: Vec<Rule>,
}

/// Sequences at once where nobody says.
pub const DEFAULT_PARALLEL: usize = 4;

impl Default for Request {
    fn default() -> Self {
        Request {
            context: None,
            parallel: DEFAULT_PARALLEL,
            micro_batch: None,
            kv: "f16",
            smaller_kv: Vec::new(),
            gpu_only: false,
            limits: Vec::new(),
            rules: Vec::new(),
        }
    }
}

/// Counts what a setting takes; never less for a larger one.
pub type Count<'a> = &'a dyn Fn(&Setting) -> Counts;

/// A model, a host, and what is wanted.
#[derive(Clone)]
pub struct Ask<'a> {
    /// The model.
    pub parts: &'a Parts,
    /// The host.
    pub host: &'a Host,
    /// Counts what a setting takes.
    pub count: Count<'a>,
    /// What is wanted.
    pub request: Request,
    /// What other models hold.
    pub held: Held,
}

impl Ask<'_> {
    /// Bytes of a device that are there for this model and its headroom.
    pub(super) fn memory(&self, device: Device) -> u64 {
        // A limit is of what the model takes; a GPU's reserve may lie beyond it.
        let (free, reserve) = match device {
            Device::Cpu => (self.host.memory, 0),
            Device::Gpu(number) => (self.host.gpus[number].free, self.host.gpus[number].reserve),
        };
        let limits = self.request.limits.iter().filter(|(limited, _)| *limited == device);
        let free = free.saturating_sub(self.held.on(device));
        limits.fold(free, |free, (_, most)| free.min(most.saturating_add(reserve)))
    }

    /// All devices, the CPU first.
    pub(super) fn devices(&self) -> Vec<Device> {
        std::iter::once(Device::Cpu).chain((0..self.host.gpus.len()).map(Device::Gpu)).collect()
    }
}
