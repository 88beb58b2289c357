//! Attention over keys that lie token after token in F32, as those of a latent cache do once they are decoded: scores
//! run along a key's elements, and values are a part of the same rows. A block is decoded once for all queries of an item.

// Register tiles: the same index walks arrays and addresses.
#![allow(clippy::needless_range_loop)]

use super::Job;
use super::kernels::{Step, Weights, tiles};
use super::lanes::Lanes;
use super::queries::{Queries, grow};
use super::workspace::{State, Workspace};
use crate::ops::cpu::f32_as_bytes;
use crate::ops::{KV_BLOCK, KV_GROUP};
use crate::quant::DType;
use crate::quant::float::widen_f16;
use std::ops::Range;

/// Scores of the queries `n` with the positions `seen` of `keys`, 32 rows of `queries.dim`: `out[q][32]`; of others
/// anything.
///
/// # Safety
/// The host has the tier.
pub(crate) type RowScores =
    unsafe fn(queries: &Queries, n: Range<usize>, keys: &[f32], seen: &Range<usize>, out: &mut [f32]);

/// Decodes a row of the type.
///
/// # Safety
/// The host has the tier.
pub(crate) type DecodeRow = unsafe fn(dtype: DType, row: &[u8], out: &mut [f32]);

/// Tokens and queries whose sums fit registers, [`Lanes::WIDE`] or not.
const TILE: (usize, usize) = (4, 2);

/// A block's rows in F32.
#[derive(Default)]
pub(super) struct Rows {
    /// `[32][dim]`.
    pub(super) data: Vec<f32>,
    /// Whose they are, and how many of them.
    of: Option<(usize, usize)>,
}

impl Rows {
    /// Room for rows of `dim` elements, none of them valid.
    pub(super) fn reset(&mut self, dim: usize) {
        grow(&mut self.data, KV_BLOCK * dim);
        self.of = None;
    }

    /// Makes the first `count` rows those of `block` by `decode(token, out)`.
    fn fill(&mut self, block: usize, count: usize, dim: usize, decode: impl Fn(usize, &mut [f32])) {
        let have = self.of.filter(|(of, _)| *of == block).map_or(0, |(_, have)| have);
        for (token, out) in self.data.chunks_exact_mut(dim).enumerate().take(count).skip(have) {
            decode(token, out);
        }
        self.of = Some((block, count.max(have)));
    }
}

impl Job<'_> {
    /// Adds the positions `seen` of a latent cache's block to some queries' state.
    pub(super) fn latent_block(
        &self,
        block: usize,
        n: Range<usize>,
        seen: Range<usize>,
        workspace: &mut Workspace,
        state: &mut State<'_>,
    ) {
        let (shape, width) = (&self.kv.shape, self.width());
        let (dim, bytes) = (shape.key_dim, shape.token_bytes());
        let Workspace { queries, scores, keep, factor, rows, .. } = workspace;
        let keys = &self.kv.keys[block * shape.key_block_bytes()..][..shape.key_block_bytes()];
        rows.fill(block, seen.end, dim, |token, out| {
            // SAFETY: the functions suit this host.
            unsafe { self.tier.decode(shape.key_type, &keys[token * bytes..][..bytes], out) };
        });
        let data = &rows.data[..KV_BLOCK * dim];
        // SAFETY: as above.
        unsafe { (self.tier.row_scores)(queries, n.clone(), data, &seen, scores) };
        let (max, sum) = (&mut state.max[n.start..], &mut state.sum[n.start..]);
        // SAFETY: as above.
        unsafe { (self.softmax)(&mut Step { scores, max, sum, keep, factor }, n.len(), seen.clone()) };
        let weights = Weights { n: n.len(), p: scores, keep, factor, seen, width, stride: dim };
        let out = &mut state.out[n.start * width..n.end * width];
        let values = f32_as_bytes(data);
        // SAFETY: as above.
        unsafe { ((self.tier.values)(DType::F32))(&weights, values, values.as_ptr(), out) };
    }
}

/// See [`RowScores`]. A score is sixteen sums along the key, added up at the end.
#[inline(always)]
pub(super) unsafe fn scores<L: Lanes>(
    queries: &Queries,
    n: Range<usize>,
    keys: &[f32],
    seen: &Range<usize>,
    out: &mut [f32],
) {
    let dim = queries.dim;
    assert!(dim.is_multiple_of(16) && keys.len() >= KV_BLOCK * dim && seen.end <= KV_BLOCK);
    assert!(queries.f.len() >= n.end * dim && out.len() >= n.len() * KV_BLOCK);
    let first = n.start;
    for (q, count) in tiles(n, if L::WIDE { TILE.0 } else { TILE.1 }) {
        let x = queries.f[q * dim..].as_ptr();
        let out = out[(q - first) * KV_BLOCK..].as_mut_ptr();
        // SAFETY: the lengths above.
        unsafe {
            match count {
                1 => tile_of_tokens::<L, 1>(x, dim, keys.as_ptr(), seen, out),
                2 => tile_of_tokens::<L, 2>(x, dim, keys.as_ptr(), seen, out),
                3 => tile_of_tokens::<L, 3>(x, dim, keys.as_ptr(), seen, out),
                _ => tile_of_tokens::<L, 4>(x, dim, keys.as_ptr(), seen, out),
            }
        }
    }
}

