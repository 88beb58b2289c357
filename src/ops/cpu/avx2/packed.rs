//! `gem{v,m}_{q2k,q3k,q4k,q5k,q6k}_q8k_avx2`, `gem{v,m}_{q80,q40,q41,q50,q51}_q8_avx2`: panels times any number of tokens.
//!
//! A block of sixteen rows is unpacked to L1 ([`super::super::panels`]), then multiplied with four tokens at a time: lanes
//! are rows, in two halves. `vpmaddubsw` makes words of two columns; as many are added as fit for sure, then `vpmaddwd`
//! applies the scales. Exact integers, so the bits are those of `scalar`.

#![allow(clippy::needless_range_loop, reason = "registers of several arrays are numbered alike")]

use crate::ops::cpu::acts::Acts;
use crate::ops::cpu::blocks::{LegacyBlock, Q2K, Q3K, Q4K, Q5K, Q6K, Q40, Q41, Q50, Q51, Q80};
use crate::ops::cpu::panels::{self, KPanel, KUnpack, Lanes, LegacyUnpack};
use crate::ops::cpu::table::{Kernel, Rows};
use crate::quant::DType;
use crate::quant::packed::{ROWS, VECTOR};
use std::arch::x86_64::*;
use std::ops::Range;

/// Tokens whose results are kept at a time.
const TOKENS: usize = 64;
/// Offset of weights that fill all eight bits.
const WHOLE_BYTE: i16 = 128;

/// Kernels for panels.
pub(crate) fn kernel(dtype: DType) -> Option<Kernel> {
    Some(match dtype {
        DType::Q8_0 => legacy::<Q80>,
        DType::Q4_0 => legacy::<Q40>,
        DType::Q4_1 => legacy::<Q41>,
        DType::Q5_0 => legacy::<Q50>,
        DType::Q5_1 => legacy::<Q51>,
        DType::Q2_K => kquant::<Q2K>,
        DType::Q3_K => kquant::<Q3K>,
        DType::Q4_K => kquant::<Q4K>,
        DType::Q5_K => kquant::<Q5K>,
        DType::Q6_K => kquant::<Q6K>,
        _ => return None,
    })
}

/// Running results of some tokens, `[token][row]`.
struct Results {
    acc: [[f32; ROWS]; TOKENS],
    min: [[f32; ROWS]; TOKENS],
}

