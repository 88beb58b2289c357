//! IQ3_XXS and IQ3_S: four elements are a point of magnitudes (eight values each; codebooks of 256 and 512 points) with
//! signs; 3.0625 and 3.4375 bits per element. Decoded only: to encode well takes a search with an importance matrix.
//!
//! ```text
//!           0     2              66         74         98   106 110
//! IQ3_XXS | d   | qs[64]       | groups[8] of 32 bits |
//! IQ3_S   | d   | qs[64]       | qh[8]     | signs[32]      | scales[4] |
//! ```
//! A group is 32 elements, eight runs of four with an index in `qs` each.
//! IQ3_XXS: a group's word holds four times seven signs (see [`codebook::even_signs`]), from bit 0 on, and a scale in bits
//! 28..32; value: `d · (scale + 1/2) / 2 · (± magnitude)`. IQ3_S: bit `k` of a group's `qh` is the ninth bit of its run `k`'s
//! index, `signs` hold one bit per element, `scales` two scales a byte, the low nibble first; value: `d · (2·scale + 1) · (±
//! magnitude)`.

use super::codebook::{self, even_signs, signed};
use super::kquants::LEN;
use super::scaled::{Scaled, twice};
use super::{DType, f16_at, field};

/// Bytes per block of IQ3_XXS.
pub const XXS_BYTES: usize = 98;
/// Bytes per block of IQ3_S.
pub const S_BYTES: usize = 110;
const _: () = assert!(DType::IQ3_XXS.block_bytes() == XXS_BYTES && XXS_BYTES == 2 + LEN / 4 + LEN / 8);
const _: () = assert!(DType::IQ3_S.block_bytes() == S_BYTES && S_BYTES == 2 + LEN / 4 + LEN / 32 + LEN / 8 + LEN / 64);

/// Two points side by side.
#[inline(always)]
fn pair(first: u32, second: u32) -> u64 {
    u64::from(first) | u64::from(second) << 32
}

/// Integers of an IQ3_XXS block.
#[inline(always)]
pub fn xxs(block: &[u8; XXS_BYTES]) -> Scaled {
    let (pairs, _) = field::<2, 64, XXS_BYTES>(block).as_chunks::<2>();
    let (groups, _) = field::<66, 32, XXS_BYTES>(block).as_chunks::<4>();
    let mut q = [0; LEN];
    for (r, (q, at)) in q.as_chunks_mut::<8>().0.iter_mut().zip(pairs).enumerate() {
        let [first, second] = at.map(|at| codebook::IQ3_XXS[usize::from(at)]);
        *q = signed(pair(first, second), even_signs(u32::from_le_bytes(groups[r / 4]) >> (7 * (r % 4))));
    }
    let s = twice(std::array::from_fn(|g| (2 * (groups[g][3] >> 4) + 1) as i8));
    Scaled { d: f16_at(block, 0) * 0.25, s, q }
}

/// Integers of an IQ3_S block.
#[inline(always)]
pub fn s(block: &[u8; S_BYTES]) -> Scaled {
    let (pairs, _) = field::<2, 64, S_BYTES>(block).as_chunks::<2>();
    let (qh, signs) = (field::<66, 8, S_BYTES>(block), field::<74, 32, S_BYTES>(block));
    let scales = field::<106, 4, S_BYTES>(block);
    let mut q = [0; LEN];
    for (r, (q, at)) in q.as_chunks_mut::<8>().0.iter_mut().zip(pairs).enumerate() {
        let high = usize::from(qh[r / 4] >> (2 * (r % 4)));
        let first = codebook::IQ3_S[usize::from(at[0]) | (high & 1) << 8];
        let second = codebook::IQ3_S[usize::from(at[1]) | (high & 2) << 7];
        *q = signed(pair(first, second), signs[r]);
    }
    let s = twice(std::array::from_fn(|g| (2 * (scales[g / 2] >> (4 * (g % 2)) & 15) + 1) as i8));
    Scaled { d: f16_at(block, 0), s, q }
}
