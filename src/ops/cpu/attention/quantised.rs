//! Attention's kernels for quantised caches: integer dot products over the layout of `ops::kv`.
//!
//! Scores: queries are rounded to 8 bits per 32 dimensions, as activations are; four dimensions of sixteen tokens are one
//! load. Values: `p · d` of a token is rounded to 16 bits relative to the largest `d` of the 32 tokens, and multiplies
//! pairs of tokens; what the rounding costs is 2⁻¹⁶ of the block's largest weight.

// Register tiles: the same index walks arrays and addresses.
#![allow(clippy::needless_range_loop)]

use super::kernels::{Weights, for_count, side_by_side, tiles};
use super::lanes::Lanes;
use super::queries::Queries;
use crate::ops::kv::{section_bytes, section_head};
use crate::ops::{KV_BLOCK, KV_GROUP};
use crate::quant::DType;
use std::ops::Range;

/// Queries whose numbers fit registers, [`Lanes::WIDE`] or not.
const TILE: (usize, usize) = (6, 4);

/// A quantised type of the cache.
pub(crate) trait Quant {
    const DTYPE: DType;
    /// What quants are stored above, where it is not the keys' 128.
    const OFFSET: i32;
    const NIBBLES: bool;
    const MIN: bool;
}

macro_rules! quant {
    ($name:ident, $dtype:ident, $offset:literal, $nibbles:literal, $min:literal) => {
        pub(crate) struct $name;
        impl Quant for $name {
            const DTYPE: DType = DType::$dtype;
            const OFFSET: i32 = $offset;
            const NIBBLES: bool = $nibbles;
            const MIN: bool = $min;
        }
    };
}
quant!(Q80, Q8_0, 0, false, false);
quant!(Q40, Q4_0, 8, true, false);
quant!(Q41, Q4_1, 0, true, true);

/// See `kernels::Scores`.
#[inline(always)]
pub(crate) unsafe fn scores<L: Lanes, B: Quant>(
    queries: &Queries,
    n: Range<usize>,
    keys: &[u8],
    ahead: *const u8,
    out: &mut [f32],
) {
    let groups = queries.dim / KV_GROUP;
    assert!(keys.len() >= groups * section_bytes(B::DTYPE) && out.len() >= n.len() * KV_BLOCK);
    assert!(queries.q.len() >= n.end * queries.dim && queries.d.len() >= n.end * groups);
    assert!(queries.sums.len() >= n.end * groups && queries.dim.is_multiple_of(KV_GROUP));
    let first = n.start;
    for (q, count) in tiles(n, if L::WIDE { TILE.0 } else { TILE.1 }) {
        let out = out[(q - first) * KV_BLOCK..].as_mut_ptr();
        // SAFETY: the lengths above.
        unsafe { for_count!(count, scores_tile::<L, B>(queries, q, keys.as_ptr(), ahead, out)) };
    }
}

/// `Q` queries from `first` on.
#[inline(always)]
unsafe fn scores_tile<L: Lanes, B: Quant, const Q: usize>(
    queries: &Queries,
    first: usize,
    keys: *const u8,
    ahead: *const u8,
    out: *mut f32,
) {
    let (dim, groups, wide) = (queries.dim, queries.dim / KV_GROUP, side_by_side::<L>());
    let bias = if B::NIBBLES { B::OFFSET } else { L::BIAS };
    // SAFETY: the caller's word.
    unsafe {
        let (d, sums) = (queries.d.as_ptr().add(first * groups), queries.sums.as_ptr().add(first * groups));
        let x = queries.q.as_ptr().add(first * dim);
        for half in (0..2).step_by(wide) {
            let mut score = [[L::splat(0.0); 2]; Q];
            for g in 0..groups {
                let section = g * section_bytes(B::DTYPE);
                let mut acc = [[L::splat_i32(0); 2]; Q];
                for q in 0..Q {
                    acc[q] = [L::splat_i32(-bias * *sums.add(q * groups + g)); 2];
                }
                let bytes = section + section_head(B::DTYPE) + half * 64;
                for j in 0..if B::NIBBLES { 4 } else { 8 } {
                    products::<L, B, Q>(&mut acc, x.add(g * KV_GROUP), dim, j, (keys, ahead, bytes + j * 128));
                }
                for v in 0..wide {
                    let scale = L::load_f16(keys.add(section + (half + v) * 32));
                    for q in 0..Q {
                        let d = *d.add(q * groups + g);
                        score[q][v] = L::fma(L::to_float(acc[q][v]), L::mul(scale, L::splat(d)), score[q][v]);
                        if B::MIN {
                            let min = L::load_f16(keys.add(section + 64 + (half + v) * 32));
                            let sum = d * *sums.add(q * groups + g) as f32;
                            score[q][v] = L::fma(min, L::splat(sum), score[q][v]);
                        }
                    }
                }
            }
            for (q, score) in score.iter().enumerate() {
                for v in 0..wide {
                    L::store(out.add(q * KV_BLOCK + (half + v) * 16), score[v]);
                }
            }
        }
    }
}

