//! Blocks of sixteen packed rows taken apart, in plain code over sixteen lanes that the compiler turns to vector code:
//! what [`super::blocks`] is for single rows. A lane is a row, its dword four columns or four scales.

use super::blocks::{KBlock, LegacyBlock, Q2K, Q3K, Q4K, Q5K, Q6K, Q40, Q41, Q50, Q51, Q80};
use crate::quant::packed::{Cut, ROWS, VECTOR};

/// A dword of each row.
pub(crate) type Lanes = [u32; ROWS];

/// A K-quant's block of sixteen rows.
#[repr(align(64))]
pub(crate) struct KPanel {
    /// Unsigned weights, four columns a dword.
    pub(crate) q: [Lanes; 64],
    /// Scales per 16 columns, each as a pair of words.
    pub(crate) s: [Lanes; 16],
    /// Minima of 16 columns, pairs of words.
    pub(crate) m: [Lanes; 8],
}

/// A family of 256-column blocks.
pub(crate) trait KUnpack: KBlock {
    /// Dwords of products of two columns that add up within an i16, whatever the activations.
    const SUMS: usize;
    /// Where the halves of the factors stand in a panel: the vector of both, or the rest.
    const FACTORS: Option<usize>;
    /// Scales hold for 32 columns, else for 16.
    const WIDE: bool;
    /// What unsigned weights are above the signed ones, where the scales say so ([`KBlock::FOLDED`]).
    const OFFSET: i32 = 0;
    /// Takes a block's vectors apart: weights, then scales and minima four a dword.
    fn unpack(v: &[Lanes], q: &mut [Lanes; 64]) -> ([Lanes; 4], [Lanes; 4]);
}

/// The vectors of a block, copied, in the order that GGUF has: a panel may start at any address.
///
/// # Safety
/// The block's vectors, 52 at most, are readable from `p` on.
#[inline(always)]
pub(crate) unsafe fn lanes<'a>(p: *const u8, cut: &Cut, lanes: &'a mut [Lanes; 52]) -> &'a [Lanes] {
    for (i, &dword) in cut.dwords.iter().enumerate() {
        // SAFETY: the caller's word.
        lanes[usize::from(dword)] = unsafe { p.add(i * VECTOR).cast::<Lanes>().read_unaligned() };
    }
    &lanes[..cut.dwords.len()]
}

/// Applies `f` to each lane.
#[inline(always)]
fn map(v: &Lanes, f: impl Fn(u32) -> u32) -> Lanes {
    v.map(f)
}

#[inline(always)]
fn zip(a: &Lanes, b: &Lanes, f: impl Fn(u32, u32) -> u32) -> Lanes {
    std::array::from_fn(|r| f(a[r], b[r]))
}

const NIBBLES: u32 = 0x0f0f_0f0f;
const CRUMBS: u32 = 0x0303_0303;
const BITS: u32 = 0x0101_0101;

/// Takes a K-quant's block apart.
#[inline(always)]
pub(crate) fn kquant<B: KUnpack>(v: &[Lanes], out: &mut KPanel) {
    let (s, m) = B::unpack(v, &mut out.q);
    let wide = B::WIDE;
    for (i, pair) in out.s.iter_mut().enumerate() {
        // Scale `j` is byte `j % 4` of dword `j / 4`, signed.
        let j = if wide { i / 2 } else { i };
        let up = 24 - 8 * (j % 4) as u32;
        *pair = map(&s[j / 4], |s| {
            let s = ((s << up) as i32 >> 24) as u32;
            s & 0xffff | s << 16
        });
    }
    for (i, pair) in out.m.iter_mut().enumerate() {
        if B::FOLDED {
            *pair = zip(&out.s[2 * i], &out.s[2 * i + 1], |a, b| {
                let times = |s: u32| (i32::from(s as i16) * B::OFFSET) as u32 & 0xffff;
                times(a) | times(b) << 16
            });
            continue;
        }
        let (low, high) = if wide { (i, i) } else { (2 * i, 2 * i + 1) };
        let byte = |j: usize, v: u32| v >> (8 * (j % 4)) & 0xff;
        *pair = zip(&m[low / 4], &m[high / 4], |a, b| byte(low, a) | byte(high, b) << 16);
    }
}

