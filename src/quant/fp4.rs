//! MXFP4 and NVFP4: elements are four-bit floats (E2M1: 0, ½, 1, 1½, 2, 3, 4, 6 and their negatives) with a scale that is a
//! small float too; 4.25 and 4.5 bits per element. MXFP4 is of the OCP Microscaling Formats, version 1.0.
//!
//! ```text
//!         0     1                 4                         bytes
//! MXFP4 | e   | qs[16]                                         17  32 elements, scale 2^(e - 127)
//! NVFP4 | scales[4]             | qs[4][8]                     36  64 elements in groups of 16, scales E4M3 without a sign
//! ```
//! Of a group's bytes (16 for 32 elements, 8 for 16), byte `i` holds element `i` in its low nibble, the second half of the
//! elements in the high ones. [`VALUES`] are twice E2M1's so that they are integers; the scales here are halved in turn.
//! Value: `scale · VALUES[q]`. NVFP4's scale byte 0x7f (NaN) counts as 0 and its top bit is ignored, as in ggml.

use super::iq4::values;
use super::{DType, field};

/// Bytes per block of MXFP4.
pub const MX_BYTES: usize = 17;
/// Bytes per block of NVFP4.
pub const NV_BYTES: usize = 36;
const _: () = assert!(DType::MXFP4.block_bytes() == MX_BYTES && MX_BYTES == 1 + 16 && DType::MXFP4.block_len() == 32);
const _: () = assert!(DType::NVFP4.block_bytes() == NV_BYTES && NV_BYTES == 4 + 32 && DType::NVFP4.block_len() == 64);

/// Twice what the four bits of an element stand for.
pub const VALUES: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// Half of 2^(e - 127), exact also where that is subnormal.
#[inline(always)]
pub fn e8m0_half(e: u8) -> f32 {
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { (u32::from(e) - 1) << 23 })
}

/// Halves of the E4M3 numbers without sign.
static E4M3_HALVES: [f32; 256] = {
    let (mut halves, mut byte) = ([0.0; 256], 0);
    while byte < 256 {
        let (exponent, mantissa) = (byte as u32 >> 3 & 15, byte as u32 & 7);
        halves[byte] = if byte == 0x7f {
            0.0
        } else if exponent == 0 {
            mantissa as f32 / 1024.0
        } else {
            // The exponent's bias 7 becomes F32's 127, one less for the half.
            f32::from_bits((exponent + 119) << 23 | mantissa << 20)
        };
        byte += 1;
    }
    halves
};

/// Half of an E4M3 number without sign.
#[inline(always)]
pub fn e4m3_half(byte: u8) -> f32 {
    E4M3_HALVES[usize::from(byte)]
}

/// Scale of an MXFP4 block.
#[inline(always)]
pub fn mx_scale(block: &[u8; MX_BYTES]) -> f32 {
    e8m0_half(block[0])
}

/// Quants of an MXFP4 block.
#[inline(always)]
pub fn mx(block: &[u8; MX_BYTES]) -> [i8; 32] {
    values(&VALUES, field::<1, 16, MX_BYTES>(block))
}

/// Quants of an NVFP4 block.
#[inline(always)]
pub fn nv(block: &[u8; NV_BYTES]) -> [i8; 64] {
    std::array::from_fn(|i| VALUES[usize::from(block[4 + i / 16 * 8 + i % 8] >> (i % 16 / 8 * 4) & 15)])
}

/// Decodes one block.
pub fn mx_decode(block: &[u8; MX_BYTES], out: &mut [f32; 32]) {
    let d = mx_scale(block);
    out.iter_mut().zip(mx(block)).for_each(|(y, q)| *y = d * f32::from(q));
}

/// Decodes one block.
pub fn nv_decode(block: &[u8; NV_BYTES], out: &mut [f32; 64]) {
    for (i, (y, q)) in out.iter_mut().zip(nv(block)).enumerate() {
        *y = e4m3_half(block[i / 16]) * f32::from(q);
    }
}

/// Index of the value whose multiple of `d` is nearest to `x`, the first of equals.
fn nearest(x: f32, d: f32) -> u8 {
    let error = |q: u8| (d * f32::from(VALUES[usize::from(q)]) - x).abs();
    (1..16).fold(0, |best, q| if error(q) < error(best) { q } else { best })
}

fn largest(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |top: f32, v| top.max(v.abs()))
}

/// Encodes one block as the OCP specification does: the largest magnitude's exponent becomes 4's.
pub fn mx_encode(x: &[f32; 32], block: &mut [u8; MX_BYTES]) {
    let top = largest(x);
    block[0] = if top > 0.0 { (top.log2().floor() - 2.0 + 127.0) as u8 } else { 0 };
    let d = mx_scale(block);
    let q = x.map(|v| nearest(v, d));
    block[1..].iter_mut().enumerate().for_each(|(i, byte)| *byte = q[i] | q[i + 16] << 4);
}

/// The E4M3 number without sign nearest to `x`, at most 448.
fn e4m3(x: f32) -> u8 {
    // Rising bytes are rising numbers.
    let error = |byte: u8| (2.0 * e4m3_half(byte) - x).abs();
    (1..0x7f).fold(0, |best, byte| if error(byte) < error(best) { byte } else { best })
}

/// Encodes one block: a group's largest magnitude becomes about 6.
pub fn nv_encode(x: &[f32; 64], block: &mut [u8; NV_BYTES]) {
    for (g, x) in x.as_chunks::<16>().0.iter().enumerate() {
        block[g] = e4m3(largest(x) / 6.0);
        let d = e4m3_half(block[g]);
        let q = x.map(|v| nearest(v, d));
        block[4 + 8 * g..][..8].iter_mut().enumerate().for_each(|(i, byte)| *byte = q[i] | q[i + 8] << 4);
    }
}
