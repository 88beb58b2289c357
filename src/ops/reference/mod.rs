//! Slow and obvious: the specification of every operation, on one thread, weights decoded to F32, sums in F64.
//!
//! Tests compare every kernel of every instruction set with these functions; `exec::reference` makes a forward pass of them,
//! which `omnictl selftest` compares a whole model with.

mod attention;
mod delta;
mod experts;

pub use attention::{attention, kv_write};
pub use delta::{convolution, delta_gates, delta_rule, l2_norm, regroup, sigmoid_mul};
pub use experts::{combine, expert_matmul, route};

use super::{MatMul, RopeAngles, RopePairing, RopeTable, Tensor};
use std::ops::Range;

/// Row `i` of a weight as F32.
pub fn decode_row(weight: &Tensor, i: usize) -> Vec<f32> {
    let mut out = vec![0.0; weight.cols];
    weight.decode_row(i, &mut out);
    out
}

/// `out[t] = scale · table[ids[t]]`, `[tokens, cols]`. Ids must be below `table.rows`.
pub fn embed(table: &Tensor, ids: &[u32], scale: f32, out: &mut [f32]) {
    assert_eq!(out.len(), ids.len() * table.cols, "out is not [tokens, {}]", table.cols);
    for (&id, row) in ids.iter().zip(out.chunks_exact_mut(table.cols)) {
        row.iter_mut().zip(decode_row(table, id as usize)).for_each(|(out, x)| *out = scale * x);
    }
}

/// `out = x / √(mean(x²) + eps) · weight` for each row of `weight.cols` elements (arXiv 1910.07467).
pub fn rms_norm(x: &[f32], weight: &Tensor, eps: f32, out: &mut [f32]) {
    assert_eq!(x.len(), out.len(), "x and out differ in length");
    assert!(x.len().is_multiple_of(weight.cols), "{} elements are not rows of {}", x.len(), weight.cols);
    let gain = decode_row(weight, 0);
    for (x, out) in x.chunks_exact(weight.cols).zip(out.chunks_exact_mut(weight.cols)) {
        let mean = x.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>() / x.len() as f64;
        let scale = 1.0 / (mean + f64::from(eps)).sqrt();
        for ((out, &x), &gain) in out.iter_mut().zip(x).zip(&gain) {
            *out = (f64::from(x) * scale * f64::from(gain)) as f32;
        }
    }
}

/// [`rms_norm`] in place over heads of `weight.cols` elements.
pub fn rms_norm_heads(x: &mut [f32], weight: &Tensor, eps: f32) {
    let input = x.to_vec();
    rms_norm(&input, weight, eps, x);
}

/// Every job's `out[t, r] = Σ_c weight[r, c] · x[t, c] + bias[r]`, activations unrounded.
pub fn matmul(x: &[f32], jobs: &mut [MatMul<'_>]) {
    for job in jobs {
        let (rows, cols) = (job.weight.rows, job.weight.cols);
        assert_eq!(job.out.len(), x.len() / cols * rows, "out is not [tokens, {rows}]");
        let mut row = vec![0.0; x.len() / cols];
        for r in 0..rows {
            matmul_rows(x, job.weight, job.bias, r..r + 1, &mut row);
            job.out.chunks_exact_mut(rows).zip(&row).for_each(|(out, &sum)| out[r] = sum);
        }
    }
}

/// Some rows of a product, row by row: `out[r, t] = Σ_c weight[rows[r], c] · x[t, c] + bias[rows[r]]`, `[rows, tokens]`.
pub fn matmul_rows(x: &[f32], weight: &Tensor, bias: Option<&Tensor>, rows: Range<usize>, out: &mut [f32]) {
    let (cols, first) = (weight.cols, rows.start);
    assert!(x.len().is_multiple_of(cols), "{} activations are not rows of {cols}", x.len());
    let tokens = x.len() / cols;
    assert_eq!(out.len(), rows.len() * tokens, "out is not [{}, {tokens}]", rows.len());
    let bias = bias.map(Tensor::to_f32);
    for (r, out) in out.chunks_exact_mut(tokens.max(1)).enumerate() {
        let weight = decode_row(weight, first + r);
        let bias = bias.as_ref().map_or(0.0, |b| f64::from(b[first + r]));
        for (x, out) in x.chunks_exact(cols).zip(out) {
            let sum: f64 = weight.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x)).sum();
            *out = (sum + bias) as f32;
        }
    }
}

