//! The gated delta net's operations, token by token: the specification.

use super::decode_row;
use crate::ops::delta::{Convolution, DELTA_TILE, DeltaRule, L2_EPSILON, Regroup, StateLayer, StateSeq};
use crate::ops::{DeltaShape, Tensor};
use std::ops::Range;

fn zero_fresh(state: &mut StateLayer<'_>, seq: &StateSeq, part: Range<usize>) {
    if seq.fresh {
        let start = state.start(seq.slot);
        state.memory[start + part.start..start + part.end].fill(0.0);
    }
}

/// Copies a part of a layer's state to the slot of a snapshot.
fn copy(state: &mut StateLayer<'_>, seq: &StateSeq, save: Option<usize>, part: Range<usize>) {
    if let Some(slot) = save {
        let (from, to) = (state.start(seq.slot), state.start(slot));
        state.memory.copy_within(from + part.start..from + part.end, to + part.start);
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// See [`Convolution`].
pub fn convolution(mut args: Convolution<'_>) {
    args.check();
    let (channels, kernel) = (args.shape.channels(), args.shape.kernel);
    for (seq, save) in args.seqs.iter().flat_map(StateSeq::parts) {
        zero_fresh(&mut args.state, &seq, 0..args.shape.conv_len());
        let start = args.state.start(seq.slot);
        let rows = &mut args.x[seq.first_row * channels..][..seq.rows * channels];
        let input = [&args.state.memory[start..][..args.shape.conv_len()], rows].concat();
        for (c, weight) in (0..channels).map(|c| (c, decode_row(args.weight, c))) {
            for t in 0..seq.rows {
                let sum: f64 =
                    (0..kernel).map(|j| f64::from(weight[j]) * f64::from(input[(t + j) * channels + c])).sum();
                rows[t * channels + c] = (sum * sigmoid(sum)) as f32;
            }
        }
        let last = &input[seq.rows * channels..];
        args.state.memory[start..start + last.len()].copy_from_slice(last);
        copy(&mut args.state, &seq, save, 0..args.shape.conv_len());
    }
}

/// Each of the first `heads` heads of `dim` elements in every row of `x` `[tokens, width]` divided by its length.
pub fn l2_norm(x: &mut [f32], width: usize, heads: usize, dim: usize) {
    for row in x.chunks_exact_mut(width) {
        for head in row[..heads * dim].chunks_exact_mut(dim) {
            let sum: f64 = head.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
            let scale = 1.0 / (sum + f64::from(L2_EPSILON)).sqrt();
            head.iter_mut().for_each(|x| *x = (f64::from(*x) * scale) as f32);
        }
    }
}

/// `alpha = exp(rate · softplus(alpha + step_bias))`, `beta = sigmoid(beta)`; both `[tokens, value_heads]`.
pub fn delta_gates(alpha: &mut [f32], beta: &mut [f32], rate: &Tensor, step_bias: &Tensor) {
    let (rate, bias) = (decode_row(rate, 0), decode_row(step_bias, 0));
    for (i, alpha) in alpha.iter_mut().enumerate() {
        let step = f64::from(*alpha) + f64::from(bias[i % bias.len()]);
        *alpha = (f64::from(rate[i % rate.len()]) * (step.max(0.0) + (-step.abs()).exp().ln_1p())).exp() as f32;
    }
    beta.iter_mut().for_each(|beta| *beta = sigmoid(f64::from(*beta)) as f32);
}

/// See [`DeltaRule`].
pub fn delta_rule(mut args: DeltaRule<'_>) {
    args.check();
    let shape = *args.shape;
    for (seq, save) in args.seqs.iter().flat_map(StateSeq::parts) {
        zero_fresh(&mut args.state, &seq, shape.conv_len()..shape.state_len());
        for head in 0..shape.value_heads {
            for column in 0..shape.value_dim {
                delta_column(&mut args, &shape, &seq, head, column);
            }
        }
        copy(&mut args.state, &seq, save, shape.conv_len()..shape.state_len());
    }
}

/// One column of a head's state through all rows of a sequence.
fn delta_column(args: &mut DeltaRule<'_>, shape: &DeltaShape, seq: &StateSeq, head: usize, column: usize) {
    let tile = (head * shape.value_dim + column) / DELTA_TILE;
    let first = args.state.start(seq.slot) + shape.conv_len() + tile * shape.key_dim * DELTA_TILE + column % DELTA_TILE;
    let at = |i: usize| first + i * DELTA_TILE;
    let mut state: Vec<f64> = (0..shape.key_dim).map(|i| f64::from(args.state.memory[at(i)])).collect();
    for row in seq.first_row..seq.first_row + seq.rows {
        let qkv = &args.qkv[row * shape.channels()..][..shape.channels()];
        let q = &qkv[shape.key_head(head) * shape.key_dim..][..shape.key_dim];
        let k = &qkv[shape.keys() + shape.key_head(head) * shape.key_dim..][..shape.key_dim];
        let v = f64::from(qkv[2 * shape.keys() + head * shape.value_dim + column]);
        let gate = row * shape.value_heads + head;
        state.iter_mut().for_each(|s| *s *= f64::from(args.decay[gate]));
        let seen: f64 = state.iter().zip(k).map(|(s, &k)| s * f64::from(k)).sum();
        let change = f64::from(args.strength[gate]) * (v - seen);
        state.iter_mut().zip(k).for_each(|(s, &k)| *s += f64::from(k) * change);
        let sum: f64 = state.iter().zip(q).map(|(s, &q)| s * f64::from(q)).sum();
        args.out[row * shape.values() + head * shape.value_dim + column] = (sum / (shape.key_dim as f64).sqrt()) as f32;
    }
    state.iter().enumerate().for_each(|(i, &s)| args.state.memory[at(i)] = s as f32);
}

/// `x = x · sigmoid(gate)`.
pub fn sigmoid_mul(x: &mut [f32], gate: &[f32]) {
    assert_eq!(x.len(), gate.len(), "x and gate differ in length");
    x.iter_mut().zip(gate).for_each(|(x, &gate)| *x = (f64::from(*x) * sigmoid(f64::from(gate))) as f32);
}

/// See [`Regroup`]; `x` `[tokens, groups * stride]`, `to` `[tokens, width_of_a_row]`.
pub fn regroup(x: &[f32], how: &Regroup, to: &mut [f32], width_of_a_row: usize) {
    for (x, to) in x.chunks_exact(how.groups * how.stride).zip(to.chunks_exact_mut(width_of_a_row)) {
        for g in 0..how.groups {
            for i in 0..how.width {
                to[how.at + g * how.width + i] = x[g * how.stride + how.first + i];
            }
        }
    }
}
