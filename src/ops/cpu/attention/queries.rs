//! Queries made ready for the kernels: `scale · log₂e` folded in, in F32 for float caches, in 8 bits for quantised ones.

use crate::ops::{KV_GROUP, f32_bytes};

/// A tile of queries, each `dim` long.
#[derive(Default)]
pub(crate) struct Queries {
    pub(crate) dim: usize,
    /// `[queries][dim]`.
    pub(crate) f: Vec<f32>,
    /// `[queries][dim]`, 8 bits.
    pub(crate) q: Vec<i8>,
    /// `[queries][dim / 32]`: scales and sums of `q`'s groups.
    pub(crate) d: Vec<f32>,
    pub(crate) sums: Vec<i32>,
}

impl Queries {
    /// Elements of `f`, `q`, and each of `d` and `sums`, for `n` queries.
    pub(crate) fn len(n: usize, dim: usize, quantised: bool) -> (usize, usize, usize) {
        if quantised { (0, n * dim, n * (dim / KV_GROUP)) } else { (n * dim, 0, 0) }
    }

    /// Room for `n` queries.
    pub(crate) fn reserve(&mut self, n: usize, dim: usize, quantised: bool) {
        self.dim = dim;
        let (floats, bytes, scales) = Queries::len(n, dim, quantised);
        grow(&mut self.f, floats);
        grow(&mut self.q, bytes);
        grow(&mut self.d, scales);
        grow(&mut self.sums, scales);
    }

    /// Bytes reserved.
    pub(crate) fn reserved(&self) -> u64 {
        f32_bytes(self.f.capacity() + self.d.capacity() + self.sums.capacity()) + self.q.capacity() as u64
    }
}

/// Makes room for `n` elements; what is there already stays.
pub(crate) fn grow<T: Copy + Default>(buffer: &mut Vec<T>, n: usize) {
    if buffer.len() < n {
        buffer.reserve_exact(n - buffer.len());
        buffer.resize(n, T::default());
    }
}

/// `out = x · scale`.
#[inline(always)]
pub(crate) fn scaled(x: &[f32], scale: f32, out: &mut [f32]) {
    for (out, &x) in out.iter_mut().zip(x) {
        *out = x * scale;
    }
}

/// Rounds `x` to 8 bits per group. A group with an infinity or a NaN becomes zeros with the scale NaN, so that it shows.
#[inline(always)]
pub(crate) fn rounded(x: &[f32], scale: f32, q: &mut [i8], d: &mut [f32], sums: &mut [i32]) {
    const ROUND: f32 = 12_582_912.0;
    for (((x, q), d), sum) in x.chunks_exact(KV_GROUP).zip(q.chunks_exact_mut(KV_GROUP)).zip(d).zip(sums) {
        let largest = f32::from_bits(x.iter().fold(0, |max, x| max.max(x.to_bits() & 0x7fff_ffff)));
        let up = if largest.is_finite() && largest > f32::MIN_POSITIVE { 127.0 / largest } else { 0.0 };
        *sum = 0;
        for (q, &x) in q.iter_mut().zip(x) {
            let x = if up == 0.0 { 0.0 } else { x * up };
            *q = ((x + ROUND).to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32) as i8;
            *sum += i32::from(*q);
        }
        *d = if up == 0.0 && !largest.is_finite() { f32::NAN } else { largest / 127.0 * scale };
    }
}
