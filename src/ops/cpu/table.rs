//! Tier and weight type to kernel. Every tier has a kernel for every type, if need be the one of the tier below.

use super::acts::{Acts, Format, QuantiseRow, RoundRow};
use super::blocks::{Q2K, Q3K, Q4K, Q5K, Q6K, Q40, Q41, Q50, Q51, Q80};
use super::codes::{Iq1M, Iq1S, Iq2S, Iq2Xs, Iq2Xxs, Iq3S, Iq3Xxs, Iq4Nl, Iq4Xs, Mxfp4, Tq10, Tq20};
use super::isa::Isa;
use super::{attention, delta, scalar, vector};
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};
use crate::quant::packed::{Cut, ROWS};
use crate::quant::{DType, Layout};
use std::ops::Range;

/// Rows of a weight times some tokens, written to `out`.
pub(crate) struct Rows<'a> {
    /// The bytes of exactly these rows.
    pub(crate) weights: &'a [u8],
    /// Bytes of one of them.
    pub(crate) row_bytes: usize,
    /// How many; whole panels where they are packed.
    pub(crate) rows: usize,
    /// How their blocks are cut where they are packed.
    pub(crate) cut: Option<Cut>,
    /// Activations in the type's [`format()`].
    pub(crate) acts: &'a Acts<'a>,
    /// Which of the tokens.
    pub(crate) tokens: Range<usize>,
    /// Where token 0's first row goes; row `r` of token `t` at `t * stride + r`.
    pub(crate) out: *mut f32,
    /// Distance of tokens in `out`.
    pub(crate) stride: usize,
}

impl Rows<'_> {
    /// Address of a plain row.
    #[inline(always)]
    pub(crate) fn row(&self, r: usize) -> *const u8 {
        debug_assert!(r < self.rows && self.cut.is_none());
        self.weights.as_ptr().wrapping_add(r * self.row_bytes)
    }

    /// Address of panel `i`: sixteen rows, packed or not.
    #[inline(always)]
    pub(crate) fn panel(&self, i: usize) -> *const u8 {
        self.weights.as_ptr().wrapping_add(i * ROWS * self.row_bytes)
    }

    /// Writes one result.
    ///
    /// # Safety
    /// `out` is writable for every row and token of the call, and no other thread writes there.
    #[inline(always)]
    pub(crate) unsafe fn write(&self, token: usize, row: usize, value: f32) {
        // SAFETY: by the caller's word.
        unsafe { *self.out.add(token * self.stride + row) = value };
    }
}

