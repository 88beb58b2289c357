//! Predicted time of a decoded token and of a prompt on a layout: bytes over bandwidth and operations over rates, plus what
//! every layer, hand-over and hop takes whatever its size. All constants stand here, with their unit and their source.
//!
//! ```text
//! t_token = Σ_layers [ (attention + dense + router) / (η·BW) + kv(depth) / (η·BW) + state
//!                      + E[ max over devices of chosen experts · bytes / (η·BW) ] + hand-over + launches ]
//!           + hops · (latency + bytes / link) + head / (η·BW) + sampling
//! ```
//! Which of the `k` chosen experts sit on which device is hypergeometric where every choice is as likely as any other;
//! the expectation over it is exact. Prompts are in [`super::prefill`]. Checked by `omnictl bench` once GPUs run.

use super::Device;
use super::host::Host;
use super::layout::{Layout, Share};
use super::parts::{LayerParts, Parts};
use serde::Serialize;
use std::cell::RefCell;
use std::collections::HashMap;

/// Share of the probed read rate that a GPU's matrix products reach in decoding. With [`GPU_LAYER`] it gives the goals G1
/// (32B: 70% of an H200's whole step) and G2 (8B: 55%) of PERFORMANCE.md and what 1 TB/s cards are seen to do.
pub const GPU_READ: f64 = 0.80;
/// The same of the CPU: goal C1 is 90%; records of this backend reach 93 to 97% on dense decoding.
pub const CPU_READ: f64 = 0.95;
/// Seconds that a layer takes on a GPU whatever its size: half a dozen kernels of a graph, 2 µs of ramp and tail each (see
/// [`GPU_READ`]).
pub const GPU_LAYER: f64 = 12e-6;
/// Seconds of a layer's barriers on the CPU: two, over all cores (PERFORMANCE.md, "two barriers a layer").
pub const CPU_LAYER: f64 = 8e-6;
/// Seconds from one device to the next by pinned memory, without the bytes (PERFORMANCE.md: a hop costs 15 to 20 µs).
pub const HOP: f64 = 20e-6;
/// Seconds of a hand-over of a layer's activations to the CPU and back by pinned flags, without the bytes: two flags of
/// some 8 µs, in turns with the GPU's own work.
pub const HANDOVER: f64 = 16e-6;
/// Seconds of sampling a token and beginning the next step (goal G4: 20 µs of CPU; a pass over the logits).
pub const SAMPLE: f64 = 30e-6;
/// Bytes of an activation between devices: single precision.
pub(super) const ACTIVATION: f64 = 4.0;

/// What a decoded token's time is made of, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Terms {
    /// Weights of mixers.
    pub attention: f64,
    /// Keys, values and states.
    pub cache: f64,
    /// Dense and shared feed-forward, routers.
    pub dense: f64,
    /// Routed experts: the slowest device of each layer, expected.
    pub experts: f64,
    /// Hand-overs between devices that share a layer.
    pub handover: f64,
    /// Launches and barriers of layers.
    pub layers: f64,
    /// Hops of the residual stream.
    pub hops: f64,
    /// The head.
    pub head: f64,
    /// Sampling.
    pub sample: f64,
}

impl Terms {
    /// Each term by its name.
    pub fn named(&self) -> [(&'static str, f64); 9] {
        [
            ("attention", self.attention),
            ("KV and state", self.cache),
            ("dense and shared", self.dense),
            ("experts", self.experts),
            ("hand-over", self.handover),
            ("launches", self.layers),
            ("hops", self.hops),
            ("head", self.head),
            ("sampling", self.sample),
        ]
    }

    /// Seconds in all.
    pub fn total(&self) -> f64 {
        self.named().iter().map(|(_, seconds)| seconds).sum()
    }
}

/// What the time of a layer's experts depends on: bytes of one, and how many each device has.
type Alike = (u64, Vec<(Device, usize)>);

/// The cost model for one model on one host.
pub struct Cost<'a> {
    pub(super) host: &'a Host,
    pub(super) parts: &'a Parts,
    /// Bytes that one token of context takes in each layer with a cache.
    pub(super) kv_per_token: f64,
    /// Expected seconds of experts: layers are alike.
    seen: RefCell<HashMap<Alike, f64>>,
}

