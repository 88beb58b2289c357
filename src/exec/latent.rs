//! The latent attention of a step (MLA, arXiv 2405.04434). What is cached of a token is its latent `c` and one rotated key.
//!
//! Absorbed: a query is brought into the latent's space, `W_key[h]ᵀ·q`, attends to the latents themselves, and what it
//! yields is brought to values by `W_value[h]`. Each context is read once for all heads.

use super::buffers::{Buffer, Buffers};
use super::forward::{Step, product};
use super::{Error, cpu};
use crate::load::Mapping;
use crate::model::{Hparams, KeyValueUp, Latent, LatentDims, Matrix, Mixer, Model};
use crate::ops::{self, HeadMatMul, Heads, SeqSlice, Tensor, f32_bytes};
use crate::quant::packed::ROWS;
use crate::quant::{DType, Layout, quantize};
use std::ops::Range;
use std::sync::Arc;

/// Rows that are absorbed at a time: what they take is bounded, whatever the step's limit.
const ABSORBED_ROWS: usize = 64;

/// From the latent to keys and values, in the form that is multiplied with.
pub(super) struct Up {
    /// `[heads * kv_rank, nope]`, each head's matrix transposed.
    key: Tensor,
    /// Each head's rows of values in `value`.
    rows: Range<usize>,
    /// `[heads * _, kv_rank]`.
    value: Tensor,
    /// Bytes of what the file does not have.
    made: u64,
}

impl Up {
    /// Bytes reserved.
    pub(super) fn reserved(&self) -> u64 {
        self.made
    }
}

/// The type that a transposed matrix of `dtype` gets, whose rows have `cols` elements: float types stay.
fn transposed_type(dtype: DType, cols: usize) -> DType {
    match dtype {
        DType::F32 | DType::F16 | DType::BF16 => dtype,
        _ if cols.is_multiple_of(DType::Q8_0.block_len()) => DType::Q8_0,
        _ => DType::F16,
    }
}

/// Bytes of the matrices that [`ups`] makes.
pub(super) fn made_bytes<T: Matrix>(model: &Model<T>) -> u64 {
    let Some(dims) = &model.hparams.latent else { return 0 };
    let mut bytes = 0u64;
    model.for_each(|path, tensor| {
        if path == "layers.latent.kv_up" {
            let row = transposed_type(tensor.dtype(), dims.nope).row_bytes(dims.nope).unwrap_or(0);
            bytes = bytes.saturating_add((model.hparams.heads * dims.kv_rank) as u64 * row as u64);
        }
    });
    bytes
}

/// Each layer's [`Up`]; the transposed keys' part is made where the file has the whole matrix.
pub(super) fn ups(model: &Model<Tensor>, cpu: &cpu::Cpu) -> Result<Vec<Up>, Error> {
    let Some(dims) = &model.hparams.latent else { return Ok(Vec::new()) };
    let heads = model.hparams.heads;
    let layers = model.layers.iter().filter_map(|layer| match &layer.mixer {
        Mixer::Latent(latent) => Some(&latent.kv_up),
        Mixer::Attention(_) => None,
    });
    layers
        .map(|up| match up {
            KeyValueUp::Split { key, value } => {
                Ok(Up { key: key.clone(), rows: 0..dims.value, value: value.clone(), made: 0 })
            }
            KeyValueUp::Whole(whole) => {
                let key = transposed(whole, heads, dims, cpu)?;
                let made = key.bytes().len() as u64;
                Ok(Up { key, rows: dims.nope..dims.nope + dims.value, value: whole.clone(), made })
            }
        })
        .collect()
}

/// The first `nope` rows of each head, transposed: `[heads * kv_rank, nope]`.
fn transposed(whole: &Tensor, heads: usize, dims: &LatentDims, cpu: &cpu::Cpu) -> Result<Tensor, Error> {
    let (rank, nope, stride) = (dims.kv_rank, dims.nope, whole.rows / heads);
    let dtype = transposed_type(whole.dtype, nope);
    let row_bytes = dtype.row_bytes(nope).unwrap_or_default();
    let bytes = heads * rank * row_bytes;
    let failed = |source| Error::Weights { tensor: whole.name.to_string(), bytes, source };
    let mut memory = Mapping::new(bytes).map_err(failed)?;
    let packed = cpu.layout(dtype, heads * rank, nope) == Layout::Packed && rank.is_multiple_of(ROWS);
    let (mut plain, mut turned) = (vec![0.0; nope * rank], vec![0.0; nope]);
    let mut encoded = vec![0; rank * row_bytes];
    for (head, out) in memory.as_mut_slice()[..bytes].chunks_exact_mut(rank * row_bytes).enumerate() {
        for (n, row) in plain.chunks_exact_mut(rank).enumerate() {
            whole.decode_row(head * stride + n, row);
        }
        for (r, encoded) in encoded.chunks_exact_mut(row_bytes).enumerate() {
            turned.iter_mut().zip(plain[r..].iter().step_by(rank)).for_each(|(to, from)| *to = *from);
            quantize(dtype, &turned, encoded);
        }
        match packed {
            true => cpu::pack_panels(dtype, nope, &encoded, out),
            false => out.copy_from_slice(&encoded),
        }
    }
    let name = whole.name.replace("attn_kv_b", "attn_k_b");
    let tensor = Tensor::new(name, dtype, heads * rank, nope, Arc::new(memory), 0..bytes)?;
    Ok(if packed { tensor.packed()? } else { tensor })
}

