//! The gated delta net's operations: which part of the work is one piece, and its kernels.
//!
//! As in `vector`, kernels are plain code over arrays of lanes, compiled for each tier, but for the recurrence itself, which is
//! written in attention's vectors; the order of operations is in the source, so every tier yields the same bits. Pieces are
//! tiles of a head's state and blocks of channels, each run through
//! all rows of its sequence by one thread: no result depends on the number of threads or on the cut of a prompt.

use super::Cpu;
use super::acts::Parts;
use super::attention::lanes::{self, Lanes as Vectors};
use super::isa::Isa;
use super::vector::exp;
use crate::ops::delta::{Convolution, DELTA_TILE, DeltaRule, L2_EPSILON, MAX_KERNEL, Regroup, StateSeq};
use crate::ops::profile::Work;
use crate::ops::{Tensor, elementwise_bytes};

/// Sixteen neighbouring columns or channels.
type Lanes = [f32; DELTA_TILE];

/// One tier's instances. Unsafe to call: the host must have the tier.
#[derive(Clone, Copy)]
pub(crate) struct Functions {
    convolve: unsafe fn(&mut Channels<'_>),
    l2_norm: unsafe fn(&mut [f32]),
    tiles: unsafe fn(&Tiles<'_>),
    sigmoid_mul: unsafe fn(&mut [f32], &[f32]),
}

/// Sixteen channels of a sequence's convolution.
struct Channels<'a> {
    /// `[16, kernel]`.
    weight: &'a [f32],
    kernel: usize,
    /// The first channel in the state's first row, and in the sequence's first row; rows are `stride` apart.
    state: *mut f32,
    x: *mut f32,
    stride: usize,
    rows: usize,
    fresh: bool,
    /// Where the state goes as well, when the rows are done.
    save: Option<*mut f32>,
}

/// One or two neighbouring tiles of a head's state, and the sequence's rows that they run through.
struct Tiles<'a> {
    /// `[count, key_dim, 16]`.
    state: *mut f32,
    count: usize,
    key_dim: usize,
    /// The sequence's rows, `channels` each, and where in one q, k and the tiles' values begin.
    qkv: &'a [f32],
    channels: usize,
    q: usize,
    k: usize,
    v: usize,
    /// The head's gates in the first row; further rows `value_heads` on.
    decay: &'a [f32],
    strength: &'a [f32],
    value_heads: usize,
    /// The tiles' columns in the first row of the result; rows are `values` apart.
    out: *mut f32,
    values: usize,
    fresh: bool,
}

