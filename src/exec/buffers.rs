//! The step's buffers, sized once when the model is loaded: a step allocates nothing. Zeroed pages of the system back
//! them, so a large limit costs memory only when a large step is run.

use crate::model::Hparams;
use crate::ops::RopeAngles;

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

impl Buffers {
    pub(super) fn new(model: &Hparams, rows: usize, logit_rows: usize) -> Buffers {
        let angles = rows * model.rope.dims / 2;
        Buffers {
            residual: Buffer::new(rows, model.d_model),
            branch: Buffer::new(rows, model.d_model),
            q: Buffer::new(rows, model.heads * model.key_dim),
            k: Buffer::new(rows, model.kv_heads * model.key_dim),
            v: Buffer::new(rows, model.kv_heads * model.value_dim),
            attention: Buffer::new(rows, model.heads * model.value_dim),
            gate: Buffer::new(rows, model.d_ff),
            up: Buffer::new(rows, model.d_ff),
            head: Buffer::new(logit_rows, model.d_model),
            logits: Buffer::new(logit_rows, model.vocab),
            angles: RopeAngles { sin: Vec::with_capacity(angles), cos: Vec::with_capacity(angles) },
            positions: Vec::with_capacity(rows),
        }
    }

    /// Bytes of all of them.
    pub(super) fn bytes(&self) -> usize {
        let Buffers { residual, branch, q, k, v, attention, gate, up, head, logits, angles, positions } = self;
        let buffers = [residual, branch, q, k, v, attention, gate, up, head, logits];
        let elements: usize = buffers.iter().map(|b| b.data.len()).sum();
        4 * (elements + angles.sin.capacity() + angles.cos.capacity() + positions.capacity())
    }
}
