//! The forward pass, top to bottom as in the papers' block diagrams: LLaMA (arXiv 2302.13971) with grouped-query
//! attention (2305.13245), Qwen2's biases (2407.10671) and Qwen3's q/k norms (2505.09388) where the file has them;
//! Qwen3-Next's gated attention and, in `delta`, its recurrent layers.

use super::buffers::Buffers;
use super::delta::Delta;
use super::kv::KvCache;
use super::rope::Tables;
use super::state::StateCache;
use super::{Batch, Executor, RoutingCounts};
use crate::model::{Activation, Attention, FeedForward, Ffn, Hparams, Linear, Mixer};
use crate::ops::{self, MatMul, Regroup, SeqSlice, Tensor, cpu};

/// What every block of a step needs besides its weights.
pub(super) struct Step<'a> {
    pub(super) hparams: &'a Hparams,
    pub(super) cpu: &'a cpu::Cpu,
    pub(super) scratch: &'a mut cpu::Scratch,
    pub(super) rope: &'a Tables,
    pub(super) kv: &'a mut KvCache,
    pub(super) state: &'a mut StateCache,
    pub(super) buffers: &'a mut Buffers,
    pub(super) seqs: &'a [SeqSlice<'a>],
    /// Rows of the batch.
    pub(super) rows: usize,
    pub(super) counts: Option<&'a RoutingCounts>,
}

impl Executor {
    /// Evaluates a batch: writes its keys and values to the cache and returns `[logit_rows, vocab]`. `after_layer` is
    /// called after each block, as a sign of life.
    ///
    /// A batch that exceeds the limits given at the start, or names blocks or tokens that do not exist, is a bug of the
    /// caller and panics.
    pub fn forward(&mut self, batch: &Batch<'_>, after_layer: &mut dyn FnMut()) -> &[f32] {
        let Executor { model, cpu, scratch, rope, kv, state, buffers, ups, counts } = self;
        let hparams = &model.hparams;
        let rows = batch.tokens.len();
        buffers.positions.clear();
        for seq in batch.seqs {
            buffers.positions.extend((seq.start..seq.start + seq.rows).map(|position| position as u32));
        }
        assert_eq!(buffers.positions.len(), rows, "the sequences do not cover the batch");
        rope.all.angles(&buffers.positions, &mut buffers.angles);
        if let Some(windowed) = &rope.windowed {
            windowed.angles(&buffers.positions, &mut buffers.windowed_angles);
        }

        if let Some(delta) = &mut buffers.delta {
            delta.begin(batch);
        }

        cpu.embed(&model.embedding, batch.tokens, hparams.embedding_scale, buffers.residual.rows(rows));
        let (seqs, counts) = (batch.seqs, counts.as_deref());
        let mut step = Step { hparams, cpu, scratch, rope, kv, state, buffers, seqs, rows, counts };
        // Each kind of layer has a cache of its own, with room for no other.
        let (mut in_kv, mut in_state) = (0, 0);
        for (index, layer) in model.layers.iter().enumerate() {
            step.norm(&layer.attn_norm);
            match &layer.mixer {
                Mixer::Attention(attention) => step.attention(in_kv, hparams.window_of(index), attention, false),
                Mixer::GatedAttention(attention) => step.attention(in_kv, None, attention, true),
                Mixer::Latent(latent) => step.latent(in_kv, latent, &ups[in_kv]),
                Mixer::DeltaNet(net) => step.delta_net(in_state, net),
            }
            match &layer.mixer {
                Mixer::DeltaNet(_) => in_state += 1,
                _ => in_kv += 1,
            }
            step.post_norm(layer.mixer_post_norm.as_ref());
            step.add_branch();
            step.norm(&layer.ffn_norm);
            match (&layer.ffn, &hparams.routing) {
                (FeedForward::Dense(ffn), _) => step.feed_forward(ffn),
                (FeedForward::Experts(experts), Some(routing)) => step.routed(index, experts, routing),
                (FeedForward::Experts(_), None) => unreachable!("experts are bound by their routing"),
            }
            step.post_norm(layer.ffn_post_norm.as_ref());
            step.add_branch();
            after_layer();
        }
        step.head(&model.output_norm, model.output.as_ref().unwrap_or(&model.embedding), batch.logit_rows);
        self.buffers.logits.rows(batch.logit_rows.len())
    }
}

