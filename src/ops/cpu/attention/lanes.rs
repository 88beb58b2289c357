//! The vectors that attention's kernels are written in: sixteen lanes, whatever the instruction set makes them of. One
//! source for all tiers, so they yield the same bits.
//!
//! Implemented for plain arrays here, for AVX2 and AVX-512 beside those tiers' other kernels. All functions are unsafe for
//! the same two reasons: the host must have the instruction set, and pointers must be good for what the function reads or
//! writes. They must be inlined into a function with the tier's `target_feature`s to be fast.

/// One tier's vectors.
pub(crate) trait Lanes: Copy {
    /// Sixteen F32.
    type F: Copy;
    /// Sixteen I32, or 32 I16, or 64 bytes.
    type I: Copy;
    /// Registers for two vectors per query side by side; otherwise one.
    const WIDE: bool;
    /// What [`Lanes::dot_keys`] leaves to the caller: it takes keys for as much larger.
    const BIAS: i32;

    unsafe fn splat(x: f32) -> Self::F;
    unsafe fn load(p: *const f32) -> Self::F;
    unsafe fn store(p: *mut f32, v: Self::F);
    unsafe fn load_f16(p: *const u8) -> Self::F;
    unsafe fn load_bf16(p: *const u8) -> Self::F;
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    /// `a · b + c`, rounded once.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `a` where it is larger, else `b`: `b` where either is NaN.
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn abs(a: Self::F) -> Self::F;
    /// The lanes of `v` whose bit is set, `other` elsewhere.
    unsafe fn select(bits: u16, v: Self::F, other: Self::F) -> Self::F;
    /// `v` where `x` is not below `limit`, 0 elsewhere.
    unsafe fn zero_below(x: Self::F, limit: f32, v: Self::F) -> Self::F;
    /// `2ⁿ` where `x = 1.5 · 2²³ + n`.
    unsafe fn power_of_two(x: Self::F) -> Self::F;
    /// Lanes in pairs at distances 8, 4, 2, 1.
    unsafe fn reduce_max(v: Self::F) -> f32;
    /// The same with sums.
    unsafe fn reduce_add(v: Self::F) -> f32;

    unsafe fn to_float(v: Self::I) -> Self::F;
    unsafe fn splat_i32(x: i32) -> Self::I;
    /// 64 bytes.
    unsafe fn load_bytes(p: *const u8) -> Self::I;
    /// 32 signed bytes to I16.
    unsafe fn load_i8(p: *const u8) -> Self::I;
    /// 32 unsigned bytes to I16.
    unsafe fn load_u8(p: *const u8) -> Self::I;
    /// The low nibbles of all bytes, and the high ones.
    unsafe fn nibbles(v: Self::I) -> (Self::I, Self::I);
    /// Subtracts `x` from each I16.
    unsafe fn sub_i16(v: Self::I, x: i16) -> Self::I;
    /// Adds to each lane its four bytes of keys (128 more than they mean, less [`Lanes::BIAS`]) times those of the query.
    unsafe fn dot_keys(acc: Self::I, keys: Self::I, query: Self::I) -> Self::I;
    /// The same for keys from 0 to 15, taken as they are.
    unsafe fn dot_small(acc: Self::I, keys: Self::I, query: Self::I) -> Self::I;
    /// Adds to each lane the product of its two I16.
    unsafe fn dot_pairs(acc: Self::I, a: Self::I, b: Self::I) -> Self::I;
    /// Rounds 32 numbers within ±32767 to nearest even and stores them as I16.
    unsafe fn store_i16(p: *mut i16, low: Self::F, high: Self::F);
    unsafe fn prefetch(p: *const u8);
}

/// Arrays: any host.
#[derive(Clone, Copy)]
pub(crate) struct Arrays;

/// Applies `f` to each lane of two vectors.
#[inline(always)]
fn each<T: Copy + Default>(a: [T; 16], b: [T; 16], f: impl Fn(T, T) -> T) -> [T; 16] {
    std::array::from_fn(|l| f(a[l], b[l]))
}

#[inline(always)]
fn bytes(v: [i32; 16]) -> [[u8; 4]; 16] {
    v.map(i32::to_le_bytes)
}

#[inline(always)]
fn words(v: [i32; 16]) -> [[i16; 2]; 16] {
    v.map(|v| [v as i16, (v >> 16) as i16])
}

#[inline(always)]
fn pairs(v: [[i16; 2]; 16]) -> [i32; 16] {
    v.map(|[a, b]| i32::from(a as u16) | i32::from(b) << 16)
}

#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

#[inline(always)]
fn reduce(mut v: [f32; 16], f: impl Fn(f32, f32) -> f32) -> f32 {
    for n in [8, 4, 2, 1] {
        for l in 0..n {
            v[l] = f(v[l], v[l + n]);
        }
    }
    v[0]
}

