//! The K-quants: 256 elements per block in groups of 16 or 32, whose scales are themselves quantised against the
//! block's F16 scale. One file per format; this one holds what their encoders share.
//!
//! Encoders search: for each group a handful of step sizes around the obvious one are tried, each is refined by least
//! squares, and the one of least weighted squared error wins. Larger elements weigh more, as they matter more in a dot
//! product.

pub mod q2_k;
pub mod q3_k;
pub mod q4_k;
pub mod q5_k;
pub mod q6_k;
pub mod q8_k;

/// Elements per block.
pub const LEN: usize = 256;

/// Rounds to the nearest integer, ties to even, into `low..=high`; NaN gives 0 (clamped).
fn nearest(x: f32, low: i32, high: i32) -> i32 {
    (x.round_ties_even() as i32).clamp(low, high)
}

/// Weight of each element's squared error: its magnitude on a floor of the group's root mean square.
pub(super) fn weights<const N: usize>(x: &[f32; N]) -> [f32; N] {
    let rms = (x.iter().map(|v| v * v).sum::<f32>() / N as f32).sqrt();
    x.map(|v| rms + v.abs())
}

/// Best `d` for `x ≈ d * q` with `q` in `low..=high` around 0, by search and least squares. 0 for a group of zeros.
fn symmetric_scale<const N: usize>(x: &[f32; N], low: i32, high: i32) -> f32 {
    let extreme = x.iter().fold(0.0, |best: f32, &v| if v.abs() > best.abs() { v } else { best });
    if extreme.abs() < f32::MIN_POSITIVE || !extreme.is_finite() {
        return 0.0;
    }
    let w = weights(x);
    let (mut best, mut best_gain) = (extreme / low as f32, f32::NEG_INFINITY);
    for step in -9..=9 {
        let inverse = (low as f32 + 0.1 * step as f32) / extreme;
        let (mut xq, mut qq) = (0.0, 0.0);
        for (&v, &w) in x.iter().zip(&w) {
            let q = nearest(v * inverse, low, high) as f32;
            xq += w * v * q;
            qq += w * q * q;
        }
        // With d = xq / qq the error is Σ w·x² - xq² / qq: the largest subtrahend wins.
        if qq > 0.0 && xq * xq / qq > best_gain {
            (best, best_gain) = (xq / qq, xq * xq / qq);
        }
    }
    best
}

/// Best `(d, m)` with `d, m >= 0` for `x ≈ d * q - m`, `q` in `0..=top`, by search and least squares.
fn offset_scale<const N: usize>(x: &[f32; N], top: i32) -> (f32, f32) {
    // The offset only ever subtracts: a group of positive elements starts at 0.
    let low = x.iter().copied().fold(0.0, f32::min);
    let high = x.iter().copied().fold(low, f32::max);
    let span = high - low;
    if span < f32::MIN_POSITIVE || !span.is_finite() {
        return (0.0, if low.is_finite() { -low } else { 0.0 });
    }
    let w = weights(x);
    let (mut best, mut best_error) = ((span / top as f32, -low), f32::INFINITY);
    for step in -10..=10 {
        let inverse = (top as f32 + 0.1 * step as f32) / span;
        let (d, m) = fit_offset(x, &w, |v| nearest((v - low) * inverse, 0, top) as f32);
        let error: f32 = x
            .iter()
            .zip(&w)
            .map(|(&v, &w)| {
                let q = nearest((v - low) * inverse, 0, top) as f32;
                w * (d * q - m - v).powi(2)
            })
            .sum();
        if d >= 0.0 && error < best_error {
            (best, best_error) = ((d, m), error);
        }
    }
    best
}

/// Weighted least squares of `x ≈ d * q - m` for given quants, with `m` held at 0 where it would be negative.
fn fit_offset<const N: usize>(x: &[f32; N], w: &[f32; N], quant: impl Fn(f32) -> f32) -> (f32, f32) {
    let (mut sw, mut sq, mut sqq, mut sx, mut sqx) = (0.0f32, 0.0f32, 0.0f32, 0.0f32, 0.0f32);
    for (&v, &w) in x.iter().zip(w) {
        let q = quant(v);
        sw += w;
        sq += w * q;
        sqq += w * q * q;
        sx += w * v;
        sqx += w * q * v;
    }
    let determinant = sw * sqq - sq * sq;
    if determinant > 0.0 {
        let d = (sw * sqx - sq * sx) / determinant;
        let m = (sq * sqx - sqq * sx) / determinant;
        if m >= 0.0 {
            return (d, m);
        }
    }
    (if sqq > 0.0 { sqx / sqq } else { 0.0 }, 0.0)
}

/// `1 / d`, and 0 where that is no number: such a group encodes as zeros.
fn inverse(d: f32) -> f32 {
    if d.abs() < f32::MIN_POSITIVE { 0.0 } else { 1.0 / d }
}

/// The `G` elements of group `g`.
fn group<const G: usize>(x: &[f32; LEN], g: usize) -> &[f32; G] {
    let (groups, _) = x.as_chunks::<G>();
    &groups[g]
}