/// Makes room for the activations of the products with `tensor`, which stands at `path`.
pub(super) fn include_acts<T: Matrix>(
    size: &mut cpu::ScratchSize,
    h: &Hparams,
    path: &str,
    tensor: &T,
    max_rows: usize,
) {
    let Some(dims) = &h.latent else { return };
    let rows = max_rows.min(ABSORBED_ROWS) * h.heads;
    size.include(tensor.dtype(), tensor.cols(), rows);
    if path == "layers.latent.kv_up" {
        size.include(transposed_type(tensor.dtype(), dims.nope), dims.nope, rows);
    }
}

/// What latent attention needs besides the common buffers.
pub(super) struct LatentBuffers {
    /// `[rows, q_rank]`.
    q_down: Buffer,
    /// `[heads * absorbed rows, nope or value]`, head by head.
    narrow: Buffer,
    /// `[heads * absorbed rows, kv_rank]`, head by head.
    wide: Buffer,
    /// `[absorbed rows, heads * (kv_rank + rope)]`.
    q: Buffer,
    /// `[absorbed rows, heads * kv_rank]`.
    out: Buffer,
}

/// Rows and widths of [`LatentBuffers`], in the order of its fields.
fn sizes(heads: usize, d: &LatentDims, rows: usize) -> [(usize, usize); 5] {
    let absorbed = rows.min(ABSORBED_ROWS);
    [
        (rows, d.q_rank),
        (heads * absorbed, d.nope.max(d.value)),
        (heads * absorbed, d.kv_rank),
        (absorbed, heads * d.cached()),
        (absorbed, heads * d.kv_rank),
    ]
}

impl LatentBuffers {
    pub(super) fn new(heads: usize, dims: &LatentDims, rows: usize) -> LatentBuffers {
        let [q_down, narrow, wide, q, out] = sizes(heads, dims, rows).map(|(rows, width)| Buffer::new(rows, width));
        LatentBuffers { q_down, narrow, wide, q, out }
    }

    /// Bytes that [`LatentBuffers::new`] reserves.
    pub(super) fn bytes(heads: usize, dims: &LatentDims, rows: usize) -> u64 {
        let bytes = |(rows, width): (usize, usize)| f32_bytes(width).saturating_mul(rows as u64);
        sizes(heads, dims, rows).into_iter().map(bytes).fold(0, u64::saturating_add)
    }

    /// Bytes reserved.
    pub(super) fn reserved(&self) -> u64 {
        let LatentBuffers { q_down, narrow, wide, q, out } = self;
        [q_down, narrow, wide, q, out].iter().map(|buffer| buffer.reserved()).sum()
    }
}

