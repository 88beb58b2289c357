//! Element types: every type current ggml numbers, with its block geometry. Knows no decoder's inside.

use std::fmt;

/// Element type of a tensor: every type current ggml numbers, also those without a decoder here.
///
/// The numeric value is ggml's type id as stored in GGUF files. Numbers ggml has withdrawn (4, 5, 31–33, 36–38) are no
/// types; [`DType::removed`] names them for error messages.
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
    Q1_0 = 41,
    Q2_0 = 42,
}

use DType::*;

impl DType {
    /// Every type, by rising id.
    pub const ALL: [DType; 35] = [
        F32, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q8_1, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, Q8_K, IQ2_XXS, IQ2_XS, IQ3_XXS,
        IQ1_S, IQ4_NL, IQ3_S, IQ2_S, IQ4_XS, I8, I16, I32, I64, F64, IQ1_M, BF16, TQ1_0, TQ2_0, MXFP4, NVFP4, Q1_0,
        Q2_0,
    ];

    /// Name, elements per block, bytes per block.
    const fn row(self) -> (&'static str, usize, usize) {
        match self {
            F32 => ("F32", 1, 4),
            F16 => ("F16", 1, 2),
            BF16 => ("BF16", 1, 2),
            F64 => ("F64", 1, 8),
            I8 => ("I8", 1, 1),
            I16 => ("I16", 1, 2),
            I32 => ("I32", 1, 4),
            I64 => ("I64", 1, 8),
            Q4_0 => ("Q4_0", 32, 18),
            Q4_1 => ("Q4_1", 32, 20),
            Q5_0 => ("Q5_0", 32, 22),
            Q5_1 => ("Q5_1", 32, 24),
            Q8_0 => ("Q8_0", 32, 34),
            Q8_1 => ("Q8_1", 32, 36),
            Q2_K => ("Q2_K", 256, 84),
            Q3_K => ("Q3_K", 256, 110),
            Q4_K => ("Q4_K", 256, 144),
            Q5_K => ("Q5_K", 256, 176),
            Q6_K => ("Q6_K", 256, 210),
            Q8_K => ("Q8_K", 256, 292),
            IQ1_S => ("IQ1_S", 256, 50),
            IQ1_M => ("IQ1_M", 256, 56),
            IQ2_XXS => ("IQ2_XXS", 256, 66),
            IQ2_XS => ("IQ2_XS", 256, 74),
            IQ2_S => ("IQ2_S", 256, 82),
            IQ3_XXS => ("IQ3_XXS", 256, 98),
            IQ3_S => ("IQ3_S", 256, 110),
            IQ4_NL => ("IQ4_NL", 32, 18),
            IQ4_XS => ("IQ4_XS", 256, 136),
            TQ1_0 => ("TQ1_0", 256, 54),
            TQ2_0 => ("TQ2_0", 256, 66),
            MXFP4 => ("MXFP4", 32, 17),
            NVFP4 => ("NVFP4", 64, 36),
            Q1_0 => ("Q1_0", 128, 18),
            Q2_0 => ("Q2_0", 64, 18),
        }
    }

    /// Elements per block; a row's length is a multiple of it.
    #[inline]
    pub const fn block_len(self) -> usize {
        self.row().1
    }

    /// Bytes per block.
    #[inline]
    pub const fn block_bytes(self) -> usize {
        self.row().2
    }

    /// ggml's name, e.g. `Q4_K`.
    #[inline]
    pub const fn name(self) -> &'static str {
        self.row().0
    }

    /// ggml's number of the type, as in GGUF files.
    #[inline]
    pub const fn id(self) -> u32 {
        self as u32
    }

    /// Bytes of a row of `cols` elements; `None` when `cols` is not a multiple of the block length or overflows.
    #[inline]
    pub const fn row_bytes(self, cols: usize) -> Option<usize> {
        if cols.is_multiple_of(self.block_len()) {
            (cols / self.block_len()).checked_mul(self.block_bytes())
        } else {
            None
        }
    }

    /// True where [`super::dequantize`] exists. Q8_1 holds activations only and is no weight type.
    #[inline]
    pub const fn is_supported(self) -> bool {
        !matches!(self, Q8_1 | I8 | I16 | I32 | I64 | F64 | Q1_0 | Q2_0)
    }

    /// True where [`super::quantize`] exists. The IQ types of up to three bits have none: their encoders would search with
    /// an importance matrix.
    #[inline]
    pub const fn has_encoder(self) -> bool {
        self.is_supported() && !matches!(self, IQ1_S | IQ1_M | IQ2_XXS | IQ2_XS | IQ2_S | IQ3_XXS | IQ3_S)
    }

    /// What a number once meant that ggml has withdrawn; `None` for any other number.
    pub const fn removed(id: u32) -> Option<&'static str> {
        match id {
            4 => Some("Q4_2"),
            5 => Some("Q4_3"),
            31 => Some("Q4_0_4_4"),
            32 => Some("Q4_0_4_8"),
            33 => Some("Q4_0_8_8"),
            36 => Some("IQ4_NL_4_4"),
            37 => Some("IQ4_NL_4_8"),
            38 => Some("IQ4_NL_8_8"),
            _ => None,
        }
    }
}

impl TryFrom<u32> for DType {
    type Error = u32;

    /// The type with ggml's number `id`; gives the number back where there is none.
    fn try_from(id: u32) -> Result<Self, u32> {
        DType::ALL.binary_search_by_key(&id, |dtype| dtype.id()).map(|at| DType::ALL[at]).map_err(|_| id)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl fmt::Debug for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
