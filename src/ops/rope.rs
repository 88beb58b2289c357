//! Rotary position embedding: the frequencies of a model and the angles of a batch. Pure arithmetic, once per step;
//! turning the heads is `reference::rope` and `cpu`.

use crate::model::{Rope, RopeKind, RopeScaling};
use std::f64::consts::TAU;

/// Inverse frequencies and magnitude of a rotary embedding, from the model's metadata (built once).
#[derive(Clone, Debug)]
pub struct RopeTable {
    /// Pairing.
    pub kind: RopeKind,
    /// Rotated dimensions.
    pub dims: usize,
    /// `[dims / 2]`, scaling and frequency factors folded in.
    pub inv_freq: Vec<f32>,
    /// Factor on sin and cos (YaRN's attention magnitude), 1 otherwise.
    pub magnitude: f32,
}

impl RopeTable {
    /// Builds the table. `factors` is `rope_freqs.weight` where the file has it: pair `i`'s frequency is divided by
    /// `factors[i]` (Llama 3); missing entries count as 1.
    pub fn new(rope: &Rope, factors: Option<&[f32]>) -> RopeTable {
        let frequency = |i: usize| {
            let plain = f64::from(rope.base).powf(-2.0 * i as f64 / rope.dims as f64);
            plain / f64::from(factors.and_then(|f| f.get(i)).copied().unwrap_or(1.0))
        };
        let scaled = |i: usize| match rope.scaling {
            RopeScaling::None => frequency(i),
            RopeScaling::Linear { factor } => frequency(i) / f64::from(factor),
            RopeScaling::Yarn { factor, original_context, extrapolation, beta_fast, beta_slow, .. } => {
                let low = correction_dim(rope, original_context, beta_fast).floor().max(0.0);
                let high = correction_dim(rope, original_context, beta_slow).ceil().min(rope.dims as f64 - 1.0);
                let ramp = ((i as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
                let mix = (1.0 - ramp) * f64::from(extrapolation);
                frequency(i) * ((1.0 - mix) / f64::from(factor) + mix)
            }
        };
        let inv_freq = (0..rope.dims / 2).map(|i| scaled(i) as f32).collect();
        RopeTable { kind: rope.kind, dims: rope.dims, inv_freq, magnitude: magnitude(&rope.scaling) }
    }

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

/// The (fractional) pair whose wave turns `beta` times within the original context: YaRN, arXiv 2309.00071, eq. 17 solved
/// for the dimension.
fn correction_dim(rope: &Rope, original_context: u32, beta: f32) -> f64 {
    let turns = f64::from(original_context) / (f64::from(beta) * TAU);
    rope.dims as f64 * turns.ln() / (2.0 * f64::from(rope.base).ln())
}

/// YaRN's magnitude `0.1 ln(s) + 1`, times the file's attention factor; without extrapolation it is the factor alone.
fn magnitude(scaling: &RopeScaling) -> f32 {
    match *scaling {
        RopeScaling::Yarn { factor, extrapolation, attention, .. } if extrapolation != 0.0 => {
            attention * (0.1 * factor.ln() + 1.0)
        }
        RopeScaling::Yarn { attention, .. } => attention,
        RopeScaling::None | RopeScaling::Linear { .. } => 1.0,
    }
}

/// sin and cos of a batch's positions, computed once per step and shared by all layers: `[tokens, dims / 2]` each.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct RopeAngles {
    pub sin: Vec<f32>,
    pub cos: Vec<f32>,
}
