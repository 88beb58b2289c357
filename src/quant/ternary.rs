//! TQ1_0 and TQ2_0: elements -1, 0, 1 times one factor per 256; 1.6875 and 2.0625 bits per element.
//!
//! ```text
//!         0              48        52    54                 64    66
//! TQ1_0 | qs[48]       | qh[4]   | d   |
//! TQ2_0 | qs[64]                                          | d   |
//! ```
//! TQ1_0: a byte `b` is `⌈256 · n / 3⁵⌉` of a five-digit number `n` in base 3, so that digit `k` (from the highest) is
//! `(b · 3ᵏ mod 256) · 3 >> 8`. Digit `k` of `qs[m]` is element `32k + m` for `m < 32` and element `160 + 16k + (m - 32)` above;
//! digit `k < 4` of `qh[m]` is element `240 + 4k + m`. TQ2_0: element `128h + 32k + m` is in bits `2k..2k+2` of `qs[32h + m]`.
//! Value: `d · (digit - 1)`; the two bits of TQ2_0 can also say 2.

use super::kquants::LEN;
use super::scaled::Scaled;
use super::{DType, f16_at, field, put_f16};

/// Bytes per block of TQ1_0.
pub const TQ1_BYTES: usize = 54;
/// Bytes per block of TQ2_0.
pub const TQ2_BYTES: usize = 66;
const _: () = assert!(DType::TQ1_0.block_bytes() == TQ1_BYTES && TQ1_BYTES == 48 + 4 + 2 && 5 * 48 + 4 * 4 == LEN);
const _: () = assert!(DType::TQ2_0.block_bytes() == TQ2_BYTES && TQ2_BYTES == LEN / 4 + 2);

/// Writes the digits of `bytes`, a plane of `bytes.len()` after the other.
#[inline(always)]
fn digits(bytes: &[u8], out: &mut [i8]) {
    let mut power = 1u8;
    for plane in out.chunks_exact_mut(bytes.len()) {
        for (q, &byte) in plane.iter_mut().zip(bytes) {
            *q = ((u16::from(byte.wrapping_mul(power)) * 3) >> 8) as i8 - 1;
        }
        power = power.wrapping_mul(3);
    }
}

/// Integers of a TQ1_0 block.
#[inline(always)]
pub fn tq1(block: &[u8; TQ1_BYTES]) -> Scaled {
    let mut q = [0; LEN];
    digits(field::<0, 32, TQ1_BYTES>(block), &mut q[..160]);
    digits(field::<32, 16, TQ1_BYTES>(block), &mut q[160..240]);
    digits(field::<48, 4, TQ1_BYTES>(block), &mut q[240..]);
    Scaled { d: f16_at(block, 52), s: [1; 16], q }
}

/// Integers of a TQ2_0 block.
#[inline(always)]
pub fn tq2(block: &[u8; TQ2_BYTES]) -> Scaled {
    let (halves, _) = field::<0, 64, TQ2_BYTES>(block).as_chunks::<32>();
    let mut q = [0; LEN];
    for (q, bytes) in q.as_chunks_mut::<128>().0.iter_mut().zip(halves) {
        for (k, q) in q.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            q.iter_mut().zip(bytes).for_each(|(q, byte)| *q = (byte >> (2 * k) & 3) as i8 - 1);
        }
    }
    Scaled { d: f16_at(block, 64), s: [1; 16], q }
}

/// Factor and digits (0, 1, 2) of a block: the largest magnitude becomes ±1.
fn ternary(x: &[f32; LEN]) -> (f32, [u8; LEN]) {
    let d = x.iter().fold(0.0, |d: f32, v| d.max(v.abs()));
    let id = if d == 0.0 { 0.0 } else { 1.0 / d };
    (d, x.map(|v| (((v * id).round() as i8).clamp(-1, 1) + 1) as u8))
}

/// Packs planes of digits, the first the highest of five.
fn pack(digits: &[u8], bytes: &mut [u8]) {
    let planes = bytes.len();
    for (m, byte) in bytes.iter_mut().enumerate() {
        let digit = |k: usize| digits.get(k * planes + m).map_or(0, |&digit| u16::from(digit));
        let number = (0..5).fold(0, |number, k| 3 * number + digit(k));
        *byte = (number * 256).div_ceil(243) as u8;
    }
}

/// Encodes one block.
pub fn tq1_encode(x: &[f32; LEN], block: &mut [u8; TQ1_BYTES]) {
    let (d, q) = ternary(x);
    pack(&q[..160], &mut block[..32]);
    pack(&q[160..240], &mut block[32..48]);
    pack(&q[240..], &mut block[48..52]);
    put_f16(block, 52, d);
}

/// Encodes one block.
pub fn tq2_encode(x: &[f32; LEN], block: &mut [u8; TQ2_BYTES]) {
    let (d, q) = ternary(x);
    for (m, byte) in block[..64].iter_mut().enumerate() {
        *byte = (0..4).fold(0, |byte, k| byte | q[m / 32 * 128 + 32 * k + m % 32] << (2 * k));
    }
    put_f16(block, 64, d);
}