/// Adds the products of four dimensions, or with nibbles eight, from the `j`-th such on.
#[inline(always)]
unsafe fn products<L: Lanes, B: Quant, const Q: usize>(
    acc: &mut [[L::I; 2]; Q],
    x: *const i8,
    dim: usize,
    j: usize,
    (keys, ahead, at): (*const u8, *const u8, usize),
) {
    // SAFETY: the caller's word.
    unsafe {
        for v in 0..side_by_side::<L>() {
            L::prefetch(ahead.wrapping_add(at + v * 64));
            let key = L::load_bytes(keys.add(at + v * 64));
            if B::NIBBLES {
                let (low, high) = L::nibbles(key);
                for q in 0..Q {
                    let x = x.add(q * dim + 8 * j).cast::<i32>();
                    acc[q][v] = L::dot_small(acc[q][v], low, L::splat_i32(x.read_unaligned()));
                    acc[q][v] = L::dot_small(acc[q][v], high, L::splat_i32(x.add(1).read_unaligned()));
                }
            } else {
                for q in 0..Q {
                    let x = x.add(q * dim + 4 * j).cast::<i32>();
                    acc[q][v] = L::dot_keys(acc[q][v], key, L::splat_i32(x.read_unaligned()));
                }
            }
        }
    }
}

/// One section's scales, the largest taken out.
struct Scales<L: Lanes> {
    /// `d · 32767 / largest`, 0 for what is not seen.
    relative: [L::F; 2],
    /// `largest / 32767`.
    unit: f32,
    min: [L::F; 2],
}

/// See `kernels::Values`.
#[inline(always)]
pub(crate) unsafe fn values<L: Lanes, B: Quant>(
    weights: &Weights<'_>,
    values: &[u8],
    ahead: *const u8,
    out: &mut [f32],
) {
    let (n, width) = (weights.n, weights.width);
    let groups = width / KV_GROUP;
    assert!(weights.p.len() >= n * KV_BLOCK && weights.keep.len() >= n && weights.factor.len() >= n);
    assert!(values.len() >= groups * section_bytes(B::DTYPE) && out.len() >= n * width);
    assert!(width.is_multiple_of(KV_GROUP) && weights.seen.end <= KV_BLOCK);
    for g in 0..groups {
        let at = g * section_bytes(B::DTYPE);
        // SAFETY: the lengths above.
        unsafe {
            let section = values.as_ptr().add(at);
            let scales = section_scales::<L, B>(section, &weights.seen);
            let ahead = ahead.wrapping_add(at);
            for (q, count) in tiles(0..n, if L::WIDE { TILE.0 } else { TILE.1 }) {
                let out = out.as_mut_ptr().add(q * width + g * KV_GROUP);
                for_count!(count, values_tile::<L, B>(weights, q, &scales, (section, ahead), out));
            }
        }
    }
}

#[inline(always)]
unsafe fn section_scales<L: Lanes, B: Quant>(section: *const u8, seen: &Range<usize>) -> Scales<L> {
    let bits = ((1u64 << seen.end) - (1u64 << seen.start)) as u32;
    // SAFETY: the caller's word.
    unsafe {
        let d = [seen_scales::<L>(section, bits as u16), seen_scales::<L>(section.add(32), (bits >> 16) as u16)];
        let largest = L::reduce_max(L::max(L::abs(d[0]), L::abs(d[1])));
        let (up, unit) = if largest > 0.0 { (32767.0 / largest, largest / 32767.0) } else { (0.0, 0.0) };
        let relative = [L::mul(d[0], L::splat(up)), L::mul(d[1], L::splat(up))];
        let min = if B::MIN {
            [seen_scales::<L>(section.add(64), bits as u16), seen_scales::<L>(section.add(96), (bits >> 16) as u16)]
        } else {
            d
        };
        Scales { relative, unit, min }
    }
}

