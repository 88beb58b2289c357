//! The layout of the paged KV cache: which byte holds which number of which token, for each element type.
//!
//! A block holds [`KV_BLOCK`] = 32 tokens. One head's keys of a block are contiguous, and so are its values; blocks follow
//! one another, heads within a block. Keys are stored across tokens, so that one load feeds sixteen tokens' scores; values
//! are stored along their dimensions, so that `p·V` adds up in them.
//!
//! ```text
//! F32 F16 BF16   keys    [key_dim][32 tokens]                          one number each
//!                values  [32 tokens][value_dim, up to a multiple of 16]
//!
//! Q8_0           a head is a run of sections, one per 32 dimensions, 1088 bytes each:
//!                  keys    | d[32 tokens] F16 | [8 dims/4][32 tokens][4 dims]   q + 128, unsigned |
//!                  values  | d[32 tokens] F16 | [16 tokens/2][32 dims][2 tokens]   q, signed      |
//! Q4_0, Q4_1     sections of 576 and 640 bytes; two neighbours share a byte, the first one in the low nibble:
//!                  keys    | d[32] | m[32] (Q4_1) | [4 dims/8][32 tokens][4 dims]  low: dims 0..4 of 8, high: 4..8 |
//!                  values  | d[32] | m[32] (Q4_1) | [8 tokens/4][32 dims][2 tokens]  low: tokens 0, 1 of 4, high: 2, 3 |
//!
//! latent, any    [32 tokens][key_dim], each key as ggml has a row of the type; no values: they are a part of the keys
//! ```
//! A quantised vector costs the same bits as ggml's blocks of 32 of that type, and means the same numbers.

use super::Error;
use crate::quant::DType;

/// Tokens per block of the paged KV cache.
pub const KV_BLOCK: usize = 32;

/// Dimensions that share a scale in the quantised types.
pub const KV_GROUP: usize = 32;

/// Values are padded to whole vectors of so many elements.
const VALUE_LANES: usize = 16;

/// Shape of one layer's paged cache: keys `[blocks, kv_heads, one head's keys]`, values likewise; see the module's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Key/value heads.
    pub kv_heads: usize,
    /// Dimensions of a key.
    pub key_dim: usize,
    /// Dimensions of a value.
    pub value_dim: usize,
    /// Element type of the keys: F32, F16, BF16, Q8_0, Q4_0 or Q4_1.
    pub key_type: DType,
    /// Element type of the values, one of the same.
    pub value_type: DType,
    /// Values are the first `value_dim` elements of the keys and not stored besides; there is one head (MLA, arXiv
    /// 2405.04434). Both dimensions are multiples of 16.
    pub latent: bool,
}

impl KvShape {
    /// Whether a cache can have this shape.
    ///
    /// # Errors
    /// [`Error::KvType`] for a type that is no cache's, or a quantised one whose groups the dimensions do not fill.
    pub fn check(&self) -> Result<(), Error> {
        let value_dim = if self.latent { self.key_dim } else { self.value_dim };
        for (dtype, dim) in [(self.key_type, self.key_dim), (self.value_type, value_dim)] {
            let fits = match dtype {
                DType::F32 | DType::F16 | DType::BF16 => true,
                DType::Q8_0 | DType::Q4_0 | DType::Q4_1 => dim.is_multiple_of(KV_GROUP),
                _ => false,
            };
            if !fits {
                return Err(Error::KvType { dtype, dim });
            }
        }
        Ok(())
    }

    /// Bytes of one head's keys in one block.
    pub fn key_head_bytes(&self) -> usize {
        head_bytes(self.key_type, self.key_dim)
    }

    /// Bytes of one head's values in one block.
    pub fn value_head_bytes(&self) -> usize {
        if self.latent { 0 } else { head_bytes(self.value_type, value_width(self.value_dim)) }
    }

    /// Bytes of the keys of one block.
    pub fn key_block_bytes(&self) -> usize {
        self.kv_heads * self.key_head_bytes()
    }

    /// Bytes of the values of one block.
    pub fn value_block_bytes(&self) -> usize {
        self.kv_heads * self.value_head_bytes()
    }

    /// Elements of what is written as a token's value.
    pub(crate) fn written_value(&self) -> usize {
        if self.latent { 0 } else { self.value_dim }
    }

    /// Bytes of one token's keys and values: exact, as a block's bytes divide evenly.
    pub fn token_bytes(&self) -> usize {
        (self.key_block_bytes() + self.value_block_bytes()) / KV_BLOCK
    }
}

/// Elements of a stored value: `dim` up to whole vectors. What is beyond `dim` is never used.
pub(crate) fn value_width(dim: usize) -> usize {
    dim.next_multiple_of(VALUE_LANES)
}

/// Bytes of 32 vectors of `width` elements.
fn head_bytes(dtype: DType, width: usize) -> usize {
    match dtype {
        DType::F32 | DType::F16 | DType::BF16 => KV_BLOCK * width * dtype.block_bytes(),
        _ => width.div_ceil(KV_GROUP) * section_bytes(dtype),
    }
}

/// Bytes of a section: 32 ggml blocks of 32 elements, rearranged.
pub(crate) const fn section_bytes(dtype: DType) -> usize {
    KV_BLOCK * dtype.block_bytes()
}

