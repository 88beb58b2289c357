//! Where everything of a model lives, and the bytes that this makes on each device. Counts; decides nothing.

use super::Device;
use super::host::Host;
use super::parts::Parts;
use super::setting::{Ask, Counts};
use super::{RESERVE, RESERVE_SHARE};
use serde::Serialize;

/// Some of a layer's experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Share {
    /// Where.
    pub device: Device,
    /// The first of them.
    pub first: usize,
    /// How many.
    pub experts: usize,
}

/// Where a layer lives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LayerPlace {
    /// Mixer, norms, KV cache and recurrent state.
    pub attention: Device,
    /// Dense feed-forward, shared experts, router; the residual stream goes on from here.
    pub dense: Device,
    /// Routed experts, in order; empty for a dense layer.
    pub experts: Vec<Share>,
}

/// Where a model lives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Layout {
    /// Each layer.
    pub layers: Vec<LayerPlace>,
    /// Head and last norm; a tied embedding, too.
    pub head: Device,
    /// An embedding that is not the head.
    pub embedding: Device,
}

impl Layout {
    /// Devices that the residual stream passes, in order, each change of them a hop.
    pub fn hops(&self) -> usize {
        let stops = self.layers.iter().flat_map(|layer| [layer.attention, layer.dense]).chain([self.head]);
        let stops: Vec<Device> = stops.collect();
        stops.windows(2).filter(|pair| pair[0] != pair[1]).count()
    }

    /// Whether the CPU computes a layer, a part of one, or the head.
    pub fn uses_cpu(&self) -> bool {
        let layer = |layer: &LayerPlace| {
            [layer.attention, layer.dense].contains(&Device::Cpu)
                || layer.experts.iter().any(|share| share.device == Device::Cpu)
        };
        self.head == Device::Cpu || self.layers.iter().any(layer)
    }

    /// Layers whose mixer or dense part the CPU has.
    pub fn cpu_layers(&self) -> usize {
        self.layers.iter().filter(|layer| [layer.attention, layer.dense].contains(&Device::Cpu)).count()
    }

    /// Experts on the CPU, and those of all layers.
    pub fn cpu_experts(&self) -> (usize, usize) {
        let shares = self.layers.iter().flat_map(|layer| &layer.experts);
        shares.fold((0, 0), |(cpu, all), share| {
            (cpu + if share.device == Device::Cpu { share.experts } else { 0 }, all + share.experts)
        })
    }
}

/// Bytes on one device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeviceBytes {
    /// Which.
    pub device: Device,
    /// Mixers and norms.
    pub attention: u64,
    /// Dense feed-forward and shared experts.
    pub dense: u64,
    /// Routers.
    pub router: u64,
    /// Routed experts.
    pub experts: u64,
    /// The head.
    pub head: u64,
    /// The embedding.
    pub embedding: u64,
    /// KV cache.
    pub kv: u64,
    /// Recurrent state.
    pub state: u64,
    /// Matrices made from the file's, and step buffers.
    pub buffers: u64,
    /// CUDA context and kernels.
    pub overhead: u64,
    /// Headroom.
    pub reserve: u64,
    /// Held by other models.
    pub held: u64,
    /// What there is, without what others hold.
    pub available: u64,
}

impl DeviceBytes {
    /// Weights as they lie in the file.
    pub fn weights(&self) -> u64 {
        [self.attention, self.dense, self.router, self.experts, self.head, self.embedding].iter().sum()
    }

    /// All that this model takes, headroom aside.
    pub fn taken(&self) -> u64 {
        [self.kv, self.state, self.buffers, self.overhead].iter().fold(self.weights(), |sum, n| sum.saturating_add(*n))
    }

    /// Headroom included.
    pub fn total(&self) -> u64 {
        self.taken().saturating_add(self.reserve)
    }

    /// Bytes that are left; `None` where it does not fit.
    pub fn left(&self) -> Option<u64> {
        self.available.checked_sub(self.total())
    }
}

