//! The list of operations: their arguments, shape checks and bytes moved. `reference/` is the specification of each,
//! `cpu/` the fast ones. All matrices are row-major; activations are F32 `[tokens, width]` between operations.
//!
//! Called by `exec` (the forward pass) and `load` (which makes [`Tensor`]s); knows no model and no file. Shapes that do
//! not fit are the caller's mistake and panic with the numbers; a model's shapes are checked when it is bound.

pub mod cpu;
mod delta;
mod experts;
mod heads;
mod kv;
pub mod profile;
pub mod reference;
mod rope;
mod tensor;

pub use delta::{
    Convolution, DELTA_TILE, DeltaRule, DeltaShape, L2_EPSILON, MAX_KERNEL, Regroup, StateLayer, StateSave, StateSeq,
};
pub use experts::{ExpertInput, ExpertMatMul, Gating, MAX_GROUPS, RouteRule, Routes};
pub use heads::{HeadMatMul, Heads};
pub use kv::{KV_BLOCK, KV_GROUP, KvLayer, KvShape};
pub use rope::{RopeAngles, RopePairing, RopeTable};
pub use tensor::Tensor;

use crate::quant::DType;
use std::ops::Range;

/// Why an operation cannot be set up. What is checked once at load time is an error; what only a bug can cause panics.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The columns do not fill whole blocks, or the size overflows.
    #[error("tensor {name}: {rows} x {cols} elements do not make whole {dtype} blocks of {block}")]
    Blocks {
        /// Tensor.
        name: String,
        /// Its type.
        dtype: DType,
        /// Rows.
        rows: usize,
        /// Columns.
        cols: usize,
        /// Elements per block.
        block: usize,
    },
    /// The bytes given are not the bytes the shape needs.
    #[error("tensor {name}: {rows} x {cols} {dtype} needs {needed} bytes, bytes {range:?} of {stored} were given")]
    Bytes {
        /// Tensor.
        name: String,
        /// Its type.
        dtype: DType,
        /// Rows.
        rows: usize,
        /// Columns.
        cols: usize,
        /// Bytes the shape needs.
        needed: usize,
        /// Bytes that were named.
        range: Range<usize>,
        /// Bytes the storage has.
        stored: usize,
    },
    /// F32 data that does not start at a multiple of 4 bytes.
    #[error("tensor {name}: F32 data at address {address:#x} is not aligned to 4 bytes; load it into aligned memory")]
    Misaligned {
        /// Tensor.
        name: String,
        /// Address of its first byte.
        address: usize,
    },
    /// A type without kernels.
    #[error("tensor {name}: no kernel for type {dtype}; convert the model to a supported type")]
    Unsupported {
        /// Tensor.
        name: String,
        /// Its type.
        dtype: DType,
    },
    /// F32 elements were asked of another type.
    #[error("tensor {name}: F32 needed, the type is {dtype}")]
    NotF32 {
        /// Tensor.
        name: String,
        /// Its type.
        dtype: DType,
    },
    /// A type that the KV cache cannot have.
    #[error(
        "a KV cache of type {dtype} is not possible with {dim} dimensions per head; use f16, bf16 or f32, or q8_0, q4_0 or q4_1 where the dimensions are a multiple of 32"
    )]
    KvType {
        /// The type.
        dtype: DType,
        /// Dimensions of a head's key or value.
        dim: usize,
    },
    /// A type without blocks was said to be packed.
    #[error("tensor {name}: {dtype} is not packed; only types with blocks are")]
    NotPacked {
        /// Tensor.
        name: String,
        /// Its type.
        dtype: DType,
    },
    /// There are to be as many factors as matrices of equal height.
    #[error("{name}: {factors} factors for {rows} rows")]
    Factors {
        /// Tensor.
        name: String,
        /// Of it.
        rows: usize,
        /// Given.
        factors: usize,
    },
    /// A setting of the CPU backend.
    #[error("{0}")]
    Setting(String),
    /// The thread pool could not start.
    #[error("cannot start compute thread {index}: {source}; lower the number of threads or raise the process limit")]
    Thread {
        /// Which one.
        index: usize,
        /// The system's reason.
        source: std::io::Error,
    },
}

