//! The gated delta rule (arXiv 2412.06464) and the convolution before it: shapes, arguments, and the layout of the state.
//!
//! A sequence's state lies in a slot; in it each layer has a part of its own:
//!
//! ```text
//! slot   | layer 0 | layer 1 | …                                          all F32
//! layer  | [kernel - 1][channels], the convolution's last inputs, oldest first
//!        | [value_heads][value_dim / 16][key_dim][16], a head's matrix in tiles of sixteen columns
//! ```
//! A column of the matrix depends on no other, so a tile runs through all tokens of a step while it stays in the nearest
//! cache. Evaluating token by token is what keeps the promise that a row does not depend on how its prompt was cut; the
//! closed form over chunks of 64 tokens needs more multiplications at these widths, not fewer: for heads of 128 x 128
//! some 70,000 per token and head (82,000 with whole squares where a triangle would do) against 66,000.

use super::Tensor;

/// Columns of a tile.
pub const DELTA_TILE: usize = 16;

/// Added to the sum of squares of a q or k head.
pub const L2_EPSILON: f32 = 1e-6;

/// Most tokens that a convolution sees.
pub const MAX_KERNEL: usize = 8;

/// Shape of a gated delta net layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeltaShape {
    /// Tokens that the convolution sees, from 2 to [`MAX_KERNEL`].
    pub kernel: usize,
    /// Heads of q and k.
    pub key_heads: usize,
    /// Heads of v; a multiple of `key_heads`.
    pub value_heads: usize,
    /// Dimensions of a q or k head, a multiple of 16.
    pub key_dim: usize,
    /// Dimensions of a v head, a multiple of 16.
    pub value_dim: usize,
    /// Value head `h` reads key head `h % key_heads`, otherwise `h / (value_heads / key_heads)`.
    pub tiled: bool,
}

impl DeltaShape {
    /// Width of all q or all k heads.
    pub fn keys(&self) -> usize {
        self.key_heads * self.key_dim
    }

    /// Width of all v heads.
    pub fn values(&self) -> usize {
        self.value_heads * self.value_dim
    }

    /// Width of q, k and v side by side.
    pub fn channels(&self) -> usize {
        2 * self.keys() + self.values()
    }

    /// Numbers of the convolution's state.
    pub fn conv_len(&self) -> usize {
        (self.kernel - 1) * self.channels()
    }

    /// Numbers of a layer's state.
    pub fn state_len(&self) -> usize {
        self.conv_len() + self.value_heads * self.key_dim * self.value_dim
    }

    /// The key head that a value head reads.
    pub fn key_head(&self, value_head: usize) -> usize {
        match self.tiled {
            true => value_head % self.key_heads,
            false => value_head / (self.value_heads / self.key_heads),
        }
    }

    pub(crate) fn check(&self) {
        let whole = [self.key_dim, self.value_dim].iter().all(|dim| *dim > 0 && dim.is_multiple_of(DELTA_TILE));
        let heads = self.key_heads > 0 && self.value_heads.is_multiple_of(self.key_heads);
        assert!(whole && heads && (2..=MAX_KERNEL).contains(&self.kernel), "{self:?} is no shape of a layer");
    }
}

/// One sequence's part of a batch and its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateSeq {
    /// First row of the batch that belongs to it.
    pub first_row: usize,
    /// Rows (new tokens).
    pub rows: usize,
    /// Its slot.
    pub slot: usize,
    /// It begins here: whatever the slot holds counts as zeros.
    pub fresh: bool,
    /// A snapshot to be made on the way.
    pub save: Option<StateSave>,
}

/// Behind the first `rows` rows of a sequence its state is copied to `slot`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateSave {
    /// From 1 to the sequence's rows.
    pub rows: usize,
    /// A slot that no sequence of the batch has.
    pub slot: usize,
}

impl StateSeq {
    /// The sequence cut at its snapshot: the part up to it, with the slot it goes to, and what is left.
    pub(crate) fn parts(&self) -> impl Iterator<Item = (StateSeq, Option<usize>)> {
        let first = self.save.map_or(self.rows, |save| save.rows);
        let rest = StateSeq { first_row: self.first_row + first, rows: self.rows - first, fresh: false, ..*self };
        let first = (StateSeq { rows: first, ..*self }, self.save.map(|save| save.slot));
        std::iter::once(first).chain((rest.rows > 0).then_some((rest, None)))
    }
}

/// One layer's state of all slots.
pub struct StateLayer<'a> {
    /// All slots.
    pub memory: &'a mut [f32],
    /// Numbers of a slot.
    pub slot_len: usize,
    /// Where in a slot the layer's part begins.
    pub offset: usize,
}

