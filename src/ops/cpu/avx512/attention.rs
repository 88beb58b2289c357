//! Inner loops of attention, `attention_f32_avx512`: scores of eight keys at a time, weighted sums of values.
//!
//! The order of operations is that of `vector`: sixteen lanes a dot product, values added position by position.
//! One thread does 40-50 GFLOP/s: `benches/records/epyc-zen4-2cpu-2026-11-21.txt`.

use crate::ops::cpu::vector;
use std::arch::x86_64::*;

/// Keys side by side.
const KEYS: usize = 8;
/// Vectors of a value side by side.
const COLUMNS: usize = 8;

/// `scores[j] = scale · q·keys[j]`, keys `[scores.len(), q.len()]`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
pub(crate) unsafe fn scores(q: &[f32], keys: &[f32], scale: f32, scores: &mut [f32]) {
    let width = q.len();
    if !width.is_multiple_of(16) {
        return vector::scores(q, keys, scale, scores);
    }
    assert_eq!(keys.len(), scores.len() * width);
    let mut at = 0;
    while at < scores.len() {
        let take = (scores.len() - at).min(KEYS);
        // Keys beyond the last are read as the last.
        let key: [*const f32; KEYS] = std::array::from_fn(|j| keys[(at + j.min(take - 1)) * width..].as_ptr());
        let mut acc = [_mm512_setzero_ps(); KEYS];
        for c in (0..width).step_by(16) {
            // SAFETY: sixteen columns of the query and of each key.
            unsafe {
                let a = _mm512_loadu_ps(q.as_ptr().add(c));
                for (acc, key) in acc.iter_mut().zip(key) {
                    *acc = _mm512_fmadd_ps(a, _mm512_loadu_ps(key.add(c)), *acc);
                }
            }
        }
        let mut out = [0.0f32; KEYS];
        // SAFETY: 32 bytes of the array.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), _mm256_mul_ps(add_lanes(acc), _mm256_set1_ps(scale))) };
        scores[at..at + take].copy_from_slice(&out[..take]);
        at += take;
    }
}

/// Adds the lanes of each of eight vectors pairwise at distances 8, 4, 2, 1.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx2")]
fn add_lanes(v: [__m512; KEYS]) -> __m256 {
    // Distances 8 and 4 leave four lanes each; two vectors then share one.
    let four = v.map(|v| {
        let v = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
        _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1))
    });
    let join = |i: usize| _mm256_set_m128(four[i + 4], four[i]);
    let [a, b, c, d] = [join(0), join(1), join(2), join(3)];
    // Distance 2: lanes 0 + 2 and 1 + 3; distance 1: their sums.
    let two = |x, y| _mm256_add_ps(_mm256_shuffle_ps(x, y, 0x44), _mm256_shuffle_ps(x, y, 0xee));
    let (ab, cd) = (two(a, b), two(c, d));
    _mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x88), _mm256_shuffle_ps(ab, cd, 0xdd))
}

/// `out = out · keep + Σ_j weights[j] · values[j]`, values `[weights.len(), out.len()]`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
pub(crate) unsafe fn weigh(out: &mut [f32], keep: f32, weights: &[f32], values: &[f32]) {
    let width = out.len();
    if !width.is_multiple_of(16) {
        return vector::weigh(out, keep, weights, values);
    }
    assert_eq!(values.len(), weights.len() * width);
    let mut at = 0;
    while at < width {
        // SAFETY: that many columns of the output and of each value.
        unsafe {
            if width - at >= 16 * COLUMNS {
                columns::<COLUMNS>(out, keep, weights, values, at);
                at += 16 * COLUMNS;
            } else if width - at >= 64 {
                columns::<4>(out, keep, weights, values, at);
                at += 64;
            } else {
                columns::<1>(out, keep, weights, values, at);
                at += 16;
            }
        }
    }
}

/// `16 N` columns from `at` on.
#[inline]
#[target_feature(enable = "avx512f,fma")]
unsafe fn columns<const N: usize>(out: &mut [f32], keep: f32, weights: &[f32], values: &[f32], at: usize) {
    let width = out.len();
    let p = out[at..].as_mut_ptr();
    // SAFETY: the caller's word.
    unsafe {
        let mut sum: [__m512; N] =
            std::array::from_fn(|i| _mm512_mul_ps(_mm512_loadu_ps(p.add(16 * i)), _mm512_set1_ps(keep)));
        for (j, &weight) in weights.iter().enumerate() {
            let value = values.as_ptr().add(j * width + at);
            for (i, sum) in sum.iter_mut().enumerate() {
                *sum = _mm512_fmadd_ps(_mm512_set1_ps(weight), _mm512_loadu_ps(value.add(16 * i)), *sum);
            }
        }
        for (i, sum) in sum.into_iter().enumerate() {
            _mm512_storeu_ps(p.add(16 * i), sum);
        }
    }
}