impl Step<'_> {
    /// branch = attention(branch)
    pub(super) fn latent(&mut self, index: usize, weights: &Latent<Tensor>, up: &Up) {
        let Some(dims) = &self.hparams.latent else { unreachable!("latent attention is bound by its numbers") };
        self.query_and_latent(weights, dims);
        let rows = self.rows;
        let mut cache = self.kv.layer(index);
        self.cpu.kv_write(&mut cache, self.buffers.k.rows(rows), &[], self.seqs);
        for part in absorbed_parts(self.seqs) {
            self.absorbed(index, &part, dims, up);
        }
        let Step { cpu, scratch, buffers, .. } = self;
        let Buffers { branch, attention, .. } = &mut **buffers;
        cpu.matmul(attention.rows(rows), &mut [product(&weights.output, branch.rows(rows))], scratch);
    }

    /// q = queries of branch, k = latents and rotated keys of branch
    fn query_and_latent(&mut self, weights: &Latent<Tensor>, dims: &LatentDims) {
        let Step { hparams: h, cpu, scratch, rope, rows, .. } = self;
        let rows = *rows;
        let Buffers { branch, q, k, angles, latent: Some(latent), .. } = &mut *self.buffers else {
            unreachable!("a model with latent attention has its buffers")
        };
        let (branch, q, k) = (branch.rows(rows), q.rows(rows), k.rows(rows));
        if let Some(down) = &weights.q_down {
            let compressed = latent.q_down.rows(rows);
            let mut jobs = [product(&down.linear, compressed), product(&weights.kv_down, k)];
            cpu.matmul(branch, &mut jobs, scratch);
            cpu.rms_norm_first(compressed, dims.q_rank, &down.norm, h.rms_eps);
            cpu.matmul(compressed, &mut [product(&weights.q, q)], scratch);
        } else {
            cpu.matmul(branch, &mut [product(&weights.q, q), product(&weights.kv_down, k)], scratch);
        }
        cpu.rms_norm_first(k, dims.cached(), &weights.kv_norm, h.rms_eps);
        cpu.rope_last(q, h.heads, dims.key(), angles, rope);
        cpu.rope_last(k, 1, dims.cached(), angles, rope);
    }

    /// attention[rows] = value(attention over latents of (key·q, rotated q))
    fn absorbed(&mut self, index: usize, part: &Part<'_>, dims: &LatentDims, up: &Up) {
        let Step { hparams: h, cpu, scratch, .. } = self;
        let Buffers { q, attention, latent: Some(latent), .. } = &mut *self.buffers else {
            unreachable!("a model with latent attention has its buffers")
        };
        let (heads, n) = (h.heads, part.rows.len());
        let LatentBuffers { narrow, wide, q: query, out, .. } = latent;
        let q = &q.rows(part.rows.end)[part.rows.start * heads * dims.key()..];
        let (query, out, wide) = (query.rows(n), out.rows(n), wide.rows(heads * n));
        let by_token = Heads::by_token;

        let own = narrow.narrow(heads * n, dims.nope);
        cpu.copy_heads(heads, dims.nope, (q, by_token(dims.key(), 0)), (own, Heads::by_head(dims.nope)));
        let key = HeadMatMul { weight: &up.key, heads, rows: 0..dims.kv_rank, out: wide };
        cpu.head_matmul(own, key, scratch);
        let latents = Heads::by_head(dims.kv_rank);
        cpu.copy_heads(heads, dims.kv_rank, (wide, latents), (query, by_token(dims.cached(), 0)));
        let turned = (q, by_token(dims.key(), dims.nope));
        cpu.copy_heads(heads, dims.rope, turned, (query, by_token(dims.cached(), dims.kv_rank)));
        cpu.attention(ops::Attention {
            q: query,
            heads,
            kv: &self.kv.layer(index),
            seqs: &part.seqs,
            scale: dims.scale,
            window: h.window,
            out,
        });
        cpu.copy_heads(heads, dims.kv_rank, (out, by_token(dims.kv_rank, 0)), (wide, latents));
        let own = narrow.narrow(heads * n, dims.value);
        let value = HeadMatMul { weight: &up.value, heads, rows: up.rows.clone(), out: own };
        cpu.head_matmul(wide, value, scratch);
        let attention = &mut attention.rows(part.rows.end)[part.rows.start * heads * dims.value..];
        cpu.copy_heads(heads, dims.value, (own, Heads::by_head(dims.value)), (attention, by_token(dims.value, 0)));
    }
}

/// Rows of a step that are absorbed together, and their sequences within them.
struct Part<'a> {
    rows: Range<usize>,
    seqs: Vec<SeqSlice<'a>>,
}

/// Cuts the step's rows to parts of at most [`ABSORBED_ROWS`].
fn absorbed_parts<'a>(seqs: &[SeqSlice<'a>]) -> Vec<Part<'a>> {
    let mut parts: Vec<Part<'a>> = Vec::new();
    for seq in seqs {
        let mut done = 0;
        while done < seq.rows {
            let row = seq.first_row + done;
            let room = |part: &&mut Part<'a>| part.rows.end == row && part.rows.len() < ABSORBED_ROWS;
            let part = match parts.last_mut().filter(room) {
                Some(part) => part,
                None => {
                    parts.push(Part { rows: row..row, seqs: Vec::new() });
                    let last = parts.len() - 1;
                    &mut parts[last]
                }
            };
            let rows = (seq.rows - done).min(ABSORBED_ROWS - part.rows.len());
            let first_row = row - part.rows.start;
            part.seqs.push(SeqSlice { first_row, rows, start: seq.start + done, blocks: seq.blocks });
            part.rows.end += rows;
            done += rows;
        }
    }
    parts
}
