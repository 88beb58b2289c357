//! `attention_<cache>_f32_<isa>`: what attention does with one head's keys and values of one block, for a tile of queries
//! that see them: scores, a step of the running softmax, weighted values. Float types here, quantised ones in `quantised`.
//!
//! Generic over [`Lanes`] and compiled for each tier. A query's scores of a block are 32 numbers. With `s` in powers of
//! two (the queries carry `scale · log₂e`), block maximum `b` and running maximum `m`:
//!
//! ```text
//! m' = max(m, b)   keep = 2^(m − m')   factor = 2^(b − m')   p = 2^(s − b)
//! sum = sum · keep + factor · Σ p          out = out · keep + factor · Σ p·v
//! ```
//! so a block's `p` do not depend on what came before, and lie between 0 and 1.

// Register tiles: the same index walks arrays and addresses.
#![allow(clippy::needless_range_loop)]

use super::lanes::Lanes;
use super::queries::Queries;
use crate::ops::KV_BLOCK;
use std::ops::Range;

/// Queries whose numbers fit registers, [`Lanes::WIDE`] or not.
const TILE: (usize, usize) = (8, 4);

/// Running maxima start here, so that nothing seen is no special case: `2^(−∞ − START) = 0`.
pub(crate) const START: f32 = f32::MIN;

/// Scores of the first `n` queries with the keys at `keys`: `out[q][32]`. `ahead` is fetched meanwhile.
///
/// # Safety
/// As all kernels': the host has the tier, `keys` holds one head's keys of a block.
pub(crate) type Scores = unsafe fn(queries: &Queries, n: Range<usize>, keys: &[u8], ahead: *const u8, out: &mut [f32]);

/// Adds the values at `values` to `out`.
///
/// # Safety
/// As [`Scores`].
pub(crate) type Values = unsafe fn(weights: &Weights<'_>, values: &[u8], ahead: *const u8, out: &mut [f32]);

/// A step of the running softmax over `n` queries' scores of the positions `seen`.
///
/// # Safety
/// As [`Scores`].
pub(crate) type Softmax = unsafe fn(step: &mut Step<'_>, n: usize, seen: Range<usize>);

/// What [`Softmax`] works on; all per query and with room for a multiple of sixteen queries.
pub(crate) struct Step<'a> {
    /// `[queries][32]`: scores, then `p`.
    pub(crate) scores: &'a mut [f32],
    pub(crate) max: &'a mut [f32],
    pub(crate) sum: &'a mut [f32],
    pub(crate) keep: &'a mut [f32],
    pub(crate) factor: &'a mut [f32],
}

/// What [`Values`] multiplies with.
pub(crate) struct Weights<'a> {
    /// Queries.
    pub(crate) n: usize,
    /// `[queries][32]`, 0 beyond what a query sees.
    pub(crate) p: &'a [f32],
    pub(crate) keep: &'a [f32],
    pub(crate) factor: &'a [f32],
    /// Positions of the block that are seen.
    pub(crate) seen: Range<usize>,
    /// Elements of a value.
    pub(crate) width: usize,
    /// From one stored value to the next.
    pub(crate) stride: usize,
}

/// Calls `f::<.., N>` for `n` from 1 to 8.
macro_rules! for_count {
    ($n:expr, $f:ident::<$($type:ty),*>($($arg:expr),*)) => {
        match $n {
            1 => $f::<$($type,)* 1>($($arg),*),
            2 => $f::<$($type,)* 2>($($arg),*),
            3 => $f::<$($type,)* 3>($($arg),*),
            4 => $f::<$($type,)* 4>($($arg),*),
            5 => $f::<$($type,)* 5>($($arg),*),
            6 => $f::<$($type,)* 6>($($arg),*),
            7 => $f::<$($type,)* 7>($($arg),*),
            _ => $f::<$($type,)* 8>($($arg),*),
        }
    };
}
pub(super) use for_count;

/// Cuts `range` to tiles of at most `most`, as equal as can be: first and length of each.
#[inline(always)]
pub(super) fn tiles(range: Range<usize>, most: usize) -> impl Iterator<Item = (usize, usize)> {
    let count = range.len().div_ceil(most).max(1);
    let cut = move |i: usize| range.len() * i / count + range.start;
    (0..count).map(move |i| (cut(i), cut(i + 1) - cut(i)))
}

/// `2^x` for `x ≤ 0` to 1 ulp, 0 below −126: `x = n + r`, a polynomial of `r` (relative error 2e-9), `n` into the exponent.
#[inline(always)]
unsafe fn exp2<L: Lanes>(x: L::F) -> L::F {
    const ROUND: f32 = 12_582_912.0;
    const LEAST: f32 = -126.0;
    // SAFETY: the host has the tier.
    unsafe {
        // This order keeps a NaN.
        let y = L::max(L::splat(LEAST), x);
        let shifted = L::add(y, L::splat(ROUND));
        let r = L::sub(y, L::sub(shifted, L::splat(ROUND)));
        let mut p = L::splat(1.534_581_2e-4);
        for c in [1.339_993_1e-3, 9.618_489e-3, 5.550_328_6e-2, 2.402_264_6e-1, 6.931_472e-1, 1.0] {
            p = L::fma(p, r, L::splat(c));
        }
        L::zero_below(x, LEAST, L::mul(p, L::power_of_two(shifted)))
    }
}

