//! IQ1_S and IQ1_M: eight elements are a point of -1, 0, 1 (codebook [`codebook::IQ1`], 11 bits) moved by ±1/8; 1.5625
//! and 1.75 bits per element. Decoded only: to encode well takes a search with an importance matrix.
//!
//! ```text
//!         0     2           32 34            48   50         56
//! IQ1_S | d   | qs[32]         | qh[8] of 16 bits |
//! IQ1_M | qs[32]            | qh[16]         | scales[4] of 16 bits |
//! ```
//! Run `r` of eight elements has the low eight bits of its index in `qs[r]`.
//! IQ1_S: `qh[g]` holds for group `g` of 32 the upper three bits of its four indices, from bit 0 on, a scale in bits
//! 12..15, and the sign of the eighth in bit 15. IQ1_M: nibble `r` of `qh` holds the upper three bits of run `r`'s index
//! and the sign of its eighth; `scales[i]` holds in bits 0..12 the scales of four groups of 16 and in bits 12..16 nibble
//! `i` of `d`. Value: `d · (2·scale + 1) · (point ± 1/8)`.

use super::codebook;
use super::float::widen_f16;
use super::kquants::LEN;
use super::scaled::{Scaled, twice};
use super::{DType, f16_at, field};

/// Bytes per block of IQ1_S.
pub const S_BYTES: usize = 50;
/// Bytes per block of IQ1_M.
pub const M_BYTES: usize = 56;
const _: () = assert!(DType::IQ1_S.block_bytes() == S_BYTES && S_BYTES == 2 + LEN / 8 + 2 * LEN / 32);
const _: () = assert!(DType::IQ1_M.block_bytes() == M_BYTES && M_BYTES == LEN / 8 + LEN / 16 + 8);

/// What [`raised`] lies above eight times the value.
const OFFSET: u8 = 9;

/// Eight elements in eighths, 9 added: 0 to 18.
#[inline(always)]
fn raised(index: usize, minus: bool) -> u64 {
    (codebook::IQ1[index] << 3) + if minus { 0 } else { 0x0202_0202_0202_0202 }
}

/// Bits of group `g` of IQ1_S.
#[inline(always)]
fn group(block: &[u8; S_BYTES], g: usize) -> u16 {
    u16::from_le_bytes([block[34 + 2 * g], block[35 + 2 * g]])
}

/// Integers of an IQ1_S block.
#[inline(always)]
pub fn s(block: &[u8; S_BYTES]) -> Scaled {
    let qs = field::<2, 32, S_BYTES>(block);
    let mut q = [0; LEN];
    for (r, q) in q.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let bits = group(block, r / 4);
        let index = usize::from(qs[r]) | usize::from(bits >> (3 * (r % 4)) & 7) << 8;
        *q = raised(index, bits >> 15 != 0).to_le_bytes();
    }
    let scale = |g| (2 * (group(block, g) >> 12 & 7) + 1) as i8;
    let s = twice(std::array::from_fn(scale));
    Scaled { d: f16_at(block, 0) * 0.125, s, q: q.map(|q| q.wrapping_sub(OFFSET) as i8) }
}

/// Word `i` of an IQ1_M block's scales.
#[inline(always)]
fn word(block: &[u8; M_BYTES], i: usize) -> u16 {
    u16::from_le_bytes([block[48 + 2 * i], block[49 + 2 * i]])
}

/// Integers of an IQ1_M block.
#[inline(always)]
pub fn m(block: &[u8; M_BYTES]) -> Scaled {
    let (qs, qh) = (field::<0, 32, M_BYTES>(block), field::<32, 16, M_BYTES>(block));
    let mut q = [0; LEN];
    for (r, q) in q.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let bits = qh[r / 2] >> (4 * (r % 2));
        *q = raised(usize::from(qs[r]) | usize::from(bits & 7) << 8, bits & 8 != 0).to_le_bytes();
    }
    let s = std::array::from_fn(|g| (2 * (word(block, g / 4) >> (3 * (g % 4)) & 7) + 1) as i8);
    let d = (0..4).fold(0, |d, i| d | (word(block, i) >> 12) << (4 * i));
    Scaled { d: widen_f16(d) * 0.125, s, q: q.map(|q| q.wrapping_sub(OFFSET) as i8) }
}
