//! Causal attention over the paged cache, and writing to it: the specification.

use crate::ops::{Attention, KV_BLOCK, KvLayer, KvShape, SeqSlice, check_seq, visible_from};
use crate::quant::DType;
use half::f16;

/// Writes keys `[tokens, kv_heads * key_dim]` and values `[tokens, kv_heads * value_dim]` of the new tokens to their
/// slots, rounded to the cache's type.
pub fn kv_write(kv: &mut KvLayer<'_>, k: &[f32], v: &[f32], seqs: &[SeqSlice<'_>]) {
    let shape = kv.shape;
    let tokens = k.len() / (shape.kv_heads * shape.key_dim).max(1);
    for seq in seqs {
        check_seq(seq, tokens, kv);
        for i in 0..seq.rows {
            let (row, position) = (seq.first_row + i, seq.start + i);
            for head in 0..shape.kv_heads {
                let at = slot(&shape, seq, position, head);
                let width = shape.key_dim;
                store(shape.dtype, kv.keys, at * width, &k[(row * shape.kv_heads + head) * width..][..width]);
                let width = shape.value_dim;
                store(shape.dtype, kv.values, at * width, &v[(row * shape.kv_heads + head) * width..][..width]);
            }
        }
    }
}

/// Index of a head's vector of one position, in vectors.
fn slot(shape: &KvShape, seq: &SeqSlice<'_>, position: usize, head: usize) -> usize {
    let block = seq.blocks[position / KV_BLOCK] as usize;
    (block * shape.kv_heads + head) * KV_BLOCK + position % KV_BLOCK
}

/// Stores `x` from element `at` of `bytes` on.
fn store(dtype: DType, bytes: &mut [u8], at: usize, x: &[f32]) {
    for (i, &x) in x.iter().enumerate() {
        match dtype {
            DType::F32 => bytes[(at + i) * 4..][..4].copy_from_slice(&x.to_le_bytes()),
            DType::F16 => bytes[(at + i) * 2..][..2].copy_from_slice(&f16::from_f32(x).to_le_bytes()),
            other => panic!("a KV cache holds F32 or F16, not {other}"),
        }
    }
}

/// Elements `at .. at + out.len()` of a cache's bytes.
pub fn kv_read(dtype: DType, bytes: &[u8], at: usize, out: &mut [f32]) {
    for (i, out) in out.iter_mut().enumerate() {
        *out = match dtype {
            DType::F32 => f32::from_le_bytes([0, 1, 2, 3].map(|b| bytes[(at + i) * 4 + b])),
            DType::F16 => f16::from_le_bytes([0, 1].map(|b| bytes[(at + i) * 2 + b])).to_f32(),
            other => panic!("a KV cache holds F32 or F16, not {other}"),
        };
    }
}

/// `out = softmax(scale · q·Kᵀ) · V` over the positions each token sees, query head `h` with cache head
/// `h / (heads / kv_heads)`.
pub fn attention(args: Attention<'_>) {
    args.check();
    let shape = &args.kv.shape;
    let (heads, group) = (args.heads, args.heads / shape.kv_heads);
    let (mut key, mut value) = (vec![0.0; shape.key_dim], vec![0.0; shape.value_dim]);
    for seq in args.seqs {
        for i in 0..seq.rows {
            let (row, position) = (seq.first_row + i, seq.start + i);
            let seen = visible_from(position, args.window)..position + 1;
            for head in 0..heads {
                let q = &args.q[(row * heads + head) * shape.key_dim..][..shape.key_dim];
                let mut scores = Vec::new();
                for p in seen.clone() {
                    kv_read(shape.dtype, args.kv.keys, slot(shape, seq, p, head / group) * shape.key_dim, &mut key);
                    let dot: f64 = q.iter().zip(&key).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum();
                    scores.push(dot * f64::from(args.scale));
                }
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let total: f64 = scores.iter().map(|s| (s - max).exp()).sum();
                let mut sum = vec![0.0f64; shape.value_dim];
                for (p, score) in seen.clone().zip(&scores) {
                    let at = slot(shape, seq, p, head / group) * shape.value_dim;
                    kv_read(shape.dtype, args.kv.values, at, &mut value);
                    let weight = (score - max).exp() / total;
                    sum.iter_mut().zip(&value).for_each(|(sum, &v)| *sum += weight * f64::from(v));
                }
                let out = &mut args.out[(row * heads + head) * shape.value_dim..][..shape.value_dim];
                out.iter_mut().zip(&sum).for_each(|(out, &sum)| *out = sum as f32);
            }
        }
    }
}
