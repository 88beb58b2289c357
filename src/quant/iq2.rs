//! IQ2_XXS, IQ2_XS and IQ2_S: eight elements are a point of magnitudes 8, 25, 43 (codebooks of 256, 512 and 1024 points)
//! with signs; 2.0625, 2.3125 and 2.5625 bits per element. Decoded only: to encode well takes a search with an importance
//! matrix.
//!
//! ```text
//!           0     2                  34               66         74         82
//! IQ2_XXS | d   | groups[8] of 64 bits              |
//! IQ2_XS  | d   | qs[32] of 16 bits                 | scales[8] |
//! IQ2_S   | d   | qs[32]           | signs[32]      | qh[8]     | scales[8] |
//! ```
//! A group is 32 elements, four runs of eight.
//! IQ2_XXS: a group's low word holds four indices of eight bits, its high word four times seven signs (see
//! [`codebook::even_signs`]), from bit 0 on, and a scale in bits 28..32. IQ2_XS: an index in bits 0..9 of a run's word, seven
//! signs in bits 9..16. IQ2_S: the low eight bits of an index in `qs`, the upper two in bits `2k..2k+2` of the group's
//! `qh`, and eight signs. `scales` hold two scales per group, the low nibble for its first 16 elements.
//! Value: `d · (scale + 1/2) / 4 · (± magnitude)`.

use super::codebook::{self, even_signs, signed};
use super::kquants::LEN;
use super::scaled::{Scaled, twice};
use super::{DType, f16_at, field};

/// Bytes per block of IQ2_XXS.
pub const XXS_BYTES: usize = 66;
/// Bytes per block of IQ2_XS.
pub const XS_BYTES: usize = 74;
/// Bytes per block of IQ2_S.
pub const S_BYTES: usize = 82;
const _: () = assert!(DType::IQ2_XXS.block_bytes() == XXS_BYTES && XXS_BYTES == 2 + LEN / 4);
const _: () = assert!(DType::IQ2_XS.block_bytes() == XS_BYTES && XS_BYTES == XXS_BYTES + LEN / 32);
const _: () = assert!(DType::IQ2_S.block_bytes() == S_BYTES && S_BYTES == XS_BYTES + LEN / 32);

/// Integers of an IQ2_XXS block.
#[inline(always)]
pub fn xxs(block: &[u8; XXS_BYTES]) -> Scaled {
    let (groups, _) = field::<2, 64, XXS_BYTES>(block).as_chunks::<8>();
    let mut q = [0; LEN];
    for (q, group) in q.as_chunks_mut::<32>().0.iter_mut().zip(groups) {
        let bits = u64::from_le_bytes(*group) >> 32;
        for (k, q) in q.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            *q = signed(codebook::IQ2_XXS[usize::from(group[k])], even_signs((bits >> (7 * k)) as u32));
        }
    }
    let s = twice(std::array::from_fn(|g| (2 * (groups[g][7] >> 4) + 1) as i8));
    Scaled { d: f16_at(block, 0) * 0.125, s, q }
}

/// Scales of sixteen nibbles.
#[inline(always)]
fn odd(nibbles: &[u8; 8]) -> [i8; 16] {
    std::array::from_fn(|i| (2 * (nibbles[i / 2] >> (4 * (i % 2)) & 15) + 1) as i8)
}

/// Integers of an IQ2_XS block.
#[inline(always)]
pub fn xs(block: &[u8; XS_BYTES]) -> Scaled {
    let (words, _) = field::<2, 64, XS_BYTES>(block).as_chunks::<2>();
    let mut q = [0; LEN];
    for (q, word) in q.as_chunks_mut::<8>().0.iter_mut().zip(words) {
        let word = u16::from_le_bytes(*word);
        *q = signed(codebook::IQ2_XS[usize::from(word & 511)], even_signs(u32::from(word >> 9)));
    }
    Scaled { d: f16_at(block, 0) * 0.125, s: odd(field::<66, 8, XS_BYTES>(block)), q }
}

/// Integers of an IQ2_S block.
#[inline(always)]
pub fn s(block: &[u8; S_BYTES]) -> Scaled {
    let (qs, signs) = (field::<2, 32, S_BYTES>(block), field::<34, 32, S_BYTES>(block));
    let qh = field::<66, 8, S_BYTES>(block);
    let mut q = [0; LEN];
    for (r, q) in q.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let index = usize::from(qs[r]) | usize::from(qh[r / 4] >> (2 * (r % 4)) & 3) << 8;
        *q = signed(codebook::IQ2_S[index], signs[r]);
    }
    Scaled { d: f16_at(block, 0) * 0.125, s: odd(field::<74, 8, S_BYTES>(block)), q }
}
