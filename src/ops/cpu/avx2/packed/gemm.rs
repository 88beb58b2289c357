//! `gemm_{q2k,q3k,q4k,q5k,q6k,…}_q8k_avx2`, `gemm_{q80,q40,q41,q50,q51,…}_q8_avx2`: panels times many tokens.
//!
//! The loops are [`crate::ops::cpu::tiles`]'s. A step takes the tile's panels one by one, with words of three tokens and their sums in
//! registers: a broadcast serves two vectors, a vector of weights three tokens.

#![allow(clippy::needless_range_loop, reason = "registers of several arrays are numbered alike")]

use super::gemv::{add_block, add_words};
use super::kquants::{self, extra, pairs, words};
use super::{Floats, Lanes, add_scaled, four, legacy, products};
use crate::ops::cpu::table::Rows;
use crate::ops::cpu::tiles::{self, COLS, Family, P, Results, Tile, Work};
use crate::quant::packed::ROWS;
use std::arch::x86_64::*;
use std::marker::PhantomData;

/// Most tokens of a step.
const GROUP: usize = 4;

struct KQuant<B>(PhantomData<B>);
struct Legacy<B>(PhantomData<B>);

/// Panels of a K-quant.
///
/// # Safety
/// As `Kernel`, with AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn kquant_rows<B: kquants::Panel>(rows: &Rows<'_>) {
    // SAFETY: the caller's word.
    unsafe { tiles::all::<KQuant<B>>(rows) };
}

/// Panels of a legacy type.
///
/// # Safety
/// As [`kquant_rows`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn legacy_rows<B: legacy::Panel>(rows: &Rows<'_>) {
    // SAFETY: the caller's word.
    unsafe { tiles::all::<Legacy<B>>(rows) };
}

