//! The table of a model's rotary embedding, from its metadata: plain RoPE (arXiv 2104.09864), linear scaling
//! (2306.15595), YaRN (2309.00071), LongRoPE (2402.13753) and Llama 3's frequency factors. Made once, when an `Executor`
//! is; turning by it is `ops`.

use crate::model::{Model, Rope, RopeKind, RopeScaling};
use crate::ops::{RopePairing, RopeTable, Tensor};
use std::f64::consts::TAU;

/// A model's tables.
pub(super) struct Tables {
    /// Of every layer without one of its own.
    pub all: RopeTable,
    /// Of layers with a window, where theirs is another.
    pub windowed: Option<RopeTable>,
}

impl Tables {
    /// Those of `model` for sequences of at most `context` tokens. One that may outgrow LongRoPE's original context has
    /// the long factors from its first token on: what is cached is turned already.
    pub(super) fn new(model: &Model<Tensor>, context: usize) -> Tables {
        let h = &model.hparams;
        let long = match h.rope.scaling {
            RopeScaling::LongRope { original_context, .. } => context > original_context as usize,
            _ => false,
        };
        let factors = if long { &model.rope_factors_long } else { &model.rope_factors };
        let factors = factors.as_ref().map(Tensor::to_f32);
        Tables {
            all: table(&h.rope, factors.as_deref()),
            windowed: h.window_rope.as_ref().map(|rope| table(rope, None)),
        }
    }
}

/// Builds the table. `factors` is what the file has of them: pair `i`'s frequency is divided by `factors[i]` (Llama 3,
/// LongRoPE); missing entries count as 1.
fn table(rope: &Rope, factors: Option<&[f32]>) -> RopeTable {
    let frequency = |i: usize| {
        let plain = f64::from(rope.base).powf(-2.0 * i as f64 / rope.dims as f64);
        plain / f64::from(factors.and_then(|f| f.get(i)).copied().unwrap_or(1.0))
    };
    let scaled = |i: usize| match rope.scaling {
        RopeScaling::None | RopeScaling::LongRope { .. } => frequency(i),
        RopeScaling::Linear { factor } => frequency(i) / f64::from(factor),
        RopeScaling::Yarn { factor, original_context, extrapolation, beta_fast, beta_slow, whole_pairs, .. } => {
            let [low, high] = [beta_fast, beta_slow].map(|beta| correction_dim(rope, original_context, beta));
            let [low, high] = if whole_pairs { [low.floor(), high.ceil()] } else { [low, high] };
            let (low, high) = (low.max(0.0), high.min(rope.dims as f64 - 1.0));
            let ramp = ((i as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
            let mix = (1.0 - ramp) * f64::from(extrapolation);
            frequency(i) * ((1.0 - mix) / f64::from(factor) + mix)
        }
    };
    let pairing = match rope.kind {
        RopeKind::Norm => RopePairing::Interleaved,
        RopeKind::Neox => RopePairing::Halves,
    };
    let inv_freq = (0..rope.dims / 2).map(|i| scaled(i) as f32).collect();
    RopeTable { pairing, dims: rope.dims, inv_freq, magnitude: magnitude(&rope.scaling) }
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
        RopeScaling::Yarn { attention, .. } | RopeScaling::LongRope { attention, .. } => attention,
        RopeScaling::None | RopeScaling::Linear { .. } => 1.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rope(kind: RopeKind, dims: usize, base: f32, scaling: RopeScaling) -> Rope {
        Rope { kind, dims, base, scaling }
    }

    #[test]
    fn each_kind_has_its_pairing() {
        let pairing = |kind| table(&rope(kind, 8, 10_000.0, RopeScaling::None), None).pairing;
        assert_eq!(pairing(RopeKind::Norm), RopePairing::Interleaved);
        assert_eq!(pairing(RopeKind::Neox), RopePairing::Halves);
    }

    #[test]
    fn scaled_frequencies_follow_their_formulas() {
        let base = 500_000.0f32;
        let plain = table(&rope(RopeKind::Norm, 128, base, RopeScaling::None), None);
        assert_eq!(plain.magnitude, 1.0);
        for (i, &f) in plain.inv_freq.iter().enumerate() {
            let want = f64::from(base).powf(-(i as f64) / 64.0);
            assert!((f64::from(f) - want).abs() <= 1e-6 * want);
        }
        let linear = table(&rope(RopeKind::Norm, 128, base, RopeScaling::Linear { factor: 4.0 }), None);
        assert!(linear.inv_freq.iter().zip(&plain.inv_freq).all(|(l, p)| (l * 4.0 - p).abs() <= 1e-6 * p));
        let factors: Vec<f32> = (0..64).map(|i| 1.0 + i as f32).collect();
        let llama3 = table(&rope(RopeKind::Norm, 128, base, RopeScaling::None), Some(&factors));
        for ((scaled, factor), plain) in llama3.inv_freq.iter().zip(&factors).zip(&plain.inv_freq) {
            assert!((scaled * factor - plain).abs() <= 1e-6 * plain);
        }
    }

    /// YaRN as published (arXiv 2309.00071): waves that turn more than `beta_fast` times within the original context stay,
    /// those that turn less than `beta_slow` times are interpolated, in between a ramp over the pairs.
    #[test]
    fn yarn_follows_its_paper() {
        let (factor, context, base, dims) = (4.0f32, 32_768u32, 1e6f32, 128usize);
        let yarn = |extrapolation, attention, whole_pairs| RopeScaling::Yarn {
            factor,
            original_context: context,
            extrapolation,
            attention,
            beta_fast: 32.0,
            beta_slow: 1.0,
            whole_pairs,
        };
        let plain = table(&rope(RopeKind::Neox, dims, base, RopeScaling::None), None);
        let pair = |turns: f64| {
            let waves = f64::from(context) / (turns * std::f64::consts::TAU);
            dims as f64 * waves.ln() / (2.0 * f64::from(base).ln())
        };
        let (low, high) = (pair(32.0).floor(), pair(1.0).ceil());
        assert!(low > 10.0 && high < 60.0, "{low} {high}");
        for (whole_pairs, low, high) in [(true, low, high), (false, pair(32.0), pair(1.0))] {
            let scaled = table(&rope(RopeKind::Neox, dims, base, yarn(1.0, 1.0, whole_pairs)), None);
            assert!((scaled.magnitude - (0.1 * 4.0f32.ln() + 1.0)).abs() < 1e-6);
            for i in 0..dims / 2 {
                let (got, unscaled) = (f64::from(scaled.inv_freq[i]), f64::from(plain.inv_freq[i]));
                let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                let want = unscaled * (1.0 - ramp) + unscaled / 4.0 * ramp;
                assert!((got - want).abs() <= 1e-6 * want, "pair {i}: {got} for {want}");
            }
        }
        let none = table(&rope(RopeKind::Neox, dims, base, yarn(0.0, 0.7, true)), None);
        assert_eq!(none.magnitude, 0.7);
        assert!(none.inv_freq.iter().zip(&plain.inv_freq).all(|(n, p)| (n * 4.0 - p).abs() <= 1e-6 * p));
    }
}
