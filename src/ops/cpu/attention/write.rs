//! Writes new keys and values to their places in the cache, rounded to its types: one head of one block at a time, which
//! only one thread may touch, since tokens share bytes in the quantised types.

use super::super::Cpu;
use super::super::acts::Parts;
use crate::ops::kv::{key_at, scale_at, section_bytes, section_head, value_width};
use crate::ops::{KV_BLOCK, KV_GROUP, KvLayer, KvShape, SeqSlice, check_seq};
use crate::quant::{DType, quantize};
use half::f16;

/// The new tokens of one sequence in one block.
struct Piece {
    block: usize,
    /// First row of the batch, first slot of the block, tokens.
    row: usize,
    slot: usize,
    tokens: usize,
}

/// See [`Cpu::kv_write`].
pub(crate) fn kv_write(cpu: &Cpu, kv: &mut KvLayer<'_>, k: &[f32], v: &[f32], seqs: &[SeqSlice<'_>]) {
    let shape = kv.shape;
    let tokens = k.len() / (shape.kv_heads * shape.key_dim).max(1);
    assert_eq!(k.len(), tokens * shape.kv_heads * shape.key_dim, "k is not [tokens, kv_heads * key_dim]");
    assert_eq!(v.len(), tokens * shape.kv_heads * shape.written_value(), "v is not [tokens, kv_heads * value_dim]");
    for seq in seqs {
        check_seq(seq, tokens, kv);
    }
    if shape.latent {
        return write_latents(cpu, kv, k, seqs);
    }
    let pieces: Vec<Piece> = seqs.iter().flat_map(pieces).collect();
    let (keys, values) = (Parts::new(kv.keys), Parts::new(kv.values));
    let (key_bytes, value_bytes) = (shape.key_head_bytes(), shape.value_head_bytes());
    let width = tokens * (shape.key_dim + shape.value_dim) / pieces.len().max(1);
    cpu.each(pieces.len() * shape.kv_heads, width, &|range| {
        for i in range {
            let (piece, head) = (&pieces[i / shape.kv_heads], i % shape.kv_heads);
            let at = piece.block * shape.kv_heads + head;
            // SAFETY: blocks of new tokens belong to one sequence, so each head of each is written by one range.
            let (keys, values) =
                unsafe { (keys.part(at * key_bytes, key_bytes), values.part(at * value_bytes, value_bytes)) };
            for t in 0..piece.tokens {
                let (from, slot) = ((piece.row + t) * shape.kv_heads + head, piece.slot + t);
                write_key(&shape, keys, slot, &k[from * shape.key_dim..][..shape.key_dim]);
                let x = &v[from * shape.value_dim..][..shape.value_dim];
                if shape.value_type == DType::F16 {
                    let at = 2 * slot * value_width(shape.value_dim);
                    // SAFETY: the function suits this host.
                    unsafe { (cpu.table.vector.narrow)(x, &mut values[at..][..2 * x.len()]) };
                } else {
                    write_value(&shape, values, slot, x);
                }
            }
        }
    });
}

/// A latent cache: rows as ggml has them.
fn write_latents(cpu: &Cpu, kv: &mut KvLayer<'_>, k: &[f32], seqs: &[SeqSlice<'_>]) {
    let (dtype, dim, bytes) = (kv.shape.key_type, kv.shape.key_dim, kv.shape.token_bytes());
    let keys = Parts::new(kv.keys);
    cpu.each(k.len() / dim.max(1), dim, &|range| {
        let own = |seq: &SeqSlice<'_>| range.start.max(seq.first_row)..range.end.min(seq.first_row + seq.rows);
        for (seq, row) in seqs.iter().flat_map(|seq| own(seq).map(move |row| (seq, row))) {
            let position = seq.start + row - seq.first_row;
            let slot = seq.blocks[position / KV_BLOCK] as usize * KV_BLOCK + position % KV_BLOCK;
            let x = &k[row * dim..][..dim];
            // SAFETY: each slot belongs to one token.
            let out = unsafe { keys.part(slot * bytes, bytes) };
            if dtype == DType::F16 {
                // SAFETY: the function suits this host.
                unsafe { (cpu.table.vector.narrow)(x, out) };
                continue;
            }
            quantize(dtype, x, out);
            if dtype.block_len() > 1 {
                let blocks = x.chunks_exact(KV_GROUP).zip(out.chunks_exact_mut(dtype.block_bytes()));
                for (_, block) in blocks.filter(|(x, _)| !x.iter().all(|x| x.is_finite())) {
                    block.fill(0);
                    block[..2].copy_from_slice(&f16::NAN.to_le_bytes());
                }
            }
        }
    });
}

