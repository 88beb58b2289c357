//! Kernels over panels ([`crate::quant::packed`]) by AVX2: a lane is a row, an activation a broadcast of four columns.
//!
//! ```text
//! vpmaddubsw  w[row, 4 columns] · a[4 columns]     two words a row; as many are added as fit for sure
//! vpmaddwd    words[row] · (scale, scale)          one exact i32 a row
//! ```
//! Sixteen rows are two vectors. Types whose unsigned weights are too large for two products in a word keep them signed, and
//! their sign goes to the activations. Few tokens: `gemv` unpacks in registers; many: `gemm` fills
//! [`crate::ops::cpu::tiles`]. Both keep the order of `scalar`, so they yield its bits.

mod codes;
mod gemm;
mod gemv;
mod kquants;
mod legacy;

use crate::ops::cpu::blocks::{Q2K, Q3K, Q4K, Q5K, Q6K, Q40, Q41, Q50, Q51, Q80};
use crate::ops::cpu::codes::{Iq4Nl, Iq4Xs, Mxfp4, Tq20};
use crate::ops::cpu::table::{Kernel, Rows};
use crate::quant::DType;
use crate::quant::packed::VECTOR;
use std::arch::asm;
use std::arch::x86_64::*;

/// Up to this many tokens the weights are unpacked in registers.
const FEW_TOKENS: usize = 2;

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
        DType::IQ4_NL => legacy::<Iq4Nl>,
        DType::IQ4_XS => kquant::<Iq4Xs>,
        DType::TQ2_0 => kquant::<Tq20>,
        DType::MXFP4 => legacy::<Mxfp4>,
        _ => return None,
    })
}

/// Panels of a K-quant.
unsafe fn kquant<B: kquants::Panel>(rows: &Rows<'_>) {
    // SAFETY: the caller's word.
    unsafe { if rows.tokens.len() <= FEW_TOKENS { gemv::kquant_rows::<B>(rows) } else { gemm::kquant_rows::<B>(rows) } }
}

/// Panels of a legacy type.
unsafe fn legacy<B: legacy::Panel>(rows: &Rows<'_>) {
    // SAFETY: the caller's word.
    unsafe { if rows.tokens.len() <= FEW_TOKENS { gemv::legacy_rows::<B>(rows) } else { gemm::legacy_rows::<B>(rows) } }
}

/// A dword of each of sixteen rows: of the first eight, and of the others.
type Lanes = [__m256i; 2];
/// A number for each of sixteen rows.
type Floats = [__m256; 2];

/// Vector `i` from `p` on.
///
/// # Safety
/// It is readable.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn vector(p: *const u8, i: usize) -> Lanes {
    // SAFETY: the caller's word.
    unsafe {
        let p = p.add(i * VECTOR).cast::<__m256i>();
        [_mm256_loadu_si256(p), _mm256_loadu_si256(p.add(1))]
    }
}

/// Four activations, dword `i` from `p` on, in every lane.
///
/// # Safety
/// They are readable.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn four(p: *const i8, i: usize) -> __m256i {
    // SAFETY: the caller's word.
    _mm256_set1_epi32(unsafe { p.cast::<i32>().add(i).read_unaligned() })
}

/// Products of four columns, two words a row. Signed weights hand their sign to the activations.
#[inline]
#[target_feature(enable = "avx2")]
fn products<const SIGNED: bool>(w: __m256i, a: __m256i) -> __m256i {
    if SIGNED { _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w)) } else { _mm256_maddubs_epi16(w, a) }
}

/// `v & mask`, a dword of it.
#[inline]
#[target_feature(enable = "avx2")]
fn and(v: Lanes, mask: u32) -> Lanes {
    let mask = _mm256_set1_epi32(mask as i32);
    [_mm256_and_si256(v[0], mask), _mm256_and_si256(v[1], mask)]
}

#[inline]
#[target_feature(enable = "avx2")]
fn or(a: Lanes, b: Lanes) -> Lanes {
    [_mm256_or_si256(a[0], b[0]), _mm256_or_si256(a[1], b[1])]
}