/// See [`Softmax`].
#[inline(always)]
pub(crate) unsafe fn softmax<L: Lanes>(step: &mut Step<'_>, n: usize, seen: Range<usize>) {
    let room = n.next_multiple_of(16);
    assert!(step.scores.len() >= n * KV_BLOCK && step.max.len() >= room && step.sum.len() >= room);
    assert!(step.keep.len() >= room && step.factor.len() >= room && seen.end <= KV_BLOCK);
    let bits = ((1u64 << seen.end) - (1u64 << seen.start)) as u32;
    let (keep, factor) = (step.keep.as_mut_ptr(), step.factor.as_mut_ptr());
    // SAFETY: the lengths above; the host has the tier.
    unsafe {
        for q in 0..n {
            let s = step.scores.as_mut_ptr().add(q * KV_BLOCK);
            let (mut low, mut high) = (L::load(s), L::load(s.add(16)));
            if bits != u32::MAX {
                let unseen = L::splat(f32::NEG_INFINITY);
                (low, high) = (L::select(bits as u16, low, unseen), L::select((bits >> 16) as u16, high, unseen));
                L::store(s, low);
                L::store(s.add(16), high);
            }
            *keep.add(q) = L::reduce_max(L::max(low, high)).max(START);
        }
        for q in n..room {
            (*keep.add(q), *factor.add(q)) = (START, 0.0);
        }
        for q in 0..n {
            let (s, b) = (step.scores.as_mut_ptr().add(q * KV_BLOCK), L::splat(*keep.add(q)));
            let low = exp2::<L>(L::sub(L::load(s), b));
            let high = exp2::<L>(L::sub(L::load(s.add(16)), b));
            L::store(s, low);
            L::store(s.add(16), high);
            *factor.add(q) = L::reduce_add(L::add(low, high));
        }
        for q in (0..room).step_by(16) {
            let (max, sum) = (step.max.as_mut_ptr().add(q), step.sum.as_mut_ptr().add(q));
            let (old, block) = (L::load(max), L::load(keep.add(q)));
            let new = L::max(block, old);
            let (kept, scale) = (exp2::<L>(L::sub(old, new)), exp2::<L>(L::sub(block, new)));
            L::store(max, new);
            L::store(sum, L::fma(scale, L::load(factor.add(q)), L::mul(L::load(sum), kept)));
            L::store(keep.add(q), kept);
            L::store(factor.add(q), scale);
        }
    }
}

/// A float type of the cache.
pub(crate) trait Float {
    /// Bytes of an element.
    const BYTES: usize;
    /// Sixteen of them.
    unsafe fn load<L: Lanes>(p: *const u8) -> L::F;
}

pub(crate) struct F32;
impl Float for F32 {
    const BYTES: usize = 4;
    #[inline(always)]
    unsafe fn load<L: Lanes>(p: *const u8) -> L::F {
        // SAFETY: the caller's word. Unaligned loads read it.
        unsafe { L::load(p.cast()) }
    }
}

pub(crate) struct F16;
impl Float for F16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<L: Lanes>(p: *const u8) -> L::F {
        // SAFETY: the caller's word.
        unsafe { L::load_f16(p) }
    }
}

pub(crate) struct Bf16;
impl Float for Bf16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<L: Lanes>(p: *const u8) -> L::F {
        // SAFETY: the caller's word.
        unsafe { L::load_bf16(p) }
    }
}

/// Vectors side by side.
#[inline(always)]
pub(super) const fn side_by_side<L: Lanes>() -> usize {
    if L::WIDE { 2 } else { 1 }
}

/// Queries of a tile.
#[inline(always)]
const fn most<L: Lanes>() -> usize {
    if L::WIDE { TILE.0 } else { TILE.1 }
}

/// See [`Scores`].
#[inline(always)]
pub(crate) unsafe fn scores<L: Lanes, E: Float>(
    queries: &Queries,
    n: Range<usize>,
    keys: &[u8],
    ahead: *const u8,
    out: &mut [f32],
) {
    let dim = queries.dim;
    assert!(keys.len() >= dim * KV_BLOCK * E::BYTES && out.len() >= n.len() * KV_BLOCK);
    assert!(queries.f.len() >= n.end * dim);
    let first = n.start;
    for (q, count) in tiles(n, most::<L>()) {
        let (x, out) = (queries.f[q * dim..].as_ptr(), out[(q - first) * KV_BLOCK..].as_mut_ptr());
        // SAFETY: the lengths above.
        unsafe { for_count!(count, scores_tile::<L, E>(x, dim, keys.as_ptr(), ahead, out)) };
    }
}

