//! Block formats of ggml tensors: their layout, scalar decode and scalar encode. Knows nothing of files or models.

use std::fmt;

/// Element type of a tensor: every type current ggml numbers, also those without a decoder here.
///
/// The numeric value is ggml's type id as stored in GGUF files.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
#[allow(missing_docs, non_camel_case_types)]
pub enum DType {
    F32 = 0,
    F16 = 1,
    Q4_0 = 2,
    Q4_1 = 3,
    Q5_0 = 6,
    Q5_1 = 7,
    Q8_0 = 8,
    Q8_1 = 9,
    Q2_K = 10,
    Q3_K = 11,
    Q4_K = 12,
    Q5_K = 13,
    Q6_K = 14,
    Q8_K = 15,
    IQ2_XXS = 16,
    IQ2_XS = 17,
    IQ3_XXS = 18,
    IQ1_S = 19,
    IQ4_NL = 20,
    IQ3_S = 21,
    IQ2_S = 22,
    IQ4_XS = 23,
    I8 = 24,
    I16 = 25,
    I32 = 26,
    I64 = 27,
    F64 = 28,
    IQ1_M = 29,
    BF16 = 30,
    TQ1_0 = 34,
    TQ2_0 = 35,
    MXFP4 = 39,
    NVFP4 = 40,
}

impl DType {
    /// Elements per block; a row's length is a multiple of it.
    pub fn block_len(self) -> usize {
        todo!()
    }
    /// Bytes per block.
    pub fn block_bytes(self) -> usize {
        todo!()
    }
    /// ggml's name, e.g. `Q4_K`.
    pub fn name(self) -> &'static str {
        todo!()
    }
    /// Bytes of a row of `cols` elements; `None` when `cols` is not a multiple of the block length or overflows.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        let _ = cols;
        todo!()
    }
    /// True where [`dequantize`] exists.
    pub fn is_supported(self) -> bool {
        todo!()
    }
}

impl TryFrom<u32> for DType {
    type Error = u32;
    fn try_from(id: u32) -> Result<Self, u32> {
        Err(id)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Debug for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Decodes whole blocks of `src` into `dst` (`dst.len()` elements), bit-exact with ggml. Panics when the lengths do not
/// match or the type has no decoder: callers check [`DType::is_supported`] when the model is bound.
pub fn dequantize(dtype: DType, src: &[u8], dst: &mut [f32]) {
    let _ = (dtype, src, dst);
    todo!()
}

/// Encodes `src` into whole blocks of `dst`; the counterpart of [`dequantize`].
pub fn quantize(dtype: DType, src: &[f32], dst: &mut [u8]) {
    let _ = (dtype, src, dst);
    todo!()
}
