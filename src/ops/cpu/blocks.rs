//! Quantised weight blocks taken apart to integers, in plain code: what the scalar tier multiplies with and what the
//! tiled kernels of all tiers unpack with. `quant` decodes the same blocks to F32; this keeps the integers.
//!
//! K-quants, 256 columns: `w[c] = d·s[c/16]·q[c] − dmin·m[c/16]`; in the types without minima `m` is the offset of `q`
//! times the scale and `dmin = d` ("folded": both sums are subtracted as integers).
//! Legacy types, 32 columns: `w[c] = d·(q[c] − OFFSET) + m`.

use crate::quant::float::widen_f16;

/// A K-quant block taken apart.
pub(crate) struct KParts {
    /// Unsigned weights in column order.
    pub(crate) q: [u8; 256],
    /// Scales per 16 columns.
    pub(crate) s: [i16; 16],
    /// Minima per 16 columns.
    pub(crate) m: [i16; 16],
    /// Factor of the scales.
    pub(crate) d: f32,
    /// Factor of the minima.
    pub(crate) dmin: f32,
}

/// A family of 256-column blocks.
pub(crate) trait KBlock {
    /// Bytes of a block.
    const BYTES: usize;
    /// Minima and scales share their factor.
    const FOLDED: bool;
    /// Weights fill all eight bits: two products of theirs overflow 16 bits.
    const WHOLE: bool = false;
    /// Takes a block of [`KBlock::BYTES`] bytes apart.
    fn parts(block: &[u8]) -> KParts;
}

/// A legacy block taken apart.
pub(crate) struct LegacyParts {
    /// Unsigned weights in column order.
    pub(crate) q: [u8; 32],
    /// Scale.
    pub(crate) d: f32,
    /// Minimum, 0 where the type has none.
    pub(crate) m: f32,
}

/// A family of 32-column blocks.
pub(crate) trait LegacyBlock {
    /// Bytes of a block.
    const BYTES: usize;
    /// What the unsigned weights are above the signed ones.
    const OFFSET: i16;
    /// The type stores a minimum.
    const MIN: bool;
    /// The block starts with the exponent of a power of two, one byte, not with an F16 scale.
    const EXPONENT: bool = false;
    /// Takes a block of [`LegacyBlock::BYTES`] bytes apart.
    fn parts(block: &[u8]) -> LegacyParts;
}

/// Little-endian half at byte `at`.
#[inline(always)]
pub(crate) fn half_at(block: &[u8], at: usize) -> f32 {
    widen_f16(u16::from_le_bytes([block[at], block[at + 1]]))
}

/// Eight scales and eight minima of six bits each in 12 bytes: Q4_K and Q5_K.
#[inline(always)]
pub(crate) fn six_bits(packed: &[u8]) -> (u64, u64) {
    let word = |i: usize| u32::from_le_bytes([packed[i], packed[i + 1], packed[i + 2], packed[i + 3]]);
    let (a, b, c) = (word(0), word(4), word(8));
    let high = |low: u32, top: u32| (low & 0x0f0f_0f0f) | ((top >> 2) & 0x3030_3030);
    let join = |low: u32, high: u32| u64::from(low & 0x3f3f_3f3f) | u64::from(high) << 32;
    (join(a, high(c, a)), join(b, high(c >> 4, b)))
}

/// Spreads eight bytes to sixteen numbers, each twice.
#[inline(always)]
fn twice(eight: u64) -> [i16; 16] {
    let bytes = eight.to_le_bytes();
    std::array::from_fn(|i| i16::from(bytes[i / 2]))
}

pub(crate) struct Q4K;
impl KBlock for Q4K {
    const BYTES: usize = 144;
    const FOLDED: bool = false;
    #[inline(always)]
    fn parts(b: &[u8]) -> KParts {
        let (s, m) = six_bits(&b[4..16]);
        let mut q = [0; 256];
        for (q, packed) in q.chunks_exact_mut(64).zip(b[16..144].chunks_exact(32)) {
            for l in 0..32 {
                (q[l], q[l + 32]) = (packed[l] & 15, packed[l] >> 4);
            }
        }
        KParts { q, s: twice(s), m: twice(m), d: half_at(b, 0), dmin: half_at(b, 2) }
    }
}

pub(crate) struct Q5K;
impl KBlock for Q5K {
    const BYTES: usize = 176;
    const FOLDED: bool = false;
    #[inline(always)]
    fn parts(b: &[u8]) -> KParts {
        let (s, m) = six_bits(&b[4..16]);
        let mut q = [0; 256];
        for (g, (q, packed)) in q.chunks_exact_mut(64).zip(b[48..176].chunks_exact(32)).enumerate() {
            for l in 0..32 {
                let high = b[16 + l] >> (2 * g);
                (q[l], q[l + 32]) = (packed[l] & 15 | (high & 1) << 4, packed[l] >> 4 | (high & 2) << 3);
            }
        }
        KParts { q, s: twice(s), m: twice(m), d: half_at(b, 0), dmin: half_at(b, 2) }
    }
}

pub(crate) struct Q6K;
impl KBlock for Q6K {
    const BYTES: usize = 210;
    const FOLDED: bool = true;
    #[inline(always)]
    fn parts(b: &[u8]) -> KParts {
        let mut q = [0; 256];
        for (n, q) in q.chunks_exact_mut(128).enumerate() {
            let (low, high) = (&b[64 * n..][..64], &b[128 + 32 * n..][..32]);
            for l in 0..32 {
                q[l] = low[l] & 15 | (high[l] & 3) << 4;
                q[l + 32] = low[l + 32] & 15 | (high[l] & 0x0c) << 2;
                q[l + 64] = low[l] >> 4 | high[l] & 0x30;
                q[l + 96] = low[l + 32] >> 4 | (high[l] & 0xc0) >> 2;
            }
        }
        let s: [i16; 16] = std::array::from_fn(|i| i16::from(b[192 + i] as i8));
        let d = half_at(b, 208);
        KParts { q, s, m: s.map(|s| 32 * s), d, dmin: d }
    }
}

