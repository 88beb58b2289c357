//! Kernels over panels ([`crate::quant::packed`]) by VNNI: a lane is a row, an activation a broadcast of four columns.
//!
//! ```text
//! vpdpbusd  sums[row] += w[row, 4 columns] · a[4 columns]      unsigned weights, signed activations, exact
//! ```
//! No horizontal sums; scales of sixteen rows are one vector. What weights are above their signed value goes into the
//! sums' start, from the activations' sums. `gemv` keeps unpacked weights in registers for few tokens, `gemm` unpacks two
//! panels once into L1 for many. Both keep the order of `scalar`, so they yield its bits.

mod codes;
pub(super) mod gemm;
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

/// Up to this many tokens the weights are unpacked in registers, panel by panel, for all of them.
const FEW_TOKENS: usize = 16;

/// Kernels for panels, for tiers with VNNI.
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

/// Calls `f::<B, T>` with `T` the number of tokens `$n`, at most four.
macro_rules! by_tokens {
    ($n:expr, $($f:ident)::+ ::<$b:tt>($($arg:expr),*)) => {
        match $n {
            1 => $($f)::+::<$b, 1>($($arg),*),
            2 => $($f)::+::<$b, 2>($($arg),*),
            3 => $($f)::+::<$b, 3>($($arg),*),
            _ => $($f)::+::<$b, 4>($($arg),*),
        }
    };
}
use by_tokens;

/// Vector `i` from `p` on.
///
/// # Safety
/// It is readable.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn vector(p: *const u8, i: usize) -> __m512i {
    // SAFETY: the caller's word.
    unsafe { _mm512_loadu_si512(p.add(i * VECTOR).cast()) }
}

/// Four activations, dword `i` from `p` on, in every lane.
///
/// # Safety
/// They are readable.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn four(p: *const i8, i: usize) -> __m512i {
    // SAFETY: the caller's word.
    _mm512_set1_epi32(unsafe { p.cast::<i32>().add(i).read_unaligned() })
}

/// `vpdpwssd`: adds the products of two pairs of 16-bit numbers to every lane of `sum`. By name, as the compiler would make a
/// product and an addition of it.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn add_products(sum: &mut __m512i, a: __m512i, b: __m512i) {
    // SAFETY: registers only.
    unsafe {
        asm!("vpdpwssd {}, {}, {}", inout(zmm_reg) *sum, in(zmm_reg) a, in(zmm_reg) b, options(pure, nomem, nostack, preserves_flags));
    }
}

/// Sixteen factors of half precision that stand together.
///
/// # Safety
/// 32 bytes are readable.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn halves(p: *const u8) -> __m512 {
    // SAFETY: the caller's word.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(p.cast()) })
}

/// The low and the high halves of a vector's dwords, widened.
#[inline]
#[target_feature(enable = "avx512f")]
fn low_high(v: __m512i) -> (__m512, __m512) {
    let low = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(v));
    (low, _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(v, 16))))
}

/// Halves of sixteen powers of two whose exponents stand together, as [`crate::quant::fp4::e8m0_half`].
///
/// # Safety
/// 16 bytes are readable.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn powers(p: *const u8) -> __m512 {
    // SAFETY: the caller's word.
    let e = _mm512_cvtepu8_epi32(unsafe { _mm_loadu_si128(p.cast()) });
    let normal = _mm512_slli_epi32(_mm512_sub_epi32(e, _mm512_set1_epi32(1)), 23);
    let small = _mm512_cmplt_epu32_mask(e, _mm512_set1_epi32(2));
    _mm512_castsi512_ps(_mm512_mask_sllv_epi32(normal, small, _mm512_set1_epi32(0x0020_0000), e))
}