/// Cuts a sequence's new tokens at the blocks' ends.
fn pieces<'a>(seq: &'a SeqSlice<'a>) -> impl Iterator<Item = Piece> + 'a {
    let end = seq.start + seq.rows;
    (seq.start / KV_BLOCK..end.div_ceil(KV_BLOCK)).filter(|_| seq.rows > 0).map(move |b| {
        let first = seq.start.max(b * KV_BLOCK);
        let tokens = end.min((b + 1) * KV_BLOCK) - first;
        let block = seq.blocks[b] as usize;
        Piece { block, row: seq.first_row + first - seq.start, slot: first % KV_BLOCK, tokens }
    })
}

fn write_key(shape: &KvShape, head: &mut [u8], slot: usize, x: &[f32]) {
    let dtype = shape.key_type;
    match dtype {
        DType::F32 | DType::F16 | DType::BF16 => {
            let size = dtype.block_bytes();
            let places = head[key_at(dtype, slot, 0).0..].chunks_mut(KV_BLOCK * size);
            places.zip(x).for_each(|(place, x)| quantize(dtype, std::slice::from_ref(x), &mut place[..size]));
        }
        _ => groups(dtype, head, slot, x, |section, quants| match quants {
            Quants::Bytes(q) => {
                for (four, place) in q.chunks_exact(4).zip(section.chunks_exact_mut(4 * KV_BLOCK)) {
                    let place = &mut place[4 * slot..][..4];
                    place.iter_mut().zip(four).for_each(|(place, q)| *place = q ^ 0x80);
                }
            }
            Quants::Nibbles(q) => {
                for (eight, place) in q.chunks_exact(8).zip(section.chunks_exact_mut(4 * KV_BLOCK)) {
                    for (i, place) in place[4 * slot..][..4].iter_mut().enumerate() {
                        *place = eight[i] | eight[i + 4] << 4;
                    }
                }
            }
        }),
    }
}

fn write_value(shape: &KvShape, head: &mut [u8], slot: usize, x: &[f32]) {
    let dtype = shape.value_type;
    match dtype {
        DType::F32 | DType::F16 | DType::BF16 => {
            let size = dtype.block_bytes();
            quantize(dtype, x, &mut head[slot * value_width(shape.value_dim) * size..][..x.len() * size]);
        }
        _ => groups(dtype, head, slot, x, |section, quants| match quants {
            Quants::Bytes(q) => {
                let places = section[slot / 2 * 2 * KV_GROUP + slot % 2..].iter_mut().step_by(2);
                places.zip(q).for_each(|(place, q)| *place = *q);
            }
            Quants::Nibbles(q) => {
                let (keep, shift) = if slot % 4 < 2 { (0xf0, 0) } else { (0x0f, 4) };
                let places = section[slot / 4 * 2 * KV_GROUP + slot % 2..].iter_mut().step_by(2);
                places.zip(q).for_each(|(place, q)| *place = *place & keep | q << shift);
            }
        }),
    }
}

/// One group's quants in the order of their dimensions.
enum Quants<'a> {
    Bytes(&'a [u8]),
    Nibbles(&'a [u8; KV_GROUP]),
}

/// Rounds each group of `x`, writes its scale and hands its quants and its section's to `write`. A group with a number
/// that is not finite becomes zeros with the scale NaN.
fn groups(dtype: DType, head: &mut [u8], slot: usize, x: &[f32], write: impl Fn(&mut [u8], Quants<'_>)) {
    let size = dtype.block_bytes();
    let mut block = [0u8; 34];
    let block = &mut block[..size];
    for (g, x) in x.chunks_exact(KV_GROUP).enumerate() {
        quantize(dtype, x, block);
        if !x.iter().all(|x| x.is_finite()) {
            block.fill(0);
            block[..2].copy_from_slice(&f16::NAN.to_le_bytes());
        }
        let (scales, quants) = block.split_at(if dtype == DType::Q4_1 { 4 } else { 2 });
        for (i, scale) in scales.chunks_exact(2).enumerate() {
            head[scale_at(dtype, slot, g * KV_GROUP) + i * 2 * KV_BLOCK..][..2].copy_from_slice(scale);
        }
        let section = &mut head[g * section_bytes(dtype)..][section_head(dtype)..];
        let section = &mut section[..section_bytes(dtype) - section_head(dtype)];
        if dtype == DType::Q8_0 {
            write(section, Quants::Bytes(quants));
        } else {
            let nibble = |i: usize| quants[i % 16] >> (i / 16 * 4) & 15;
            write(section, Quants::Nibbles(&std::array::from_fn(nibble)));
        }
    }
}
