//! Q2_K: 2-bit quants, 16 groups of 16 with a 4-bit scale and a 4-bit offset each; 2.625 bits per element.
//!
//! ```text
//! 0             16                            80    82    84
//! | scales[16]   | qs[64]                      | d   | dmin |
//! ```
//! `scales[g]`: low nibble the scale, high nibble the offset of group `g`. Element `128·h + 32·j + l` (h < 2, j < 4,
//! l < 32) is bits `2j..2j+2` of `qs[32·h + l]`. Value: `(d · scale) · q - (dmin · offset)`.

use super::{LEN, group, inverse, nearest, offset_scale};
use crate::quant::{DType, f16_at, field, put_f16};

/// Bytes per block.
pub const BYTES: usize = 84;
const _: () = assert!(DType::Q2_K.block_bytes() == BYTES && BYTES == 16 + LEN / 4 + 2 + 2);

/// Scale of the scales.
#[inline]
pub fn d(block: &[u8; BYTES]) -> f32 {
    f16_at(block, 80)
}

/// Scale of the offsets.
#[inline]
pub fn dmin(block: &[u8; BYTES]) -> f32 {
    f16_at(block, 82)
}

/// Scale and offset (4 bits each) of group `g` of 16.
#[inline]
pub fn scale_min(block: &[u8; BYTES], g: usize) -> (u8, u8) {
    (block[g] & 15, block[g] >> 4)
}

/// Packed quants.
#[inline]
pub fn qs(block: &[u8; BYTES]) -> &[u8; 64] {
    field::<16, 64, BYTES>(block)
}

/// Decodes one block.
pub fn decode(block: &[u8; BYTES], out: &mut [f32; LEN]) {
    let (d, dmin, qs) = (d(block), dmin(block), qs(block));
    for (g, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let (scale, offset) = scale_min(block, g);
        let (dl, ml) = (d * f32::from(scale), dmin * f32::from(offset));
        let (half, shift, first) = (g / 8, g % 8 / 2 * 2, g % 2 * 16);
        for (l, y) in out.iter_mut().enumerate() {
            let q = (qs[32 * half + first + l] >> shift) & 3;
            *y = dl * f32::from(q) - ml;
        }
    }
}

/// Encodes one block.
pub fn encode(x: &[f32; LEN], block: &mut [u8; BYTES]) {
    let fits: [(f32, f32); 16] = std::array::from_fn(|g| offset_scale(group::<16>(x, g), 3));
    let top_scale = fits.iter().fold(0.0, |top: f32, fit| top.max(fit.0));
    let top_offset = fits.iter().fold(0.0, |top: f32, fit| top.max(fit.1));
    block.fill(0);
    put_f16(block, 80, top_scale / 15.0);
    put_f16(block, 82, top_offset / 15.0);
    let (d, dmin) = (d(block), dmin(block));
    for (g, &(scale, offset)) in fits.iter().enumerate() {
        let scale = nearest(scale * inverse(d), 0, 15);
        let offset = nearest(offset * inverse(dmin), 0, 15);
        block[g] = scale as u8 | (offset as u8) << 4;
        let (id, ml) = (inverse(d * scale as f32), dmin * offset as f32);
        for (l, &v) in group::<16>(x, g).iter().enumerate() {
            let q = nearest((v + ml) * id, 0, 3) as u8;
            block[16 + 32 * (g / 8) + g % 2 * 16 + l] |= q << (g % 8 / 2 * 2);
        }
    }
}