/// Scales and minima of six bits: Q4_K and Q5_K.
#[inline(always)]
fn six_bits(v: &[Lanes]) -> ([Lanes; 4], [Lanes; 4]) {
    let (s, m, high) = (&v[1], &v[2], &v[3]);
    let low = |v: &Lanes| map(v, |v| v & 0x3f3f_3f3f);
    let join = |high: &Lanes, top: &Lanes| zip(high, top, |high, top| high & NIBBLES | top >> 2 & 0x3030_3030);
    let zero = [0; ROWS];
    ([low(s), join(high, s), zero, zero], [low(m), join(&map(high, |v| v >> 4), m), zero, zero])
}

impl KUnpack for Q4K {
    const WIDE: bool = true;
    const SUMS: usize = 8;
    const FACTORS: Option<usize> = Some(0);
    #[inline(always)]
    fn unpack(v: &[Lanes], q: &mut [Lanes; 64]) -> ([Lanes; 4], [Lanes; 4]) {
        for (q, v) in q.chunks_exact_mut(16).zip(v[4..36].chunks_exact(8)) {
            for (k, v) in v.iter().enumerate() {
                q[k] = map(v, |v| v & NIBBLES);
                q[k + 8] = map(v, |v| v >> 4 & NIBBLES);
            }
        }
        six_bits(v)
    }
}

impl KUnpack for Q5K {
    const WIDE: bool = true;
    const SUMS: usize = 4;
    const FACTORS: Option<usize> = Some(0);
    #[inline(always)]
    fn unpack(v: &[Lanes], q: &mut [Lanes; 64]) -> ([Lanes; 4], [Lanes; 4]) {
        for (g, (q, low)) in q.chunks_exact_mut(16).zip(v[12..44].chunks_exact(8)).enumerate() {
            for k in 0..8 {
                let high = &v[4 + k];
                q[k] = zip(&low[k], high, |low, high| low & NIBBLES | (high >> (2 * g) & BITS) << 4);
                q[k + 8] = zip(&low[k], high, |low, high| low >> 4 & NIBBLES | (high >> (2 * g + 1) & BITS) << 4);
            }
        }
        six_bits(v)
    }
}

impl KUnpack for Q6K {
    const WIDE: bool = false;
    const SUMS: usize = 2;
    const FACTORS: Option<usize> = None;
    const OFFSET: i32 = 32;
    #[inline(always)]
    fn unpack(v: &[Lanes], q: &mut [Lanes; 64]) -> ([Lanes; 4], [Lanes; 4]) {
        for (n, q) in q.chunks_exact_mut(32).enumerate() {
            let (low, high) = (&v[16 * n..][..16], &v[32 + 8 * n..][..8]);
            for k in 0..8 {
                q[k] = zip(&low[k], &high[k], |l, h| l & NIBBLES | (h & CRUMBS) << 4);
                q[k + 8] = zip(&low[k + 8], &high[k], |l, h| l & NIBBLES | (h >> 2 & CRUMBS) << 4);
                q[k + 16] = zip(&low[k], &high[k], |l, h| l >> 4 & NIBBLES | (h >> 4 & CRUMBS) << 4);
                q[k + 24] = zip(&low[k + 8], &high[k], |l, h| l >> 4 & NIBBLES | (h >> 6 & CRUMBS) << 4);
            }
        }
        ([v[48], v[49], v[50], v[51]], [[0; ROWS]; 4])
    }
}

impl KUnpack for Q2K {
    const WIDE: bool = false;
    const SUMS: usize = 4;
    const FACTORS: Option<usize> = Some(0);
    #[inline(always)]
    fn unpack(v: &[Lanes], q: &mut [Lanes; 64]) -> ([Lanes; 4], [Lanes; 4]) {
        for (q, v) in q.chunks_exact_mut(32).zip(v[4..20].chunks_exact(8)) {
            for (j, q) in q.chunks_exact_mut(8).enumerate() {
                for (q, v) in q.iter_mut().zip(v) {
                    *q = map(v, |v| v >> (2 * j) & CRUMBS);
                }
            }
        }
        let s = std::array::from_fn(|i| map(&v[i], |v| v & NIBBLES));
        (s, std::array::from_fn(|i| map(&v[i], |v| v >> 4 & NIBBLES)))
    }
}