/// A kernel over [`Rows`]. Unsafe: the host must have the instruction set, `out` must be writable for the rows and tokens
/// named, and `weights` must hold `rows * row_bytes` bytes.
pub(crate) type Kernel = unsafe fn(&Rows<'_>);

/// A tier's kernels for one type of weights.
#[derive(Clone, Copy)]
pub(crate) struct Kernels {
    /// Rows one after the other.
    pub(crate) plain: Kernel,
    /// Whole panels; the scalar one where the tier has none.
    pub(crate) packed: Kernel,
}

/// The form of activations that a weight type multiplies with in most tiers; `None` for types without kernels.
pub(crate) fn format(dtype: DType) -> Option<Format> {
    Some(match dtype {
        DType::F32 | DType::F16 | DType::BF16 => Format::Float,
        DType::Q8_0 | DType::Q4_0 | DType::Q4_1 | DType::Q5_0 | DType::Q5_1 => Format::Q8x32,
        DType::IQ4_NL | DType::MXFP4 | DType::NVFP4 => Format::Q8x32,
        DType::Q2_K | DType::Q3_K | DType::Q4_K | DType::Q5_K | DType::Q6_K => Format::Q8x256,
        DType::IQ1_S | DType::IQ1_M | DType::IQ2_XXS | DType::IQ2_XS | DType::IQ2_S => Format::Q8x256,
        DType::IQ3_XXS | DType::IQ3_S | DType::IQ4_XS | DType::TQ1_0 | DType::TQ2_0 => Format::Q8x256,
        _ => return None,
    })
}

/// A tier's kernels.
pub(crate) struct Table {
    /// The tier.
    pub(crate) isa: Isa,
    /// Quantises activations.
    pub(crate) quantise: QuantiseRow,
    /// Rounds activations to BF16, in tiers that multiply them so.
    pub(crate) round: Option<RoundRow>,
    /// Everything that is not a product with weights.
    pub(crate) vector: vector::Functions,
    /// Attention.
    pub(crate) attention: attention::Tier,
    /// Recurrent layers.
    pub(crate) delta: delta::Functions,
    kernel: fn(DType) -> Option<Kernel>,
    packed: fn(DType) -> Option<Kernel>,
}

impl Table {
    /// The kernels of `isa`, which the host must have.
    pub(crate) fn new(isa: Isa) -> Table {
        let vector = vector::Functions::new(isa);
        let (quantise, kernel): (QuantiseRow, fn(DType) -> Option<Kernel>) = match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => (avx512::quantise_row, |dtype| match dtype {
                DType::BF16 => Some(avx512::bf16_kernel()),
                _ => avx512::kernel(dtype).or_else(|| avx2::kernel(dtype)),
            }),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => (avx512::quantise_row, |dtype| avx512::kernel(dtype).or_else(|| avx2::kernel(dtype))),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => (avx512::quantise_row, |dtype| avx512::float_kernel(dtype).or_else(|| avx2::kernel(dtype))),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => (avx2::quantise_row, avx2::kernel),
            _ => (scalar::quantise_row, scalar_kernel),
        };
        let packed: fn(DType) -> Option<Kernel> = match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni | Isa::Avx512Bf16 => avx512::packed::kernel,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx2 => avx2::packed::kernel,
            _ => |_| None,
        };
        let round: Option<RoundRow> = match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => Some(avx512::round),
            _ => None,
        };
        Table {
            isa,
            quantise,
            round,
            vector,
            attention: attention::Tier::new(isa),
            delta: delta::Functions::new(isa),
            kernel,
            packed,
        }
    }

    /// The kernels of a weight type.
    pub(crate) fn kernels(&self, dtype: DType) -> Kernels {
        let Some(scalar) = scalar_kernel(dtype) else { panic!("no kernel for {dtype}: a tensor of it cannot be made") };
        let plain = (self.kernel)(dtype).unwrap_or(scalar);
        Kernels { plain, packed: self.packed(dtype).unwrap_or(scalar) }
    }

    /// How a matrix `[rows, cols]` of `dtype` is best laid out.
    pub(crate) fn layout(&self, dtype: DType, rows: usize, cols: usize) -> Layout {
        let fits = rows >= ROWS && dtype.row_bytes(cols).is_some();
        if fits && self.packed(dtype).is_some() { Layout::Packed } else { Layout::Plain }
    }

    /// The form of activations that this tier multiplies weights of `dtype` with; `None` for types without kernels.
    pub(crate) fn format(&self, dtype: DType) -> Option<Format> {
        if dtype == DType::BF16 && self.round.is_some() { Some(Format::Bf16) } else { format(dtype) }
    }

    /// The tier's own kernel for panels of a weight type.
    pub(crate) fn packed(&self, dtype: DType) -> Option<Kernel> {
        (self.packed)(dtype)
    }
}

fn scalar_kernel(dtype: DType) -> Option<Kernel> {
    Some(match dtype {
        DType::F32 => scalar::float::<scalar::F32>,
        DType::F16 => scalar::float::<scalar::F16>,
        DType::BF16 => scalar::float::<scalar::Bf16>,
        DType::Q8_0 => scalar::legacy::<Q80>,
        DType::Q4_0 => scalar::legacy::<Q40>,
        DType::Q4_1 => scalar::legacy::<Q41>,
        DType::Q5_0 => scalar::legacy::<Q50>,
        DType::Q5_1 => scalar::legacy::<Q51>,
        DType::Q2_K => scalar::kquant::<Q2K>,
        DType::Q3_K => scalar::kquant::<Q3K>,
        DType::Q4_K => scalar::kquant::<Q4K>,
        DType::Q5_K => scalar::kquant::<Q5K>,
        DType::Q6_K => scalar::kquant::<Q6K>,
        DType::IQ1_S => scalar::kquant::<Iq1S>,
        DType::IQ1_M => scalar::kquant::<Iq1M>,
        DType::IQ2_XXS => scalar::kquant::<Iq2Xxs>,
        DType::IQ2_XS => scalar::kquant::<Iq2Xs>,
        DType::IQ2_S => scalar::kquant::<Iq2S>,
        DType::IQ3_XXS => scalar::kquant::<Iq3Xxs>,
        DType::IQ3_S => scalar::kquant::<Iq3S>,
        DType::IQ4_NL => scalar::legacy::<Iq4Nl>,
        DType::IQ4_XS => scalar::kquant::<Iq4Xs>,
        DType::TQ1_0 => scalar::kquant::<Tq10>,
        DType::TQ2_0 => scalar::kquant::<Tq20>,
        DType::MXFP4 => scalar::legacy::<Mxfp4>,
        DType::NVFP4 => scalar::nvfp4,
        _ => return None,
    })
}