impl Step<'_> {
    /// branch = norm(residual)
    fn norm(&mut self, weight: &Tensor) {
        let Buffers { residual, branch, .. } = &mut *self.buffers;
        self.cpu.rms_norm(residual.rows(self.rows), weight, self.hparams.rms_eps, branch.rows(self.rows));
    }

    /// residual += branch
    fn add_branch(&mut self) {
        let Buffers { residual, branch, .. } = &mut *self.buffers;
        self.cpu.add(residual.rows(self.rows), branch.rows(self.rows));
    }

    /// branch = norm(branch), where a block has one there
    fn post_norm(&mut self, weight: Option<&Tensor>) {
        if let Some(weight) = weight {
            self.cpu.rms_norm_heads(self.buffers.branch.rows(self.rows), weight, self.hparams.rms_eps);
        }
    }

    /// branch = attention(branch), scaled by the gate beside q where it is `gated`; `index` counts the layers with a cache.
    fn attention(&mut self, index: usize, window: Option<usize>, weights: &Attention<Tensor>, gated: bool) {
        let Step { hparams: h, cpu, scratch, rope, seqs, rows, .. } = self;
        let rows = *rows;
        let Buffers { branch, q, k, v, attention, delta, angles, windowed_angles, positions, .. } = &mut *self.buffers;
        let (angles, rope) = match &rope.windowed {
            Some(windowed) if window.is_some() => (windowed_angles, windowed),
            _ => (angles, &rope.all),
        };
        let (q, k, v, attention) = (q.rows(rows), k.rows(rows), v.rows(rows), attention.rows(rows));
        let mut gating = delta.as_mut().filter(|_| gated).map(|Delta { mixed, gate, .. }| {
            let width = h.heads * h.value_dim;
            (mixed.narrow(rows, h.heads * h.key_dim + width), gate.narrow(rows, width), width)
        });

        let query = gating.as_mut().map_or(&mut *q, |(mixed, ..)| &mut **mixed);
        let mut qkv = [product(&weights.q, query), product(&weights.k, k), product(&weights.v, v)];
        cpu.matmul(branch.rows(rows), &mut qkv, scratch);
        if let Some((mixed, gate, width)) = &mut gating {
            let part = |first, width| Regroup { groups: h.heads, stride: h.key_dim + h.value_dim, first, width, at: 0 };
            cpu.regroup(mixed, &part(0, h.key_dim), q, h.heads * h.key_dim);
            cpu.regroup(mixed, &part(h.key_dim, h.value_dim), gate, *width);
        }
        if let Some(norm) = &weights.q_norm {
            cpu.rms_norm_heads(q, norm, h.rms_eps);
        }
        if let Some(norm) = &weights.k_norm {
            cpu.rms_norm_heads(k, norm, h.rms_eps);
        }
        cpu.rope(q, h.heads, h.key_dim, angles, rope);
        cpu.rope(k, h.kv_heads, h.key_dim, angles, rope);
        if let Some(growth) = &h.query_growth {
            cpu.grow_queries(q, positions, growth.scale, growth.every);
        }

        let sinks = weights.sinks.as_ref().map(Tensor::to_f32);
        let mut cache = self.kv.layer(index);
        cpu.kv_write(&mut cache, k, v, seqs);
        cpu.attention(ops::Attention {
            q,
            heads: h.heads,
            kv: &cache,
            seqs,
            scale: h.attention_scale,
            window,
            sinks: sinks.as_deref(),
            out: attention,
        });
        if let Some((_, gate, _)) = gating {
            cpu.sigmoid_mul(attention, gate);
        }
        cpu.matmul(attention, &mut [product(&weights.output, branch.rows(rows))], scratch);
    }

    /// branch = down(activation(gate(branch), up(branch)))
    fn feed_forward(&mut self, weights: &Ffn<Tensor>) {
        let Step { hparams, cpu, scratch, rows, .. } = self;
        let Buffers { branch, gate, up, .. } = &mut *self.buffers;
        let d_ff = weights.gate.weight.rows;
        let (branch, gate, up) = (branch.rows(*rows), gate.narrow(*rows, d_ff), up.narrow(*rows, d_ff));
        cpu.matmul(branch, &mut [product(&weights.gate, gate), product(&weights.up, up)], scratch);
        activate(cpu, hparams.activation, gate, up);
        cpu.matmul(gate, &mut [product(&weights.down, branch)], scratch);
    }

    /// logits = head(norm(residual)), for the rows that want them.
    fn head(&mut self, norm: &Tensor, weight: &Tensor, wanted: &[usize]) {
        let Buffers { residual, branch, head, logits, .. } = &mut *self.buffers;
        let width = residual.width;
        let residual = residual.rows(self.rows);
        let gathered = branch.rows(wanted.len());
        if wanted.is_empty() {
            return;
        }
        for (&row, out) in wanted.iter().zip(gathered.chunks_exact_mut(width)) {
            out.copy_from_slice(&residual[row * width..][..width]);
        }
        let (head, logits) = (head.rows(wanted.len()), logits.rows(wanted.len()));
        self.cpu.rms_norm(gathered, norm, self.hparams.rms_eps, head);
        self.cpu.matmul(head, &mut [MatMul { weight, bias: None, out: &mut *logits }], self.scratch);
        if let Some(cap) = self.hparams.logit_cap {
            self.cpu.soft_cap(logits, cap);
        }
    }
}

/// gate = activation(gate, up)
pub(super) fn activate(cpu: &cpu::Cpu, activation: Activation, gate: &mut [f32], up: &[f32]) {
    match activation {
        Activation::Silu => cpu.silu_mul(gate, up),
        Activation::Gelu => cpu.gelu_mul(gate, up),
        Activation::Clamped => cpu.clamped_silu_mul(gate, up),
    }
}

pub(super) fn product<'a>(linear: &'a Linear<Tensor>, out: &'a mut [f32]) -> MatMul<'a> {
    MatMul { weight: &linear.weight, bias: linear.bias.as_ref(), out }
}