impl KUnpack for Q3K {
    const WIDE: bool = false;
    const SUMS: usize = 4;
    const FACTORS: Option<usize> = None;
    const OFFSET: i32 = 4;
    #[inline(always)]
    fn unpack(v: &[Lanes], q: &mut [Lanes; 64]) -> ([Lanes; 4], [Lanes; 4]) {
        for (n, q) in q.chunks_exact_mut(32).enumerate() {
            for (j, q) in q.chunks_exact_mut(8).enumerate() {
                for (k, q) in q.iter_mut().enumerate() {
                    let third = |high: u32| (high >> (4 * n + j) & BITS) << 2;
                    *q = zip(&v[8 + 8 * n + k], &v[k], |low, high| low >> (2 * j) & CRUMBS | third(high));
                }
            }
        }
        let (a, b, top) = (&v[24], &v[25], &v[26]);
        let join = |low: &Lanes, down: u32, shift: u32| {
            zip(low, top, |low, top| {
                let six = low >> down & NIBBLES | (top >> shift & CRUMBS) << 4;
                // 32 less in each byte: no borrow crosses, the sign bit is set apart.
                (six | 0x8080_8080).wrapping_sub(0x2020_2020) ^ 0x8080_8080
            })
        };
        ([join(a, 0, 0), join(b, 0, 2), join(a, 4, 4), join(b, 4, 6)], [[0; ROWS]; 4])
    }
}

/// A family of 32-column blocks.
pub(crate) trait LegacyUnpack: LegacyBlock {
    /// As [`KUnpack::SUMS`].
    const SUMS: usize;
    /// Weights of a block's vectors, four columns a dword: unsigned, but Q8_0's as they are.
    fn unpack(v: &[Lanes]) -> [Lanes; 8];
}

/// Nibbles: the low ones, then the high ones.
#[inline(always)]
fn nibbles(v: &[Lanes]) -> [Lanes; 8] {
    std::array::from_fn(|k| map(&v[k % 4], |v| v >> (k / 4 * 4) & NIBBLES))
}

/// [`nibbles`] with a fifth bit each from the dwords of `bits`, a bit a column.
#[inline(always)]
fn five_bits(bits: &Lanes, v: &[Lanes]) -> [Lanes; 8] {
    let low = nibbles(v);
    // Four bits to four bytes: no two of the product's terms meet.
    let spread = |bits: u32| (bits & 15).wrapping_mul(0x0020_4081) & BITS;
    std::array::from_fn(|k| zip(&low[k], bits, |low, bits| low | spread(bits >> (4 * k)) << 4))
}

impl LegacyUnpack for Q80 {
    const SUMS: usize = 1;
    #[inline(always)]
    fn unpack(v: &[Lanes]) -> [Lanes; 8] {
        std::array::from_fn(|k| v[k])
    }
}

impl LegacyUnpack for Q40 {
    const SUMS: usize = 8;
    #[inline(always)]
    fn unpack(v: &[Lanes]) -> [Lanes; 8] {
        nibbles(v)
    }
}

impl LegacyUnpack for Q41 {
    const SUMS: usize = 8;
    #[inline(always)]
    fn unpack(v: &[Lanes]) -> [Lanes; 8] {
        nibbles(&v[1..])
    }
}

impl LegacyUnpack for Q50 {
    const SUMS: usize = 4;
    #[inline(always)]
    fn unpack(v: &[Lanes]) -> [Lanes; 8] {
        five_bits(&v[0], &v[1..])
    }
}

impl LegacyUnpack for Q51 {
    const SUMS: usize = 4;
    #[inline(always)]
    fn unpack(v: &[Lanes]) -> [Lanes; 8] {
        five_bits(&v[1], &v[2..])
    }
}
