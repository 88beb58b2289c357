//! The forward pass once more, slow and obvious: of `ops::reference` alone, one sequence from its first token, without cache,
//! chunks, batches or packed weights, keys and values in F32. What `omnictl selftest` compares a whole model with.
//!
//! Only products with weights are shared out over threads, by rows: each row is computed as on one thread.

use super::experts::rule;
use super::state::shape;
use super::{Executor, KV_BLOCK};
use crate::model::{
    Activation, Attention, DeltaGates, DeltaInput, DeltaNet, Experts, FeedForward, Ffn, Hparams, KeyValueUp, Latent,
    Linear, Mixer,
};
use crate::ops::reference as op;
use crate::ops::{
    self, Convolution, DeltaRule, KvLayer, KvShape, Regroup, RopeAngles, RopeTable, Routes, SeqSlice, StateLayer,
    StateSeq, Tensor,
};
use crate::quant::DType;

/// A pass over one sequence.
struct Pass<'a> {
    h: &'a Hparams,
    positions: Vec<u32>,
    angles: RopeAngles,
    windowed_angles: RopeAngles,
    rope: &'a super::rope::Tables,
    threads: usize,
}

impl Executor {
    /// Logits of some rows of a sequence that begins with its first token, `[rows, vocab]`, by the reference operations.
    /// It takes as long as the weights need to be decoded on `threads` threads, and some multiplications per token.
    pub fn reference(&self, tokens: &[u32], rows: &[usize], threads: usize) -> Vec<f32> {
        let (model, h) = (&self.model, &self.model.hparams);
        let positions: Vec<u32> = (0..tokens.len() as u32).collect();
        let angles = |table: &RopeTable| {
            let mut angles = RopeAngles::default();
            table.angles(&positions, &mut angles);
            angles
        };
        let (all, windowed) = (angles(&self.rope.all), self.rope.windowed.as_ref().map(angles));
        let windowed_angles = windowed.unwrap_or_default();
        let pass = Pass { h, positions, angles: all, windowed_angles, rope: &self.rope, threads: threads.max(1) };

        let mut residual = vec![0.0; tokens.len() * h.d_model];
        op::embed(&model.embedding, tokens, h.embedding_scale, &mut residual);
        for (index, layer) in model.layers.iter().enumerate() {
            let x = pass.norm(&residual, &layer.attn_norm);
            let mixed = match &layer.mixer {
                Mixer::Attention(attention) => pass.attention(&x, h.window_of(index), attention, false),
                Mixer::GatedAttention(attention) => pass.attention(&x, None, attention, true),
                Mixer::Latent(latent) => pass.latent(&x, latent),
                Mixer::DeltaNet(net) => pass.delta_net(&x, net),
            };
            op::add(&mut residual, &pass.post_norm(mixed, layer.mixer_post_norm.as_ref()));
            let x = pass.norm(&residual, &layer.ffn_norm);
            let fed = match &layer.ffn {
                FeedForward::Dense(ffn) => pass.feed_forward(&x, ffn),
                FeedForward::Experts(experts) => pass.routed(&x, experts),
            };
            op::add(&mut residual, &pass.post_norm(fed, layer.ffn_post_norm.as_ref()));
        }
        let wanted: Vec<f32> = rows.iter().flat_map(|row| &residual[row * h.d_model..][..h.d_model]).copied().collect();
        let x = pass.norm(&wanted, &model.output_norm);
        let mut logits = pass.product(&x, model.output.as_ref().unwrap_or(&model.embedding), None);
        if let Some(cap) = h.logit_cap {
            op::soft_cap(&mut logits, cap);
        }
        logits
    }
}