/// Bytes before a section's quants: scales, and minima where the type has them.
pub(crate) const fn section_head(dtype: DType) -> usize {
    section_bytes(dtype) - KV_BLOCK * KV_GROUP * if matches!(dtype, DType::Q8_0) { 2 } else { 1 } / 2
}

/// Where element `dim` of the key of token `slot` (0..32) lies in one head's keys: its byte in a float type, its quant's
/// byte and whether that is the high nibble in a quantised one.
pub(crate) fn key_at(dtype: DType, slot: usize, dim: usize) -> (usize, bool) {
    let (section, d) = (dim / KV_GROUP * section_bytes(dtype), dim % KV_GROUP);
    match dtype {
        DType::F32 | DType::F16 | DType::BF16 => ((dim * KV_BLOCK + slot) * dtype.block_bytes(), false),
        DType::Q8_0 => (section + section_head(dtype) + d / 4 * 4 * KV_BLOCK + 4 * slot + d % 4, false),
        _ => (section + section_head(dtype) + d / 8 * 4 * KV_BLOCK + 4 * slot + d % 4, d % 8 >= 4),
    }
}

/// The same for element `dim` of a value of `value_dim` elements.
pub(crate) fn value_at(dtype: DType, value_dim: usize, slot: usize, dim: usize) -> (usize, bool) {
    let (section, d) = (dim / KV_GROUP * section_bytes(dtype), dim % KV_GROUP);
    match dtype {
        DType::F32 | DType::F16 | DType::BF16 => ((slot * value_width(value_dim) + dim) * dtype.block_bytes(), false),
        DType::Q8_0 => (section + section_head(dtype) + slot / 2 * 2 * KV_GROUP + 2 * d + slot % 2, false),
        _ => (section + section_head(dtype) + slot / 4 * 2 * KV_GROUP + 2 * d + slot % 2, slot % 4 >= 2),
    }
}

/// Where the scale of token `slot` for the group of `dim` lies; its minimum, where there is one, is 64 bytes further.
pub(crate) fn scale_at(dtype: DType, slot: usize, dim: usize) -> usize {
    dim / KV_GROUP * section_bytes(dtype) + 2 * slot
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn shape(dtype: DType) -> KvShape {
        KvShape { kv_heads: 2, key_dim: 128, value_dim: 64, key_type: dtype, value_type: dtype, latent: false }
    }

    #[test]
    fn a_token_costs_its_types_bits() {
        for dtype in [DType::F32, DType::F16, DType::BF16, DType::Q8_0, DType::Q4_0, DType::Q4_1] {
            let want = 2 * (128 + 64) / dtype.block_len() * dtype.block_bytes();
            assert_eq!((shape(dtype).check().is_ok(), shape(dtype).token_bytes()), (true, want), "{dtype}");
            let latent = KvShape { kv_heads: 1, key_dim: 576, value_dim: 512, latent: true, ..shape(dtype) };
            let want = 576 / dtype.block_len() * dtype.block_bytes();
            assert_eq!((latent.check().is_ok(), latent.token_bytes()), (true, want), "{dtype}");
        }
        assert_eq!((section_head(DType::Q8_0), section_head(DType::Q4_0), section_head(DType::Q4_1)), (64, 64, 128));
    }

    #[test]
    fn every_element_has_a_place_of_its_own() {
        for dtype in [DType::F32, DType::F16, DType::Q8_0, DType::Q4_0, DType::Q4_1] {
            let (mut keys, mut values, mut scales) = (HashSet::new(), HashSet::new(), HashSet::new());
            for slot in 0..KV_BLOCK {
                for dim in 0..64 {
                    assert!(keys.insert(key_at(dtype, slot, dim)) && values.insert(value_at(dtype, 64, slot, dim)));
                    assert!(key_at(dtype, slot, dim).0 < 64 / 32 * section_bytes(dtype) * dtype_blocks(dtype));
                    scales.insert(scale_at(dtype, slot, dim));
                }
            }
            if dtype.block_len() > 1 {
                assert_eq!(scales.len(), 64);
                let quants = |set: &HashSet<(usize, bool)>| set.iter().map(|q| q.0).collect::<HashSet<_>>();
                let bytes: HashSet<usize> = scales.iter().flat_map(|&s| [s, s + 1]).collect();
                assert!(quants(&keys).is_disjoint(&bytes) && quants(&values).is_disjoint(&bytes));
            }
        }
    }

    /// Sections per 32 dimensions in units of [`section_bytes`]: a float type's "block" is one element.
    fn dtype_blocks(dtype: DType) -> usize {
        KV_GROUP / dtype.block_len()
    }

    #[test]
    fn shapes_that_cannot_be_are_refused() {
        let odd = KvShape { key_dim: 80, ..shape(DType::Q8_0) };
        assert!(odd.check().is_err_and(|e| e.to_string().contains("80")));
        assert!(KvShape { key_dim: 80, ..shape(DType::BF16) }.check().is_ok());
        assert!(KvShape { value_type: DType::Q6_K, ..shape(DType::F16) }.check().is_err());
    }
}