impl StateLayer<'_> {
    /// Where the layer's part of `slot` begins in the memory.
    pub(crate) fn start(&self, slot: usize) -> usize {
        slot * self.slot_len + self.offset
    }

    /// Panics with the numbers unless each sequence has rows of the batch and slots of its own.
    pub(crate) fn check(&self, shape: &DeltaShape, seqs: &[StateSeq], tokens: usize) {
        shape.check();
        assert!(self.offset + shape.state_len() <= self.slot_len, "a layer's state is beyond its slot");
        let slots = self.memory.len() / self.slot_len.max(1);
        let written = |seq: &StateSeq| [Some(seq.slot), seq.save.map(|save| save.slot)].into_iter().flatten();
        for (i, seq) in seqs.iter().enumerate() {
            assert!(seq.first_row + seq.rows <= tokens, "rows {}+{} of a batch of {tokens}", seq.first_row, seq.rows);
            assert!(
                seq.save.is_none_or(|save| (1..=seq.rows).contains(&save.rows) && save.slot != seq.slot),
                "{seq:?}"
            );
            for slot in written(seq) {
                assert!(slot < slots, "slot {slot} of {slots}");
                assert!(seqs[..i].iter().all(|other| written(other).all(|o| o != slot)), "two write to slot {slot}");
            }
        }
    }
}

/// `x[t] = silu(Σ_j weight[c, j] · x[t + j + 1 - kernel])` for each channel, in place over a batch's rows, with what came
/// before them from the state; the last inputs become the state.
pub struct Convolution<'a> {
    /// `[tokens, channels]`.
    pub x: &'a mut [f32],
    /// `[channels, kernel]` F32, oldest token first.
    pub weight: &'a Tensor,
    /// The layer's shape.
    pub shape: &'a DeltaShape,
    /// The layer's state.
    pub state: StateLayer<'a>,
    /// The batch's sequences.
    pub seqs: &'a [StateSeq],
}

impl Convolution<'_> {
    pub(crate) fn check(&self) {
        let channels = self.shape.channels();
        assert!(self.x.len().is_multiple_of(channels), "x is not [tokens, {channels}]");
        assert_eq!((self.weight.rows, self.weight.cols), (channels, self.shape.kernel), "the convolution's weight");
        self.state.check(self.shape, self.seqs, self.x.len() / channels);
    }
}

/// For each head and token, with `S` the head's state `[key_dim, value_dim]`, decay `g` and strength `β`:
///
/// ```text
/// S ← g·S      δ = β · (v - Sᵀk)      S ← S + k·δᵀ      out = Sᵀq / √key_dim
/// ```
pub struct DeltaRule<'a> {
    /// `[tokens, channels]`: q, k, v of all heads; q and k of length 1.
    pub qkv: &'a [f32],
    /// `[tokens, value_heads]`, from 0 to 1.
    pub decay: &'a [f32],
    /// `[tokens, value_heads]`, from 0 to 1.
    pub strength: &'a [f32],
    /// The layer's shape.
    pub shape: &'a DeltaShape,
    /// The layer's state.
    pub state: StateLayer<'a>,
    /// The batch's sequences.
    pub seqs: &'a [StateSeq],
    /// `[tokens, values]`.
    pub out: &'a mut [f32],
}

impl DeltaRule<'_> {
    pub(crate) fn check(&self) {
        let (shape, tokens) = (self.shape, self.out.len() / self.shape.values().max(1));
        assert_eq!(self.out.len(), tokens * shape.values(), "out is not [tokens, {}]", shape.values());
        assert_eq!(self.qkv.len(), tokens * shape.channels(), "qkv is not [tokens, {}]", shape.channels());
        let gates = [self.decay.len(), self.strength.len()];
        assert_eq!(gates, [tokens * shape.value_heads; 2], "gates are not [tokens, {}]", shape.value_heads);
        self.state.check(shape, self.seqs, tokens);
    }

    /// Bytes that must move: activations, and each sequence's state to and fro.
    pub fn bytes_moved(&self) -> u64 {
        let state = 2 * self.seqs.len() * (self.shape.state_len() - self.shape.conv_len());
        super::f32_bytes(self.qkv.len() + self.decay.len() + self.strength.len() + self.out.len() + state)
    }

    /// Multiplications and additions: decay, two products with the state, and its update.
    pub fn operations(&self) -> u64 {
        let rows: usize = self.seqs.iter().map(|seq| seq.rows).sum();
        7 * (rows * self.shape.value_heads * self.shape.key_dim * self.shape.value_dim) as u64
    }
}

/// Columns of a batch to be copied: `to[t, at + g * width ..] = x[t, g * stride + first ..]` for each of `groups` groups and
/// `width` columns. Takes apart what a product yields group by group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Regroup {
    /// Groups of a row of `x`.
    pub groups: usize,
    /// Columns of a group.
    pub stride: usize,
    /// The first of those wanted.
    pub first: usize,
    /// How many.
    pub width: usize,
    /// Where the first group's go in a row of the result.
    pub at: usize,
}
