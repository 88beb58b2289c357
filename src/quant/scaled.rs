//! A block of 256 elements as integers: what the types of this shape have in common once their packing is undone. The
//! kernels multiply with the integers; their product with the factor is the value, exactly: 11 bits of the F16 factor, at
//! most 5 of a scale and 7 of a quant fit F32, so that no order of the products rounds.

use super::kquants::LEN;

/// Element `i` is `d * s[i / 16] * q[i]`.
#[derive(Clone, Debug)]
pub struct Scaled {
    /// Factor of the block, powers of two of the type included.
    pub d: f32,
    /// Scales per 16 elements.
    pub s: [i8; 16],
    /// Quants, from -127 to 127.
    pub q: [i8; LEN],
}

impl Scaled {
    /// Decodes to F32. The product with the scale comes first: it decides the sign of a zero.
    pub(super) fn write(&self, out: &mut [f32; LEN]) {
        let groups = out.as_chunks_mut::<16>().0.iter_mut().zip(self.q.as_chunks::<16>().0).zip(self.s);
        for ((out, q), s) in groups {
            let scale = self.d * f32::from(s);
            out.iter_mut().zip(q).for_each(|(y, &q)| *y = scale * f32::from(q));
        }
    }
}

/// Eight scales of 32 elements as sixteen of 16.
#[inline(always)]
pub(super) fn twice(eight: [i8; 8]) -> [i8; 16] {
    std::array::from_fn(|i| eight[i / 2])
}