/// `Q` queries; lane by lane the sum over dimensions in order.
#[inline(always)]
unsafe fn scores_tile<L: Lanes, E: Float, const Q: usize>(
    x: *const f32,
    dim: usize,
    keys: *const u8,
    ahead: *const u8,
    out: *mut f32,
) {
    // SAFETY: the caller's word.
    unsafe {
        for half in (0..2).step_by(side_by_side::<L>()) {
            let mut acc = [[L::splat(0.0); 2]; Q];
            for d in 0..dim {
                let mut key = [L::splat(0.0); 2];
                for v in 0..side_by_side::<L>() {
                    let at = (d * KV_BLOCK + (half + v) * 16) * E::BYTES;
                    if v == 0 || E::BYTES == 4 {
                        L::prefetch(ahead.wrapping_add(at));
                    }
                    key[v] = E::load::<L>(keys.add(at));
                }
                for q in 0..Q {
                    let x = L::splat(*x.add(q * dim + d));
                    for v in 0..side_by_side::<L>() {
                        acc[q][v] = L::fma(x, key[v], acc[q][v]);
                    }
                }
            }
            for (q, acc) in acc.iter().enumerate() {
                for v in 0..side_by_side::<L>() {
                    L::store(out.add(q * KV_BLOCK + (half + v) * 16), acc[v]);
                }
            }
        }
    }
}

/// See [`Values`].
#[inline(always)]
pub(crate) unsafe fn values<L: Lanes, E: Float>(
    weights: &Weights<'_>,
    values: &[u8],
    ahead: *const u8,
    out: &mut [f32],
) {
    let (n, width) = (weights.n, weights.width);
    assert!(weights.p.len() >= n * KV_BLOCK && weights.keep.len() >= n && weights.factor.len() >= n);
    let stored = (KV_BLOCK - 1) * weights.stride + width;
    assert!(values.len() >= stored * E::BYTES && out.len() >= n * width && weights.seen.end <= KV_BLOCK);
    assert!(width.is_multiple_of(16));
    for (q, count) in tiles(0..n, most::<L>()) {
        // SAFETY: the lengths above.
        unsafe { for_count!(count, values_tile::<L, E>(weights, q, values.as_ptr(), ahead, out.as_mut_ptr())) };
    }
}

/// `Q` queries from `first` on, over all columns.
#[inline(always)]
unsafe fn values_tile<L: Lanes, E: Float, const Q: usize>(
    weights: &Weights<'_>,
    first: usize,
    values: *const u8,
    ahead: *const u8,
    out: *mut f32,
) {
    let vectors = weights.width / 16;
    let pairs = vectors / side_by_side::<L>();
    for pair in 0..pairs {
        // SAFETY: the caller's word.
        unsafe { columns::<L, E, Q, 2>(weights, first, pair * side_by_side::<L>(), (values, ahead), out) };
    }
    if pairs * side_by_side::<L>() < vectors {
        // SAFETY: the caller's word.
        unsafe { columns::<L, E, Q, 1>(weights, first, vectors - 1, (values, ahead), out) };
    }
}

/// Vectors of columns `column ..`, at most `V` of them; positions in order.
#[inline(always)]
unsafe fn columns<L: Lanes, E: Float, const Q: usize, const V: usize>(
    weights: &Weights<'_>,
    first: usize,
    column: usize,
    (values, ahead): (*const u8, *const u8),
    out: *mut f32,
) {
    let (v_count, width) = (V.min(side_by_side::<L>()), weights.width);
    let p = weights.p[first * KV_BLOCK..].as_ptr();
    // SAFETY: the caller's word.
    unsafe {
        let mut acc = [[L::splat(0.0); V]; Q];
        for t in weights.seen.clone() {
            let mut value = [L::splat(0.0); V];
            for v in 0..v_count {
                let at = (t * weights.stride + (column + v) * 16) * E::BYTES;
                if v == 0 || E::BYTES == 4 {
                    L::prefetch(ahead.wrapping_add(at));
                }
                value[v] = E::load::<L>(values.add(at));
            }
            for q in 0..Q {
                let p = L::splat(*p.add(q * KV_BLOCK + t));
                for v in 0..v_count {
                    acc[q][v] = L::fma(p, value[v], acc[q][v]);
                }
            }
        }
        for (q, acc) in acc.iter().enumerate() {
            let (keep, factor) = (L::splat(weights.keep[first + q]), L::splat(weights.factor[first + q]));
            for v in 0..v_count {
                let out = out.add((first + q) * width + (column + v) * 16);
                L::store(out, L::fma(factor, acc[v], L::mul(L::load(out), keep)));
            }
        }
    }
}
