//! The formats of 32 elements with one scale: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, and Q8_1 for activations.
//!
//! ```text
//!        0     2     4           8                  bytes  value of element i
//! Q4_0 | d   | qs[16]                                  18  (q - 8) * d
//! Q4_1 | d   | m   | qs[16]                            20  q * d + m
//! Q5_0 | d   | qh[4]     | qs[16]                      22  (q - 16) * d
//! Q5_1 | d   | m   | qh[4]     | qs[16]                24  q * d + m
//! Q8_0 | d   | qs[32]                                  34  q * d, q signed
//! Q8_1 | d   | s   | qs[32]                            36  q * d, q signed; s = d * Σ q
//! ```
//! `d`, `m`, `s` are F16. Of `qs[16]`, byte `i` holds element `i` in its low and element `i + 16` in its high nibble;
//! bit `i` of `qh` (32 bits, little-endian) is the fifth bit of element `i`.

use super::{DType, f16_at, field, put_f16};

/// Elements per block.
pub const LEN: usize = 32;

const _: () = assert!(DType::Q4_0.block_bytes() == 2 + LEN / 2 && DType::Q4_0.block_len() == LEN);
const _: () = assert!(DType::Q4_1.block_bytes() == 2 + 2 + LEN / 2 && DType::Q4_1.block_len() == LEN);
const _: () = assert!(DType::Q5_0.block_bytes() == 2 + 4 + LEN / 2 && DType::Q5_0.block_len() == LEN);
const _: () = assert!(DType::Q5_1.block_bytes() == 2 + 2 + 4 + LEN / 2 && DType::Q5_1.block_len() == LEN);
const _: () = assert!(DType::Q8_0.block_bytes() == 2 + LEN && DType::Q8_0.block_len() == LEN);
const _: () = assert!(DType::Q8_1.block_bytes() == 2 + 2 + LEN && DType::Q8_1.block_len() == LEN);

/// Scale of any block of this family: the F16 at its start.
#[inline]
pub fn scale(block: &[u8]) -> f32 {
    f16_at(block, 0)
}

/// Offset of a Q4_1 or Q5_1 block, and the sum of a Q8_1 block: the F16 after the scale.
#[inline]
pub fn offset(block: &[u8]) -> f32 {
    f16_at(block, 2)
}

/// The 32 high bits of a Q5_0 block.
#[inline]
pub fn q5_0_high(block: &[u8; 22]) -> u32 {
    u32::from_le_bytes(*field::<2, 4, 22>(block))
}

/// The 32 high bits of a Q5_1 block.
#[inline]
pub fn q5_1_high(block: &[u8; 24]) -> u32 {
    u32::from_le_bytes(*field::<4, 4, 24>(block))
}

/// Element `i` (0..32) of packed nibbles.
#[inline]
fn nibble(qs: &[u8; 16], i: usize) -> u8 {
    if i < 16 { qs[i] & 15 } else { qs[i - 16] >> 4 }
}

/// Element `i` (0..32) of packed nibbles and a fifth bit.
#[inline]
fn five_bits(qs: &[u8; 16], high: u32, i: usize) -> u8 {
    nibble(qs, i) | (((high >> i) & 1) as u8) << 4
}

/// Decodes one block.
pub fn q4_0_decode(block: &[u8; 18], out: &mut [f32; LEN]) {
    let (d, qs) = (scale(block), field::<2, 16, 18>(block));
    for (i, y) in out.iter_mut().enumerate() {
        *y = f32::from(nibble(qs, i) as i8 - 8) * d;
    }
}

/// Decodes one block.
pub fn q4_1_decode(block: &[u8; 20], out: &mut [f32; LEN]) {
    let (d, m, qs) = (scale(block), offset(block), field::<4, 16, 20>(block));
    for (i, y) in out.iter_mut().enumerate() {
        *y = f32::from(nibble(qs, i)) * d + m;
    }
}

/// Decodes one block.
pub fn q5_0_decode(block: &[u8; 22], out: &mut [f32; LEN]) {
    let (d, high, qs) = (scale(block), q5_0_high(block), field::<6, 16, 22>(block));
    for (i, y) in out.iter_mut().enumerate() {
        *y = f32::from(five_bits(qs, high, i) as i8 - 16) * d;
    }
}

