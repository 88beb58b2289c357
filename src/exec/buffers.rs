//! The step's buffers, sized once when the model is loaded: a step allocates nothing. Zeroed pages of the system back
//! them, so a large limit costs memory only when a large step is run.

use super::experts::rule;
use crate::model::{Hparams, Routing};
use crate::ops::{RopeAngles, Routes};

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
    /// Rows that want logits, gathered.
    pub head: Buffer,
    pub logits: Buffer,
    pub angles: RopeAngles,
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
    fn new(rows: usize, width: usize) -> Buffer {
        Buffer { data: vec![0.0; rows * width], width }
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

impl Buffers {
    pub(super) fn new(model: &Hparams, rows: usize, logit_rows: usize) -> Buffers {
        let angles = rows * model.rope.dims / 2;
        let dense = model.d_ff.max(model.routing.map_or(0, |routing| routing.shared_d_ff));
        Buffers {
            residual: Buffer::new(rows, model.d_model),
            branch: Buffer::new(rows, model.d_model),
            q: Buffer::new(rows, model.heads * model.key_dim),
            k: Buffer::new(rows, model.kv_heads * model.key_dim),
            v: Buffer::new(rows, model.kv_heads * model.value_dim),
            attention: Buffer::new(rows, model.heads * model.value_dim),
            gate: Buffer::new(rows, dense),
            up: Buffer::new(rows, dense),
            routed: model.routing.as_ref().map(|routing| Routed::new(model, routing, rows)),
            head: Buffer::new(logit_rows, model.d_model),
            logits: Buffer::new(logit_rows, model.vocab),
            angles: RopeAngles { sin: Vec::with_capacity(angles), cos: Vec::with_capacity(angles) },
            positions: Vec::with_capacity(rows),
        }
    }

    /// Bytes of all of them.
    pub(super) fn bytes(&self) -> usize {
        let Buffers { residual, branch, q, k, v, attention, gate, up, routed, head, logits, angles, positions } = self;
        let buffers = [residual, branch, q, k, v, attention, gate, up, head, logits];
        let elements: usize = buffers.iter().map(|b| b.data.len()).sum();
        let routed = routed.as_ref().map_or(0, Routed::bytes);
        4 * (elements + angles.sin.capacity() + angles.cos.capacity() + positions.capacity()) + routed
    }
}

impl Routed {
    fn new(model: &Hparams, routing: &Routing, rows: usize) -> Routed {
        let pairs = rows * routing.used;
        let shared = if routing.shared_d_ff > 0 { rows } else { 0 };
        Routed {
            scores: Buffer::new(rows, routing.experts),
            routes: Routes::with_capacity(&rule(routing), rows),
            gate: Buffer::new(pairs, routing.d_ff),
            up: Buffer::new(pairs, routing.d_ff),
            down: Buffer::new(pairs, model.d_model),
            shared: Buffer::new(shared, model.d_model),
            shared_gate: Buffer::new(shared, 1),
        }
    }

    fn bytes(&self) -> usize {
        let Routed { scores, routes, gate, up, down, shared, shared_gate } = self;
        let elements: usize = [scores, gate, up, down, shared, shared_gate].iter().map(|b| b.data.len()).sum();
        4 * elements + routes.bytes()
    }
}
