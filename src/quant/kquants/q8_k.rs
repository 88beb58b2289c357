//! Q8_K: 8-bit quants with one F32 scale and the sums of 16 groups: the activations' side of a K-quant dot product.
//!
//! ```text
//! 0      4                                             260             292
//! | d    | qs[256]                                      | bsums[16]     |
//! ```
//! `d` is F32, `qs` signed bytes, `bsums[g]` (i16, little-endian) the sum of quants `16·g..16·g + 16`. Value: `d · q`.

use super::{LEN, nearest};
use crate::quant::{DType, field};

/// Bytes per block.
pub const BYTES: usize = 292;
const _: () = assert!(DType::Q8_K.block_bytes() == BYTES && BYTES == 4 + LEN + LEN / 16 * 2);

/// Scale.
#[inline]
pub fn d(block: &[u8; BYTES]) -> f32 {
    f32::from_le_bytes(*field::<0, 4, BYTES>(block))
}

/// Quants, as signed bytes' bits.
#[inline]
pub fn qs(block: &[u8; BYTES]) -> &[u8; LEN] {
    field::<4, LEN, BYTES>(block)
}

/// Sum of the quants of group `g` of 16.
#[inline]
pub fn bsum(block: &[u8; BYTES], g: usize) -> i16 {
    i16::from_le_bytes([block[260 + 2 * g], block[261 + 2 * g]])
}

/// Decodes one block.
pub fn decode(block: &[u8; BYTES], out: &mut [f32; LEN]) {
    let d = d(block);
    for (y, &q) in out.iter_mut().zip(qs(block)) {
        *y = d * f32::from(q as i8);
    }
}

/// Encodes one block: the element of largest magnitude becomes -127 exactly.
pub fn encode(x: &[f32; LEN], block: &mut [u8; BYTES]) {
    let extreme = x.iter().fold(0.0, |best: f32, &v| if v.abs() > best.abs() { v } else { best });
    block.fill(0);
    let inverse = -127.0 / extreme;
    if !inverse.is_finite() || inverse == 0.0 {
        return;
    }
    block[..4].copy_from_slice(&(1.0 / inverse).to_le_bytes());
    for (g, group) in x.as_chunks::<16>().0.iter().enumerate() {
        let mut sum = 0;
        for (l, &v) in group.iter().enumerate() {
            let q = nearest(v * inverse, -127, 127);
            sum += q;
            block[4 + 16 * g + l] = q as i8 as u8;
        }
        block[260 + 2 * g..][..2].copy_from_slice(&(sum as i16).to_le_bytes());
    }
}