/// Decodes one block.
pub fn q5_1_decode(block: &[u8; 24], out: &mut [f32; LEN]) {
    let (d, m, high, qs) = (scale(block), offset(block), q5_1_high(block), field::<8, 16, 24>(block));
    for (i, y) in out.iter_mut().enumerate() {
        *y = f32::from(five_bits(qs, high, i)) * d + m;
    }
}

/// Decodes one block.
pub fn q8_0_decode(block: &[u8; 34], out: &mut [f32; LEN]) {
    let d = scale(block);
    for (y, &q) in out.iter_mut().zip(&block[2..]) {
        *y = f32::from(q as i8) * d;
    }
}

/// Decodes one block; the sum is not needed for it.
pub fn q8_1_decode(block: &[u8; 36], out: &mut [f32; LEN]) {
    let d = scale(block);
    for (y, &q) in out.iter_mut().zip(&block[4..]) {
        *y = f32::from(q as i8) * d;
    }
}

/// The element of largest magnitude, with its sign; the first of equals.
fn extreme(x: &[f32; LEN]) -> f32 {
    x.iter().fold(0.0, |best: f32, &v| if v.abs() > best.abs() { v } else { best })
}

/// `1 / d`, and 0 for a block of zeros.
fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// Smallest and largest element.
fn range(x: &[f32; LEN]) -> (f32, f32) {
    x.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), &v| (low.min(v), high.max(v)))
}

/// Packs quants of at most 5 bits: low nibbles into `qs`, fifth bits into the result.
fn pack(q: &[u8; LEN], qs: &mut [u8]) -> u32 {
    for (i, byte) in qs.iter_mut().enumerate() {
        *byte = (q[i] & 15) | (q[i + 16] & 15) << 4;
    }
    q.iter().enumerate().fold(0, |high, (i, &v)| high | u32::from(v >> 4) << i)
}

/// Encodes one block: the extreme element becomes -8 exactly.
pub fn q4_0_encode(x: &[f32; LEN], block: &mut [u8; 18]) {
    let d = extreme(x) / -8.0;
    let id = inverse(d);
    put_f16(block, 0, d);
    pack(&x.map(|v| ((v * id + 8.5) as u8).min(15)), &mut block[2..]);
}

/// Encodes one block: smallest and largest element become 0 and 15.
pub fn q4_1_encode(x: &[f32; LEN], block: &mut [u8; 20]) {
    let (low, high) = range(x);
    let d = (high - low) / 15.0;
    let id = inverse(d);
    put_f16(block, 0, d);
    put_f16(block, 2, low);
    pack(&x.map(|v| (((v - low) * id + 0.5) as u8).min(15)), &mut block[4..]);
}

/// Encodes one block: the extreme element becomes -16 exactly.
pub fn q5_0_encode(x: &[f32; LEN], block: &mut [u8; 22]) {
    let d = extreme(x) / -16.0;
    let id = inverse(d);
    put_f16(block, 0, d);
    let high = pack(&x.map(|v| ((v * id + 16.5) as u8).min(31)), &mut block[6..]);
    block[2..6].copy_from_slice(&high.to_le_bytes());
}

/// Encodes one block: smallest and largest element become 0 and 31.
pub fn q5_1_encode(x: &[f32; LEN], block: &mut [u8; 24]) {
    let (low, high) = range(x);
    let d = (high - low) / 31.0;
    let id = inverse(d);
    put_f16(block, 0, d);
    put_f16(block, 2, low);
    let high = pack(&x.map(|v| (((v - low) * id + 0.5) as u8).min(31)), &mut block[8..]);
    block[4..8].copy_from_slice(&high.to_le_bytes());
}

/// Encodes one block: `d = max|x| / 127`, quants rounded half away from zero.
pub fn q8_0_encode(x: &[f32; LEN], block: &mut [u8; 34]) {
    let d = extreme(x).abs() / 127.0;
    let id = inverse(d);
    put_f16(block, 0, d);
    for (q, v) in block[2..].iter_mut().zip(x) {
        *q = (v * id).round() as i8 as u8;
    }
}

/// Encodes one block as [`q8_0_encode`], with the sum of its quants times the (unrounded) scale.
pub fn q8_1_encode(x: &[f32; LEN], block: &mut [u8; 36]) {
    let d = extreme(x).abs() / 127.0;
    let id = inverse(d);
    let mut sum = 0;
    for (q, v) in block[4..].iter_mut().zip(x) {
        let quant = (v * id).round() as i8;
        sum += i32::from(quant);
        *q = quant as u8;
    }
    put_f16(block, 0, d);
    put_f16(block, 2, sum as f32 * d);
}
