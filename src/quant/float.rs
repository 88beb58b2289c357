//! F32, F16 and BF16: one element per "block".
//!
//! ```text
//! F32   4 bytes  IEEE 754 binary32
//! F16   2 bytes  IEEE 754 binary16: sign 1, exponent 5, mantissa 10
//! BF16  2 bytes  upper half of a binary32: sign 1, exponent 8, mantissa 7
//! ```
//! Widening is exact, subnormals included. Narrowing rounds to nearest, ties to even; a NaN stays a NaN.

use super::DType;
use half::{bf16, f16};

const _: () = assert!(DType::F32.block_bytes() == size_of::<f32>());
const _: () = assert!(DType::F16.block_bytes() == size_of::<f16>());
const _: () = assert!(DType::BF16.block_bytes() == size_of::<bf16>());

/// F32 as it is.
#[inline]
pub fn f32_decode(src: &[u8; 4], out: &mut [f32; 1]) {
    out[0] = f32::from_le_bytes(*src);
}

/// F32 as it is.
#[inline]
pub fn f32_encode(x: &[f32; 1], dst: &mut [u8; 4]) {
    *dst = x[0].to_le_bytes();
}

/// F16 to F32.
#[inline]
pub fn f16_decode(src: &[u8; 2], out: &mut [f32; 1]) {
    out[0] = widen_f16(u16::from_le_bytes(*src));
}

/// The F16 number of these bits as F32, exact. A few operations without branch or call: unlike `half`'s, it asks for no CPU
/// feature at each number, and becomes vector code where the loop around it does.
#[inline(always)]
pub fn widen_f16(bits: u16) -> f32 {
    let magnitude = u32::from(bits & 0x7fff);
    // The fraction in its place, the exponent too small by 112, subnormal where F16's is.
    let scaled = f32::from_bits(magnitude << 13) * f32::from_bits((112 + 127) << 23);
    let infinite = if magnitude >= 0x7c00 { 0x7f80_0000 } else { 0 };
    f32::from_bits(scaled.to_bits() | infinite | u32::from(bits & 0x8000) << 16)
}

/// F32 to F16; beyond ±65504 it becomes an infinity.
#[inline]
pub fn f16_encode(x: &[f32; 1], dst: &mut [u8; 2]) {
    *dst = f16::from_f32(x[0]).to_le_bytes();
}

/// BF16 to F32.
#[inline]
pub fn bf16_decode(src: &[u8; 2], out: &mut [f32; 1]) {
    out[0] = bf16::from_le_bytes(*src).to_f32();
}

/// F32 to BF16.
#[inline]
pub fn bf16_encode(x: &[f32; 1], dst: &mut [u8; 2]) {
    *dst = bf16::from_f32(x[0]).to_le_bytes();
}