// SAFETY of all blocks below: the pointers are good for what is read or written by the caller's word.
impl Lanes for Arrays {
    type F = [f32; 16];
    type I = [i32; 16];
    const WIDE: bool = false;
    const BIAS: i32 = 0;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        [x; 16]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        // SAFETY: see above.
        unsafe { p.cast::<[f32; 16]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::F) {
        // SAFETY: see above.
        unsafe { p.cast::<[f32; 16]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> Self::F {
        // SAFETY: see above.
        let halves = unsafe { p.cast::<[[u8; 2]; 16]>().read_unaligned() };
        halves.map(|h| crate::quant::float::widen_f16(u16::from_le_bytes(h)))
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u8) -> Self::F {
        // SAFETY: see above.
        let halves = unsafe { p.cast::<[[u8; 2]; 16]>().read_unaligned() };
        halves.map(|h| f32::from_bits(u32::from(u16::from_le_bytes(h)) << 16))
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        each(a, b, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        each(a, b, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        each(a, b, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        std::array::from_fn(|l| a[l].mul_add(b[l], c[l]))
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        each(a, b, larger)
    }
    #[inline(always)]
    unsafe fn abs(a: Self::F) -> Self::F {
        a.map(f32::abs)
    }
    #[inline(always)]
    unsafe fn select(bits: u16, v: Self::F, other: Self::F) -> Self::F {
        std::array::from_fn(|l| if bits >> l & 1 == 1 { v[l] } else { other[l] })
    }
    #[inline(always)]
    unsafe fn zero_below(x: Self::F, limit: f32, v: Self::F) -> Self::F {
        each(x, v, |x, v| if x < limit { 0.0 } else { v })
    }
    #[inline(always)]
    unsafe fn power_of_two(x: Self::F) -> Self::F {
        x.map(|x| f32::from_bits((x.to_bits() << 23).wrapping_add(0x3f80_0000)))
    }
    #[inline(always)]
    unsafe fn reduce_max(v: Self::F) -> f32 {
        reduce(v, larger)
    }
    #[inline(always)]
    unsafe fn reduce_add(v: Self::F) -> f32 {
        reduce(v, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn to_float(v: Self::I) -> Self::F {
        v.map(|v| v as f32)
    }
    #[inline(always)]
    unsafe fn splat_i32(x: i32) -> Self::I {
        [x; 16]
    }
    #[inline(always)]
    unsafe fn load_bytes(p: *const u8) -> Self::I {
        // SAFETY: see above.
        unsafe { p.cast::<[[u8; 4]; 16]>().read_unaligned() }.map(i32::from_le_bytes)
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const u8) -> Self::I {
        // SAFETY: see above.
        pairs(unsafe { p.cast::<[[i8; 2]; 16]>().read_unaligned() }.map(|p| p.map(i16::from)))
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> Self::I {
        // SAFETY: see above.
        pairs(unsafe { p.cast::<[[u8; 2]; 16]>().read_unaligned() }.map(|p| p.map(i16::from)))
    }
    #[inline(always)]
    unsafe fn nibbles(v: Self::I) -> (Self::I, Self::I) {
        (v.map(|v| v & 0x0f0f_0f0f), v.map(|v| v >> 4 & 0x0f0f_0f0f))
    }
    #[inline(always)]
    unsafe fn sub_i16(v: Self::I, x: i16) -> Self::I {
        pairs(words(v).map(|p| p.map(|v| v.wrapping_sub(x))))
    }
    #[inline(always)]
    unsafe fn dot_keys(acc: Self::I, keys: Self::I, query: Self::I) -> Self::I {
        let (keys, query) = (bytes(keys), bytes(query));
        let product = |l: usize, i: usize| (i32::from(keys[l][i]) - 128) * i32::from(query[l][i] as i8);
        std::array::from_fn(|l| (0..4).fold(acc[l], |sum, i| sum.wrapping_add(product(l, i))))
    }
    #[inline(always)]
    unsafe fn dot_small(acc: Self::I, keys: Self::I, query: Self::I) -> Self::I {
        let (keys, query) = (bytes(keys), bytes(query));
        let product = |l: usize, i: usize| i32::from(keys[l][i]) * i32::from(query[l][i] as i8);
        std::array::from_fn(|l| (0..4).fold(acc[l], |sum, i| sum.wrapping_add(product(l, i))))
    }
    #[inline(always)]
    unsafe fn dot_pairs(acc: Self::I, a: Self::I, b: Self::I) -> Self::I {
        let (a, b) = (words(a), words(b));
        let product = |l: usize, i: usize| i32::from(a[l][i]) * i32::from(b[l][i]);
        std::array::from_fn(|l| acc[l].wrapping_add(product(l, 0)).wrapping_add(product(l, 1)))
    }
    #[inline(always)]
    unsafe fn store_i16(p: *mut i16, low: Self::F, high: Self::F) {
        let round = |v: [f32; 16]| v.map(|v| v.round_ties_even() as i16);
        // SAFETY: see above.
        unsafe { p.cast::<[[i16; 16]; 2]>().write_unaligned([round(low), round(high)]) }
    }
    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
}
