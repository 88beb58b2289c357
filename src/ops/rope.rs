//! Rotary position embedding: the angles of a batch from a table of frequencies. Pure arithmetic, once per step; turning
//! the heads is `reference::rope` and `cpu`. The table is made by `exec`, which knows the model.

/// Which elements of a head turn together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopePairing {
    /// Neighbours: pair `i` is `(2i, 2i + 1)`.
    Interleaved,
    /// Halves of the rotated dimensions: pair `i` is `(i, i + dims / 2)`.
    Halves,
}

/// What a rotary embedding turns, and how fast.
#[derive(Clone, Debug)]
pub struct RopeTable {
    /// Pairing.
    pub pairing: RopePairing,
    /// Rotated dimensions, the first of each head; even.
    pub dims: usize,
    /// `[dims / 2]` radians per position.
    pub inv_freq: Vec<f32>,
    /// Factor on sin and cos; 1 leaves lengths alone.
    pub magnitude: f32,
}

impl RopeTable {
    /// Fills `out` with magnitude-scaled sin and cos of each of `positions`, `[positions, dims / 2]` each.
    pub fn angles(&self, positions: &[u32], out: &mut RopeAngles) {
        out.sin.clear();
        out.cos.clear();
        let magnitude = f64::from(self.magnitude);
        for &position in positions {
            for &freq in &self.inv_freq {
                let (sin, cos) = (f64::from(position) * f64::from(freq)).sin_cos();
                out.sin.push((sin * magnitude) as f32);
                out.cos.push((cos * magnitude) as f32);
            }
        }
    }
}

/// sin and cos of a batch's positions, computed once per step and shared by all layers: `[tokens, dims / 2]` each.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct RopeAngles {
    pub sin: Vec<f32>,
    pub cos: Vec<f32>,
}
