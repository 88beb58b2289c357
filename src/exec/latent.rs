//! The latent attention of a step (MLA, arXiv 2405.04434). What is cached of a token is its latent `c` and one rotated key.
//!
//! Absorbed: a query is brought into the latent's space, `W_key[h]ᵀ·q`, attends to the latents themselves, and what it
//! yields is brought to values by `W_value[h]`. Each context is read once for all heads.
//!
//! Expanded: keys and values of all heads are made from the latents, run by run of the context, and attended to. A third of
//! the work per pair of tokens, but keys and values are made again for each chunk: it pays where a chunk has many rows.
//! Which form a sequence's rows take depends on their number alone.

use super::buffers::{Buffer, Buffers};
use super::forward::{Step, product};
use super::{Error, Options, cpu};
use crate::load::Mapping;
use crate::model::{Hparams, KeyValueUp, Latent, LatentDims, Matrix, Mixer, Model};
use crate::ops::{self, ExpandedAttention, HeadMatMul, Heads, KV_BLOCK, MatMul, SeqSlice, Tensor, f32_bytes};
use crate::quant::packed::ROWS;
use crate::quant::{DType, Layout, quantize};
use std::ops::Range;
use std::sync::Arc;

/// Rows that are absorbed at a time: what they take is bounded, whatever the step's limit.
const ABSORBED_ROWS: usize = 64;
/// A sequence's rows from which on they are expanded.
const EXPANDED_ROWS: usize = 128;
/// Positions whose keys and values are made at a time.
const RUN: usize = 512;

