//! IQ4_NL and IQ4_XS: an element is one of sixteen values, denser around 0; 4.5 and 4.25 bits per element.
//!
//! ```text
//!          0     2          4             8                                   bytes
//! IQ4_NL | d   | qs[16]                                                          18  32 elements
//! IQ4_XS | d   | scales_h | scales_l[4] | qs[128]                               136  256 elements
//! ```
//! Of `qs`, byte `i` of a group of 32 elements holds element `i` in its low and element `i + 16` in its high nibble.
//! IQ4_XS has a six-bit scale per group: nibble `g` of `scales_l` (low nibbles first) and bits `2g..2g+2` of the 16 bits of
//! `scales_h`, 32 subtracted. Value: `d · VALUES[q]`, `d · scale · VALUES[q]`.
//!
//! Encoders fit a scale per 32 elements by search and least squares as the K-quants' do.

use super::kquants::{LEN, weights};
use super::scaled::{Scaled, twice};
use super::{DType, f16_at, field, put_f16};

/// Bytes per block of IQ4_NL.
pub const NL_BYTES: usize = 18;
/// Bytes per block of IQ4_XS.
pub const XS_BYTES: usize = 136;
const _: () = assert!(DType::IQ4_NL.block_bytes() == NL_BYTES && NL_BYTES == 2 + 16 && DType::IQ4_NL.block_len() == 32);
const _: () = assert!(DType::IQ4_XS.block_bytes() == XS_BYTES && XS_BYTES == 2 + 2 + 4 + LEN / 2);

/// What the four bits of an element stand for.
pub const VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Quants of 32 elements from their nibbles.
#[inline(always)]
pub(super) fn values(table: &[i8; 16], qs: &[u8; 16]) -> [i8; 32] {
    std::array::from_fn(|i| table[usize::from(if i < 16 { qs[i] & 15 } else { qs[i - 16] >> 4 })])
}

/// Quants of an IQ4_NL block; its factor is the F16 at the start.
#[inline(always)]
pub fn nl(block: &[u8; NL_BYTES]) -> [i8; 32] {
    values(&VALUES, field::<2, 16, NL_BYTES>(block))
}

/// Decodes one block.
pub fn nl_decode(block: &[u8; NL_BYTES], out: &mut [f32; 32]) {
    let d = f16_at(block, 0);
    out.iter_mut().zip(nl(block)).for_each(|(y, q)| *y = d * f32::from(q));
}

/// Integers of an IQ4_XS block.
#[inline(always)]
pub fn xs(block: &[u8; XS_BYTES]) -> Scaled {
    let (groups, _) = field::<8, 128, XS_BYTES>(block).as_chunks::<16>();
    let mut q = [0; LEN];
    for (q, qs) in q.as_chunks_mut::<32>().0.iter_mut().zip(groups) {
        *q = values(&VALUES, qs);
    }
    let high = u16::from_le_bytes(*field::<2, 2, XS_BYTES>(block));
    let scale = |g: usize| (block[4 + g / 2] >> (4 * (g % 2)) & 15 | ((high >> (2 * g) & 3) << 4) as u8) as i8 - 32;
    Scaled { d: f16_at(block, 0), s: twice(std::array::from_fn(scale)), q }
}

/// Index of the value nearest to `x`, the lower of two.
fn nearest(x: f32) -> u8 {
    let above = VALUES.windows(2).take_while(|pair| x > f32::from(pair[0]) / 2.0 + f32::from(pair[1]) / 2.0);
    above.count() as u8
}

/// Best `d` for `x ≈ d · VALUES[q]`; 0 for a group of zeros.
fn fit(x: &[f32; 32]) -> f32 {
    let extreme = x.iter().fold(0.0, |best: f32, &v| if v.abs() > best.abs() { v } else { best });
    if extreme.abs() < f32::MIN_POSITIVE || !extreme.is_finite() {
        return 0.0;
    }
    let w = weights(x);
    let (mut best, mut best_gain) = (extreme / f32::from(VALUES[0]), f32::NEG_INFINITY);
    // The extreme becomes about -127 or about 113, whichever suits the others.
    for (low, step) in [-127.0, 113.0].into_iter().flat_map(|low| (-7..=7).map(move |step| (low, step))) {
        let inverse = (low + 2.0 * step as f32) / extreme;
        let (mut xq, mut qq) = (0.0, 0.0);
        for (&v, &w) in x.iter().zip(&w) {
            let q = f32::from(VALUES[usize::from(nearest(v * inverse))]);
            xq += w * v * q;
            qq += w * q * q;
        }
        if qq > 0.0 && xq * xq / qq > best_gain {
            (best, best_gain) = (xq / qq, xq * xq / qq);
        }
    }
    best
}

/// Packs the values of `x / d` nearest to their elements.
fn pack(x: &[f32; 32], d: f32, qs: &mut [u8]) {
    let id = if d.abs() < f32::MIN_POSITIVE { 0.0 } else { 1.0 / d };
    let q = x.map(|v| nearest(v * id));
    qs.iter_mut().enumerate().for_each(|(i, byte)| *byte = q[i] | q[i + 16] << 4);
}

/// Encodes one block.
pub fn nl_encode(x: &[f32; 32], block: &mut [u8; NL_BYTES]) {
    put_f16(block, 0, fit(x));
    pack(x, f16_at(block, 0), &mut block[2..]);
}

/// Encodes one block: the largest of the eight groups' scales becomes -32.
pub fn xs_encode(x: &[f32; LEN], block: &mut [u8; XS_BYTES]) {
    let (groups, _) = x.as_chunks::<32>();
    let fits: [f32; 8] = std::array::from_fn(|g| fit(&groups[g]));
    let extreme = fits.iter().fold(0.0, |best: f32, &fit| if fit.abs() > best.abs() { fit } else { best });
    block.fill(0);
    put_f16(block, 0, extreme / -32.0);
    let d = f16_at(block, 0);
    let id = if d == 0.0 { 0.0 } else { 1.0 / d };
    let mut high = 0;
    for (g, (x, fit)) in groups.iter().zip(fits).enumerate() {
        let scale = ((fit * id).round_ties_even() as i32).clamp(-32, 31);
        let bits = (scale + 32) as u8;
        block[4 + g / 2] |= (bits & 15) << (4 * (g % 2));
        high |= u16::from(bits >> 4) << (2 * g);
        pack(x, d * scale as f32, &mut block[8 + 16 * g..][..16]);
    }
    block[2..4].copy_from_slice(&high.to_le_bytes());
}
