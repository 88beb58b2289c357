//! The step's buffers, sized once when the model is loaded: a step allocates nothing. Zeroed pages of the system back
//! them, so a large limit costs memory only when a large step is run.
//!
//! [`scratch_bytes`] counts all of them before anything is loaded, by the functions that reserve them.

use super::Options;
use super::counts::RoutingCounts;
use super::delta::Delta;
use super::experts::rule;
use super::latent::{self, LatentBuffers};
use crate::model::{Hparams, Matrix, Model, Routing};
use crate::ops::{KV_BLOCK, RopeAngles, Routes, cpu, f32_bytes};

/// Bytes that [`super::Executor::new`] reserves for `model` besides the KV cache: activations and logits of the largest
/// step, its quantised activations, attention's buffers for `threads` compute threads. Exact.
pub fn scratch_bytes<T: Matrix>(model: &Model<T>, options: &Options, threads: usize) -> u64 {
    let h = &model.hparams;
    let rows = Buffers::bytes(h, options.max_rows, options.max_logit_rows);
    let acts = acts_size(model, options).bytes();
    let attention = attention_size(h, options).bytes(threads);
    let made = latent::made_bytes(model, options).saturating_add(RoutingCounts::bytes(h));
    rows.saturating_add(acts).saturating_add(attention).saturating_add(made)
}

/// The largest products of a step.
pub(super) fn acts_size<T: Matrix>(model: &Model<T>, options: &Options) -> cpu::ScratchSize {
    let mut size = cpu::ScratchSize::default();
    let pairs = options.max_rows.saturating_mul(model.hparams.routing.map_or(0, |routing| routing.used));
    model.for_each(|path, tensor| match path {
        "layers.latent.kv_up" | "layers.latent.key_up" | "layers.latent.value_up" => {
            latent::include_acts(&mut size, &model.hparams, path, tensor, options);
        }
        "layers.experts.down.weight" => size.include(tensor.dtype(), tensor.cols(), pairs),
        _ if path.ends_with(".weight") || path == "layers.experts.shared.gate" => {
            size.include(tensor.dtype(), tensor.cols(), options.max_rows);
            if matches!(path, "layers.experts.gate.weight" | "layers.experts.up.weight") {
                size.include_gathered(tensor.dtype(), tensor.cols(), pairs);
            }
        }
        _ => {}
    });
    let head = model.output.as_ref().unwrap_or(&model.embedding);
    size.include(head.dtype(), head.cols(), options.max_logit_rows);
    size
}

/// The largest attention of a step.
pub(super) fn attention_size(h: &Hparams, options: &Options) -> cpu::AttentionSize {
    cpu::AttentionSize {
        heads: h.heads,
        shape: options.kv_type.shape(h),
        kv_tokens: options.kv_blocks.saturating_mul(KV_BLOCK),
        expanded_key: h.latent.map_or(0, |latent| latent.key()),
    }
}

/// One allocation per kind of activation, `[max_rows, width]`, used by all layers in turn.
pub(super) struct Buffers {
    pub residual: Buffer,
    /// Normalised activations; afterwards a branch's output on its way to the residual stream.
    pub branch: Buffer,
    pub q: Buffer,
    pub k: Buffer,
    pub v: Buffer,
    pub attention: Buffer,
    pub gate: Buffer,
    pub up: Buffer,
    /// Of models with experts.
    pub routed: Option<Routed>,
    /// Of models with latent attention.
    pub latent: Option<LatentBuffers>,
    /// Of models with a recurrent state.
    pub delta: Option<Delta>,
    /// Rows that want logits, gathered.
    pub head: Buffer,
    pub logits: Buffer,
    pub angles: RopeAngles,
    /// Of layers with a window, where they turn in another way; else empty.
    pub windowed_angles: RopeAngles,
    pub positions: Vec<u32>,
}

/// What a layer with experts needs.
pub(super) struct Routed {
    /// The router's scores, `[rows, experts]`.
    pub scores: Buffer,
    pub routes: Routes,
    /// `[pairs, d_ff]`.
    pub gate: Buffer,
    pub up: Buffer,
    /// `[pairs, d_model]`.
    pub down: Buffer,
    /// The shared experts' output, and their gate.
    pub shared: Buffer,
    pub shared_gate: Buffer,
}

/// `[max rows, width]`.
pub(super) struct Buffer {
    data: Vec<f32>,
    pub width: usize,
}

impl Buffer {
    pub(super) fn new(rows: usize, width: usize) -> Buffer {
        Buffer { data: vec![0.0; rows * width], width }
    }

    /// Bytes reserved.
    pub(super) fn reserved(&self) -> u64 {
        f32_bytes(self.capacity())
    }

    /// Elements reserved.
    pub(super) fn capacity(&self) -> usize {
        self.data.capacity()
    }

    /// Room for `rows` rows of `width` elements, at most the buffer's own.
    pub(super) fn narrow(&mut self, rows: usize, width: usize) -> &mut [f32] {
        debug_assert!(width <= self.width);
        &mut self.data[..rows * width]
    }

    /// The first `rows` rows.
    pub(super) fn rows(&mut self, rows: usize) -> &mut [f32] {
        &mut self.data[..rows * self.width]
    }
}

/// Rotated dimensions of layers that turn in a way of their own.
fn windowed_dims(h: &Hparams) -> usize {
    h.window_rope.as_ref().map_or(0, |rope| rope.dims)
}

