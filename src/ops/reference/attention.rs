//! Causal attention over the paged cache, and writing to it: the specification.

use crate::ops::kv::{key_at, scale_at, value_at};
use crate::ops::{Attention, KV_BLOCK, KV_GROUP, KvLayer, KvShape, SeqSlice, check_seq, visible_from};
use crate::quant::{DType, dequantize, quantize};
use half::f16;
use std::ops::Range;

/// Where one token's key or value lies among its head's bytes.
struct Vector<'a> {
    dtype: DType,
    /// Token within its block.
    slot: usize,
    /// Added to quants of eight bits: keys are stored unsigned.
    offset: u8,
    /// Byte and nibble of an element; `None` where the bytes are a row of the type.
    place: Option<&'a dyn Fn(usize) -> (usize, bool)>,
}

/// Calls `body` with the bytes of `head`'s keys in the block of `position`, and the place of its key there.
fn at_key<R>(shape: &KvShape, seq: &SeqSlice<'_>, position: usize, head: usize, body: At<'_, R>) -> R {
    let (dtype, slot, size) = (shape.key_type, position % KV_BLOCK, shape.key_head_bytes());
    let first = (seq.blocks[position / KV_BLOCK] as usize * shape.kv_heads + head) * size;
    if shape.latent {
        let row = shape.token_bytes();
        let first = first + slot * row;
        return body(first..first + row, Vector { dtype, slot, offset: 0, place: None });
    }
    body(first..first + size, Vector { dtype, slot, offset: 128, place: Some(&|dim| key_at(dtype, slot, dim)) })
}

/// The same for values.
fn at_value<R>(shape: &KvShape, seq: &SeqSlice<'_>, position: usize, head: usize, body: At<'_, R>) -> R {
    let (dtype, slot, size) = (shape.value_type, position % KV_BLOCK, shape.value_head_bytes());
    let first = (seq.blocks[position / KV_BLOCK] as usize * shape.kv_heads + head) * size;
    let place = |dim| value_at(dtype, shape.value_dim, slot, dim);
    body(first..first + size, Vector { dtype, slot, offset: 0, place: Some(&place) })
}

type At<'a, R> = &'a mut dyn FnMut(Range<usize>, Vector<'_>) -> R;

impl Vector<'_> {
    /// Stores `x`, rounded as `quant` does. A group with a number that is not finite becomes zeros with the scale NaN.
    fn store(&self, head: &mut [u8], x: &[f32]) {
        let (size, len) = (self.dtype.block_bytes(), self.dtype.block_len());
        for (b, x) in x.chunks_exact(len).enumerate() {
            let mut block = vec![0; size];
            quantize(self.dtype, x, &mut block);
            if len > 1 && !x.iter().all(|x| x.is_finite()) {
                block.fill(0);
                block[..2].copy_from_slice(&f16::NAN.to_le_bytes());
            }
            let Some(place) = self.place else {
                head[b * size..][..size].copy_from_slice(&block);
                continue;
            };
            if len == 1 {
                head[place(b).0..][..size].copy_from_slice(&block);
                continue;
            }
            let (scales, quants) = block.split_at(self.scale_bytes());
            for (i, scale) in scales.chunks_exact(2).enumerate() {
                head[scale_at(self.dtype, self.slot, b * len) + i * 2 * KV_BLOCK..][..2].copy_from_slice(scale);
            }
            for dim in 0..KV_GROUP {
                let (at, high) = place(b * len + dim);
                head[at] = match (self.dtype, high) {
                    (DType::Q8_0, _) => quants[dim].wrapping_add(self.offset),
                    (_, false) => head[at] & 0xf0 | nibble(quants, dim),
                    (_, true) => head[at] & 0x0f | nibble(quants, dim) << 4,
                };
            }
        }
    }

    /// Reads the vector back.
    fn load(&self, head: &[u8], out: &mut [f32]) {
        let (size, len) = (self.dtype.block_bytes(), self.dtype.block_len());
        for (b, out) in out.chunks_exact_mut(len).enumerate() {
            let Some(place) = self.place else {
                dequantize(self.dtype, &head[b * size..][..size], out);
                continue;
            };
            if len == 1 {
                dequantize(self.dtype, &head[place(b).0..][..size], out);
                continue;
            }
            // The block as ggml has it.
            let mut block = vec![0; size];
            let (scales, quants) = block.split_at_mut(self.scale_bytes());
            for (i, scale) in scales.chunks_exact_mut(2).enumerate() {
                scale.copy_from_slice(&head[scale_at(self.dtype, self.slot, b * len) + i * 2 * KV_BLOCK..][..2]);
            }
            for dim in 0..KV_GROUP {
                let (at, high) = place(b * len + dim);
                match (self.dtype, high) {
                    (DType::Q8_0, _) => quants[dim] = head[at].wrapping_sub(self.offset),
                    (_, false) => quants[dim % 16] |= (head[at] & 15) << (dim / 16 * 4),
                    (_, true) => quants[dim % 16] |= (head[at] >> 4) << (dim / 16 * 4),
                }
            }
            dequantize(self.dtype, &block, out);
        }
    }

    /// Bytes of scale and minimum in ggml's block.
    fn scale_bytes(&self) -> usize {
        if self.dtype == DType::Q4_1 { 4 } else { 2 }
    }
}

