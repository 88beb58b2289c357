//! Attention's vectors in AVX2: two registers each.

use crate::ops::cpu::attention::Lanes;
use std::arch::x86_64::*;

/// Pairs of 256-bit registers.
#[derive(Clone, Copy)]
pub(crate) struct Pairs;

/// `acc + |k| · (q with k's sign)`: pairs stay below 2 · 128 · 127 and do not saturate.
#[inline(always)]
unsafe fn half_keys(acc: __m256i, keys: __m256i, query: __m256i) -> __m256i {
    // SAFETY: the caller's word.
    unsafe {
        let keys = _mm256_xor_si256(keys, _mm256_set1_epi8(-128));
        half_bytes(acc, _mm256_abs_epi8(keys), _mm256_sign_epi8(query, keys))
    }
}

/// `acc +` the products of four unsigned and four signed bytes.
#[inline(always)]
unsafe fn half_bytes(acc: __m256i, a: __m256i, b: __m256i) -> __m256i {
    // SAFETY: the caller's word.
    unsafe { _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), _mm256_set1_epi16(1))) }
}

// SAFETY of all blocks below: the host has the tier, and pointers are good for what is read or written, by the caller's
// word.
impl Lanes for Pairs {
    type F = [__m256; 2];
    type I = [__m256i; 2];
    const WIDE: bool = false;
    const BIAS: i32 = 0;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        // SAFETY: see above.
        unsafe { [_mm256_set1_ps(x); 2] }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        // SAFETY: see above.
        unsafe { [_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))] }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::F) {
        // SAFETY: see above.
        unsafe {
            _mm256_storeu_ps(p, v[0]);
            _mm256_storeu_ps(p.add(8), v[1]);
        }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> Self::F {
        // SAFETY: see above.
        unsafe { [_mm256_cvtph_ps(_mm_loadu_si128(p.cast())), _mm256_cvtph_ps(_mm_loadu_si128(p.add(16).cast()))] }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u8) -> Self::F {
        // SAFETY: see above.
        unsafe {
            let low = _mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast())));
            let high = _mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(p.add(16).cast())));
            [_mm256_castsi256_ps(low), _mm256_castsi256_ps(high)]
        }
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe { [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe { [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn abs(a: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe { [_mm256_andnot_ps(_mm256_set1_ps(-0.0), a[0]), _mm256_andnot_ps(_mm256_set1_ps(-0.0), a[1])] }
    }
    #[inline(always)]
    unsafe fn select(bits: u16, v: Self::F, other: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe {
            let (bits, bit) = (_mm256_set1_epi32(i32::from(bits)), _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128));
            let low = _mm256_cmpeq_epi32(_mm256_and_si256(bits, bit), bit);
            let bit = _mm256_slli_epi32::<8>(bit);
            let high = _mm256_cmpeq_epi32(_mm256_and_si256(bits, bit), bit);
            [
                _mm256_blendv_ps(other[0], v[0], _mm256_castsi256_ps(low)),
                _mm256_blendv_ps(other[1], v[1], _mm256_castsi256_ps(high)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn zero_below(x: Self::F, limit: f32, v: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe {
            let limit = _mm256_set1_ps(limit);
            [
                _mm256_and_ps(_mm256_cmp_ps::<_CMP_NLT_UQ>(x[0], limit), v[0]),
                _mm256_and_ps(_mm256_cmp_ps::<_CMP_NLT_UQ>(x[1], limit), v[1]),
            ]
        }
    }
    #[inline(always)]
    unsafe fn power_of_two(x: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe {
            let one = _mm256_set1_epi32(0x3f80_0000);
            let low = _mm256_add_epi32(_mm256_slli_epi32::<23>(_mm256_castps_si256(x[0])), one);
            let high = _mm256_add_epi32(_mm256_slli_epi32::<23>(_mm256_castps_si256(x[1])), one);
            [_mm256_castsi256_ps(low), _mm256_castsi256_ps(high)]
        }
    }
    #[inline(always)]
    unsafe fn reduce_max(v: Self::F) -> f32 {
        // SAFETY: see above.
        unsafe {
            let v = _mm256_max_ps(v[0], v[1]);
            let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)))
        }
    }
    #[inline(always)]
    unsafe fn reduce_add(v: Self::F) -> f32 {
        // SAFETY: see above.
        unsafe {
            let v = _mm256_add_ps(v[0], v[1]);
            let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
        }
    }
    #[inline(always)]
    unsafe fn to_float(v: Self::I) -> Self::F {
        // SAFETY: see above.
        unsafe { [_mm256_cvtepi32_ps(v[0]), _mm256_cvtepi32_ps(v[1])] }
    }
    #[inline(always)]
    unsafe fn splat_i32(x: i32) -> Self::I {
        // SAFETY: see above.
        unsafe { [_mm256_set1_epi32(x); 2] }
    }
    #[inline(always)]
    unsafe fn load_bytes(p: *const u8) -> Self::I {
        // SAFETY: see above.
        unsafe { [_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(32).cast())] }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const u8) -> Self::I {
        // SAFETY: see above.
        unsafe {
            [_mm256_cvtepi8_epi16(_mm_loadu_si128(p.cast())), _mm256_cvtepi8_epi16(_mm_loadu_si128(p.add(16).cast()))]
        }
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> Self::I {
        // SAFETY: see above.
        unsafe {
            [_mm256_cvtepu8_epi16(_mm_loadu_si128(p.cast())), _mm256_cvtepu8_epi16(_mm_loadu_si128(p.add(16).cast()))]
        }
    }
    #[inline(always)]
    unsafe fn nibbles(v: Self::I) -> (Self::I, Self::I) {
        // SAFETY: see above.
        unsafe {
            let mask = _mm256_set1_epi8(15);
            (v.map(|v| _mm256_and_si256(v, mask)), v.map(|v| _mm256_and_si256(_mm256_srli_epi16::<4>(v), mask)))
        }
    }
    #[inline(always)]
    unsafe fn sub_i16(v: Self::I, x: i16) -> Self::I {
        // SAFETY: see above.
        unsafe { [_mm256_sub_epi16(v[0], _mm256_set1_epi16(x)), _mm256_sub_epi16(v[1], _mm256_set1_epi16(x))] }
    }
    #[inline(always)]
    unsafe fn dot_keys(acc: Self::I, keys: Self::I, query: Self::I) -> Self::I {
        // SAFETY: see above.
        unsafe { [half_keys(acc[0], keys[0], query[0]), half_keys(acc[1], keys[1], query[1])] }
    }
    #[inline(always)]
    unsafe fn dot_small(acc: Self::I, keys: Self::I, query: Self::I) -> Self::I {
        // SAFETY: see above. Pairs stay below 2 · 15 · 127.
        unsafe { [half_bytes(acc[0], keys[0], query[0]), half_bytes(acc[1], keys[1], query[1])] }
    }
    #[inline(always)]
    unsafe fn dot_pairs(acc: Self::I, a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: see above.
        unsafe {
            [
                _mm256_add_epi32(acc[0], _mm256_madd_epi16(a[0], b[0])),
                _mm256_add_epi32(acc[1], _mm256_madd_epi16(a[1], b[1])),
            ]
        }
    }
    #[inline(always)]
    unsafe fn store_i16(p: *mut i16, low: Self::F, high: Self::F) {
        // SAFETY: see above.
        unsafe {
            // Packing interleaves 128-bit lanes of both; put them back in order.
            let low = _mm256_packs_epi32(_mm256_cvtps_epi32(low[0]), _mm256_cvtps_epi32(low[1]));
            let high = _mm256_packs_epi32(_mm256_cvtps_epi32(high[0]), _mm256_cvtps_epi32(high[1]));
            _mm256_storeu_si256(p.cast(), _mm256_permute4x64_epi64::<0b11_01_10_00>(low));
            _mm256_storeu_si256(p.add(16).cast(), _mm256_permute4x64_epi64::<0b11_01_10_00>(high));
        }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        // SAFETY: a prefetch of any address is harmless.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
}