/// One of several products over the same activations: `out[t, r] = Σ_c weight[r, c] · x[t, c] (+ bias[r])`.
pub struct MatMul<'a> {
    /// `[rows, cols]`.
    pub weight: &'a Tensor,
    /// `[1, rows]` F32.
    pub bias: Option<&'a Tensor>,
    /// `[tokens, rows]`.
    pub out: &'a mut [f32],
}

impl MatMul<'_> {
    /// Bytes that must move for `tokens` rows of activations: each weight and each output once. The activations are
    /// shared by the jobs of one call and stay in cache; they are not counted.
    pub fn bytes_moved(&self, tokens: usize) -> u64 {
        (self.weight.bytes().len() + self.bias.map_or(0, |b| b.bytes().len())) as u64
            + f32_bytes(tokens * self.weight.rows)
    }

    /// Multiplications and additions.
    pub fn operations(&self, tokens: usize) -> u64 {
        2 * tokens as u64 * self.weight.rows as u64 * self.weight.cols as u64
    }
}

/// One sequence's part of a batch.
#[derive(Clone, Copy, Debug)]
pub struct SeqSlice<'a> {
    /// First row of the batch that belongs to it.
    pub first_row: usize,
    /// Rows (new tokens).
    pub rows: usize,
    /// Position of the first new token; the cache holds `0..start` already.
    pub start: usize,
    /// Its blocks: token `p` lies in block `blocks[p / KV_BLOCK]`, slot `p % KV_BLOCK`.
    pub blocks: &'a [u32],
}

/// Causal attention of all sequences of a batch over their cached keys and values (new ones already written).
pub struct Attention<'a> {
    /// `[tokens, heads * key_dim]`.
    pub q: &'a [f32],
    /// Query heads; a multiple of `kv.shape.kv_heads`.
    pub heads: usize,
    /// The layer's cache.
    pub kv: &'a KvLayer<'a>,
    /// The batch's sequences.
    pub seqs: &'a [SeqSlice<'a>],
    /// Factor on the scores, usually `1/√key_dim`.
    pub scale: f32,
    /// Only the last `window` positions (the token itself included) are seen.
    pub window: Option<usize>,
    /// `[heads]`: a further score per head that takes its share of each softmax and brings no value (arXiv 2309.17453).
    pub sinks: Option<&'a [f32]>,
    /// `[tokens, heads * value_dim]`.
    pub out: &'a mut [f32],
}

impl Attention<'_> {
    /// Bytes that must move: queries, outputs, and each sequence's visible keys and values once.
    pub fn bytes_moved(&self) -> u64 {
        let per_position = self.kv.shape.token_bytes() as u64;
        let positions: u64 =
            self.seqs.iter().map(|s| (s.start + s.rows - visible_from(s.start, self.window)) as u64).sum();
        positions * per_position + f32_bytes(self.q.len() + self.out.len())
    }

    /// Multiplications and additions of scores and weighted values.
    pub fn operations(&self) -> u64 {
        let shape = &self.kv.shape;
        let seen = |s: &SeqSlice<'_>| -> u64 {
            (s.start..s.start + s.rows).map(|p| (p + 1 - visible_from(p, self.window)) as u64).sum()
        };
        2 * (self.heads * (shape.key_dim + shape.value_dim)) as u64 * self.seqs.iter().map(seen).sum::<u64>()
    }

    /// Panics with the numbers when the arguments do not fit together.
    pub(crate) fn check(&self) {
        let shape = &self.kv.shape;
        assert!(
            shape.kv_heads > 0 && self.heads.is_multiple_of(shape.kv_heads),
            "{} heads over {}",
            self.heads,
            shape.kv_heads
        );
        let tokens = self.q.len() / (self.heads * shape.key_dim).max(1);
        assert_eq!(self.q.len(), tokens * self.heads * shape.key_dim, "queries are not [tokens, heads * key_dim]");
        assert_eq!(self.out.len(), tokens * self.heads * shape.value_dim, "out is not [tokens, heads * value_dim]");
        assert!(self.window != Some(0), "a window of no position");
        assert!(self.sinks.is_none_or(|sinks| sinks.len() == self.heads), "sinks are not [heads]");
        for seq in self.seqs {
            check_seq(seq, tokens, self.kv);
        }
    }
}