/// A run of eight rows.
#[inline]
#[target_feature(enable = "avx2")]
fn half(v: &Lanes, h: usize) -> __m256i {
    // SAFETY: 32 of 64 bytes.
    unsafe { _mm256_loadu_si256(v.as_ptr().add(8 * h).cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn half_ps(v: &[f32; ROWS], h: usize) -> __m256 {
    // SAFETY: 32 of 64 bytes.
    unsafe { _mm256_loadu_ps(v.as_ptr().add(8 * h)) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn put_half(to: &mut [f32; ROWS], h: usize, v: __m256) {
    // SAFETY: 32 of 64 bytes.
    unsafe { _mm256_storeu_ps(to.as_mut_ptr().add(8 * h), v) };
}

/// Sixteen halves, widened: `stride` words apart.
#[inline]
#[target_feature(enable = "avx2,f16c")]
unsafe fn halves(p: *const u16, stride: usize) -> [f32; ROWS] {
    // SAFETY: the caller's word.
    let words: [u16; ROWS] = std::array::from_fn(|r| unsafe { p.add(stride * r).read_unaligned() });
    let mut out = [0.0; ROWS];
    for h in 0..2 {
        // SAFETY: 16 of 32 bytes.
        let eight = unsafe { _mm_loadu_si128(words.as_ptr().add(8 * h).cast()) };
        put_half(&mut out, h, _mm256_cvtph_ps(eight));
    }
    out
}

/// Calls `$step::<B, T>` over the tokens of a range, four at a time, then two, then one.
macro_rules! by_four {
    ($tokens:expr, |$t:ident| $step:ident::<$b:ident>($($arg:expr),*)) => {{
        let (mut $t, n) = (0, $tokens);
        while $t < n {
            match n - $t {
                1 => { $step::<$b, 1>($($arg),*); $t += 1; }
                2 | 3 => { $step::<$b, 2>($($arg),*); $t += 2; }
                _ => { $step::<$b, 4>($($arg),*); $t += 4; }
            }
        }
    }};
}

/// Runs `body` for every panel and chunk of tokens and writes the results it leaves.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn each(
    rows: &Rows<'_>,
    join: impl Fn(__m256, __m256) -> __m256,
    mut body: impl FnMut(*const u8, Range<usize>, &mut Results),
) {
    let mut results = Results { acc: [[0.0; ROWS]; TOKENS], min: [[0.0; ROWS]; TOKENS] };
    for i in 0..rows.rows / ROWS {
        for first in rows.tokens.clone().step_by(TOKENS) {
            let tokens = first..rows.tokens.end.min(first + TOKENS);
            let n = tokens.len();
            results.acc[..n].fill([0.0; ROWS]);
            results.min[..n].fill([0.0; ROWS]);
            body(rows.weights.as_ptr().wrapping_add(i * ROWS * rows.row_bytes), tokens, &mut results);
            for t in 0..n {
                for h in 0..2 {
                    let result = join(half_ps(&results.acc[t], h), half_ps(&results.min[t], h));
                    // SAFETY: the caller's word.
                    unsafe {
                        _mm256_storeu_ps(rows.out.add((first + t) * rows.stride + i * ROWS + 8 * h), result);
                    }
                }
            }
        }
    }
}

/// Panels of a K-quant.
///
/// # Safety
/// As `Kernel`, with AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn kquant<B: KUnpack>(rows: &Rows<'_>) {
    let (acts, blocks) = (rows.acts, rows.acts.cols / 256);
    let Some(cut) = rows.cut else { return };
    let mut panel = KPanel { q: [[0; ROWS]; 64], s: [[0; ROWS]; 16], m: [[0; ROWS]; 8] };
    let mut aligned = [[0; ROWS]; 52];
    let body = |start: *const u8, tokens: Range<usize>, results: &mut Results| {
        for b in 0..blocks {
            let block = start.wrapping_add(cut.vector_at(b, 0));
            // SAFETY: the panel holds its blocks.
            unsafe {
                panels::kquant::<B>(panels::lanes(block, &cut, &mut aligned), &mut panel);
                let (d, dmin) = match B::FACTORS {
                    Some(i) => {
                        let both = block.add(i * VECTOR).cast::<u16>();
                        (halves(both, 2), halves(both.add(1), 2))
                    }
                    None => {
                        let d = halves(start.add(cut.vector_at(b, cut.dwords.len())).cast(), 1);
                        (d, d)
                    }
                };
                let at = Block { acts, first: tokens.start, b };
                by_four!(tokens.len(), |t| kquant_step::<B>(&at, t, &panel, &d, &dmin, results));
            }
        }
    };
    // SAFETY: the caller's word.
    unsafe { each(rows, |acc, min| _mm256_sub_ps(acc, min), body) };
}

/// A block of the activations.
struct Block<'a> {
    acts: &'a Acts<'a>,
    /// First token of the results.
    first: usize,
    b: usize,
}

/// Adds a block to the results of `T` tokens from `t` on.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn kquant_step<B: KUnpack, const T: usize>(
    at: &Block<'_>,
    t: usize,
    panel: &KPanel,
    d: &[f32; ROWS],
    dmin: &[f32; ROWS],
    results: &mut Results,
) {
    let (acts, first, zero) = (at.acts, at.first + t, _mm256_setzero_si256());
    let (mut products, mut offsets) = ([[zero; 2]; T], [[zero; 2]; T]);
    // SAFETY: activations are padded to whole blocks, tokens lie side by side.
    unsafe {
        let start = acts.column(first, 256 * at.b);
        let q = acts.q.as_ptr().add(start).cast::<i32>();
        for (j, w) in panel.q.chunks_exact(B::SUMS).enumerate() {
            let mut words = [[zero; 2]; T];
            for (k, w) in w.iter().enumerate() {
                let w = [half(w, 0), half(w, 1)];
                for (i, words) in words.iter_mut().enumerate() {
                    let a = _mm256_set1_epi32(q.add(64 * i + B::SUMS * j + k).read_unaligned());
                    words[0] = _mm256_add_epi16(words[0], _mm256_maddubs_epi16(w[0], a));
                    words[1] = _mm256_add_epi16(words[1], _mm256_maddubs_epi16(w[1], a));
                }
            }
            let s = &panel.s[j * B::SUMS / 4];
            let s = [half(s, 0), half(s, 1)];
            for (products, words) in products.iter_mut().zip(words) {
                for h in 0..2 {
                    products[h] = _mm256_add_epi32(products[h], _mm256_madd_epi16(words[h], s[h]));
                }
            }
        }
        let sums = acts.sums.as_ptr().add(start / 16).cast::<i32>();
        for (j, m) in panel.m.iter().enumerate() {
            for (i, offsets) in offsets.iter_mut().enumerate() {
                let sums = _mm256_set1_epi32(sums.add(8 * i + j).read_unaligned());
                for (h, offset) in offsets.iter_mut().enumerate() {
                    *offset = _mm256_add_epi32(*offset, _mm256_madd_epi16(half(m, h), sums));
                }
            }
        }
        for i in 0..T {
            let scale = _mm256_set1_ps(acts.scale(first + i, at.b));
            for h in 0..2 {
                let (acc, min) = (&mut results.acc[t + i], &mut results.min[t + i]);
                let whole = if B::FOLDED { _mm256_sub_epi32(products[i][h], offsets[i][h]) } else { products[i][h] };
                let factor = _mm256_mul_ps(half_ps(d, h), scale);
                put_half(acc, h, _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole), factor, half_ps(acc, h)));
                if !B::FOLDED {
                    let factor = _mm256_mul_ps(half_ps(dmin, h), scale);
                    put_half(min, h, _mm256_fmadd_ps(_mm256_cvtepi32_ps(offsets[i][h]), factor, half_ps(min, h)));
                }
            }
        }
    }
}

