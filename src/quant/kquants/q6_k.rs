//! Q6_K: 6-bit quants, 16 groups of 16 with a signed 8-bit scale each; 6.5625 bits per element.
//!
//! ```text
//! 0                        128              192          208   210
//! | ql[128]                 | qh[64]         | scales[16] | d   |
//! ```
//! Element `128·h + 32·j + l` (h < 2, j < 4, l < 32) has its low nibble in `ql[64·h + 32·(j % 2) + l]` (low nibble for
//! j < 2, high for j ≥ 2) and its upper two bits in bits `2j..2j+2` of `qh[32·h + l]`; quants run from -32 to 31 after
//! subtracting 32. Value: `(d · scale) · q`.

use super::{LEN, group, inverse, nearest, symmetric_scale};
use crate::quant::{DType, f16_at, field, put_f16};

/// Bytes per block.
pub const BYTES: usize = 210;
const _: () = assert!(DType::Q6_K.block_bytes() == BYTES && BYTES == LEN / 2 + LEN / 4 + 16 + 2);

/// Scale of the scales.
#[inline]
pub fn d(block: &[u8; BYTES]) -> f32 {
    f16_at(block, 208)
}

/// Low nibbles.
#[inline]
pub fn ql(block: &[u8; BYTES]) -> &[u8; 128] {
    field::<0, 128, BYTES>(block)
}

/// Upper two bits.
#[inline]
pub fn qh(block: &[u8; BYTES]) -> &[u8; 64] {
    field::<128, 64, BYTES>(block)
}

/// Scale of group `g` of 16.
#[inline]
pub fn scale(block: &[u8; BYTES], g: usize) -> i8 {
    block[192 + g] as i8
}

/// Decodes one block.
pub fn decode(block: &[u8; BYTES], out: &mut [f32; LEN]) {
    let (d, ql, qh) = (d(block), ql(block), qh(block));
    for (g, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let dl = d * f32::from(scale(block, g));
        let (half, plane, first) = (g / 8, g % 8 / 2, g % 2 * 16);
        for (l, y) in out.iter_mut().enumerate() {
            let low = ql[64 * half + plane % 2 * 32 + first + l] >> (plane / 2 * 4) & 15;
            let high = qh[32 * half + first + l] >> (2 * plane) & 3;
            *y = dl * f32::from((low | high << 4) as i8 - 32);
        }
    }
}

/// Encodes one block.
pub fn encode(x: &[f32; LEN], block: &mut [u8; BYTES]) {
    let fits: [f32; 16] = std::array::from_fn(|g| symmetric_scale(group::<16>(x, g), -32, 31));
    let extreme = fits.iter().fold(0.0, |best: f32, &fit| if fit.abs() > best.abs() { fit } else { best });
    block.fill(0);
    put_f16(block, 208, extreme / -128.0);
    let d = d(block);
    for (g, &fit) in fits.iter().enumerate() {
        let scale = nearest(fit * inverse(d), -128, 127);
        block[192 + g] = scale as i8 as u8;
        let id = inverse(d * scale as f32);
        let (half, plane, first) = (g / 8, g % 8 / 2, g % 2 * 16);
        for (l, &v) in group::<16>(x, g).iter().enumerate() {
            let q = (nearest(v * id, -32, 31) + 32) as u8;
            block[64 * half + plane % 2 * 32 + first + l] |= (q & 15) << (plane / 2 * 4);
            block[128 + 32 * half + first + l] |= (q >> 4) << (2 * plane);
        }
    }
}