/// Sixteen scales, 0 for what is not seen and may be anything.
#[inline(always)]
unsafe fn seen_scales<L: Lanes>(p: *const u8, bits: u16) -> L::F {
    // SAFETY: the caller's word.
    unsafe { L::select(bits, L::load_f16(p), L::splat(0.0)) }
}

/// `Q` queries from `first` on, the 32 dimensions of one section.
#[inline(always)]
unsafe fn values_tile<L: Lanes, B: Quant, const Q: usize>(
    weights: &Weights<'_>,
    first: usize,
    scales: &Scales<L>,
    (section, ahead): (*const u8, *const u8),
    out: *mut f32,
) {
    let wide = side_by_side::<L>();
    let quants = section_head(B::DTYPE);
    // SAFETY: the caller's word.
    unsafe {
        let mut pairs = [[0i32; 16]; Q];
        for (q, pairs) in pairs.iter_mut().enumerate() {
            let p = weights.p.as_ptr().add((first + q) * KV_BLOCK);
            let low = L::mul(L::load(p), scales.relative[0]);
            L::store_i16(pairs.as_mut_ptr().cast(), low, L::mul(L::load(p.add(16)), scales.relative[1]));
        }
        for half in (0..2).step_by(wide) {
            let mut acc = [[L::splat_i32(0); 2]; Q];
            for j in 0..if B::NIBBLES { 8 } else { 16 } {
                for v in 0..wide {
                    let at = quants + j * 64 + (half + v) * 32;
                    if v == 0 {
                        L::prefetch(ahead.wrapping_add(at));
                    }
                    if B::NIBBLES {
                        let (low, high) = L::nibbles(L::load_u8(section.add(at)));
                        let (low, high) = centred::<L, B>(low, high);
                        for q in 0..Q {
                            acc[q][v] = L::dot_pairs(acc[q][v], low, L::splat_i32(pairs[q][2 * j]));
                            acc[q][v] = L::dot_pairs(acc[q][v], high, L::splat_i32(pairs[q][2 * j + 1]));
                        }
                    } else {
                        let value = L::load_i8(section.add(at));
                        for q in 0..Q {
                            acc[q][v] = L::dot_pairs(acc[q][v], value, L::splat_i32(pairs[q][j]));
                        }
                    }
                }
            }
            finish::<L, B, Q>(weights, first, scales, &acc, out.add(16 * half));
        }
    }
}

/// Nibbles in I16 less the type's offset.
#[inline(always)]
unsafe fn centred<L: Lanes, B: Quant>(low: L::I, high: L::I) -> (L::I, L::I) {
    if B::OFFSET == 0 {
        return (low, high);
    }
    // SAFETY: the caller's word.
    unsafe { (L::sub_i16(low, B::OFFSET as i16), L::sub_i16(high, B::OFFSET as i16)) }
}

/// Scales the integers and adds them to the output.
#[inline(always)]
unsafe fn finish<L: Lanes, B: Quant, const Q: usize>(
    weights: &Weights<'_>,
    first: usize,
    scales: &Scales<L>,
    acc: &[[L::I; 2]; Q],
    out: *mut f32,
) {
    // SAFETY: the caller's word.
    unsafe {
        for (q, acc) in acc.iter().enumerate() {
            let (keep, factor) = (weights.keep[first + q], weights.factor[first + q]);
            let min = if B::MIN {
                let p = weights.p.as_ptr().add((first + q) * KV_BLOCK);
                let sum = L::fma(L::load(p.add(16)), scales.min[1], L::mul(L::load(p), scales.min[0]));
                factor * L::reduce_add(sum)
            } else {
                0.0
            };
            for v in 0..side_by_side::<L>() {
                let out = out.add(q * weights.width + 16 * v);
                let kept = L::mul(L::load(out), L::splat(keep));
                let mut sum = L::fma(L::to_float(acc[v]), L::splat(factor * scales.unit), kept);
                if B::MIN {
                    sum = L::add(sum, L::splat(min));
                }
                L::store(out, sum);
            }
        }
    }
}
