//! `gem{v,m}_{f32,f16,bf16}_f32_avx2`: float weights times F32 activations, two rows by two tokens in registers.
//!
//! Sixteen lanes are two vectors: lane `l` sums columns `16i + l`, whatever the shape of the tile; see `scalar`.
//! One thread reads all three types at 21 GB/s where plain reading reaches 25.8:
//! `benches/records/epyc-zen4-2cpu-2026-11-21.txt`.

use crate::ops::cpu::table::Rows;
use std::arch::x86_64::*;

/// Rows and tokens of a full tile.
const N: usize = 2;

/// Loads of a float type.
pub(super) trait Load {
    /// Bytes of an element.
    const BYTES: usize;
    /// Eight elements.
    ///
    /// # Safety
    /// AVX2, F16C and that many readable bytes.
    unsafe fn load(p: *const u8) -> __m256;
}

pub(super) struct F32;
impl Load for F32 {
    const BYTES: usize = 4;
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn load(p: *const u8) -> __m256 {
        // SAFETY: the caller's word.
        unsafe { _mm256_loadu_ps(p.cast()) }
    }
}

pub(super) struct F16;
impl Load for F16 {
    const BYTES: usize = 2;
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn load(p: *const u8) -> __m256 {
        // SAFETY: the caller's word.
        _mm256_cvtph_ps(unsafe { _mm_loadu_si128(p.cast()) })
    }
}

pub(super) struct Bf16;
impl Load for Bf16 {
    const BYTES: usize = 2;
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn load(p: *const u8) -> __m256 {
        // SAFETY: the caller's word.
        let words = _mm256_cvtepu16_epi32(unsafe { _mm_loadu_si128(p.cast()) });
        _mm256_castsi256_ps(_mm256_slli_epi32(words, 16))
    }
}

/// All rows of a float type.
///
/// # Safety
/// As `Kernel`, with AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn rows<W: Load>(rows: &Rows<'_>) {
    for first in (0..rows.rows).step_by(N) {
        let whole = rows.rows - first >= N;
        let mut t = rows.tokens.start;
        while t < rows.tokens.end {
            let many = rows.tokens.end - t >= N;
            // SAFETY: the caller's word.
            unsafe {
                match (whole, many) {
                    (true, true) => tile::<W, N, N>(rows, first, t),
                    (true, false) => tile::<W, N, 1>(rows, first, t),
                    (false, true) => tile::<W, 1, N>(rows, first, t),
                    (false, false) => tile::<W, 1, 1>(rows, first, t),
                }
            }
            t += if many { N } else { 1 };
        }
    }
}

/// `ROWS` rows from `first` on times `T` tokens from `t` on.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile<W: Load, const ROWS: usize, const T: usize>(rows: &Rows<'_>, first: usize, t: usize) {
    let cols = rows.acts.cols;
    let w: [*const u8; ROWS] = std::array::from_fn(|r| rows.row(first + r));
    let x: [*const f32; T] = std::array::from_fn(|i| rows.acts.x.as_ptr().wrapping_add((t + i) * cols));
    let mut acc = [[[_mm256_setzero_ps(); 2]; T]; ROWS];
    for c in (0..cols - cols % 16).step_by(16) {
        // SAFETY: sixteen columns of each row and token.
        unsafe {
            let a: [[__m256; 2]; T] =
                std::array::from_fn(|i| [_mm256_loadu_ps(x[i].add(c)), _mm256_loadu_ps(x[i].add(c + 8))]);
            for (w, acc) in w.iter().zip(&mut acc) {
                if T == 1 {
                    _mm_prefetch(w.wrapping_add(ROWS * rows.row_bytes + c * W::BYTES).cast(), _MM_HINT_T1);
                }
                let b = [W::load(w.add(c * W::BYTES)), W::load(w.add((c + 8) * W::BYTES))];
                for (a, acc) in a.iter().zip(acc) {
                    acc[0] = _mm256_fmadd_ps(b[0], a[0], acc[0]);
                    acc[1] = _mm256_fmadd_ps(b[1], a[1], acc[1]);
                }
            }
        }
    }
    let rest = cols % 16;
    if rest > 0 {
        let c = cols - rest;
        for (w, acc) in w.iter().zip(&mut acc) {
            for (x, acc) in x.iter().zip(acc) {
                // SAFETY: the remaining columns.
                unsafe { finish::<W>(w.add(c * W::BYTES), x.add(c), rest, acc) };
            }
        }
    }
    for (r, acc) in acc.into_iter().enumerate() {
        for (i, acc) in acc.into_iter().enumerate() {
            // SAFETY: the caller's word.
            unsafe { rows.write(t + i, first + r, add_lanes(acc)) };
        }
    }
}

/// Adds the last `rest` columns, fewer than sixteen; what is beyond them counts as zero.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn finish<W: Load>(w: *const u8, x: *const f32, rest: usize, acc: &mut [__m256; 2]) {
    let (mut weights, mut acts) = ([0u8; 64], [0.0f32; 16]);
    // SAFETY: `rest` elements of each by the caller's word.
    unsafe {
        std::ptr::copy_nonoverlapping(w, weights.as_mut_ptr(), rest * W::BYTES);
        std::ptr::copy_nonoverlapping(x, acts.as_mut_ptr(), rest);
        for (half, acc) in acc.iter_mut().enumerate() {
            let b = W::load(weights.as_ptr().add(8 * half * W::BYTES));
            *acc = _mm256_fmadd_ps(b, _mm256_loadu_ps(acts.as_ptr().add(8 * half)), *acc);
        }
    }
}

/// Adds sixteen lanes pairwise at distances 8, 4, 2, 1.
#[inline]
#[target_feature(enable = "avx2")]
fn add_lanes(v: [__m256; 2]) -> f32 {
    let v = _mm256_add_ps(v[0], v[1]);
    let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
    _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
}