/// Dwords shifted right; what falls out of a byte is to be masked.
#[inline]
#[target_feature(enable = "avx2")]
fn down(v: Lanes, bits: usize) -> Lanes {
    let bits = _mm_cvtsi32_si128(bits as i32);
    [_mm256_srl_epi32(v[0], bits), _mm256_srl_epi32(v[1], bits)]
}

/// Dwords shifted left; what falls out of a byte is to be masked.
#[inline]
#[target_feature(enable = "avx2")]
fn up(v: Lanes, bits: usize) -> Lanes {
    let bits = _mm_cvtsi32_si128(bits as i32);
    [_mm256_sll_epi32(v[0], bits), _mm256_sll_epi32(v[1], bits)]
}

const NIBBLES: u32 = 0x0f0f_0f0f;
const CRUMBS: u32 = 0x0303_0303;
const BITS: u32 = 0x0101_0101;

/// The low nibble of every byte, and the high one.
#[inline]
#[target_feature(enable = "avx2")]
fn nibbles(v: Lanes) -> [Lanes; 2] {
    [and(v, NIBBLES), and(down(v, 4), NIBBLES)]
}

/// Sixteen factors of half precision that stand together.
///
/// # Safety
/// 32 bytes are readable.
#[inline]
#[target_feature(enable = "avx2,f16c")]
unsafe fn halves(p: *const u8) -> Floats {
    // SAFETY: the caller's word.
    let (low, high) = unsafe { (_mm_loadu_si128(p.cast()), _mm_loadu_si128(p.add(16).cast())) };
    [_mm256_cvtph_ps(low), _mm256_cvtph_ps(high)]
}

/// The low and the high halves of a vector's dwords, widened.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn low_high(v: Lanes) -> [Floats; 2] {
    let (low, high) = (and(v, 0xffff), down(v, 16));
    [widen(low), widen(high)]
}

/// Halves in the low words of dwords, widened.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn widen(v: Lanes) -> Floats {
    let words = _mm256_permute4x64_epi64(_mm256_packus_epi32(v[0], v[1]), 0xd8);
    [_mm256_cvtph_ps(_mm256_castsi256_si128(words)), _mm256_cvtph_ps(_mm256_extracti128_si256(words, 1))]
}

/// Halves of sixteen powers of two whose exponents stand together, as [`crate::quant::fp4::e8m0_half`].
///
/// # Safety
/// 16 bytes are readable.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn powers(p: *const u8) -> Floats {
    let mut out = [_mm256_setzero_ps(); 2];
    for (h, out) in out.iter_mut().enumerate() {
        // SAFETY: the caller's word.
        let e = _mm256_cvtepu8_epi32(unsafe { _mm_loadl_epi64(p.add(8 * h).cast()) });
        let normal = _mm256_slli_epi32(_mm256_sub_epi32(e, _mm256_set1_epi32(1)), 23);
        let small = _mm256_cmpgt_epi32(_mm256_set1_epi32(2), e);
        let subnormal = _mm256_sllv_epi32(_mm256_set1_epi32(0x0020_0000), e);
        *out = _mm256_castsi256_ps(_mm256_blendv_epi8(normal, subnormal, small));
    }
    out
}

/// Adds `v · factor · scale` to sixteen sums.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn add_scaled(acc: &mut Floats, v: Lanes, factor: Floats, scale: f32) {
    for h in 0..2 {
        let factor = _mm256_mul_ps(factor[h], _mm256_set1_ps(scale));
        acc[h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(v[h]), factor, acc[h]);
    }
}

/// Loads before it stay before it, those after it after it, and `sum` is computed in between: a panel is laid out in the order in
/// which it is read, and the processor's prefetchers want it so. No instruction.
#[inline]
#[target_feature(enable = "avx2")]
fn keep_order(sum: &mut __m256i) {
    // SAFETY: nothing is executed.
    unsafe { asm!("/* {} */", inout(ymm_reg) * sum, options(nostack, preserves_flags)) };
}