impl Pass<'_> {
    fn tokens(&self) -> usize {
        self.positions.len()
    }

    fn norm(&self, x: &[f32], weight: &Tensor) -> Vec<f32> {
        let mut out = vec![0.0; x.len()];
        op::rms_norm(x, weight, self.h.rms_eps, &mut out);
        out
    }

    fn post_norm(&self, x: Vec<f32>, weight: Option<&Tensor>) -> Vec<f32> {
        weight.map_or_else(|| x.clone(), |weight| self.norm(&x, weight))
    }

    /// `x` `[tokens, cols]` to `[tokens, rows]`.
    fn linear(&self, x: &[f32], linear: &Linear<Tensor>) -> Vec<f32> {
        self.product(x, &linear.weight, linear.bias.as_ref())
    }

    fn product(&self, x: &[f32], weight: &Tensor, bias: Option<&Tensor>) -> Vec<f32> {
        self.rows_of(x, weight, bias, 0, weight.rows)
    }

    /// As [`Pass::product`] with `rows` rows of the weight from `first` on.
    fn rows_of(&self, x: &[f32], weight: &Tensor, bias: Option<&Tensor>, first: usize, rows: usize) -> Vec<f32> {
        let tokens = x.len() / weight.cols;
        let mut by_row = vec![0.0; rows * tokens];
        let share = rows.div_ceil(self.threads);
        std::thread::scope(|scope| {
            for (nth, out) in by_row.chunks_mut((share * tokens).max(1)).enumerate() {
                let start = first + nth * share;
                let range = start..start + out.len() / tokens;
                scope.spawn(move || op::matmul_rows(x, weight, bias, range, out));
            }
        });
        (0..tokens).flat_map(|t| by_row[t..].iter().step_by(tokens).copied()).collect()
    }

    fn activate(&self, gate: &mut [f32], up: &[f32]) {
        match self.h.activation {
            Activation::Silu => op::silu_mul(gate, up),
            Activation::Gelu => op::gelu_mul(gate, up),
            Activation::Clamped => op::clamped_silu_mul(gate, up),
        }
    }

    fn attention(&self, x: &[f32], window: Option<usize>, weights: &Attention<Tensor>, gated: bool) -> Vec<f32> {
        let (h, tokens) = (self.h, self.tokens());
        let (angles, table) = match &self.rope.windowed {
            Some(windowed) if window.is_some() => (&self.windowed_angles, windowed),
            _ => (&self.angles, &self.rope.all),
        };
        let (mut q, mut gate) = (self.linear(x, &weights.q), Vec::new());
        if gated {
            let stride = h.key_dim + h.value_dim;
            let part = |first, width| {
                let mut out = vec![0.0; tokens * h.heads * width];
                let how = Regroup { groups: h.heads, stride, first, width, at: 0 };
                op::regroup(&q, &how, &mut out, h.heads * width);
                out
            };
            (q, gate) = (part(0, h.key_dim), part(h.key_dim, h.value_dim));
        }
        let (mut k, v) = (self.linear(x, &weights.k), self.linear(x, &weights.v));
        for (x, norm) in [(&mut q, &weights.q_norm), (&mut k, &weights.k_norm)] {
            if let Some(norm) = norm {
                op::rms_norm_heads(x, norm, h.rms_eps);
            }
        }
        op::rope(&mut q, h.heads, h.key_dim, angles, table);
        op::rope(&mut k, h.kv_heads, h.key_dim, angles, table);
        if let Some(growth) = &h.query_growth {
            op::grow_queries(&mut q, &self.positions, growth.scale, growth.every);
        }
        let sinks = weights.sinks.as_ref().map(|sinks| op::decode_row(sinks, 0));
        let dims = [h.kv_heads, h.key_dim, h.value_dim];
        let mut out = self.attend(dims, [&q, &k, &v], h.attention_scale, window, sinks.as_deref());
        if gated {
            op::sigmoid_mul(&mut out, &gate);
        }
        self.linear(&out, &weights.output)
    }

    /// Attention of all tokens over keys and values in F32.
    fn attend(
        &self,
        [kv_heads, key_dim, value_dim]: [usize; 3],
        [q, k, v]: [&[f32]; 3],
        scale: f32,
        window: Option<usize>,
        sinks: Option<&[f32]>,
    ) -> Vec<f32> {
        let (heads, tokens) = (self.h.heads, self.tokens());
        let dtype = DType::F32;
        let shape = KvShape { kv_heads, key_dim, value_dim, key_type: dtype, value_type: dtype, latent: false };
        let blocks: Vec<u32> = (0..tokens.div_ceil(KV_BLOCK) as u32).collect();
        let mut keys = vec![0; blocks.len() * shape.key_block_bytes()];
        let mut values = vec![0; blocks.len() * shape.value_block_bytes()];
        let mut kv = KvLayer { shape, keys: &mut keys, values: &mut values };
        let seqs = [SeqSlice { first_row: 0, rows: tokens, start: 0, blocks: &blocks }];
        op::kv_write(&mut kv, k, v, &seqs);
        let mut out = vec![0.0; tokens * heads * value_dim];
        op::attention(ops::Attention { q, heads, kv: &kv, seqs: &seqs, scale, window, sinks, out: &mut out });
        out
    }

    /// Every head's keys and values made from the latents.
    fn latent(&self, x: &[f32], weights: &Latent<Tensor>) -> Vec<f32> {
        let Some(d) = &self.h.latent else { unreachable!("latent attention is bound by its numbers") };
        let (h, table) = (self.h, &self.rope.all);
        let mut q = match &weights.q_down {
            Some(down) => self.linear(&self.norm(&self.linear(x, &down.linear), &down.norm), &weights.q),
            None => self.linear(x, &weights.q),
        };
        let cached = self.linear(x, &weights.kv_down);
        let part = |range: std::ops::Range<usize>| -> Vec<f32> {
            cached.chunks_exact(d.cached()).flat_map(|row| &row[range.clone()]).copied().collect()
        };
        let (latents, mut turned) = (self.norm(&part(0..d.kv_rank), &weights.kv_norm), part(d.kv_rank..d.cached()));
        op::rope(&mut turned, 1, d.rope, &self.angles, table);
        for (t, row) in q.chunks_exact_mut(h.heads * d.key()).enumerate() {
            let half = table.dims / 2;
            let own = |all: &[f32]| all[t * half..][..half].to_vec();
            let angles = RopeAngles { sin: own(&self.angles.sin), cos: own(&self.angles.cos) };
            row.chunks_exact_mut(d.key()).for_each(|head| op::rope(&mut head[d.nope..], 1, d.rope, &angles, table));
        }
        if let Some(growth) = &h.query_growth {
            op::grow_queries(&mut q, &self.positions, growth.scale, growth.every);
        }
        let [keys, v] = self.keys_and_values(&latents, &weights.kv_up, [h.heads, d.nope, d.value]);
        let turned_of = |i: usize| &turned[i / h.heads * d.rope..][..d.rope];
        let k: Vec<f32> = keys
            .chunks_exact(d.nope)
            .enumerate()
            .flat_map(|(i, key)| key.iter().chain(turned_of(i)))
            .copied()
            .collect();
        let out = self.attend([h.heads, d.key(), d.value], [&q, &k, &v], d.scale, None, None);
        self.linear(&out, &weights.output)
    }

    /// `[tokens, heads * nope]` and `[tokens, heads * value]`.
    fn keys_and_values(
        &self,
        latents: &[f32],
        up: &KeyValueUp<Tensor>,
        [heads, nope, value]: [usize; 3],
    ) -> [Vec<f32>; 2] {
        match up {
            KeyValueUp::Whole(whole) => {
                let both = self.product(latents, whole, None);
                [(0, nope), (nope, value)].map(|(first, width)| {
                    let mut out = vec![0.0; self.tokens() * heads * width];
                    let how = Regroup { groups: heads, stride: nope + value, first, width, at: 0 };
                    op::regroup(&both, &how, &mut out, heads * width);
                    out
                })
            }
            KeyValueUp::Split { key, value } => {
                let rank = key.rows / heads;
                let mut sums = vec![0.0f64; self.tokens() * heads * nope];
                for (r, row) in (0..key.rows).map(|r| (r, op::decode_row(key, r))) {
                    let (head, c) = (r / rank, r % rank);
                    for t in 0..self.tokens() {
                        let x = f64::from(latents[t * rank + c]);
                        let out = &mut sums[(t * heads + head) * nope..][..nope];
                        out.iter_mut().zip(&row).for_each(|(sum, &w)| *sum += f64::from(w) * x);
                    }
                }
                [sums.into_iter().map(|sum| sum as f32).collect(), self.product(latents, value, None)]
            }
        }
    }

    fn delta_net(&self, x: &[f32], weights: &DeltaNet<Tensor>) -> Vec<f32> {
        let Some(recurrence) = &self.h.recurrence else { unreachable!("recurrent layers are bound by their numbers") };
        let (shape, rows) = (shape(recurrence), self.tokens());
        let (groups, shared) = (shape.key_heads, shape.value_heads / shape.key_heads);
        let (keys, values) = (shape.keys(), shape.values());
        let (mut qkv, mut gate) = match &weights.input {
            DeltaInput::Split { qkv, gate } => (self.linear(x, qkv), self.linear(x, gate)),
            DeltaInput::Grouped(all) => {
                let (mixed, dim, width) = (self.linear(x, all), shape.key_dim, shared * shape.value_dim);
                let stride = 2 * (dim + width);
                let part = |first, width, at| Regroup { groups, stride, first, width, at };
                let (mut qkv, mut gate) = (vec![0.0; rows * shape.channels()], vec![0.0; rows * values]);
                for how in [part(0, dim, 0), part(dim, dim, keys), part(2 * dim, width, 2 * keys)] {
                    op::regroup(&mixed, &how, &mut qkv, shape.channels());
                }
                op::regroup(&mixed, &part(2 * dim + width, width, 0), &mut gate, values);
                (qkv, gate)
            }
        };
        let (mut alpha, mut beta) = match &weights.gates {
            DeltaGates::Split { beta, alpha } => (self.linear(x, alpha), self.linear(x, beta)),
            DeltaGates::Grouped(both) => {
                let mixed = self.linear(x, both);
                let part = |first| {
                    let mut out = vec![0.0; rows * shape.value_heads];
                    let how = Regroup { groups, stride: 2 * shared, first, width: shared, at: 0 };
                    op::regroup(&mixed, &how, &mut out, shape.value_heads);
                    out
                };
                (part(shared), part(0))
            }
        };
        let mut memory = vec![0.0; shape.state_len()];
        let (seqs, slot_len) = ([StateSeq { first_row: 0, rows, slot: 0, fresh: true, save: None }], memory.len());
        let (shape, seqs) = (&shape, &seqs[..]);
        let state = StateLayer { memory: &mut memory, slot_len, offset: 0 };
        op::convolution(Convolution { x: &mut qkv, weight: &weights.conv, shape, state, seqs });
        op::l2_norm(&mut qkv, shape.channels(), 2 * shape.key_heads, shape.key_dim);
        op::delta_gates(&mut alpha, &mut beta, &weights.rate, &weights.step_bias);
        let mut out = vec![0.0; rows * values];
        let state = StateLayer { memory: &mut memory, slot_len, offset: 0 };
        let (decay, strength) = (&alpha, &beta);
        op::delta_rule(DeltaRule { qkv: &qkv, decay, strength, shape, state, seqs, out: &mut out });
        op::rms_norm_heads(&mut out, &weights.norm, self.h.rms_eps);
        op::silu_mul(&mut gate, &out);
        self.linear(&gate, &weights.output)
    }

    fn feed_forward(&self, x: &[f32], weights: &Ffn<Tensor>) -> Vec<f32> {
        let (mut gate, up) = (self.linear(x, &weights.gate), self.linear(x, &weights.up));
        self.activate(&mut gate, &up);
        self.linear(&gate, &weights.down)
    }

    fn routed(&self, x: &[f32], weights: &Experts<Tensor>) -> Vec<f32> {
        let Some(routing) = &self.h.routing else { unreachable!("experts are bound by their routing") };
        let (rule, tokens, d_model, d_ff) = (rule(routing), self.tokens(), self.h.d_model, routing.d_ff);
        let mut scores = self.linear(x, &weights.router);
        let bias = weights.choice_bias.as_ref().map(|bias| op::decode_row(bias, 0));
        let mut routes = Routes::default();
        op::route(&mut scores, bias.as_deref(), &rule, &mut routes);
        let mut pairs = vec![0.0; routes.len() * d_model];
        for (expert, own) in routes.active() {
            let rows = own.clone().map(|pair| routes.row(pair));
            let x: Vec<f32> = rows.flat_map(|row| &x[row * d_model..][..d_model]).copied().collect();
            let part = |linear: &Linear<Tensor>, x: &[f32], stride: usize, first: usize, rows: usize| {
                self.rows_of(x, &linear.weight, linear.bias.as_ref(), expert * stride + first, rows)
            };
            // Where gate and up are one tensor, an expert's gate comes first.
            let (mut gate, up) = match &weights.gate {
                Some(gate) => (part(gate, &x, d_ff, 0, d_ff), part(&weights.up, &x, d_ff, 0, d_ff)),
                None => (part(&weights.up, &x, 2 * d_ff, 0, d_ff), part(&weights.up, &x, 2 * d_ff, d_ff, d_ff)),
            };
            self.activate(&mut gate, &up);
            let down = part(&weights.down, &gate, d_model, 0, d_model);
            pairs[own.start * d_model..own.end * d_model].copy_from_slice(&down);
        }
        let mut out = vec![0.0; tokens * d_model];
        op::combine(&pairs, &routes, &mut out);
        let Some(shared) = &weights.shared else { return out };
        let mut fed = self.feed_forward(x, &shared.ffn);
        if let Some(gate) = &shared.gate {
            op::gate_rows(&mut fed, &self.product(x, gate, None));
        }
        op::add(&mut out, &fed);
        out
    }
}