/// `Q` queries, all tokens.
#[inline(always)]
unsafe fn tile_of_tokens<L: Lanes, const Q: usize>(
    x: *const f32,
    dim: usize,
    keys: *const f32,
    seen: &Range<usize>,
    out: *mut f32,
) {
    let most = if L::WIDE { TILE.0 } else { TILE.1 };
    for token in (seen.start / most * most..seen.end).step_by(most) {
        // SAFETY: the caller's word; 32 is a multiple of both tiles.
        unsafe {
            let keys = keys.add(token * dim);
            if L::WIDE {
                tile::<L, Q, { TILE.0 }>(x, dim, keys, out.add(token));
            } else {
                tile::<L, Q, { TILE.1 }>(x, dim, keys, out.add(token));
            }
        }
    }
}

/// `Q` queries with `T` keys.
#[inline(always)]
unsafe fn tile<L: Lanes, const Q: usize, const T: usize>(x: *const f32, dim: usize, keys: *const f32, out: *mut f32) {
    // SAFETY: the caller's word.
    unsafe {
        let mut acc = [[L::splat(0.0); T]; Q];
        for d in (0..dim).step_by(16) {
            let mut key = [L::splat(0.0); T];
            for t in 0..T {
                key[t] = L::load(keys.add(t * dim + d));
            }
            for q in 0..Q {
                let x = L::load(x.add(q * dim + d));
                for t in 0..T {
                    acc[q][t] = L::fma(x, key[t], acc[q][t]);
                }
            }
        }
        for (q, acc) in acc.iter().enumerate() {
            for (t, acc) in acc.iter().enumerate() {
                *out.add(q * KV_BLOCK + t) = L::reduce_add(*acc);
            }
        }
    }
}

/// See [`DecodeRow`]: the types a cache can have.
#[inline(always)]
pub(super) unsafe fn decode<L: Lanes>(dtype: DType, row: &[u8], out: &mut [f32]) {
    let whole = out.len().is_multiple_of(16) && dtype.row_bytes(out.len()) == Some(row.len());
    assert!(whole, "{} bytes are not {} elements of {dtype}", row.len(), out.len());
    let half = |at: usize| widen_f16(u16::from_le_bytes([row[at], row[at + 1]]));
    let groups = out.chunks_exact_mut(KV_GROUP).zip(row.chunks_exact(dtype.block_bytes())).enumerate();
    match dtype {
        DType::F32 | DType::F16 | DType::BF16 => {
            for at in (0..out.len()).step_by(16) {
                let (from, to) = (row[at * dtype.block_bytes()..].as_ptr(), out[at..].as_mut_ptr());
                // SAFETY: whole vectors of elements of the type, checked above.
                unsafe {
                    L::store(
                        to,
                        match dtype {
                            DType::F32 => L::load(from.cast()),
                            DType::F16 => L::load_f16(from),
                            _ => L::load_bf16(from),
                        },
                    );
                }
            }
        }
        DType::Q8_0 => {
            for (g, (out, block)) in groups {
                let d = half(g * block.len());
                out.iter_mut().zip(&block[2..]).for_each(|(out, &q)| *out = d * f32::from(q as i8));
            }
        }
        DType::Q4_0 => {
            for (g, (out, block)) in groups {
                let d = half(g * block.len());
                let (low, high) = out.split_at_mut(KV_GROUP / 2);
                for ((low, high), &q) in low.iter_mut().zip(high).zip(&block[2..]) {
                    (*low, *high) = (d * (f32::from(q & 15) - 8.0), d * (f32::from(q >> 4) - 8.0));
                }
            }
        }
        DType::Q4_1 => {
            for (g, (out, block)) in groups {
                let (d, m) = (half(g * block.len()), half(g * block.len() + 2));
                let (low, high) = out.split_at_mut(KV_GROUP / 2);
                for ((low, high), &q) in low.iter_mut().zip(high).zip(&block[4..]) {
                    (*low, *high) = (d * f32::from(q & 15) + m, d * f32::from(q >> 4) + m);
                }
            }
        }
        other => panic!("no KV cache is of type {other}: its shape was not checked"),
    }
}