/// Turns the first `table.dims` elements of each head of `x` `[tokens, heads * head_dim]` by its token's angles.
pub fn rope(x: &mut [f32], heads: usize, head_dim: usize, angles: &RopeAngles, table: &RopeTable) {
    let half = table.dims / 2;
    for (t, token) in x.chunks_exact_mut(heads * head_dim).enumerate() {
        let (sin, cos) = (&angles.sin[t * half..][..half], &angles.cos[t * half..][..half]);
        for head in token.chunks_exact_mut(head_dim) {
            for i in 0..half {
                let (a, b) = match table.pairing {
                    RopePairing::Interleaved => (2 * i, 2 * i + 1),
                    RopePairing::Halves => (i, i + half),
                };
                let (x, y) = (head[a], head[b]);
                head[a] = x * cos[i] - y * sin[i];
                head[b] = x * sin[i] + y * cos[i];
            }
        }
    }
}

/// `gate = gate · sigmoid(gate) · up`.
pub fn silu_mul(gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "gate and up differ in length");
    for (gate, &up) in gate.iter_mut().zip(up) {
        let g = f64::from(*gate);
        *gate = (g / (1.0 + (-g).exp()) * f64::from(up)) as f32;
    }
}

/// `gate = gelu(gate) · up` with `gelu(g) = g/2 · (1 + tanh(√(2/π) · (g + 0.044715 g³)))` (arXiv 1606.08415).
pub fn gelu_mul(gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "gate and up differ in length");
    for (gate, &up) in gate.iter_mut().zip(up) {
        let g = f64::from(*gate);
        let inner = (2.0 / std::f64::consts::PI).sqrt() * (g + 0.044715 * g.powi(3));
        *gate = (0.5 * g * (1.0 + inner.tanh()) * f64::from(up)) as f32;
    }
}

/// `gate = g · sigmoid(1.702 g) · (u + 1)` with `g = min(gate, 7)` and `u = up` within ±7 (gpt-oss's model card).
pub fn clamped_silu_mul(gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "gate and up differ in length");
    for (gate, &up) in gate.iter_mut().zip(up) {
        let (g, u) = (f64::from(*gate).clamp(f64::NEG_INFINITY, 7.0), f64::from(up).clamp(-7.0, 7.0));
        *gate = (g / (1.0 + (-1.702 * g).exp()) * (u + 1.0)) as f32;
    }
}

/// `x = cap · tanh(x / cap)` (Gemma 2, arXiv 2408.00118).
pub fn soft_cap(x: &mut [f32], cap: f32) {
    let cap = f64::from(cap);
    x.iter_mut().for_each(|x| *x = (cap * (f64::from(*x) / cap).tanh()) as f32);
}

/// `x = x · (1 + scale · ln(1 + ⌊position / every⌋))` for each row of `x` `[positions, width]` (Ministral 3's queries).
pub fn grow_queries(x: &mut [f32], positions: &[u32], scale: f32, every: u32) {
    let width = x.len() / positions.len();
    for (row, &position) in x.chunks_exact_mut(width).zip(positions) {
        let factor = 1.0 + f64::from(scale) * f64::from(1 + position / every).ln();
        row.iter_mut().for_each(|x| *x = (f64::from(*x) * factor) as f32);
    }
}

/// `x = x · sigmoid(gate)` for each row of `x` `[gates, width]`.
pub fn gate_rows(x: &mut [f32], gate: &[f32]) {
    let width = x.len() / gate.len();
    for (row, &gate) in x.chunks_exact_mut(width).zip(gate) {
        let factor = 1.0 / (1.0 + f64::from(-gate).exp());
        row.iter_mut().for_each(|x| *x = (f64::from(*x) * factor) as f32);
    }
}

/// `x += y`.
pub fn add(x: &mut [f32], y: &[f32]) {
    assert_eq!(x.len(), y.len(), "x and y differ in length");
    for (x, &y) in x.iter_mut().zip(y) {
        *x += y;
    }
}