/// Loads a vector of the tile.
#[inline]
#[target_feature(enable = "avx2")]
fn load(v: &[i32; ROWS]) -> Lanes {
    // SAFETY: 64 bytes.
    unsafe { [_mm256_loadu_si256(v.as_ptr().cast()), _mm256_loadu_si256(v.as_ptr().add(8).cast())] }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_ps(v: &[f32; ROWS]) -> Floats {
    // SAFETY: 64 bytes.
    unsafe { [_mm256_loadu_ps(v.as_ptr()), _mm256_loadu_ps(v.as_ptr().add(8))] }
}

#[inline]
#[target_feature(enable = "avx2")]
fn put(to: &mut [i32; ROWS], v: Lanes) {
    // SAFETY: 64 bytes.
    unsafe {
        _mm256_storeu_si256(to.as_mut_ptr().cast(), v[0]);
        _mm256_storeu_si256(to.as_mut_ptr().add(8).cast(), v[1]);
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn put_ps(to: &mut [f32; ROWS], v: Floats) {
    // SAFETY: 64 bytes.
    unsafe {
        _mm256_storeu_ps(to.as_mut_ptr(), v[0]);
        _mm256_storeu_ps(to.as_mut_ptr().add(8), v[1]);
    }
}

impl<B: kquants::Panel> Family for KQuant<B> {
    const BLOCK: usize = 256;
    const STEP: usize = B::STEP;
    const SUBTRACT: bool = true;
    const GROUP: usize = GROUP;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn unpack(start: *const u8, _row_bytes: usize, _blocks: usize, tile: &mut Tile, p: usize) {
        // SAFETY: the caller's word.
        unsafe {
            for n in 0..2 {
                for pass in 0..2 {
                    let [j, l] = B::groups(pass);
                    for k in 0..8 {
                        let [w, v] = B::columns(start, n, pass, k);
                        put(&mut tile.q[32 * n + 8 * j + k][p], w);
                        put(&mut tile.q[32 * n + 8 * l + k][p], v);
                    }
                }
            }
            let (s, m) = B::scales(start);
            for i in 0..B::SCALES {
                for j in 0..4 {
                    put(&mut tile.s[4 * i + j][p], words(s[i], j));
                }
                let both = if B::FOLDED { pairs::<true>(s[i]) } else { pairs::<false>(m[i]) };
                put(&mut tile.m[2 * i][p], both[0]);
                put(&mut tile.m[2 * i + 1][p], both[1]);
            }
            let [d, dmin] = B::factors(start);
            put_ps(&mut tile.d[0][p], d);
            put_ps(&mut tile.dmin[0][p], dmin);
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn extra(sums: *const i16, out: &mut [i32; 16]) {
        // SAFETY: the caller's word.
        unsafe { extra::<B>(sums, out) };
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn step(tokens: usize, work: &Work<'_>, tile: &Tile, results: &mut Results) {
        // SAFETY: the caller's word.
        unsafe {
            match tokens {
                1 => scaled::<B, 1>(work, tile, results),
                2 => scaled::<B, 2>(work, tile, results),
                3 => scaled::<B, 3>(work, tile, results),
                _ => scaled::<B, 4>(work, tile, results),
            }
        }
    }
}

/// Adds a K-quant's tile to the results of `T` tokens.
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn scaled<B: kquants::Panel, const T: usize>(work: &Work<'_>, tile: &Tile, results: &mut Results) {
    let (acts, zero) = (work.acts, _mm256_setzero_si256());
    // Dwords of columns that share a scale.
    let share = if B::WIDE { 8 } else { 4 };
    // SAFETY: activations are padded to whole blocks; tokens lie side by side.
    unsafe {
        let a = acts.q.as_ptr().add(acts.column(work.token, work.b * 256));
        for p in 0..P {
            let mut sums = [[zero; 2]; T];
            for j in 0..64 / share {
                let s = load(&tile.s.get_unchecked(j)[p]);
                for from in (j * share..(j + 1) * share).step_by(B::SUMS) {
                    let mut words = [[zero; 2]; T];
                    for k in from..from + B::SUMS {
                        let w = load(&tile.q.get_unchecked(k)[p]);
                        for i in 0..T {
                            let a = four(a, i * COLS / 4 + k);
                            for h in 0..2 {
                                let two =
                                    if B::SIGNED { products::<true>(w[h], a) } else { products::<false>(w[h], a) };
                                words[i][h] = _mm256_add_epi16(words[i][h], two);
                            }
                        }
                    }
                    for i in 0..T {
                        add_words(&mut sums[i], words[i], s);
                    }
                }
            }
            let mut offsets = [[zero; 2]; T];
            for j in 0..B::MINIMA {
                let m = load(&tile.m[j][p]);
                for i in 0..T {
                    let at = if B::WIDE { j / 2 * 4 + j % 2 } else { j };
                    add_words(&mut offsets[i], m, [_mm256_set1_epi32(work.extra[work.at + i][at]); 2]);
                }
            }
            let factors = [load_ps(&tile.d[0][p]), load_ps(&tile.dmin[0][p])];
            for i in 0..T {
                let (panel, at) = (work.panel + p, work.at + i);
                let (mut acc, mut min) = (load_ps(&results.acc[panel][at]), load_ps(&results.min[panel][at]));
                let scale = acts.scale(work.token + i, work.b);
                add_block::<B>(&mut acc, &mut min, sums[i], offsets[i], factors, scale);
                put_ps(&mut results.acc[panel][at], acc);
                if !B::FOLDED {
                    put_ps(&mut results.min[panel][at], min);
                }
            }
        }
    }
}

impl<B: legacy::Panel> Family for Legacy<B> {
    const BLOCK: usize = 32;
    const STEP: usize = B::STEP;
    const SUBTRACT: bool = false;
    const GROUP: usize = GROUP;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn unpack(start: *const u8, _row_bytes: usize, blocks: usize, tile: &mut Tile, p: usize) {
        for b in 0..blocks {
            // SAFETY: the caller's word.
            unsafe {
                let block = start.add(b * B::STEP);
                for k in 0..4 {
                    let ([w, v], [low, high]) = (B::weights(block, k), legacy::places::<B>(k));
                    put(&mut tile.q[8 * b + low][p], w);
                    put(&mut tile.q[8 * b + high][p], v);
                }
                let [d, m] = legacy::factors::<B>(block);
                put_ps(&mut tile.d[b][p], d);
                put_ps(&mut tile.dmin[b][p], m);
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn extra(sums: *const i16, out: &mut [i32; 16]) {
        let offset = if B::SIGNED { 0 } else { -B::OFFSET };
        // SAFETY: the caller's word; `out` holds 32 bytes.
        unsafe {
            let sums = _mm256_loadu_si256(sums.cast());
            _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm256_madd_epi16(sums, _mm256_set1_epi16(offset)));
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn step(tokens: usize, work: &Work<'_>, tile: &Tile, results: &mut Results) {
        // SAFETY: the caller's word.
        unsafe {
            match tokens {
                1 => blocks::<B, 1>(work, tile, results),
                2 => blocks::<B, 2>(work, tile, results),
                3 => blocks::<B, 3>(work, tile, results),
                _ => blocks::<B, 4>(work, tile, results),
            }
        }
    }
}

/// Adds a legacy type's tile to the results of `T` tokens.
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn blocks<B: legacy::Panel, const T: usize>(work: &Work<'_>, tile: &Tile, results: &mut Results) {
    let (acts, zero, ones) = (work.acts, _mm256_setzero_si256(), _mm256_set1_epi16(1));
    // SAFETY: activations are padded to whole blocks; tokens lie side by side.
    unsafe {
        let a = acts.q.as_ptr().add(acts.column(work.token, work.b * 32));
        let first = acts.block(work.token, work.b);
        for p in 0..P {
            for j in 0..work.blocks {
                let mut sums = [[zero; 2]; T];
                for i in 0..T {
                    sums[i] = [_mm256_set1_epi32(work.extra[work.at + i][j]); 2];
                }
                for from in (8 * j..8 * (j + 1)).step_by(B::SUMS) {
                    let mut words = [[zero; 2]; T];
                    for k in from..from + B::SUMS {
                        let w = load(&tile.q.get_unchecked(k)[p]);
                        for i in 0..T {
                            let a = four(a, i * COLS / 4 + k);
                            for h in 0..2 {
                                let two =
                                    if B::SIGNED { products::<true>(w[h], a) } else { products::<false>(w[h], a) };
                                words[i][h] = _mm256_add_epi16(words[i][h], two);
                            }
                        }
                    }
                    for i in 0..T {
                        add_words(&mut sums[i], words[i], [ones; 2]);
                    }
                }
                let (d, m) = (load_ps(&tile.d.get_unchecked(j)[p]), load_ps(&tile.dmin.get_unchecked(j)[p]));
                for i in 0..T {
                    let (panel, at) = (work.panel + p, work.at + i);
                    let block = first + i * COLS / 32 + j;
                    let mut acc = load_ps(&results.acc[panel][at]);
                    add_scaled(&mut acc, sums[i], d, *acts.d.as_ptr().add(block));
                    put_ps(&mut results.acc[panel][at], acc);
                    if B::MIN {
                        let mut min = load_ps(&results.min[panel][at]);
                        let ds = _mm256_set1_ps(*acts.ds.as_ptr().add(block));
                        for h in 0..2 {
                            min[h] = _mm256_fmadd_ps(m[h], ds, min[h]);
                        }
                        put_ps(&mut results.min[panel][at], min);
                    }
                }
            }
        }
    }
}
