//! Q4_K: 4-bit quants, 8 groups of 32 with a 6-bit scale and a 6-bit offset each; 4.5 bits per element.
//!
//! ```text
//! 0     2      4            16                                        144
//! | d   | dmin | scales[12] | qs[128]                                  |
//! ```
//! Element `64·p + l` (p < 4, l < 32) is the low nibble of `qs[32·p + l]`, element `64·p + 32 + l` its high nibble.
//! Scales and offsets, shared with Q5_K (`s` scale, `m` offset, group number, bit range):
//!
//! ```text
//! byte      bits 7–6     bits 5–0            byte      bits 7–4     bits 3–0
//! 0 + g     s(4+g) 5–4   s(g) 5–0            8 + g     m(4+g) 3–0   s(4+g) 3–0       g = 0..3
//! 4 + g     m(4+g) 5–4   m(g) 5–0
//! ```
//! Value: `(d · scale) · q - (dmin · offset)`.

use super::{LEN, group, inverse, nearest, offset_scale};
use crate::quant::{DType, f16_at, field, put_f16};

/// Bytes per block.
pub const BYTES: usize = 144;
const _: () = assert!(DType::Q4_K.block_bytes() == BYTES && BYTES == 2 + 2 + 12 + LEN / 2);

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

/// The packed scales and offsets, for [`scale_min`] and [`unpack_scales`].
#[inline]
pub fn scales(block: &[u8; BYTES]) -> &[u8; 12] {
    field::<4, 12, BYTES>(block)
}

/// Packed quants.
#[inline]
pub fn qs(block: &[u8; BYTES]) -> &[u8; 128] {
    field::<16, 128, BYTES>(block)
}

/// Scale and offset (6 bits each) of group `g` of 8.
#[inline]
pub fn scale_min(scales: &[u8; 12], g: usize) -> (u8, u8) {
    if g < 4 {
        (scales[g] & 63, scales[g + 4] & 63)
    } else {
        (scales[g + 4] & 15 | scales[g - 4] >> 6 << 4, scales[g + 4] >> 4 | scales[g] >> 6 << 4)
    }
}

/// All eight scales, then all eight offsets, one per byte: four word operations instead of sixteen byte ones.
#[inline]
pub fn unpack_scales(scales: &[u8; 12]) -> ([u8; 8], [u8; 8]) {
    let word = |at: usize| u32::from_le_bytes([scales[at], scales[at + 1], scales[at + 2], scales[at + 3]]);
    let (s, m, high) = (word(0), word(4), word(8));
    const SIX: u32 = 0x3f3f_3f3f;
    const FOUR: u32 = 0x0f0f_0f0f;
    const TWO: u32 = 0x0303_0303;
    let join = |low: u32, high: u32| (u64::from(low) | u64::from(high) << 32).to_le_bytes();
    (join(s & SIX, high & FOUR | (s >> 6 & TWO) << 4), join(m & SIX, high >> 4 & FOUR | (m >> 6 & TWO) << 4))
}

/// Packs eight scales and eight offsets of 6 bits; the inverse of [`unpack_scales`].
pub(super) fn pack_scales(scale: &[u8; 8], offset: &[u8; 8]) -> [u8; 12] {
    std::array::from_fn(|i| match i {
        0..4 => scale[i] | scale[i + 4] >> 4 << 6,
        4..8 => offset[i - 4] | offset[i] >> 4 << 6,
        _ => scale[i - 4] & 15 | (offset[i - 4] & 15) << 4,
    })
}

/// What Q4_K and Q5_K share of encoding: fits every group and stores `d`, `dmin` and the scales (the first 16 bytes).
/// Calls `put(element, quant)` for each element with its quant in `0..=top`.
pub(super) fn encode_groups(x: &[f32; LEN], top: i32, head: &mut [u8], mut put: impl FnMut(&mut [u8], usize, u8)) {
    let fits: [(f32, f32); 8] = std::array::from_fn(|g| offset_scale(group::<32>(x, g), top));
    let top_scale = fits.iter().fold(0.0, |top: f32, fit| top.max(fit.0));
    let top_offset = fits.iter().fold(0.0, |top: f32, fit| top.max(fit.1));
    head.fill(0);
    put_f16(head, 0, top_scale / 63.0);
    put_f16(head, 2, top_offset / 63.0);
    let (d, dmin) = (f16_at(head, 0), f16_at(head, 2));
    let scale = fits.map(|fit| nearest(fit.0 * inverse(d), 0, 63) as u8);
    let offset = fits.map(|fit| nearest(fit.1 * inverse(dmin), 0, 63) as u8);
    head[4..16].copy_from_slice(&pack_scales(&scale, &offset));
    for g in 0..8 {
        let (id, ml) = (inverse(d * f32::from(scale[g])), dmin * f32::from(offset[g]));
        for (l, &v) in group::<32>(x, g).iter().enumerate() {
            put(head, 32 * g + l, nearest((v + ml) * id, 0, top) as u8);
        }
    }
}

/// Decodes one block.
pub fn decode(block: &[u8; BYTES], out: &mut [f32; LEN]) {
    let (d, dmin, qs, scales) = (d(block), dmin(block), qs(block), scales(block));
    for (g, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, offset) = scale_min(scales, g);
        let (dl, ml) = (d * f32::from(scale), dmin * f32::from(offset));
        for (y, &byte) in out.iter_mut().zip(&qs[g / 2 * 32..]) {
            *y = dl * f32::from(byte >> (g % 2 * 4) & 15) - ml;
        }
    }
}

/// Encodes one block.
pub fn encode(x: &[f32; LEN], block: &mut [u8; BYTES]) {
    encode_groups(x, 15, block, |block, i, q| block[16 + i / 64 * 32 + i % 32] |= q << (i / 32 % 2 * 4));
}
