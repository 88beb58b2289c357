//! Block formats of ggml tensors: their layout, scalar decode and scalar encode. Knows nothing of files or models.
//!
//! A row of a quantised tensor is a run of blocks; a block is [`DType::block_bytes`] bytes for [`DType::block_len`]
//! elements, all numbers little-endian. One file per family: [`float`], [`legacy`] (32 elements, one scale), [`kquants`]
//! (256 elements, scales of scales), [`iq1`], [`iq2`], [`iq3`] (points of a [`codebook`]), [`iq4`] (sixteen uneven values),
//! [`ternary`], [`fp4`] (four-bit floats). Each format gives field accessors or the block's integers ([`scaled`]) over
//! `&[u8; BYTES]` for the kernels, a decoder that is bit-exact with ggml's (the order of float operations is part of the
//! format) and an encoder, except [`iq1`], [`iq2`], [`iq3`], which say why.
//!
//! [`packed`] is the order in which the blocks of sixteen rows lie in memory for the kernels.
//!
//! These are the specification that the kernels in `ops` are tested against, not fast paths.

pub mod codebook;
mod dtype;
pub mod float;
pub mod fp4;
pub mod iq1;
pub mod iq2;
pub mod iq3;
pub mod iq4;
pub mod kquants;
pub mod legacy;
pub mod packed;
pub mod scaled;
pub mod ternary;

pub use dtype::DType;
pub use packed::Layout;

use half::f16;
use kquants::{q2_k, q3_k, q4_k, q5_k, q6_k, q8_k};

/// Decodes whole blocks of `src` into `dst` (`dst.len()` elements), bit-exact with ggml.
///
/// # Panics
/// When the lengths do not match or the type has no decoder: callers check [`DType::is_supported`] when the model is
/// bound.
pub fn dequantize(dtype: DType, src: &[u8], dst: &mut [f32]) {
    check(dtype, src.len(), dst.len());
    match dtype {
        DType::F32 => each_decode(src, dst, float::f32_decode),
        DType::F16 => each_decode(src, dst, float::f16_decode),
        DType::BF16 => each_decode(src, dst, float::bf16_decode),
        DType::Q4_0 => each_decode(src, dst, legacy::q4_0_decode),
        DType::Q4_1 => each_decode(src, dst, legacy::q4_1_decode),
        DType::Q5_0 => each_decode(src, dst, legacy::q5_0_decode),
        DType::Q5_1 => each_decode(src, dst, legacy::q5_1_decode),
        DType::Q8_0 => each_decode(src, dst, legacy::q8_0_decode),
        DType::Q2_K => each_decode(src, dst, q2_k::decode),
        DType::Q3_K => each_decode(src, dst, q3_k::decode),
        DType::Q4_K => each_decode(src, dst, q4_k::decode),
        DType::Q5_K => each_decode(src, dst, q5_k::decode),
        DType::Q6_K => each_decode(src, dst, q6_k::decode),
        DType::Q8_K => each_decode(src, dst, q8_k::decode),
        DType::IQ1_S => each_decode(src, dst, |block, out| iq1::s(block).write(out)),
        DType::IQ1_M => each_decode(src, dst, |block, out| iq1::m(block).write(out)),
        DType::IQ2_XXS => each_decode(src, dst, |block, out| iq2::xxs(block).write(out)),
        DType::IQ2_XS => each_decode(src, dst, |block, out| iq2::xs(block).write(out)),
        DType::IQ2_S => each_decode(src, dst, |block, out| iq2::s(block).write(out)),
        DType::IQ3_XXS => each_decode(src, dst, |block, out| iq3::xxs(block).write(out)),
        DType::IQ3_S => each_decode(src, dst, |block, out| iq3::s(block).write(out)),
        DType::IQ4_NL => each_decode(src, dst, iq4::nl_decode),
        DType::IQ4_XS => each_decode(src, dst, |block, out| iq4::xs(block).write(out)),
        DType::TQ1_0 => each_decode(src, dst, |block, out| ternary::tq1(block).write(out)),
        DType::TQ2_0 => each_decode(src, dst, |block, out| ternary::tq2(block).write(out)),
        DType::MXFP4 => each_decode(src, dst, fp4::mx_decode),
        DType::NVFP4 => each_decode(src, dst, fp4::nv_decode),
        other => panic!("{other} has no decoder; check DType::is_supported first"),
    }
}