pub(crate) struct Q2K;
impl KBlock for Q2K {
    const BYTES: usize = 84;
    const FOLDED: bool = false;
    #[inline(always)]
    fn parts(b: &[u8]) -> KParts {
        let mut q = [0; 256];
        for (n, q) in q.chunks_exact_mut(128).enumerate() {
            for (j, q) in q.chunks_exact_mut(32).enumerate() {
                for l in 0..32 {
                    q[l] = b[16 + 32 * n + l] >> (2 * j) & 3;
                }
            }
        }
        let s = std::array::from_fn(|i| i16::from(b[i] & 15));
        let m = std::array::from_fn(|i| i16::from(b[i] >> 4));
        KParts { q, s, m, d: half_at(b, 80), dmin: half_at(b, 82) }
    }
}

pub(crate) struct Q3K;
impl KBlock for Q3K {
    const BYTES: usize = 110;
    const FOLDED: bool = true;
    #[inline(always)]
    fn parts(b: &[u8]) -> KParts {
        let mut q = [0; 256];
        for (n, q) in q.chunks_exact_mut(128).enumerate() {
            for (j, q) in q.chunks_exact_mut(32).enumerate() {
                for l in 0..32 {
                    q[l] = (b[32 + 32 * n + l] >> (2 * j) & 3) | (b[l] >> (4 * n + j) & 1) << 2;
                }
            }
        }
        let scales = three_bit_scales(&b[96..108]).map(u64::to_le_bytes);
        let s: [i16; 16] = std::array::from_fn(|i| i16::from(scales[i / 8][i % 8]) - 32);
        let d = half_at(b, 108);
        KParts { q, s, m: s.map(|s| 4 * s), d, dmin: d }
    }
}

/// Q3_K's sixteen scales of six bits, one a byte, 32 too large.
#[inline(always)]
pub(crate) fn three_bit_scales(packed: &[u8]) -> [u64; 2] {
    let word = |i: usize| u32::from_le_bytes([packed[i], packed[i + 1], packed[i + 2], packed[i + 3]]);
    let (low, top) = (u64::from(word(0)) | u64::from(word(4)) << 32, word(8));
    let bits = |shift: u32| u64::from(top >> shift & 0x0303_0303) << 4;
    let nibbles = |v: u64| v & 0x0f0f_0f0f_0f0f_0f0f;
    [nibbles(low) | bits(0) | bits(2) << 32, nibbles(low >> 4) | bits(4) | bits(6) << 32]
}

/// Sixteen bytes of nibbles to 32 numbers: the low ones first.
#[inline(always)]
fn nibbles(packed: &[u8]) -> [u8; 32] {
    std::array::from_fn(|i| if i < 16 { packed[i] & 15 } else { packed[i - 16] >> 4 })
}

/// [`nibbles`] with a fifth bit each from the four bytes of `high`.
#[inline(always)]
fn five_bits(packed: &[u8], high: &[u8]) -> [u8; 32] {
    let high = u32::from_le_bytes([high[0], high[1], high[2], high[3]]);
    let low = nibbles(packed);
    std::array::from_fn(|i| low[i] | ((high >> i & 1) << 4) as u8)
}

pub(crate) struct Q80;
impl LegacyBlock for Q80 {
    const BYTES: usize = 34;
    const OFFSET: i16 = 128;
    const MIN: bool = false;
    #[inline(always)]
    fn parts(b: &[u8]) -> LegacyParts {
        LegacyParts { q: std::array::from_fn(|i| b[2 + i] ^ 0x80), d: half_at(b, 0), m: 0.0 }
    }
}

pub(crate) struct Q40;
impl LegacyBlock for Q40 {
    const BYTES: usize = 18;
    const OFFSET: i16 = 8;
    const MIN: bool = false;
    #[inline(always)]
    fn parts(b: &[u8]) -> LegacyParts {
        LegacyParts { q: nibbles(&b[2..18]), d: half_at(b, 0), m: 0.0 }
    }
}

pub(crate) struct Q41;
impl LegacyBlock for Q41 {
    const BYTES: usize = 20;
    const OFFSET: i16 = 0;
    const MIN: bool = true;
    #[inline(always)]
    fn parts(b: &[u8]) -> LegacyParts {
        LegacyParts { q: nibbles(&b[4..20]), d: half_at(b, 0), m: half_at(b, 2) }
    }
}

pub(crate) struct Q50;
impl LegacyBlock for Q50 {
    const BYTES: usize = 22;
    const OFFSET: i16 = 16;
    const MIN: bool = false;
    #[inline(always)]
    fn parts(b: &[u8]) -> LegacyParts {
        LegacyParts { q: five_bits(&b[6..22], &b[2..6]), d: half_at(b, 0), m: 0.0 }
    }
}

pub(crate) struct Q51;
impl LegacyBlock for Q51 {
    const BYTES: usize = 24;
    const OFFSET: i16 = 0;
    const MIN: bool = true;
    #[inline(always)]
    fn parts(b: &[u8]) -> LegacyParts {
        LegacyParts { q: five_bits(&b[8..24], &b[4..8]), d: half_at(b, 0), m: half_at(b, 2) }
    }
}