/// Element `dim` of ggml's packed nibbles.
fn nibble(quants: &[u8], dim: usize) -> u8 {
    quants[dim % 16] >> (dim / 16 * 4) & 15
}

/// Writes keys `[tokens, kv_heads * key_dim]` and values `[tokens, kv_heads * value_dim]` of the new tokens to their
/// slots, rounded to the cache's types.
pub fn kv_write(kv: &mut KvLayer<'_>, k: &[f32], v: &[f32], seqs: &[SeqSlice<'_>]) {
    let KvLayer { shape, keys, values } = kv;
    let tokens = k.len() / (shape.kv_heads * shape.key_dim).max(1);
    for seq in seqs {
        for i in 0..seq.rows {
            let (row, position) = (seq.first_row + i, seq.start + i);
            for head in 0..shape.kv_heads {
                let x = &k[(row * shape.kv_heads + head) * shape.key_dim..][..shape.key_dim];
                at_key(shape, seq, position, head, &mut |bytes, vector| vector.store(&mut keys[bytes], x));
                if shape.latent {
                    continue;
                }
                let x = &v[(row * shape.kv_heads + head) * shape.value_dim..][..shape.value_dim];
                at_value(shape, seq, position, head, &mut |bytes, vector| vector.store(&mut values[bytes], x));
            }
        }
        assert!(seq.first_row + seq.rows <= tokens, "rows {}+{} of {tokens}", seq.first_row, seq.rows);
    }
}

/// A query as it meets keys of `dtype`: with quantised ones it is rounded to 8 bits per group, like the activations that
/// meet quantised weights.
fn rounded(q: &[f32], dtype: DType) -> Vec<f32> {
    if dtype.block_len() == 1 {
        return q.to_vec();
    }
    let round = |group: &[f32]| {
        let largest = group.iter().fold(0.0f32, |max, x| max.max(x.abs()));
        let (scale, d) = if largest > 0.0 { (127.0 / largest, largest / 127.0) } else { (0.0, 0.0) };
        group.iter().map(|x| (x * scale).round_ties_even() * d).collect::<Vec<_>>()
    };
    q.chunks(KV_GROUP).flat_map(round).collect()
}

/// `out = softmax(scale · q·Kᵀ) · V` over the positions each token sees, query head `h` with cache head
/// `h / (heads / kv_heads)`; a sink is one score more whose value is zero.
pub fn attention(args: Attention<'_>) {
    args.check();
    let shape = &args.kv.shape;
    let (heads, group) = (args.heads, args.heads / shape.kv_heads);
    let (mut key, mut value) = (vec![0.0; shape.key_dim], vec![0.0; shape.value_dim]);
    for seq in args.seqs {
        check_seq(seq, args.out.len() / (heads * shape.value_dim), args.kv);
        for i in 0..seq.rows {
            let (row, position) = (seq.first_row + i, seq.start + i);
            let seen = visible_from(position, args.window)..position + 1;
            for head in 0..heads {
                let q = &args.q[(row * heads + head) * shape.key_dim..][..shape.key_dim];
                // A latent meets queries as they are: it is decoded for its values as well.
                let q = if shape.latent { q.to_vec() } else { rounded(q, shape.key_type) };
                let mut scores = Vec::new();
                for p in seen.clone() {
                    let keys = &args.kv.keys;
                    at_key(shape, seq, p, head / group, &mut |bytes, vector| vector.load(&keys[bytes], &mut key));
                    let dot: f64 = q.iter().zip(&key).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum();
                    scores.push(dot * f64::from(args.scale));
                }
                let sink = args.sinks.map_or(f64::NEG_INFINITY, |sinks| f64::from(sinks[head]));
                let max = scores.iter().copied().fold(sink, f64::max);
                let total: f64 = scores.iter().map(|s| (s - max).exp()).sum::<f64>() + (sink - max).exp();
                let mut sum = vec![0.0f64; shape.value_dim];
                for (p, score) in seen.clone().zip(&scores) {
                    if shape.latent {
                        let keys = &args.kv.keys;
                        at_key(shape, seq, p, 0, &mut |bytes, vector| vector.load(&keys[bytes], &mut key));
                        value.copy_from_slice(&key[..shape.value_dim]);
                    } else {
                        let values = &args.kv.values;
                        let load =
                            &mut |bytes: Range<usize>, vector: Vector<'_>| vector.load(&values[bytes], &mut value);
                        at_value(shape, seq, p, head / group, load);
                    }
                    let weight = (score - max).exp() / total;
                    sum.iter_mut().zip(&value).for_each(|(sum, &v)| *sum += weight * f64::from(v));
                }
                let out = &mut args.out[(row * heads + head) * shape.value_dim..][..shape.value_dim];
                out.iter_mut().zip(&sum).for_each(|(out, &sum)| *out = sum as f32);
            }
        }
    }
}
