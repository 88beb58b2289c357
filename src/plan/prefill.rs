//! Predicted time of a prompt: micro-batch after micro-batch, each of which reads every weight it touches once.
//!
//! A micro-batch of `B` tokens touches the share `1 - (1 - k/E)^B` of a layer's experts. Experts on the CPU are computed there
//! for prompts of up to [`STREAM_FROM`] tokens. Longer prompts may bring a share of them over the link to the layer's GPU:
//! the one that makes the slowest of CPU, link, GPU and host memory fastest. What is streamed is read from host memory like
//! what the CPU computes, so where reading bounds the CPU nothing is gained, and the share is 0.

use super::Device;
use super::cost::Cost;
use super::layout::{LayerPlace, Layout};
use super::parts::LayerParts;
use serde::Serialize;

/// Share of a GPU's int8 rate that prompts reach (goal G3).
pub const GPU_OPS: f64 = 0.40;
/// The same of the CPU, dense (goal C3) and with experts, whose rows are few (goal C4).
pub const CPU_OPS: f64 = 0.70;
/// See [`CPU_OPS`].
pub const CPU_EXPERT_OPS: f64 = 0.50;
/// Rate of attention's scores, in floating point, against the int8 rate: tensor cores do half as many, the CPU's units one in
/// eight.
pub const GPU_SCORES: f64 = 0.50;
/// See [`GPU_SCORES`].
pub const CPU_SCORES: f64 = 0.125;
/// Share of a link's rate that a stream of experts reaches, two buffers in turns (goal H4).
pub const LINK: f64 = 0.90;
/// Tokens of a prompt from which on experts may be streamed (PERFORMANCE.md, H3: streaming all of them from 32 tokens on is
/// what makes the peer slow).
pub const STREAM_FROM: usize = 1000;

/// A prompt's prediction.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Prefill {
    /// Its tokens.
    pub tokens: usize,
    /// Seconds until all are evaluated.
    pub seconds: f64,
    /// Of these, seconds in which the experts of layers are computed or moved.
    pub experts: f64,
    /// Share of the CPU's experts that is streamed to GPUs, over all layers.
    pub streamed: f64,
}

impl Prefill {
    /// Tokens per second.
    pub fn rate(&self) -> f64 {
        self.tokens as f64 / self.seconds
    }
}

/// One micro-batch.
#[derive(Clone, Copy)]
struct Chunk {
    /// Its tokens.
    rows: f64,
    /// Tokens before it.
    depth: usize,
    /// Experts may be streamed.
    streams: bool,
}