/// From the latent to keys and values, in the form that is multiplied with.
pub(super) struct Up {
    /// `[heads * kv_rank, nope]`, each head's matrix transposed.
    key: Tensor,
    /// Each head's rows of values in `value`.
    rows: Range<usize>,
    /// `[heads * _, kv_rank]`.
    value: Tensor,
    /// `[heads * nope, kv_rank]`; `None` where `value` is the whole matrix and holds it, or nothing is expanded.
    plain_key: Option<Tensor>,
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

/// True when steps can have rows that are expanded.
fn expands(options: &Options) -> bool {
    options.max_rows >= EXPANDED_ROWS
}

/// Bytes of the matrices that an executor makes from those of the file; a part of [`super::scratch_bytes`]. Each layer with
/// latent attention has as many.
pub fn made_bytes<T: Matrix>(model: &Model<T>, options: &Options) -> u64 {
    let Some(dims) = &model.hparams.latent else { return 0 };
    let mut bytes = 0u64;
    model.for_each(|path, tensor| {
        let (rows, cols) = match path {
            "layers.latent.kv_up" => (dims.kv_rank, dims.nope),
            "layers.latent.key_up" if expands(options) => (dims.nope, dims.kv_rank),
            _ => return,
        };
        let row = transposed_type(tensor.dtype(), cols).row_bytes(cols).unwrap_or(0);
        bytes = bytes.saturating_add((model.hparams.heads * rows) as u64 * row as u64);
    });
    bytes
}

/// Each layer's [`Up`]; where the file has the whole matrix the keys' part is transposed, where it has that transposed it
/// is turned back.
pub(super) fn ups(model: &Model<Tensor>, options: &Options, cpu: &cpu::Cpu) -> Result<Vec<Up>, Error> {
    let Some(dims) = &model.hparams.latent else { return Ok(Vec::new()) };
    let heads = model.hparams.heads;
    let layers = model.layers.iter().filter_map(|layer| {
        let Mixer::Latent(latent) = &layer.mixer else { return None };
        Some(&latent.kv_up)
    });
    let up = |up: &KeyValueUp<Tensor>| match up {
        KeyValueUp::Split { key, value } => {
            let plain_key = expands(options).then(|| transposed(key, heads, dims.kv_rank, cpu)).transpose()?;
            let made = plain_key.as_ref().map_or(0, |made| made.bytes().len() as u64);
            Ok(Up { key: key.clone(), rows: 0..dims.value, value: value.clone(), plain_key, made })
        }
        KeyValueUp::Whole(whole) => {
            let key = transposed(whole, heads, dims.nope, cpu)?;
            let made = key.bytes().len() as u64;
            let rows = dims.nope..dims.nope + dims.value;
            Ok(Up { key, rows, value: whole.clone(), plain_key: None, made })
        }
    };
    layers.map(up).collect()
}

/// The first `rows` rows of each head's matrix, transposed: `[heads * cols, rows]`.
fn transposed(stack: &Tensor, heads: usize, rows: usize, cpu: &cpu::Cpu) -> Result<Tensor, Error> {
    let (cols, stride) = (stack.cols, stack.rows / heads);
    let dtype = transposed_type(stack.dtype, rows);
    let row_bytes = dtype.row_bytes(rows).unwrap_or_default();
    let bytes = heads * cols * row_bytes;
    let failed = |source| Error::Weights { tensor: stack.name.to_string(), bytes, source };
    let mut memory = Mapping::new(bytes).map_err(failed)?;
    let packed = cpu.layout(dtype, heads * cols, rows) == Layout::Packed && cols.is_multiple_of(ROWS);
    let (mut plain, mut turned) = (vec![0.0; rows * cols], vec![0.0; rows]);
    let mut encoded = vec![0; cols * row_bytes];
    for (head, out) in memory.as_mut_slice()[..bytes].chunks_exact_mut(cols * row_bytes).enumerate() {
        for (n, row) in plain.chunks_exact_mut(cols).enumerate() {
            stack.decode_row(head * stride + n, row);
        }
        for (c, encoded) in encoded.chunks_exact_mut(row_bytes).enumerate() {
            turned.iter_mut().zip(plain[c..].iter().step_by(cols)).for_each(|(to, from)| *to = *from);
            quantize(dtype, &turned, encoded);
        }
        match packed {
            true => cpu::pack_panels(dtype, rows, &encoded, out),
            false => out.copy_from_slice(&encoded),
        }
    }
    let name = format!("{} transposed", stack.name.trim_end_matches(".weight"));
    let tensor = Tensor::new(name, dtype, heads * cols, rows, Arc::new(memory), 0..bytes)?;
    Ok(if packed { tensor.packed()? } else { tensor })
}

/// Makes room for the activations of the products with `tensor`, which stands at `path`, and its transpose.
pub(super) fn include_acts<T: Matrix>(
    size: &mut cpu::ScratchSize,
    h: &Hparams,
    path: &str,
    tensor: &T,
    options: &Options,
) {
    let Some(dims) = &h.latent else { return };
    let rows = options.max_rows.min(ABSORBED_ROWS) * h.heads;
    size.include(tensor.dtype(), tensor.cols(), rows);
    if path == "layers.latent.kv_up" {
        size.include(transposed_type(tensor.dtype(), dims.nope), dims.nope, rows);
    }
    if expands(options) {
        let dtype = tensor.dtype();
        let dtype = if path == "layers.latent.key_up" { transposed_type(dtype, dims.kv_rank) } else { dtype };
        size.include(dtype, dims.kv_rank, RUN);
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
    /// `[run, kv_rank + rope]`: what is cached, decoded.
    cached: Buffer,
    /// `[run, kv_rank]`.
    latents: Buffer,
    /// `[run, heads * (nope + value)]`.
    up: Buffer,
    /// `[heads * run, nope + rope]`, head by head.
    keys: Buffer,
    /// `[heads * run, value]`, head by head.
    values: Buffer,
    /// Of all rows.
    states: Buffer,
}

/// Rows and widths of [`LatentBuffers`], in the order of its fields.
fn sizes(heads: usize, d: &LatentDims, rows: usize) -> [(usize, usize); 11] {
    let absorbed = rows.min(ABSORBED_ROWS);
    let (run, expanded) = if rows >= EXPANDED_ROWS { (RUN, rows) } else { (0, 0) };
    [
        (rows, d.q_rank),
        (heads * absorbed, d.nope.max(d.value)),
        (heads * absorbed, d.kv_rank),
        (absorbed, heads * d.cached()),
        (absorbed, heads * d.kv_rank),
        (run, d.cached()),
        (run, d.kv_rank),
        (run, heads * (d.nope + d.value)),
        (heads * run, d.key()),
        (heads * run, d.value),
        (1, cpu::expanded_states(expanded, heads, d.value)),
    ]
}

impl LatentBuffers {
    pub(super) fn new(heads: usize, dims: &LatentDims, rows: usize) -> LatentBuffers {
        let buffers = sizes(heads, dims, rows).map(|(rows, width)| Buffer::new(rows, width));
        let [q_down, narrow, wide, q, out, cached, latents, up, keys, values, states] = buffers;
        LatentBuffers { q_down, narrow, wide, q, out, cached, latents, up, keys, values, states }
    }

    /// Bytes that [`LatentBuffers::new`] reserves.
    pub(super) fn bytes(heads: usize, dims: &LatentDims, rows: usize) -> u64 {
        let bytes = |(rows, width): (usize, usize)| f32_bytes(width).saturating_mul(rows as u64);
        sizes(heads, dims, rows).into_iter().map(bytes).fold(0, u64::saturating_add)
    }

    /// Bytes reserved.
    pub(super) fn reserved(&self) -> u64 {
        let LatentBuffers { q_down, narrow, wide, q, out, cached, latents, up, keys, values, states } = self;
        let buffers = [q_down, narrow, wide, q, out, cached, latents, up, keys, values, states];
        buffers.iter().map(|buffer| buffer.reserved()).sum()
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
        for part in (Parts { seqs: self.seqs, done: 0 }) {
            self.absorbed(index, &part, dims, up);
        }
        for seq in self.seqs.iter().filter(|seq| seq.rows >= EXPANDED_ROWS) {
            self.expanded(index, seq, dims, up);
        }
        let Step { cpu, scratch, buffers, .. } = self;
        let Buffers { branch, attention, .. } = &mut **buffers;
        cpu.matmul(attention.rows(rows), &mut [product(&weights.output, branch.rows(rows))], scratch);
    }

    /// q = queries of branch, k = latents and rotated keys of branch
    fn query_and_latent(&mut self, weights: &Latent<Tensor>, dims: &LatentDims) {
        let Step { hparams: h, cpu, scratch, rope, rows, .. } = self;
        let rows = *rows;
        let Buffers { branch, q, k, angles, positions, latent: Some(latent), .. } = &mut *self.buffers else {
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
        cpu.rope_last(q, h.heads, dims.key(), angles, &rope.all);
        if let Some(growth) = &h.query_growth {
            cpu.grow_queries(q, positions, growth.scale, growth.every);
        }
        cpu.rope_last(k, 1, dims.cached(), angles, &rope.all);
    }

    /// attention of some rows = value(attention over latents of (key·q, rotated q))
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
        cpu.copy_heads(heads, dims.nope, (q, by_token(dims.key(), 0)), (own, Heads::by_head(dims.nope, 0)));
        let key = HeadMatMul { weight: &up.key, heads, rows: 0..dims.kv_rank, out: wide };
        cpu.head_matmul(own, key, scratch);
        let latents = Heads::by_head(dims.kv_rank, 0);
        cpu.copy_heads(heads, dims.kv_rank, (wide, latents), (query, by_token(dims.cached(), 0)));
        let turned = (q, by_token(dims.key(), dims.nope));
        cpu.copy_heads(heads, dims.rope, turned, (query, by_token(dims.cached(), dims.kv_rank)));
        cpu.attention(ops::Attention {
            q: query,
            heads,
            kv: &self.kv.layer(index),
            seqs: &part.seqs[..part.count],
            scale: dims.scale,
            window: None,
            sinks: None,
            out,
        });
        cpu.copy_heads(heads, dims.kv_rank, (out, by_token(dims.kv_rank, 0)), (wide, latents));
        let own = narrow.narrow(heads * n, dims.value);
        let value = HeadMatMul { weight: &up.value, heads, rows: up.rows.clone(), out: own };
        cpu.head_matmul(wide, value, scratch);
        let attention = &mut attention.rows(part.rows.end)[part.rows.start * heads * dims.value..];
        cpu.copy_heads(heads, dims.value, (own, Heads::by_head(dims.value, 0)), (attention, by_token(dims.value, 0)));
    }

    /// attention[rows of seq] = attention over the keys and values of all heads, made from the latents
    fn expanded(&mut self, index: usize, seq: &SeqSlice<'_>, dims: &LatentDims, up: &Up) {
        let Step { hparams: h, cpu, scratch, .. } = self;
        let Buffers { q, attention, latent: Some(buffers), .. } = &mut *self.buffers else {
            unreachable!("a model with latent attention has its buffers")
        };
        let (heads, own) = (h.heads, seq.first_row..seq.first_row + seq.rows);
        let q = &q.rows(own.end)[own.start * heads * dims.key()..];
        let out = &mut attention.rows(own.end)[own.start * heads * dims.value..];
        let end = seq.start + seq.rows;
        for first in (0..end).step_by(RUN) {
            let context = first..end.min(first + RUN);
            let padded = context.len().next_multiple_of(KV_BLOCK);
            let last = context.end == end;
            cpu.read_latents(&self.kv.layer(index), seq.blocks, context, buffers.cached.rows(padded));
            buffers.expand(padded, heads, dims, up, cpu, scratch);
            cpu.expanded_attention(ExpandedAttention {
                q,
                heads,
                key_dim: dims.key(),
                value_dim: dims.value,
                keys: buffers.keys.rows(heads * padded),
                values: buffers.values.rows(heads * padded),
                start: seq.start,
                first,
                scale: dims.scale,
                states: buffers.states.rows(1),
                out: last.then_some(&mut *out),
            });
        }
    }
}

impl LatentBuffers {
    /// keys, values = those of all heads for `n` positions, from what was cached of them
    fn expand(
        &mut self,
        n: usize,
        heads: usize,
        dims: &LatentDims,
        up: &Up,
        cpu: &cpu::Cpu,
        scratch: &mut cpu::Scratch,
    ) {
        let (cached, latents) = (self.cached.rows(n), self.latents.rows(n));
        let (keys, values) = (self.keys.rows(heads * n), self.values.rows(heads * n));
        let (key, by_token) = (Heads::by_head(dims.key(), 0), Heads::by_token);
        cpu.copy_heads(1, dims.kv_rank, (cached, by_token(dims.cached(), 0)), (latents, by_token(dims.kv_rank, 0)));
        let turned = (&*cached, Heads::shared(dims.cached(), dims.kv_rank));
        cpu.copy_heads(heads, dims.rope, turned, (keys, Heads::by_head(dims.key(), dims.nope)));
        let product = |weight, out| MatMul { weight, bias: None, out };
        let all = self.up.rows(n);
        match &up.plain_key {
            Some(plain) => {
                let (nope, value) = all.split_at_mut(n * heads * dims.nope);
                cpu.matmul(latents, &mut [product(plain, nope), product(&up.value, value)], scratch);
                cpu.copy_heads(heads, dims.nope, (nope, by_token(dims.nope, 0)), (keys, key));
                let to = Heads::by_head(dims.value, 0);
                cpu.copy_heads(heads, dims.value, (value, by_token(dims.value, 0)), (values, to));
            }
            None => {
                cpu.matmul(latents, &mut [product(&up.value, all)], scratch);
                let width = dims.nope + dims.value;
                cpu.copy_heads(heads, dims.nope, (all, by_token(width, 0)), (keys, key));
                let to = Heads::by_head(dims.value, 0);
                cpu.copy_heads(heads, dims.value, (all, by_token(width, dims.nope)), (values, to));
            }
        }
    }
}

/// Rows of a step that are absorbed together, and their sequences within them, at least a row each.
struct Part<'a> {
    rows: Range<usize>,
    seqs: [SeqSlice<'a>; ABSORBED_ROWS],
    count: usize,
}

/// Cuts the rows of the sequences with few to parts of at most [`ABSORBED_ROWS`].
struct Parts<'s, 'a> {
    seqs: &'s [SeqSlice<'a>],
    /// Rows of the first that are in a part already.
    done: usize,
}

impl<'a> Iterator for Parts<'_, 'a> {
    type Item = Part<'a>;

    fn next(&mut self) -> Option<Part<'a>> {
        const NONE: SeqSlice<'static> = SeqSlice { first_row: 0, rows: 0, start: 0, blocks: &[] };
        let mut part = Part { rows: 0..0, seqs: [NONE; ABSORBED_ROWS], count: 0 };
        while let Some((seq, rest)) = self.seqs.split_first() {
            let (row, left) = (seq.first_row + self.done, seq.rows - self.done);
            if left == 0 || seq.rows >= EXPANDED_ROWS {
                (self.seqs, self.done) = (rest, 0);
                continue;
            }
            if part.count == 0 {
                part.rows = row..row;
            }
            let rows = left.min(ABSORBED_ROWS - part.rows.len());
            if part.rows.end != row || rows == 0 {
                break;
            }
            let (first_row, start) = (row - part.rows.start, seq.start + self.done);
            part.seqs[part.count] = SeqSlice { first_row, rows, start, blocks: seq.blocks };
            part.count += 1;
            part.rows.end += rows;
            self.done += rows;
        }
        (part.count > 0).then_some(part)
    }
}
