//! `gem{v,m}_{f32,f16,bf16}_f32_avx2`: float weights times F32 activations, two rows by three tokens in registers; see
//! [`crate::ops::cpu::float`]. Sixteen lanes are two vectors.

use crate::ops::cpu::acts::Acts;
use crate::ops::cpu::float::{self, Dot, Sums};
use crate::ops::cpu::table::Rows;
use std::arch::x86_64::*;
use std::marker::PhantomData;

/// Rows of a tile.
const R: usize = 2;

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
    #[inline(always)]
    unsafe fn load(p: *const u8) -> __m256 {
        // SAFETY: the caller's word.
        unsafe { _mm256_loadu_ps(p.cast()) }
    }
}

pub(super) struct F16;
impl Load for F16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load(p: *const u8) -> __m256 {
        // SAFETY: the caller's word.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
    }
}

pub(super) struct Bf16;
impl Load for Bf16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load(p: *const u8) -> __m256 {
        // SAFETY: the caller's word.
        unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast())))) }
    }
}

/// Weights of a type times F32.
struct Widened<W>(PhantomData<W>);

// SAFETY of all blocks below: by the caller's word, as the trait says.
impl<W: Load> Dot for Widened<W> {
    const BYTES: usize = W::BYTES;
    const COLS: usize = 16;
    const HALVES: usize = 2;
    const TILE: usize = 3;
    type Act = f32;
    type Sum = __m256;
    type Half = __m256;

    fn acts(acts: &Acts<'_>) -> (*const f32, usize) {
        (acts.x.as_ptr(), acts.cols)
    }
    #[inline(always)]
    unsafe fn zero() -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn get(p: *const f32) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn put(p: *mut f32, v: __m256) {
        // SAFETY: see above.
        unsafe { _mm256_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn weights(p: *const u8, half: usize) -> __m256 {
        // SAFETY: see above.
        unsafe { W::load(p.add(8 * half * W::BYTES)) }
    }
    #[inline(always)]
    unsafe fn activations(p: *const f32, half: usize) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_loadu_ps(p.add(8 * half)) }
    }
    #[inline(always)]
    unsafe fn multiply(w: __m256, a: __m256, sum: __m256) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_fmadd_ps(w, a, sum) }
    }
    #[inline(always)]
    unsafe fn add(lanes: &[Sums; 16]) -> [f32; 16] {
        // SAFETY: see above.
        unsafe { lanes.each_ref().map(|lanes| add_lanes(lanes)) }
    }
}

/// All rows of a float type.
///
/// # Safety
/// As `Kernel`, with AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn rows<W: Load>(rows: &Rows<'_>) {
    // SAFETY: the caller's word.
    unsafe { float::rows::<Widened<W>, R>(rows) }
}

/// Adds sixteen lanes pairwise at distances 8, 4, 2, 1.
#[inline]
#[target_feature(enable = "avx2")]
fn add_lanes(lanes: &Sums) -> f32 {
    // SAFETY: 64 bytes.
    let v = unsafe { _mm256_add_ps(_mm256_loadu_ps(lanes.as_ptr()), _mm256_loadu_ps(lanes.as_ptr().add(8))) };
    let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
    _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
}
