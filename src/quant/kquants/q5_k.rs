//! Q5_K: 5-bit quants, 8 groups of 32 with a 6-bit scale and a 6-bit offset each; 5.5 bits per element.
//!
//! ```text
//! 0     2      4            16            48                              176
//! | d   | dmin | scales[12] | qh[32]      | qs[128]                        |
//! ```
//! Scales and low nibbles as in [Q4_K](super::q4_k). Bit `g` of `qh[l]` is the fifth bit of element `32·g + l`.
//! Value: `(d · scale) · q - (dmin · offset)`.

use super::LEN;
use super::q4_k::{encode_groups, scale_min};
use crate::quant::{DType, f16_at, field};

/// Bytes per block.
pub const BYTES: usize = 176;
const _: () = assert!(DType::Q5_K.block_bytes() == BYTES && BYTES == 2 + 2 + 12 + LEN / 8 + LEN / 2);

/// Scale of the scales.
#[inline]
pub fn d(block: &[u8; BYTES]) -> f32 {
    f16_at(block, 0)
}

/// Scale of the offsets.
#[inline]
pub fn dmin(block: &[u8; BYTES]) -> f32 {
    f16_at(block, 2)
}

/// The packed scales and offsets, for [`scale_min`] and [`super::q4_k::unpack_scales`].
#[inline]
pub fn scales(block: &[u8; BYTES]) -> &[u8; 12] {
    field::<4, 12, BYTES>(block)
}

/// Fifth bits.
#[inline]
pub fn qh(block: &[u8; BYTES]) -> &[u8; 32] {
    field::<16, 32, BYTES>(block)
}

/// Low nibbles.
#[inline]
pub fn qs(block: &[u8; BYTES]) -> &[u8; 128] {
    field::<48, 128, BYTES>(block)
}

/// Decodes one block.
pub fn decode(block: &[u8; BYTES], out: &mut [f32; LEN]) {
    let (d, dmin, qs, qh, scales) = (d(block), dmin(block), qs(block), qh(block), scales(block));
    for (g, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, offset) = scale_min(scales, g);
        let (dl, ml) = (d * f32::from(scale), dmin * f32::from(offset));
        for (l, y) in out.iter_mut().enumerate() {
            let low = qs[g / 2 * 32 + l] >> (g % 2 * 4) & 15;
            let high = qh[l] >> g & 1;
            *y = dl * f32::from(low | high << 4) - ml;
        }
    }
}

/// Encodes one block.
pub fn encode(x: &[f32; LEN], block: &mut [u8; BYTES]) {
    encode_groups(x, 31, block, |block, i, q| {
        block[48 + i / 64 * 32 + i % 32] |= (q & 15) << (i / 32 % 2 * 4);
        block[16 + i % 32] |= (q >> 4) << (i / 32);
    });
}
