//! The IQ, ternary and FP4 blocks taken apart to integers, as `blocks` does the others: `quant` undoes their packing, here
//! the signed quants become unsigned ones with an offset. All their 256-column types are "folded" K-quants, IQ4_NL and
//! MXFP4 legacy types without a minimum. NVFP4 has a factor per 16 columns and its own kernels.

use super::blocks::{KBlock, KParts, LegacyBlock, LegacyParts, half_at};
use crate::quant::scaled::Scaled;
use crate::quant::{fp4, iq1, iq2, iq3, iq4, ternary};

/// A block as an array.
#[inline(always)]
fn whole<const N: usize>(block: &[u8]) -> &[u8; N] {
    match block.first_chunk() {
        Some(block) => block,
        None => unreachable!("blocks have {N} bytes"),
    }
}

/// Quants with `offset` added, and what that adds to the product.
#[inline(always)]
fn folded(block: Scaled, offset: u8) -> KParts {
    let s = block.s.map(i16::from);
    let m = s.map(|s| s * i16::from(offset));
    KParts { q: block.q.map(|q| (q as u8).wrapping_add(offset)), s, m, d: block.d, dmin: block.d }
}

macro_rules! folded {
    ($($name:ident: $bytes:expr, $offset:expr, $integers:path;)*) => {$(
        pub(crate) struct $name;
        impl $name {
            /// What the unsigned weights are above the signed ones: the largest magnitude.
            pub(crate) const OFFSET: u8 = $offset;
        }
        impl KBlock for $name {
            const BYTES: usize = $bytes;
            const FOLDED: bool = true;
            const WHOLE: bool = Self::OFFSET == 128;
            #[inline(always)]
            fn parts(block: &[u8]) -> KParts {
                folded($integers(whole(block)), Self::OFFSET)
            }
        }
    )*};
}

folded! {
    Iq1S: iq1::S_BYTES, 9, iq1::s;
    Iq1M: iq1::M_BYTES, 9, iq1::m;
    Iq2Xxs: iq2::XXS_BYTES, 43, iq2::xxs;
    Iq2Xs: iq2::XS_BYTES, 43, iq2::xs;
    Iq2S: iq2::S_BYTES, 43, iq2::s;
    Iq3Xxs: iq3::XXS_BYTES, 62, iq3::xxs;
    Iq3S: iq3::S_BYTES, 15, iq3::s;
    Iq4Xs: iq4::XS_BYTES, 128, iq4::xs;
    Tq10: ternary::TQ1_BYTES, 1, ternary::tq1;
    Tq20: ternary::TQ2_BYTES, 1, ternary::tq2;
}

pub(crate) struct Iq4Nl;
impl LegacyBlock for Iq4Nl {
    const BYTES: usize = iq4::NL_BYTES;
    const OFFSET: i16 = 128;
    const MIN: bool = false;
    #[inline(always)]
    fn parts(b: &[u8]) -> LegacyParts {
        LegacyParts { q: iq4::nl(whole(b)).map(|q| q as u8 ^ 0x80), d: half_at(b, 0), m: 0.0 }
    }
}

pub(crate) struct Mxfp4;
impl LegacyBlock for Mxfp4 {
    const BYTES: usize = fp4::MX_BYTES;
    const OFFSET: i16 = 12;
    const MIN: bool = false;
    const EXPONENT: bool = true;
    #[inline(always)]
    fn parts(b: &[u8]) -> LegacyParts {
        LegacyParts { q: fp4::mx(whole(b)).map(|q| (q + 12) as u8), d: fp4::e8m0_half(b[0]), m: 0.0 }
    }
}

/// An NVFP4 block taken apart: signed weights, and a factor per 16 columns.
#[inline(always)]
pub(crate) fn nvfp4(block: &[u8]) -> ([i8; 64], [f32; 4]) {
    (fp4::nv(whole(block)), std::array::from_fn(|g| fp4::e4m3_half(block[g])))
}