macro_rules! tier {
    ($name:ident, $vectors:ty, $(#[$feature:meta])?) => {
        mod $name {
            use super::*;
            $(#[$feature])?
            unsafe fn convolve(work: &mut Channels<'_>) {
                super::convolve(work);
            }
            $(#[$feature])?
            unsafe fn l2_norm(head: &mut [f32]) {
                super::l2_norm(head);
            }
            $(#[$feature])?
            unsafe fn tiles(work: &Tiles<'_>) {
                // SAFETY: the caller's word.
                unsafe { super::tiles::<$vectors>(work) }
            }
            $(#[$feature])?
            unsafe fn sigmoid_mul(x: &mut [f32], gate: &[f32]) {
                super::sigmoid_mul(x, gate);
            }
            pub(super) const ALL: Functions = Functions { convolve, l2_norm, tiles, sigmoid_mul };
        }
    };
}

tier!(scalar, lanes::Arrays,);
#[cfg(target_arch = "x86_64")]
tier!(avx2, super::super::avx2::Pairs, #[target_feature(enable = "avx2,fma,f16c")]);
#[cfg(target_arch = "x86_64")]
tier!(
    avx512,
    super::super::avx512::Wide<false>,
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
);

impl Functions {
    /// The functions of `isa`.
    pub(crate) fn new(isa: Isa) -> Functions {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2::ALL,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Vnni | Isa::Avx512Bf16 => avx512::ALL,
            _ => scalar::ALL,
        }
    }
}

#[inline(always)]
fn convolve(work: &mut Channels<'_>) {
    let (kernel, stride) = (work.kernel, work.stride);
    let before = kernel - 1;
    let mut weight = [[0.0; DELTA_TILE]; MAX_KERNEL];
    for (c, row) in work.weight.chunks_exact(kernel).enumerate() {
        row.iter().enumerate().for_each(|(j, &w)| weight[j][c] = w);
    }
    let mut past = [[0.0; DELTA_TILE]; MAX_KERNEL];
    if !work.fresh {
        for (j, past) in past[..before].iter_mut().enumerate() {
            // SAFETY: the state has `kernel - 1` rows, of which these channels are this call's alone.
            *past = unsafe { work.state.add(j * stride).cast::<Lanes>().read() };
        }
    }
    for t in 0..work.rows {
        // SAFETY: the sequence has `rows` rows, of which these channels are this call's alone.
        let place = unsafe { &mut *work.x.add(t * stride).cast::<Lanes>() };
        past[before] = *place;
        let mut sum = [0.0; DELTA_TILE];
        for (weight, past) in weight[..kernel].iter().zip(&past) {
            for l in 0..DELTA_TILE {
                sum[l] = weight[l].mul_add(past[l], sum[l]);
            }
        }
        for l in 0..DELTA_TILE {
            place[l] = sum[l] / (1.0 + exp(-sum[l]));
        }
        past.copy_within(1..kernel, 0);
    }
    for (j, past) in past[..before].iter().enumerate() {
        for place in [Some(work.state), work.save].into_iter().flatten() {
            // SAFETY: as above; a snapshot's slot is nobody else's either.
            unsafe { place.add(j * stride).cast::<Lanes>().write(*past) };
        }
    }
}

#[inline(always)]
fn l2_norm(head: &mut [f32]) {
    let mut lanes = [0.0f64; 8];
    for chunk in head.chunks_exact(8) {
        for l in 0..8 {
            lanes[l] += f64::from(chunk[l]) * f64::from(chunk[l]);
        }
    }
    let scale = (1.0 / (lanes.iter().sum::<f64>() + f64::from(L2_EPSILON)).sqrt()) as f32;
    head.iter_mut().for_each(|x| *x *= scale);
}

/// Two tiles beside each other where the tier has the registers: twice the independent sums, and each element of q and k is
/// spread over a vector once for both.
///
/// # Safety
/// The host must have the tier, and the pointers of `work` must be good for its tiles and rows.
#[inline(always)]
unsafe fn tiles<L: Vectors>(work: &Tiles<'_>) {
    // SAFETY: the caller's word.
    unsafe {
        match (work.count, L::WIDE) {
            (2, true) => run::<L, 2>(work, 0),
            (count, _) => (0..count).for_each(|first| run::<L, 1>(work, first)),
        }
    }
}

/// `N` tiles from `first` on through all rows. `out` by the state before its update: `Sᵀq` is `g·Sᵀq + (k·q)·δ`, so that the
/// state is read twice and not three times.
///
/// # Safety
/// As [`tiles`].
#[inline(always)]
unsafe fn run<L: Vectors, const N: usize>(work: &Tiles<'_>, first: usize) {
    let (key_dim, tile_len) = (work.key_dim, work.key_dim * DELTA_TILE);
    let state = work.state.wrapping_add(first * tile_len);
    let at = |n: usize, i: usize| state.wrapping_add(n * tile_len + i * DELTA_TILE);
    if work.fresh {
        // SAFETY: the caller's word.
        unsafe { state.write_bytes(0, N * tile_len) };
    }
    let scale = 1.0 / (key_dim as f32).sqrt();
    for (t, row) in work.qkv.chunks_exact(work.channels).enumerate() {
        let (q, k) = (&row[work.q..][..key_dim], &row[work.k..][..key_dim]);
        let v = &row[work.v + first * DELTA_TILE..][..N * DELTA_TILE];
        let (decay, strength) = (work.decay[t * work.value_heads], work.strength[t * work.value_heads]);
        // SAFETY: the caller's word; `q` and `k` have `key_dim` elements, `v` those of `N` tiles.
        unsafe {
            let zero = L::splat(0.0);
            let (mut seen, mut read) = ([[zero; N]; 2], [[zero; N]; 2]);
            for (i, (k, q)) in k.chunks_exact(2).zip(q.chunks_exact(2)).enumerate() {
                for p in 0..2 {
                    let (k, q) = (L::splat(k[p]), L::splat(q[p]));
                    for n in 0..N {
                        let s = L::load(at(n, 2 * i + p));
                        seen[p][n] = L::fma(s, k, seen[p][n]);
                        read[p][n] = L::fma(s, q, read[p][n]);
                    }
                }
            }
            let both = k.chunks_exact(DELTA_TILE).zip(q.chunks_exact(DELTA_TILE));
            let both = both.fold(zero, |sum, (k, q)| L::fma(L::load(k.as_ptr()), L::load(q.as_ptr()), sum));
            let (both, decay) = (L::splat(L::reduce_add(both)), L::splat(decay));
            let (strength, scale) = (L::splat(strength), L::splat(scale));
            let mut change = [zero; N];
            for (n, change) in change.iter_mut().enumerate() {
                let old = L::mul(decay, L::add(seen[0][n], seen[1][n]));
                *change = L::mul(strength, L::sub(L::load(v[n * DELTA_TILE..].as_ptr()), old));
                let before = L::mul(decay, L::add(read[0][n], read[1][n]));
                let out = work.out.add(t * work.values + (first + n) * DELTA_TILE);
                L::store(out, L::mul(scale, L::fma(both, *change, before)));
            }
            for (i, &k) in k.iter().enumerate() {
                let k = L::splat(k);
                for (n, &change) in change.iter().enumerate() {
                    L::store(at(n, i), L::fma(k, change, L::mul(decay, L::load(at(n, i)))));
                }
            }
        }
    }
}

#[inline(always)]
fn sigmoid_mul(x: &mut [f32], gate: &[f32]) {
    for (x, &gate) in x.iter_mut().zip(gate) {
        *x /= 1.0 + exp(-gate);
    }
}

/// Where a sequence's rows of `width` begin.
fn row(seq: &StateSeq, width: usize) -> usize {
    seq.first_row * width
}

impl Cpu {
    /// See [`Convolution`].
    pub fn convolution(&self, args: Convolution<'_>) {
        let _watch = self.observer.watch(|| Work::elementwise("convolution", args.x.len(), 1));
        args.check();
        let Convolution { x, weight, shape, state, seqs } = args;
        let (channels, kernel, weight) = (shape.channels(), shape.kernel, weight.to_f32());
        let blocks = channels / DELTA_TILE;
        let rows: usize = seqs.iter().map(|seq| seq.rows).sum();
        let start = |slot| slot * state.slot_len + state.offset;
        let (x, memory) = (Parts::new(x), Parts::new(&mut *state.memory));
        let width = DELTA_TILE * kernel * rows.div_ceil(seqs.len().max(1));
        self.each(seqs.len() * blocks, width, &|range| {
            let pieces = range.map(|piece| (&seqs[piece / blocks], piece % blocks * DELTA_TILE));
            for (seq, save, block) in pieces.flat_map(|(seq, block)| seq.parts().map(move |(s, save)| (s, save, block)))
            {
                let mut work = Channels {
                    weight: &weight[block * kernel..][..DELTA_TILE * kernel],
                    kernel,
                    state: memory.address(start(seq.slot) + block),
                    x: x.address(row(&seq, channels) + block),
                    stride: channels,
                    rows: seq.rows,
                    fresh: seq.fresh,
                    save: save.map(|slot| memory.address(start(slot) + block)),
                };
                // SAFETY: `check` found all rows and states within their slices and the slots apart; a block of channels is
                // one piece; the function suits this host.
                unsafe { (self.table.delta.convolve)(&mut work) };
            }
        });
    }

    /// Each of the first `heads` heads of `dim` elements in every row of `x` `[tokens, width]` divided by its length.
    pub fn l2_norm(&self, x: &mut [f32], width: usize, heads: usize, dim: usize) {
        let _watch = self.observer.watch(|| Work::elementwise("l2_norm", x.len() / width * heads * dim, 1));
        assert!(x.len().is_multiple_of(width) && heads * dim <= width, "x is not [tokens, {width}]");
        assert!(dim.is_multiple_of(8), "heads of {dim}");
        let (tokens, x) = (x.len() / width, Parts::new(x));
        self.each(tokens, heads * dim, &|range| {
            for t in range {
                // SAFETY: each row belongs to one range.
                let row = unsafe { x.part(t * width, heads * dim) };
                // SAFETY: the function suits this host.
                row.chunks_exact_mut(dim).for_each(|head| unsafe { (self.table.delta.l2_norm)(head) });
            }
        });
    }

    /// `alpha = exp(rate · softplus(alpha + step_bias))`, `beta = sigmoid(beta)`; both `[tokens, value_heads]`.
    pub fn delta_gates(&self, alpha: &mut [f32], beta: &mut [f32], rate: &Tensor, step_bias: &Tensor) {
        let _watch = self.observer.watch(|| Work::elementwise("delta_gates", 2 * alpha.len(), 1));
        let (heads, rate, bias) = (rate.cols, rate.to_f32(), step_bias.to_f32());
        assert!(alpha.len().is_multiple_of(heads) && alpha.len() == beta.len(), "gates are not [tokens, {heads}]");
        let (tokens, alpha, beta) = (alpha.len() / heads, Parts::new(alpha), Parts::new(beta));
        self.each(tokens, 16 * heads, &|range| {
            for t in range {
                // SAFETY: each token's gates belong to one range.
                let (alpha, beta) = unsafe { (alpha.part(t * heads, heads), beta.part(t * heads, heads)) };
                for (((alpha, beta), rate), bias) in alpha.iter_mut().zip(beta).zip(&*rate).zip(&*bias) {
                    let step = *alpha + bias;
                    // ln(1 + e^x) without overflow.
                    *alpha = (rate * (step.max(0.0) + (-step.abs()).exp().ln_1p())).exp();
                    *beta = 1.0 / (1.0 + (-*beta).exp());
                }
            }
        });
    }

    /// See [`DeltaRule`].
    pub fn delta_rule(&self, args: DeltaRule<'_>) {
        let _watch = self.observer.watch(|| Work {
            bytes: args.bytes_moved(),
            operations: args.operations(),
            ..Work::elementwise("delta_rule", 0, 1)
        });
        args.check();
        let DeltaRule { qkv, decay, strength, shape, state, seqs, out } = args;
        // Two tiles of a head are a piece, the last one of an odd number alone.
        let (of_head, width) = (shape.value_dim / DELTA_TILE, shape.key_dim * 2 * DELTA_TILE);
        let pieces_of_head = of_head.div_ceil(2);
        let pieces = shape.value_heads * pieces_of_head;
        let rows: usize = seqs.iter().map(|seq| seq.rows).sum();
        let (out, memory) = (Parts::new(out), Parts::new(&mut *state.memory));
        let tile_at =
            |slot, tile| slot * state.slot_len + state.offset + shape.conv_len() + tile * shape.key_dim * DELTA_TILE;
        self.each(seqs.len() * pieces, width * rows.div_ceil(seqs.len().max(1)), &|range| {
            let pieces = range.map(|piece| (&seqs[piece / pieces], piece % pieces));
            for (seq, save, piece) in pieces.flat_map(|(seq, piece)| seq.parts().map(move |(s, save)| (s, save, piece)))
            {
                let (head, first) = (piece / pieces_of_head, piece % pieces_of_head * 2);
                let (count, column) = (2.min(of_head - first), head * shape.value_dim + first * DELTA_TILE);
                let (tile, keys) = (head * of_head + first, shape.key_head(head) * shape.key_dim);
                let work = Tiles {
                    state: memory.address(tile_at(seq.slot, tile)),
                    count,
                    key_dim: shape.key_dim,
                    qkv: &qkv[row(&seq, shape.channels())..][..seq.rows * shape.channels()],
                    channels: shape.channels(),
                    q: keys,
                    k: shape.keys() + keys,
                    v: 2 * shape.keys() + column,
                    decay: &decay[row(&seq, shape.value_heads) + head..],
                    strength: &strength[row(&seq, shape.value_heads) + head..],
                    value_heads: shape.value_heads,
                    out: out.address(row(&seq, shape.values()) + column),
                    values: shape.values(),
                    fresh: seq.fresh,
                };
                // SAFETY: `check` found all slots within the memory and apart, and all rows within `out`; a tile is part of
                // one piece; the function suits this host.
                unsafe { (self.table.delta.tiles)(&work) };
                if let Some(slot) = save {
                    let len = count * shape.key_dim * DELTA_TILE;
                    // SAFETY: as above; nobody else has the slot of a snapshot.
                    unsafe {
                        let kept = memory.part(tile_at(slot, tile), len);
                        kept.copy_from_slice(memory.part(tile_at(seq.slot, tile), len));
                    }
                }
            }
        });
    }

    /// `x = x · sigmoid(gate)`.
    pub fn sigmoid_mul(&self, x: &mut [f32], gate: &[f32]) {
        let _watch = self.observer.watch(|| Work::elementwise("sigmoid_mul", x.len(), 2));
        assert_eq!(x.len(), gate.len(), "x and gate differ in length");
        self.elementwise(x, gate, self.table.delta.sigmoid_mul);
    }

    /// See [`Regroup`]; `x` `[tokens, groups * stride]`, `to` `[tokens, to_width]`.
    pub fn regroup(&self, x: &[f32], how: &Regroup, to: &mut [f32], to_width: usize) {
        let (width, copied) = (how.groups * how.stride, how.groups * how.width);
        let tokens = x.len() / width;
        let bytes = elementwise_bytes(tokens * copied, 1);
        let _watch = self.observer.watch(|| Work { bytes, ..Work::elementwise("regroup", 0, 1) });
        assert!(x.len() == tokens * width && to.len() == tokens * to_width, "x is not [tokens, {width}]");
        assert!(how.first + how.width <= how.stride && how.at + copied <= to_width, "{how:?} of {width} to {to_width}");
        let to = Parts::new(to);
        self.each(tokens, copied, &|range| {
            for t in range {
                // SAFETY: each row belongs to one range.
                let to = unsafe { to.part(t * to_width + how.at, copied) };
                let groups = x[t * width..][..width].chunks_exact(how.stride);
                for (from, to) in groups.zip(to.chunks_exact_mut(how.width)) {
                    to.copy_from_slice(&from[how.first..][..how.width]);
                }
            }
        });
    }
}
