//! The list of operations: their arguments, shape checks and bytes moved. `reference/` is the specification of each,
//! `cpu/` the fast ones. All matrices are row-major; activations are F32 `[tokens, width]` between operations.

pub mod cpu;
pub mod reference;

use crate::model::{Rope, RopeKind};
use crate::quant::DType;
use std::ops::Range;
use std::sync::Arc;

/// Tokens per block of the paged KV cache.
pub const KV_BLOCK: usize = 32;

/// A weight `[rows, cols]` as it lies in memory (GGUF's row layout). A vector is one row. Cheap to clone.
#[derive(Clone)]
pub struct Tensor {
    /// Name in the file, for errors and profiles.
    pub name: Arc<str>,
    /// Element type.
    pub dtype: DType,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    storage: Arc<dyn AsRef<[u8]> + Send + Sync>,
    range: Range<usize>,
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

/// Inverse frequencies and magnitude of a rotary embedding, from the model's metadata (built once).
#[derive(Clone, Debug)]
pub struct RopeTable {
    /// Pairing.
    pub kind: RopeKind,
    /// Rotated dimensions.
    pub dims: usize,
    /// `[dims / 2]`, scaling and frequency factors folded in.
    pub inv_freq: Vec<f32>,
    /// Factor on sin and cos (YaRN's attention magnitude), 1 otherwise.
    pub magnitude: f32,
}

impl RopeTable {
    /// Builds the table. `factors` is `rope_freqs.weight` where the file has it.
    pub fn new(rope: &Rope, factors: Option<&[f32]>) -> RopeTable {
        let _ = (rope, factors);
        todo!()
    }
}

/// sin and cos of a batch's positions, computed once per step and shared by all layers: `[tokens, dims / 2]` each.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct RopeAngles {
    pub sin: Vec<f32>,
    pub cos: Vec<f32>,
}

/// Shape of one layer's paged cache. Keys: `[blocks, kv_heads, KV_BLOCK, key_dim]`, values likewise with `value_dim`, so
/// that one head's keys of one block are contiguous.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Key/value heads.
    pub kv_heads: usize,
    /// Dimensions of a key.
    pub key_dim: usize,
    /// Dimensions of a value.
    pub value_dim: usize,
    /// F32 or F16.
    pub dtype: DType,
}

/// One layer's cache.
pub struct KvLayer<'a> {
    /// Shape.
    pub shape: KvShape,
    /// Keys of all blocks.
    pub keys: &'a mut [u8],
    /// Values of all blocks.
    pub values: &'a mut [u8],
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
    /// `[tokens, heads * value_dim]`.
    pub out: &'a mut [f32],
}