impl Cost<'_> {
    /// A prompt of `tokens` tokens in steps of `micro_batch`.
    pub fn prefill(&self, layout: &Layout, tokens: usize, micro_batch: usize) -> Prefill {
        let mut all = Prefill { tokens, seconds: 0.0, experts: 0.0, streamed: 0.0 };
        let (mut layers, mut streamed) = (0, 0.0);
        for depth in (0..tokens).step_by(micro_batch.max(1)) {
            let rows = micro_batch.min(tokens - depth) as f64;
            let chunk = Chunk { rows, depth, streams: tokens >= STREAM_FROM };
            let mut at = layout.layers.first().map_or(layout.head, |layer| layer.attention);
            for (place, layer) in layout.layers.iter().zip(&self.parts.layers) {
                all.seconds += self.hop(&mut at, place.attention, rows);
                all.seconds += self.mixer(place, layer, chunk) + self.hop(&mut at, place.dense, rows);
                all.seconds +=
                    self.product(place.dense, layer.feed_forward().bytes, layer.feed_forward().elements, rows);
                let (experts, share) = self.expert_rows(place, layer, chunk);
                let experts = experts + self.handovers(place.dense, &place.experts, rows);
                all.seconds += experts;
                all.experts += experts;
                if place.experts.iter().any(|share| share.device == Device::Cpu) {
                    layers += 1;
                    streamed += share;
                }
            }
        }
        // Of a prompt only the last row's logits are wanted.
        all.seconds += self.parts.head.bytes as f64 / self.read_rate(layout.head);
        all.streamed = if layers > 0 { streamed / f64::from(layers) } else { 0.0 };
        all
    }

    /// Seconds of a matrix product with `rows` rows: reading the weights or multiplying, whichever takes longer.
    fn product(&self, device: Device, bytes: u64, elements: u64, rows: f64) -> f64 {
        let share = if device == Device::Cpu { CPU_OPS } else { GPU_OPS };
        let ops = 2.0 * elements as f64 * rows / (share * self.host.rates_of(device).ops);
        ops.max(bytes as f64 / self.read_rate(device))
    }

    /// Seconds of a mixer: its matrices, and scores and values against all positions before each row.
    fn mixer(&self, place: &LayerPlace, layer: &LayerParts, chunk: Chunk) -> f64 {
        let device = place.attention;
        let seen = chunk.depth as f64 + chunk.rows / 2.0;
        let seen = layer.window.map_or(seen, |window| seen.min(window as f64));
        let share = if device == Device::Cpu { CPU_OPS * CPU_SCORES } else { GPU_OPS * GPU_SCORES };
        let ops = 2.0 * layer.scores as f64 * chunk.rows * seen / (share * self.host.rates_of(device).ops);
        let cache = self.context_bytes(layer, chunk.depth) / self.read_rate(device);
        self.product(device, layer.attention.bytes, layer.attention.elements, chunk.rows) + ops.max(cache)
    }

    /// Seconds of a layer's routed experts, and the share of the CPU's that is streamed.
    fn expert_rows(&self, place: &LayerPlace, layer: &LayerParts, chunk: Chunk) -> (f64, f64) {
        if layer.experts == 0 {
            return (0.0, 0.0);
        }
        let used = self.parts.used as f64 / layer.experts as f64;
        let touched = 1.0 - (1.0 - used).powf(chunk.rows);
        let ops = |device: Device| {
            let share = if device == Device::Cpu { CPU_EXPERT_OPS } else { GPU_OPS };
            2.0 * chunk.rows * used * layer.expert.elements as f64 / (share * self.host.rates_of(device).ops)
        };
        let bytes = touched * layer.expert.bytes as f64;
        let of =
            |device: Device| place.experts.iter().filter(|s| s.device == device).map(|s| s.experts as f64).sum::<f64>();
        let gpu = |count: f64, device: Device| count * ops(device).max(bytes / self.read_rate(device));
        let others = place.experts.iter().filter(|share| share.device != Device::Cpu && share.device != place.dense);
        let others = others.map(|share| gpu(share.experts as f64, share.device)).fold(0.0, f64::max);
        let (cpu, home) = (of(Device::Cpu), place.dense);
        let (read, compute) = (cpu * bytes / self.read_rate(Device::Cpu), cpu * ops(Device::Cpu));
        let Device::Gpu(number) = home else { return (others.max(read).max(compute), 0.0) };
        let link = cpu * bytes / (LINK * self.host.gpus[number].link);
        let (own, more) = (gpu(of(home), home), gpu(cpu, home));
        // Each grows or falls with the share in a straight line, so the least maximum lies where two of them cross.
        let slowest = |x: f64| others.max(read).max((1.0 - x) * compute).max(x * link).max(own + x * more);
        let crossings = [compute / (compute + link), (compute - own) / (compute + more)];
        let shares = if chunk.streams && cpu > 0.0 { &crossings[..] } else { &[] };
        let best = shares.iter().filter(|x| (0.0..=1.0).contains(*x)).map(|&x| (slowest(x), x));
        // Nothing is streamed that gains nothing.
        best.fold((slowest(0.0), 0.0), |least, next| if next.0 < least.0 * 0.999 { next } else { least })
    }
}