/// Causal attention of one sequence's rows over a run of its context, whose keys and values lie head by head in F32. Runs
/// follow each other from position 0 on; `states` is kept between them.
pub struct ExpandedAttention<'a> {
    /// `[rows, heads * key_dim]`.
    pub q: &'a [f32],
    /// Heads.
    pub heads: usize,
    /// Elements of a key; a multiple of 16.
    pub key_dim: usize,
    /// Elements of a value; a multiple of 16.
    pub value_dim: usize,
    /// `[heads, positions, key_dim]`; whole blocks of positions, those behind the last row anything finite.
    pub keys: &'a [f32],
    /// `[heads, positions, value_dim]`.
    pub values: &'a [f32],
    /// Position of the first row.
    pub start: usize,
    /// Position of the first key, a multiple of [`KV_BLOCK`].
    pub first: usize,
    /// Factor on the scores.
    pub scale: f32,
    /// At least [`cpu::expanded_states`] numbers.
    pub states: &'a mut [f32],
    /// With the last run: `[rows, heads * value_dim]`.
    pub out: Option<&'a mut [f32]>,
}

impl ExpandedAttention<'_> {
    /// Bytes that must move: queries, keys and values once.
    pub fn bytes_moved(&self) -> u64 {
        f32_bytes(self.q.len() + self.keys.len() + self.values.len())
    }

    /// Multiplications and additions of scores and weighted values.
    pub fn operations(&self) -> u64 {
        let (rows, positions) =
            (self.q.len() / (self.heads * self.key_dim), self.keys.len() / (self.heads * self.key_dim));
        let seen = |row: usize| (self.start + row + 1).saturating_sub(self.first).min(positions);
        2 * (self.heads * (self.key_dim + self.value_dim)) as u64 * (0..rows).map(seen).sum::<usize>() as u64
    }
}

/// Panics with the numbers when a sequence's rows or blocks lie outside of the batch or of the cache.
pub(crate) fn check_seq(seq: &SeqSlice<'_>, tokens: usize, kv: &KvLayer<'_>) {
    assert!(seq.first_row + seq.rows <= tokens, "rows {}+{} of a batch of {tokens}", seq.first_row, seq.rows);
    let needed = (seq.start + seq.rows).div_ceil(KV_BLOCK);
    assert!(
        seq.blocks.len() >= needed,
        "{} tokens need {needed} blocks, {} given",
        seq.start + seq.rows,
        seq.blocks.len()
    );
    let capacity = kv.keys.len() / kv.shape.key_block_bytes().max(1);
    let capacity = match kv.shape.value_block_bytes() {
        0 => capacity,
        bytes => capacity.min(kv.values.len() / bytes),
    };
    for &block in &seq.blocks[..needed] {
        assert!((block as usize) < capacity, "block {block} of a cache of {capacity}");
    }
}

/// First position that a token at `position` sees.
pub(crate) fn visible_from(position: usize, window: Option<usize>) -> usize {
    window.map_or(0, |w| (position + 1).saturating_sub(w))
}

/// Bytes of `n` F32 elements.
pub const fn f32_bytes(n: usize) -> u64 {
    (n as u64).saturating_mul(4)
}

/// Bytes that [`cpu::Cpu::embed`] moves: the rows read and the activations written.
pub fn embed_bytes(table: &Tensor, tokens: usize) -> u64 {
    let row = table.bytes().len() / table.rows.max(1);
    (row * tokens) as u64 + f32_bytes(tokens * table.cols)
}

/// Bytes that an element-wise operation over `n` activations moves (`rms_norm`, `rope`, `silu_mul`, `add`): `operands`
/// inputs and one output.
pub fn elementwise_bytes(n: usize, operands: usize) -> u64 {
    f32_bytes(n) * (operands as u64 + 1)
}

/// Bytes that [`cpu::Cpu::kv_write`] moves for `tokens` new tokens.
pub fn kv_write_bytes(shape: &KvShape, tokens: usize) -> u64 {
    f32_bytes(tokens * shape.kv_heads * (shape.key_dim + shape.written_value())) + (tokens * shape.token_bytes()) as u64
}