impl<'a> Cost<'a> {
    /// For a cache that takes `kv_per_token` bytes per token and layer.
    pub fn new(host: &'a Host, parts: &'a Parts, kv_per_token: f64) -> Cost<'a> {
        Cost { host, parts, kv_per_token, seen: RefCell::default() }
    }

    /// Bytes per second that decoding reads from a device's memory.
    pub fn read_rate(&self, device: Device) -> f64 {
        let share = if device == Device::Cpu { CPU_READ } else { GPU_READ };
        share * self.host.rates_of(device).read
    }

    /// Seconds of one token at a depth of `depth` tokens.
    pub fn decode(&self, layout: &Layout, depth: usize) -> Terms {
        let mut terms = Terms { sample: SAMPLE, ..Terms::default() };
        let mut at = layout.layers.first().map_or(layout.head, |layer| layer.attention);
        for (place, layer) in layout.layers.iter().zip(&self.parts.layers) {
            let (attention, dense) = (self.read_rate(place.attention), self.read_rate(place.dense));
            terms.hops += self.hop(&mut at, place.attention, 1.0);
            terms.attention += layer.attention.bytes as f64 / attention;
            terms.cache += (self.context_bytes(layer, depth) + 2.0 * layer.state as f64) / attention;
            terms.layers += if place.attention == Device::Cpu { CPU_LAYER } else { GPU_LAYER };
            terms.hops += self.hop(&mut at, place.dense, 1.0);
            terms.dense += layer.feed_forward().bytes as f64 / dense;
            terms.experts += self.experts(layer, &place.experts);
            terms.handover += self.handovers(place.dense, &place.experts, 1.0);
        }
        terms.hops += self.hop(&mut at, layout.head, 1.0);
        terms.head = self.parts.head.bytes as f64 / self.read_rate(layout.head);
        terms
    }

    /// Bytes of keys and values that a token at `depth` reads in a layer.
    pub(super) fn context_bytes(&self, layer: &LayerParts, depth: usize) -> f64 {
        let seen = layer.window.map_or(depth, |window| depth.min(window));
        if layer.cached { self.kv_per_token * seen as f64 } else { 0.0 }
    }

    /// Seconds of a hop to `next` with `rows` rows of the residual stream, 0 when it is there.
    pub(super) fn hop(&self, at: &mut Device, next: Device, rows: f64) -> f64 {
        let from = std::mem::replace(at, next);
        if from == next { 0.0 } else { HOP + self.transfer(from, next, rows) }
    }

    /// Seconds that `rows` rows of activations take between two devices.
    fn transfer(&self, from: Device, to: Device, rows: f64) -> f64 {
        rows * self.parts.d_model as f64 * ACTIVATION / self.host.link(from, to)
    }

    /// Seconds of handing a layer's rows to every other device that has experts of it, and back. They go at the same time:
    /// the slowest counts.
    pub(super) fn handovers(&self, home: Device, shares: &[Share], rows: f64) -> f64 {
        let others = shares.iter().filter(|share| share.device != home && share.experts > 0);
        let one = |share: &Share| {
            let there = self.transfer(home, share.device, rows) + self.transfer(share.device, home, rows);
            there + if share.device == Device::Cpu || home == Device::Cpu { HANDOVER } else { 2.0 * HOP }
        };
        others.map(one).fold(0.0, f64::max)
    }

    /// Expected seconds of the chosen experts of a layer.
    fn experts(&self, layer: &LayerParts, shares: &[Share]) -> f64 {
        if layer.experts == 0 {
            return 0.0;
        }
        let key = (layer.expert.bytes, shares.iter().map(|share| (share.device, share.experts)).collect());
        if let Some(seconds) = self.seen.borrow().get(&key) {
            return *seconds;
        }
        let each = |share: &Share| (share.experts, layer.expert.bytes as f64 / self.read_rate(share.device));
        let shares: Vec<(usize, f64)> = shares.iter().map(each).collect();
        let seconds = expected_slowest(self.parts.used, &shares);
        self.seen.borrow_mut().insert(key, seconds);
        seconds
    }
}

/// Expectation of the slowest device's time when `chosen` different experts are drawn, any as likely as any other, from
/// devices with (experts, seconds per expert). Exact: the sum over the multivariate hypergeometric distribution.
pub fn expected_slowest(chosen: usize, devices: &[(usize, f64)]) -> f64 {
    let all = devices.iter().map(|(experts, _)| experts).sum();
    split(chosen.min(all), all, devices, 0.0)
}

/// The same for what is left of the draw; `slowest` is that of the devices before.
fn split(chosen: usize, all: usize, devices: &[(usize, f64)], slowest: f64) -> f64 {
    let Some(((own, seconds), rest)) = devices.split_first() else { return slowest };
    if rest.is_empty() {
        return slowest.max(chosen as f64 * seconds);
    }
    let least = chosen.saturating_sub(all - own);
    let draws = least..=chosen.min(*own);
    let term = |drawn: usize| {
        let so_far = slowest.max(drawn as f64 * seconds);
        hypergeometric(drawn, chosen, *own, all) * split(chosen - drawn, all - own, rest, so_far)
    };
    draws.map(term).sum()
}

/// Probability that of `chosen` drawn from `all`, `drawn` are among the `own`:
/// `C(chosen, drawn) · Π (own - i)/(all - i) · Π (all - own - j)/(all - drawn - j)`.
fn hypergeometric(drawn: usize, chosen: usize, own: usize, all: usize) -> f64 {
    let mut probability = 1.0;
    for i in 0..drawn {
        probability *= (own - i) as f64 / (all - i) as f64 * (chosen - i) as f64 / (drawn - i) as f64;
    }
    for j in 0..chosen - drawn {
        probability *= (all - own - j) as f64 / (all - drawn - j) as f64;
    }
    probability
}
