//! The step's buffers, sized once when the model is loaded: a step allocates nothing. Zeroed pages of the system back
//! them, so a large limit costs memory only when a large step is run.
//!
//! [`scratch_bytes`] counts all of them before anything is loaded, by the functions that reserve them.

use super::Options;
use crate::model::{Hparams, Matrix, Model};
use crate::ops::{KV_BLOCK, RopeAngles, cpu, f32_bytes};

/// Bytes that [`super::Executor::new`] reserves for `model` besides the KV cache: activations and logits of the largest
/// step, its quantised activations, attention's buffers for `threads` compute threads. Exact.
pub fn scratch_bytes<T: Matrix>(model: &Model<T>, options: &Options, threads: usize) -> u64 {
    let h = &model.hparams;
    let rows = Buffers::bytes(h, options.max_rows, options.max_logit_rows);
    let acts = acts_size(model, options).bytes();
    let attention = attention_size(h, options).bytes(threads);
    rows.saturating_add(acts).saturating_add(attention)
}

/// The largest products of a step.
pub(super) fn acts_size<T: Matrix>(model: &Model<T>, options: &Options) -> cpu::ScratchSize {
    let mut size = cpu::ScratchSize::default();
    model.for_each(|path, tensor| {
        if path.ends_with(".weight") {
            size.include(tensor.dtype(), tensor.cols(), options.max_rows);
        }
    });
    let head = model.output.as_ref().unwrap_or(&model.embedding);
    size.include(head.dtype(), head.cols(), options.max_logit_rows);
    size
}

/// The largest attention of a step.
pub(super) fn attention_size(h: &Hparams, options: &Options) -> cpu::AttentionSize {
    cpu::AttentionSize {
        heads: h.heads,
        kv_heads: h.kv_heads,
        key_dim: h.key_dim,
        value_dim: h.value_dim,
        kv_tokens: options.kv_blocks.saturating_mul(KV_BLOCK),
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
    /// Rows that want logits, gathered.
    pub head: Buffer,
    pub logits: Buffer,
    pub angles: RopeAngles,
    pub positions: Vec<u32>,
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

    /// The first `rows` rows.
    pub(super) fn rows(&mut self, rows: usize) -> &mut [f32] {
        &mut self.data[..rows * self.width]
    }
}

/// Widths of [`Buffers`]' rows, in the order of its fields; the last two are those of rows that want logits.
fn widths(h: &Hparams) -> ([usize; 8], [usize; 2]) {
    let (q, k) = (h.heads * h.key_dim, h.kv_heads * h.key_dim);
    let (v, attention) = (h.kv_heads * h.value_dim, h.heads * h.value_dim);
    ([h.d_model, h.d_model, q, k, v, attention, h.d_ff, h.d_ff], [h.d_model, h.vocab])
}

impl Buffers {
    pub(super) fn new(h: &Hparams, rows: usize, logit_rows: usize) -> Buffers {
        let (per_row, per_logit_row) = widths(h);
        let [residual, branch, q, k, v, attention, gate, up] = per_row.map(|width| Buffer::new(rows, width));
        let [head, logits] = per_logit_row.map(|width| Buffer::new(logit_rows, width));
        let angles = || Vec::with_capacity(rows * h.rope.dims / 2);
        let angles = RopeAngles { sin: angles(), cos: angles() };
        let positions = Vec::with_capacity(rows);
        Buffers { residual, branch, q, k, v, attention, gate, up, head, logits, angles, positions }
    }

    /// Bytes that [`Buffers::new`] reserves.
    pub(super) fn bytes(h: &Hparams, rows: usize, logit_rows: usize) -> u64 {
        let (per_row, per_logit_row) = widths(h);
        // Sine and cosine of half the rotated dimensions; a position.
        let per_row = per_row.iter().sum::<usize>() + h.rope.dims + 1;
        let logits = f32_bytes(per_logit_row.iter().sum()).saturating_mul(logit_rows as u64);
        f32_bytes(per_row).saturating_mul(rows as u64).saturating_add(logits)
    }

    /// Bytes reserved.
    pub(super) fn reserved(&self) -> u64 {
        let Buffers { residual, branch, q, k, v, attention, gate, up, head, logits, angles, positions } = self;
        let buffers = [residual, branch, q, k, v, attention, gate, up, head, logits];
        let elements: usize = buffers.iter().map(|b| b.data.capacity()).sum();
        f32_bytes(elements + angles.sin.capacity() + angles.cos.capacity() + positions.capacity())
    }
}
