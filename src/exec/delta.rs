//! The gated delta net of a step (Gated DeltaNet, arXiv 2412.06464, as Qwen3-Next has it): projections, a short causal
//! convolution over q, k and v, the recurrence head by head, and a norm scaled by a gate.

use super::Batch;
use super::buffers::{Buffer, Buffers};
use super::forward::{Step, product};
use super::state::shape;
use crate::model::{DeltaGates, DeltaInput, DeltaNet, Hparams};
use crate::ops::{Convolution, DeltaRule, DeltaShape, Regroup, SeqSlice, StateSeq, Tensor, f32_bytes};

/// What layers with a recurrent state, and gated attention, need.
pub(super) struct Delta {
    /// A product whose columns are taken apart afterwards.
    pub mixed: Buffer,
    /// q, k and v side by side.
    qkv: Buffer,
    /// The gate of the output, also that of gated attention.
    pub gate: Buffer,
    alpha: Buffer,
    beta: Buffer,
    out: Buffer,
    /// The batch's sequences and their slots.
    pub seqs: Vec<StateSeq>,
}

/// Widths of [`Delta`]'s rows, in the order of its fields.
fn widths(h: &Hparams, shape: &DeltaShape) -> [usize; 6] {
    let (channels, values) = (shape.channels(), shape.values());
    let gated = h.heads * (h.key_dim + h.value_dim);
    let mixed = gated.max(channels + values).max(2 * shape.value_heads);
    [mixed, channels, values.max(h.heads * h.value_dim), shape.value_heads, shape.value_heads, values]
}

impl Delta {
    /// For batches of `rows` rows; `None` for a model without.
    pub(super) fn new(h: &Hparams, rows: usize) -> Option<Delta> {
        let shape = shape(h.recurrence.as_ref()?);
        let [mixed, qkv, gate, alpha, beta, out] = widths(h, &shape).map(|width| Buffer::new(rows, width));
        Some(Delta { mixed, qkv, gate, alpha, beta, out, seqs: Vec::with_capacity(rows) })
    }

    /// Notes the states of a batch's sequences.
    pub(super) fn begin(&mut self, batch: &Batch<'_>) {
        assert_eq!(batch.states.len(), batch.seqs.len(), "not a state for each sequence");
        self.seqs.clear();
        self.seqs.extend(batch.seqs.iter().zip(batch.states).map(|(seq, state)| {
            let SeqSlice { first_row, rows, start, .. } = *seq;
            StateSeq { first_row, rows, slot: state.slot, fresh: start == 0, save: state.save }
        }));
    }

    /// Bytes that [`Delta::new`] reserves.
    pub(super) fn bytes(h: &Hparams, rows: usize) -> u64 {
        let Some(recurrence) = &h.recurrence else { return 0 };
        let floats = f32_bytes(widths(h, &shape(recurrence)).iter().sum());
        floats.saturating_add(size_of::<StateSeq>() as u64).saturating_mul(rows as u64)
    }

    /// Bytes reserved.
    pub(super) fn reserved(&self) -> u64 {
        let Delta { mixed, qkv, gate, alpha, beta, out, seqs } = self;
        let buffers = [mixed, qkv, gate, alpha, beta, out];
        f32_bytes(buffers.iter().map(|b| b.capacity()).sum()) + (size_of::<StateSeq>() * seqs.capacity()) as u64
    }
}

impl Step<'_> {
    /// branch = output(norm(recurrence(conv(qkv(branch)))) · silu(gate(branch))); `index` counts the recurrent layers.
    pub(super) fn delta_net(&mut self, index: usize, weights: &DeltaNet<Tensor>) {
        let Some(recurrence) = &self.hparams.recurrence else {
            unreachable!("recurrent layers are bound by their numbers")
        };
        let (shape, rows) = (shape(recurrence), self.rows);
        self.project(&shape, weights);
        let Step { hparams, cpu, scratch, state, .. } = self;
        let Buffers { branch, delta: Some(delta), .. } = &mut *self.buffers else {
            unreachable!("a model with recurrent layers has their buffers")
        };
        let (values, value_heads) = (shape.values(), shape.value_heads);
        let (qkv, gate) = (delta.qkv.rows(rows), delta.gate.narrow(rows, values));
        let (alpha, beta, out) = (delta.alpha.rows(rows), delta.beta.rows(rows), delta.out.rows(rows));
        debug_assert_eq!(alpha.len(), rows * value_heads);

        let (shape, seqs) = (&shape, delta.seqs.as_slice());
        cpu.convolution(Convolution { x: qkv, weight: &weights.conv, shape, state: state.layer(index), seqs });
        cpu.l2_norm(qkv, shape.channels(), 2 * shape.key_heads, shape.key_dim);
        cpu.delta_gates(alpha, beta, &weights.rate, &weights.step_bias);
        cpu.delta_rule(DeltaRule { qkv, decay: alpha, strength: beta, shape, state: state.layer(index), seqs, out });
        cpu.rms_norm_heads(out, &weights.norm, hparams.rms_eps);
        cpu.silu_mul(gate, out);
        cpu.matmul(gate, &mut [product(&weights.output, branch.rows(rows))], scratch);
    }

    /// q, k, v, the output's gate and the recurrence's gates of branch.
    fn project(&mut self, shape: &DeltaShape, weights: &DeltaNet<Tensor>) {
        let Step { cpu, scratch, rows, .. } = self;
        let Buffers { branch, delta: Some(delta), .. } = &mut *self.buffers else {
            unreachable!("a model with recurrent layers has their buffers")
        };
        let (branch, keys, values) = (branch.rows(*rows), shape.keys(), shape.values());
        let Delta { mixed, qkv, gate, alpha, beta, .. } = delta;
        let (qkv, gate) = (qkv.rows(*rows), gate.narrow(*rows, values));
        let (alpha, beta) = (alpha.rows(*rows), beta.rows(*rows));
        let (groups, shared) = (shape.key_heads, shape.value_heads / shape.key_heads);
        match &weights.input {
            DeltaInput::Split { qkv: qkv_weight, gate: gate_weight } => {
                cpu.matmul(branch, &mut [product(qkv_weight, qkv), product(gate_weight, gate)], scratch);
            }
            DeltaInput::Grouped(weight) => {
                let mixed = mixed.narrow(*rows, shape.channels() + values);
                cpu.matmul(branch, &mut [product(weight, mixed)], scratch);
                let (dim, width) = (shape.key_dim, shared * shape.value_dim);
                let stride = 2 * (dim + width);
                let part = |first, width, at| Regroup { groups, stride, first, width, at };
                for part in [part(0, dim, 0), part(dim, dim, keys), part(2 * dim, width, 2 * keys)] {
                    cpu.regroup(mixed, &part, qkv, shape.channels());
                }
                cpu.regroup(mixed, &part(2 * dim + width, width, 0), gate, values);
            }
        }
        match &weights.gates {
            DeltaGates::Split { beta: beta_weight, alpha: alpha_weight } => {
                cpu.matmul(branch, &mut [product(beta_weight, beta), product(alpha_weight, alpha)], scratch);
            }
            DeltaGates::Grouped(weight) => {
                let mixed = mixed.narrow(*rows, 2 * shape.value_heads);
                cpu.matmul(branch, &mut [product(weight, mixed)], scratch);
                let part = |first| Regroup { groups, stride: 2 * shared, first, width: shared, at: 0 };
                cpu.regroup(mixed, &part(0), beta, shape.value_heads);
                cpu.regroup(mixed, &part(shared), alpha, shape.value_heads);
            }
        }
    }
}