/// Widths of [`Buffers`]' rows, in the order of its fields; the last two are those of rows that want logits.
fn widths(h: &Hparams) -> ([usize; 8], [usize; 2]) {
    let (mut q, k) = (h.heads * h.key_dim, h.kv_heads * h.key_dim);
    let (mut v, mut attention) = (h.kv_heads * h.value_dim, h.heads * h.value_dim);
    if let Some(latent) = &h.latent {
        (q, v, attention) = (h.heads * latent.key(), 0, h.heads * latent.value);
    }
    let d_ff = h.d_ff.max(h.routing.map_or(0, |routing| routing.shared_d_ff));
    ([h.d_model, h.d_model, q, k, v, attention, d_ff, d_ff], [h.d_model, h.vocab])
}

impl Buffers {
    pub(super) fn new(h: &Hparams, rows: usize, logit_rows: usize) -> Buffers {
        let (per_row, per_logit_row) = widths(h);
        let [residual, branch, q, k, v, attention, gate, up] = per_row.map(|width| Buffer::new(rows, width));
        let [head, logits] = per_logit_row.map(|width| Buffer::new(logit_rows, width));
        let angles = |dims: usize| {
            let half = || Vec::with_capacity(rows * dims / 2);
            RopeAngles { sin: half(), cos: half() }
        };
        let (angles, windowed_angles) = (angles(h.rope.dims), angles(windowed_dims(h)));
        let positions = Vec::with_capacity(rows);
        let routed = h.routing.as_ref().map(|routing| Routed::new(h, routing, rows));
        let latent = h.latent.as_ref().map(|latent| LatentBuffers::new(h.heads, latent, rows));
        let delta = Delta::new(h, rows);
        Buffers {
            residual,
            branch,
            q,
            k,
            v,
            attention,
            gate,
            up,
            routed,
            latent,
            delta,
            head,
            logits,
            angles,
            windowed_angles,
            positions,
        }
    }

    /// Bytes that [`Buffers::new`] reserves.
    pub(super) fn bytes(h: &Hparams, rows: usize, logit_rows: usize) -> u64 {
        let (per_row, per_logit_row) = widths(h);
        // Sine and cosine of half the rotated dimensions; a position.
        let per_row = per_row.iter().sum::<usize>() + h.rope.dims + windowed_dims(h) + 1;
        let logits = f32_bytes(per_logit_row.iter().sum()).saturating_mul(logit_rows as u64);
        let routed = h.routing.as_ref().map_or(0, |routing| Routed::bytes(h, routing, rows));
        let latent = h.latent.as_ref().map_or(0, |latent| LatentBuffers::bytes(h.heads, latent, rows));
        let special = routed.saturating_add(latent).saturating_add(Delta::bytes(h, rows));
        f32_bytes(per_row).saturating_mul(rows as u64).saturating_add(logits).saturating_add(special)
    }

    /// Bytes reserved.
    pub(super) fn reserved(&self) -> u64 {
        let Buffers { residual, branch, q, k, v, attention, gate, up, head, logits, .. } = self;
        let Buffers { routed, latent, delta, angles, windowed_angles, positions, .. } = self;
        let buffers = [residual, branch, q, k, v, attention, gate, up, head, logits];
        let elements: usize = buffers.iter().map(|b| b.data.capacity()).sum();
        let special = routed.as_ref().map_or(0, Routed::reserved)
            + latent.as_ref().map_or(0, LatentBuffers::reserved)
            + delta.as_ref().map_or(0, Delta::reserved);
        let angles = [angles, windowed_angles].map(|angles| angles.sin.capacity() + angles.cos.capacity());
        f32_bytes(elements + angles.iter().sum::<usize>() + positions.capacity()) + special
    }
}

/// Widths of [`Routed`]'s rows: one for each row of the step, then one for each pair.
fn routed_widths(h: &Hparams, routing: &Routing) -> ([usize; 3], [usize; 3]) {
    let shared = if routing.shared_d_ff > 0 { [h.d_model, 1] } else { [0, 0] };
    ([routing.experts, shared[0], shared[1]], [routing.d_ff, routing.d_ff, h.d_model])
}

impl Routed {
    fn new(h: &Hparams, routing: &Routing, rows: usize) -> Routed {
        let (per_row, per_pair) = routed_widths(h, routing);
        let [scores, shared, shared_gate] = per_row.map(|width| Buffer::new(rows, width));
        let [gate, up, down] = per_pair.map(|width| Buffer::new(rows * routing.used, width));
        let routes = Routes::with_capacity(&rule(routing), rows);
        Routed { scores, routes, gate, up, down, shared, shared_gate }
    }

    fn bytes(h: &Hparams, routing: &Routing, rows: usize) -> u64 {
        let (per_row, per_pair) = routed_widths(h, routing);
        let pairs = (rows as u64).saturating_mul(routing.used as u64);
        let per_row = f32_bytes(per_row.iter().sum()).saturating_mul(rows as u64);
        let per_pair = f32_bytes(per_pair.iter().sum()).saturating_mul(pairs);
        per_row.saturating_add(per_pair).saturating_add(Routes::bytes(&rule(routing), rows))
    }

    fn reserved(&self) -> u64 {
        let Routed { scores, routes, gate, up, down, shared, shared_gate } = self;
        let elements: usize = [scores, gate, up, down, shared, shared_gate].iter().map(|b| b.data.capacity()).sum();
        f32_bytes(elements) + routes.reserved()
    }
}
