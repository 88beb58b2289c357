//! Q3_K: 3-bit quants, 16 groups of 16 with a signed 6-bit scale each; 3.4375 bits per element.
//!
//! ```text
//! 0                32                        96           108   110
//! | hmask[32]       | qs[64]                  | scales[12]  | d   |
//! ```
//! Element `128·h + 32·j + l` has its low two bits in bits `2j..2j+2` of `qs[32·h + l]` and its third bit, inverted, in
//! bit `4·h + j` of `hmask[l]`: a clear bit subtracts 4, so quants run from -4 to 3.
//! Scales (6 bits, minus 32): low nibbles of groups 0–7 and 8–15 are the low and high nibbles of bytes 0–7; bits
//! `2·(g / 4)..` of byte `8 + g % 4` are the upper two. Value: `(d · (scale - 32)) · q`.

use super::{LEN, group, inverse, nearest, symmetric_scale};
use crate::quant::{DType, f16_at, field, put_f16};

/// Bytes per block.
pub const BYTES: usize = 110;
const _: () = assert!(DType::Q3_K.block_bytes() == BYTES && BYTES == LEN / 8 + LEN / 4 + 12 + 2);

/// Scale of the scales.
#[inline]
pub fn d(block: &[u8; BYTES]) -> f32 {
    f16_at(block, 108)
}

/// Third bits, inverted.
#[inline]
pub fn hmask(block: &[u8; BYTES]) -> &[u8; 32] {
    field::<0, 32, BYTES>(block)
}

/// Low two bits.
#[inline]
pub fn qs(block: &[u8; BYTES]) -> &[u8; 64] {
    field::<32, 64, BYTES>(block)
}

/// Scale of group `g` of 16, from -32 to 31.
#[inline]
pub fn scale(block: &[u8; BYTES], g: usize) -> i8 {
    let low = block[96 + g % 8] >> (g / 8 * 4) & 15;
    let high = block[104 + g % 4] >> (g / 4 * 2) & 3;
    (low | high << 4) as i8 - 32
}

/// Decodes one block.
pub fn decode(block: &[u8; BYTES], out: &mut [f32; LEN]) {
    let (d, hmask, qs) = (d(block), hmask(block), qs(block));
    for (g, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let dl = d * f32::from(scale(block, g));
        let (half, plane, first) = (g / 8, g % 8 / 2, g % 2 * 16);
        for (l, y) in out.iter_mut().enumerate() {
            let low = (qs[32 * half + first + l] >> (2 * plane)) & 3;
            let high = (hmask[first + l] >> (4 * half + plane)) & 1;
            *y = dl * f32::from((low | high << 2) as i8 - 4);
        }
    }
}

/// Encodes one block.
pub fn encode(x: &[f32; LEN], block: &mut [u8; BYTES]) {
    let fits: [f32; 16] = std::array::from_fn(|g| symmetric_scale(group::<16>(x, g), -4, 3));
    let extreme = fits.iter().fold(0.0, |best: f32, &fit| if fit.abs() > best.abs() { fit } else { best });
    block.fill(0);
    put_f16(block, 108, extreme / -32.0);
    let d = d(block);
    for (g, &fit) in fits.iter().enumerate() {
        let scale = nearest(fit * inverse(d), -32, 31);
        let stored = (scale + 32) as u8;
        block[96 + g % 8] |= (stored & 15) << (g / 8 * 4);
        block[104 + g % 4] |= (stored >> 4) << (g / 4 * 2);
        let id = inverse(d * scale as f32);
        let (half, plane, first) = (g / 8, g % 8 / 2, g % 2 * 16);
        for (l, &v) in group::<16>(x, g).iter().enumerate() {
            let q = (nearest(v * id, -4, 3) + 4) as u8;
            block[32 + 32 * half + first + l] |= (q & 3) << (2 * plane);
            block[first + l] |= (q >> 2) << (4 * half + plane);
        }
    }
}