/// The `i`-th of `n` even parts of `bytes`; all of them add up exactly.
pub(super) fn part(bytes: u64, i: u64, n: u64) -> u64 {
    let upto = |i: u64| (u128::from(bytes) * u128::from(i) / u128::from(n.max(1))) as u64;
    upto(i + 1) - upto(i)
}

/// Each layer's KV cache, state and made matrices in bytes: what follows its mixer.
pub(super) fn followers(parts: &Parts, counts: &Counts) -> Vec<[u64; 3]> {
    let (cached, states) = (parts.cached(), parts.layers.iter().filter(|layer| layer.state > 0).count() as u64);
    let (mut kv, mut state) = (0, 0);
    let of = |layer: &super::parts::LayerParts| {
        let mut own = [0; 3];
        if layer.cached {
            (own[0], own[2]) = (part(counts.kv, kv, cached), part(counts.made, kv, cached));
            kv += 1;
        }
        if layer.state > 0 {
            own[1] = part(counts.state, state, states);
            state += 1;
        }
        own
    };
    parts.layers.iter().map(of).collect()
}

/// Headroom of the host's memory for what a model takes of it, as [`super::place`] has it.
fn host_reserve(taken: u64) -> u64 {
    RESERVE + taken / RESERVE_SHARE
}

/// Bytes on every device, the CPU first.
pub(super) fn tally(ask: &Ask, counts: &Counts, layout: &Layout) -> Vec<DeviceBytes> {
    let mut all: Vec<DeviceBytes> = ask.devices().into_iter().map(|device| empty(ask, device)).collect();
    let index = |device| match device {
        Device::Cpu => 0,
        Device::Gpu(number) => number + 1,
    };
    let followers = followers(ask.parts, counts);
    for ((place, layer), [kv, state, made]) in layout.layers.iter().zip(&ask.parts.layers).zip(followers) {
        let attention = &mut all[index(place.attention)];
        attention.attention += layer.attention.bytes;
        attention.kv += kv;
        attention.state += state;
        attention.buffers += made;
        let dense = &mut all[index(place.dense)];
        dense.dense += layer.dense.bytes;
        dense.router += layer.router.bytes;
        for share in &place.experts {
            all[index(share.device)].experts += layer.expert.bytes * share.experts as u64;
        }
    }
    all[index(layout.head)].head += ask.parts.head.bytes;
    let computes: Vec<bool> = all.iter().map(|bytes| bytes.weights() > 0).collect();
    all[index(layout.embedding)].embedding += ask.parts.embedding.bytes;
    for (bytes, computes) in all.iter_mut().zip(computes) {
        finish(ask.host, counts, computes, bytes);
    }
    all
}

/// What a device takes and keeps free besides weights and cache.
fn finish(host: &Host, counts: &Counts, computes: bool, bytes: &mut DeviceBytes) {
    match bytes.device {
        Device::Cpu => {
            bytes.buffers += counts.engine + if computes { counts.cpu_buffers } else { 0 };
            bytes.reserve = host_reserve(bytes.taken());
        }
        Device::Gpu(number) if computes || bytes.embedding > 0 => {
            bytes.buffers += counts.gpu_buffers;
            bytes.overhead = host.gpus[number].overhead;
        }
        Device::Gpu(_) => {}
    }
}

fn empty(ask: &Ask, device: Device) -> DeviceBytes {
    let reserve = match device {
        Device::Cpu => 0,
        Device::Gpu(number) => ask.host.gpus[number].reserve,
    };
    DeviceBytes {
        device,
        attention: 0,
        dense: 0,
        router: 0,
        experts: 0,
        head: 0,
        embedding: 0,
        kv: 0,
        state: 0,
        buffers: 0,
        overhead: 0,
        reserve,
        held: ask.held.on(device),
        available: ask.memory(device),
    }
}
