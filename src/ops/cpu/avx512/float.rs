//! `gem{v,m}_{f32,f16,bf16}_f32_avx512`: float weights times F32 activations, four rows by four tokens in registers.
//!
//! Lane `l` of an accumulator sums columns `16i + l`, whatever the shape of the tile; see `scalar` for the order.
//! One thread reads F32 at 23.5, F16 and BF16 at 20.1 GB/s where plain reading reaches 25.8:
//! `benches/records/epyc-zen4-2cpu-2026-11-21.txt`.

use crate::ops::cpu::table::Rows;
use std::arch::x86_64::*;

/// Rows and tokens of a full tile.
const N: usize = 4;

/// Loads of a float type.
pub(super) trait Load {
    /// Bytes of an element.
    const BYTES: usize;
    /// Sixteen elements.
    ///
    /// # Safety
    /// AVX-512 and that many readable bytes.
    unsafe fn load(p: *const u8) -> __m512;
}

pub(super) struct F32;
impl Load for F32 {
    const BYTES: usize = 4;
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load(p: *const u8) -> __m512 {
        // SAFETY: the caller's word.
        unsafe { _mm512_loadu_ps(p.cast()) }
    }
}

pub(super) struct F16;
impl Load for F16 {
    const BYTES: usize = 2;
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load(p: *const u8) -> __m512 {
        // SAFETY: the caller's word.
        _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(p.cast()) })
    }
}

pub(super) struct Bf16;
impl Load for Bf16 {
    const BYTES: usize = 2;
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load(p: *const u8) -> __m512 {
        // SAFETY: the caller's word.
        let words = _mm512_cvtepu16_epi32(unsafe { _mm256_loadu_si256(p.cast()) });
        _mm512_castsi512_ps(_mm512_slli_epi32(words, 16))
    }
}

/// All rows of a float type.
///
/// # Safety
/// As `Kernel`, with AVX-512.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma,f16c")]
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
                    (false, _) => {
                        for r in first..rows.rows {
                            if many {
                                tile::<W, 1, N>(rows, r, t);
                            } else {
                                tile::<W, 1, 1>(rows, r, t);
                            }
                        }
                    }
                }
            }
            t += if many { N } else { 1 };
        }
    }
}

/// `ROWS` rows from `first` on times `T` tokens from `t` on.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma,f16c")]
unsafe fn tile<W: Load, const ROWS: usize, const T: usize>(rows: &Rows<'_>, first: usize, t: usize) {
    let cols = rows.acts.cols;
    let w: [*const u8; ROWS] = std::array::from_fn(|r| rows.row(first + r));
    let x: [*const f32; T] = std::array::from_fn(|i| rows.acts.x.as_ptr().wrapping_add((t + i) * cols));
    let mut acc = [[_mm512_setzero_ps(); T]; ROWS];
    for c in (0..cols - cols % 16).step_by(16) {
        // SAFETY: sixteen columns of each row and token.
        unsafe {
            let a: [__m512; T] = std::array::from_fn(|i| _mm512_loadu_ps(x[i].add(c)));
            for r in 0..ROWS {
                if T == 1 {
                    _mm_prefetch(w[r].wrapping_add(ROWS * rows.row_bytes + c * W::BYTES).cast(), _MM_HINT_T1);
                }
                let b = W::load(w[r].add(c * W::BYTES));
                for i in 0..T {
                    acc[r][i] = _mm512_fmadd_ps(b, a[i], acc[r][i]);
                }
            }
        }
    }
    let rest = cols % 16;
    if rest > 0 {
        let (c, mask) = (cols - rest, ((1u32 << rest) - 1) as __mmask16);
        // SAFETY: the remaining columns; what is beyond them counts as zero.
        unsafe {
            let a: [__m512; T] = std::array::from_fn(|i| _mm512_maskz_loadu_ps(mask, x[i].add(c)));
            for r in 0..ROWS {
                let mut padded = [0u8; 64];
                std::ptr::copy_nonoverlapping(w[r].add(c * W::BYTES), padded.as_mut_ptr(), rest * W::BYTES);
                let b = W::load(padded.as_ptr());
                for i in 0..T {
                    acc[r][i] = _mm512_mask3_fmadd_ps(b, a[i], acc[r][i], mask);
                }
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

/// Adds the lanes pairwise at distances 8, 4, 2, 1.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn add_lanes(v: __m512) -> f32 {
    let v = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
    _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
}