/// Panels of a legacy type.
///
/// # Safety
/// As `Kernel`, with AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn legacy<B: LegacyUnpack>(rows: &Rows<'_>) {
    let (acts, blocks) = (rows.acts, rows.acts.cols / 32);
    let Some(cut) = rows.cut else { return };
    let mut aligned = [[0; ROWS]; 52];
    let body = |start: *const u8, tokens: Range<usize>, results: &mut Results| {
        for b in 0..blocks {
            let block = start.wrapping_add(cut.vector_at(b, 0));
            // SAFETY: the panel holds its blocks.
            unsafe {
                let w = B::unpack(panels::lanes(block, &cut, &mut aligned));
                let (d, m) = if B::MIN {
                    (halves(block.cast(), 2), halves(block.cast::<u16>().add(1), 2))
                } else {
                    (halves(start.add(cut.vector_at(b, cut.dwords.len())).cast(), 1), [0.0; ROWS])
                };
                let at = Block { acts, first: tokens.start, b };
                by_four!(tokens.len(), |t| legacy_step::<B>(&at, t, &w, &d, &m, results));
            }
        }
    };
    // SAFETY: the caller's word.
    unsafe { each(rows, |acc, min| _mm256_add_ps(acc, min), body) };
}

/// Adds a block to the results of `T` tokens from `t` on.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn legacy_step<B: LegacyUnpack, const T: usize>(
    at: &Block<'_>,
    t: usize,
    w: &[Lanes; 8],
    d: &[f32; ROWS],
    m: &[f32; ROWS],
    results: &mut Results,
) {
    let (acts, first, zero) = (at.acts, at.first + t, _mm256_setzero_si256());
    let ones = _mm256_set1_epi16(1);
    // SAFETY: activations are padded to whole blocks.
    unsafe {
        let starts: [usize; T] = std::array::from_fn(|i| acts.column(first + i, 32 * at.b));
        let mut sums: [[__m256i; 2]; T] = starts.map(|start| {
            // Q8_0's weights are signed as they are.
            let offset = if B::OFFSET == WHOLE_BYTE { 0 } else { -i32::from(B::OFFSET) };
            let total = i32::from(acts.sums[start / 16]) + i32::from(acts.sums[start / 16 + 1]);
            [_mm256_set1_epi32(offset * total); 2]
        });
        for (j, w) in w.chunks_exact(B::SUMS).enumerate() {
            let mut words = [[zero; 2]; T];
            for (k, w) in w.iter().enumerate() {
                for (i, words) in words.iter_mut().enumerate() {
                    let four = acts.q.as_ptr().add(starts[i]).cast::<i32>().add(B::SUMS * j + k);
                    let a = _mm256_set1_epi32(four.read_unaligned());
                    for (h, words) in words.iter_mut().enumerate() {
                        *words = _mm256_add_epi16(*words, pairs::<B>(half(w, h), a));
                    }
                }
            }
            for (sums, words) in sums.iter_mut().zip(words) {
                for (sum, words) in sums.iter_mut().zip(words) {
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(words, ones));
                }
            }
        }
        for i in 0..T {
            let at = acts.block(first + i, at.b);
            let (scale, ds) = (_mm256_set1_ps(acts.d[at]), _mm256_set1_ps(acts.ds[at]));
            for h in 0..2 {
                let (acc, min) = (&mut results.acc[t + i], &mut results.min[t + i]);
                let factor = _mm256_mul_ps(half_ps(d, h), scale);
                put_half(acc, h, _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums[i][h]), factor, half_ps(acc, h)));
                if B::MIN {
                    put_half(min, h, _mm256_fmadd_ps(half_ps(m, h), ds, half_ps(min, h)));
                }
            }
        }
    }
}

/// Products of columns, added in pairs. Unsigned bytes above 127 could overflow a word: there the sign of the weights
/// moves to the activations.
#[inline]
#[target_feature(enable = "avx2")]
fn pairs<B: LegacyBlock>(w: __m256i, a: __m256i) -> __m256i {
    if B::OFFSET == WHOLE_BYTE {
        _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w))
    } else {
        _mm256_maddubs_epi16(w, a)
    }
}