/// Encodes `src` into whole blocks of `dst`; the counterpart of [`dequantize`]. Meant for finite values: what a
/// block with a NaN or an infinity becomes in the quantised formats is not specified.
///
/// # Panics
/// When the lengths do not match or the type has no encoder ([`DType::has_encoder`]).
pub fn quantize(dtype: DType, src: &[f32], dst: &mut [u8]) {
    check(dtype, dst.len(), src.len());
    match dtype {
        DType::F32 => each_encode(src, dst, float::f32_encode),
        DType::F16 => each_encode(src, dst, float::f16_encode),
        DType::BF16 => each_encode(src, dst, float::bf16_encode),
        DType::Q4_0 => each_encode(src, dst, legacy::q4_0_encode),
        DType::Q4_1 => each_encode(src, dst, legacy::q4_1_encode),
        DType::Q5_0 => each_encode(src, dst, legacy::q5_0_encode),
        DType::Q5_1 => each_encode(src, dst, legacy::q5_1_encode),
        DType::Q8_0 => each_encode(src, dst, legacy::q8_0_encode),
        DType::Q2_K => each_encode(src, dst, q2_k::encode),
        DType::Q3_K => each_encode(src, dst, q3_k::encode),
        DType::Q4_K => each_encode(src, dst, q4_k::encode),
        DType::Q5_K => each_encode(src, dst, q5_k::encode),
        DType::Q6_K => each_encode(src, dst, q6_k::encode),
        DType::Q8_K => each_encode(src, dst, q8_k::encode),
        DType::IQ4_NL => each_encode(src, dst, iq4::nl_encode),
        DType::IQ4_XS => each_encode(src, dst, iq4::xs_encode),
        DType::TQ1_0 => each_encode(src, dst, ternary::tq1_encode),
        DType::TQ2_0 => each_encode(src, dst, ternary::tq2_encode),
        DType::MXFP4 => each_encode(src, dst, fp4::mx_encode),
        DType::NVFP4 => each_encode(src, dst, fp4::nv_encode),
        other => panic!("{other} has no encoder; check DType::has_encoder first"),
    }
}

/// Bytes and elements must be whole blocks of `dtype`, as many on both sides.
fn check(dtype: DType, bytes: usize, elements: usize) {
    assert_eq!(dtype.row_bytes(elements), Some(bytes), "{elements} elements of {dtype} do not fill {bytes} bytes");
}

fn each_decode<const B: usize, const N: usize>(src: &[u8], dst: &mut [f32], decode: impl Fn(&[u8; B], &mut [f32; N])) {
    let (blocks, _) = src.as_chunks::<B>();
    let (outs, _) = dst.as_chunks_mut::<N>();
    blocks.iter().zip(outs).for_each(|(block, out)| decode(block, out));
}

fn each_encode<const B: usize, const N: usize>(src: &[f32], dst: &mut [u8], encode: impl Fn(&[f32; N], &mut [u8; B])) {
    let (ins, _) = src.as_chunks::<N>();
    let (blocks, _) = dst.as_chunks_mut::<B>();
    ins.iter().zip(blocks).for_each(|(x, block)| encode(x, block));
}

/// The F16 number at `block[at..at + 2]`, widened (exact).
#[inline]
pub fn f16_at(block: &[u8], at: usize) -> f32 {
    float::widen_f16(u16::from_le_bytes([block[at], block[at + 1]]))
}

/// Stores `value` at `block[at..at + 2]`, rounded to the nearest F16, ties to even.
#[inline]
pub fn put_f16(block: &mut [u8], at: usize, value: f32) {
    block[at..at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
}

/// `N` bytes of a block from `AT` on; a length known to the compiler, so no check is left at run time.
#[inline]
fn field<const AT: usize, const N: usize, const B: usize>(block: &[u8; B]) -> &[u8; N] {
    const { assert!(AT + N <= B) };
    match block[AT..].first_chunk() {
        Some(field) => field,
        None => unreachable!("AT + N <= B is checked above"),
    }
}
