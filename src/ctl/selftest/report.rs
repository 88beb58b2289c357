//! What a check found, as a line and as JSON.

use crate::ctl::output::Output;
use serde::Serialize;
use std::time::Instant;

/// How two passes are compared, with the most they may differ.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Measure {
    /// Largest difference of a logit, as a share of its row's range.
    Range(f64),
    /// Squared error of all logits, as a share of their squares.
    Nmse(f64),
    /// Largest difference of a log-probability.
    Logprob(f64),
}

/// One check.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Check {
    /// What was compared with what.
    pub name: &'static str,
    /// On which prompt.
    pub prompt: String,
    /// False where the passes differ by more than the bound, or are not finite. A check that was left out does not fail.
    pub ok: bool,
    /// Why it was left out.
    pub skipped: Option<String>,
    /// `range`: largest difference of a logit as a share of its row's range; `nmse`: squared error as a share of the squares;
    /// `logprob`: largest difference of a log-probability.
    pub measure: &'static str,
    /// `null` where it is not a number.
    pub difference: Option<f64>,
    /// The most it may be.
    pub bound: f64,
    /// What the check took.
    pub seconds: f64,
}

impl Check {
    /// Compares `[rows, vocab]`.
    pub fn of(
        name: &'static str,
        prompt: String,
        start: Instant,
        measure: Measure,
        found: &[f32],
        expected: &[f32],
        vocab: usize,
    ) -> Check {
        let whole = !expected.is_empty() && found.len() == expected.len();
        let finite = whole && found.iter().chain(expected).all(|x| x.is_finite());
        let (kind, bound, difference) = match measure {
            Measure::Range(bound) => ("range", bound, range_difference(found, expected, vocab)),
            Measure::Nmse(bound) => ("nmse", bound, nmse(found, expected)),
            Measure::Logprob(bound) => ("logprob", bound, largest(found, expected)),
        };
        let difference = Some(difference).filter(|difference| finite && difference.is_finite());
        let ok = difference.is_some_and(|difference| difference <= bound);
        let seconds = start.elapsed().as_secs_f64();
        Check { name, prompt, ok, skipped: None, measure: kind, difference, bound, seconds }
    }

    /// One that is not run.
    pub fn skipped(name: &'static str, reason: String) -> Check {
        Check {
            name,
            prompt: String::new(),
            ok: true,
            skipped: Some(reason),
            measure: "",
            difference: None,
            bound: 0.0,
            seconds: 0.0,
        }
    }

    /// As a line for people.
    pub fn line(&self, out: Output) -> String {
        if let Some(reason) = &self.skipped {
            return format!("{:<8}{:<40}{reason}", "skipped", self.name);
        }
        // Padded before it is painted: colours have no width.
        let word = format!("{:<8}", if self.ok { "ok" } else { "FAIL" });
        let word = if self.ok { word } else { out.red(&word) };
        let found = match self.difference {
            None if self.measure == "logprob" => "other tokens".to_string(),
            None => "not finite".to_string(),
            Some(0.0) => "the same bits".to_string(),
            Some(difference) if self.measure == "range" => format!("{difference:.1e} of the range"),
            Some(difference) if self.measure == "logprob" => format!("{difference:.1e} in log-probability"),
            Some(difference) => format!("NMSE {difference:.1e}"),
        };
        let bound = if self.bound > 0.0 { format!("at most {:.0e}", self.bound) } else { "no bit may differ".into() };
        format!("{word}{:<40}{:<32}{found}, {bound}", self.name, self.prompt)
    }
}

/// All checks of a model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The file or the loaded model.
    pub model: String,
    /// `general.architecture`.
    pub architecture: String,
    /// Kernels in use.
    pub isa: String,
    /// None failed.
    pub ok: bool,
    /// In the order in which they ran.
    pub checks: Vec<Check>,
}

fn largest(found: &[f32], expected: &[f32]) -> f64 {
    found.iter().zip(expected).fold(0.0, |max, (a, b)| f64::max(max, (f64::from(*a) - f64::from(*b)).abs()))
}

fn range_difference(found: &[f32], expected: &[f32], vocab: usize) -> f64 {
    let rows = found.chunks_exact(vocab).zip(expected.chunks_exact(vocab));
    let of_row = |(found, expected): (&[f32], &[f32])| {
        let (low, high) = expected.iter().fold((f32::MAX, f32::MIN), |(l, h), &x| (l.min(x), h.max(x)));
        let largest = largest(found, expected);
        if largest == 0.0 { 0.0 } else { largest / f64::from(high - low).max(f64::MIN_POSITIVE) }
    };
    rows.map(of_row).fold(0.0, f64::max)
}

fn nmse(found: &[f32], expected: &[f32]) -> f64 {
    let error: f64 = found.iter().zip(expected).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum();
    let size: f64 = expected.iter().map(|x| f64::from(*x).powi(2)).sum();
    if error == 0.0 { 0.0 } else { error / size.max(f64::MIN_POSITIVE) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(measure: Measure, found: &[f32], expected: &[f32]) -> Check {
        Check::of("a and b", "2 tokens".into(), Instant::now(), measure, found, expected, 2)
    }

    #[test]
    fn differences_beyond_the_bound_fail() {
        let expected = [1.0, 3.0, -1.0, 1.0];
        assert!(check(Measure::Range(0.0), &expected, &expected).ok);
        let near = check(Measure::Range(0.0), &[1.0, 3.0, -1.0, 1.000_000_1], &expected);
        assert!(!near.ok && near.difference.unwrap() < 1e-6);
        let off = check(Measure::Range(0.2), &[1.0, 3.5, -1.0, 1.0], &expected);
        assert!(!off.ok && (off.difference.unwrap() - 0.25).abs() < 1e-9);
        assert!(check(Measure::Nmse(0.021), &[1.0, 3.5, -1.0, 1.0], &expected).ok);
        assert!(!check(Measure::Nmse(0.020), &[1.0, 3.5, -1.0, 1.0], &expected).ok);
        let line = off.line(Output::new(false, crate::ctl::output::ColorChoice::Never));
        assert!(line.starts_with("FAIL") && line.contains("2.5e-1 of the range, at most 2e-1"), "{line}");
    }

    #[test]
    fn what_is_not_finite_or_missing_fails() {
        let expected = [1.0, 3.0];
        for found in [&[1.0, f32::NAN][..], &[f32::INFINITY, 3.0], &[1.0], &[]] {
            let check = check(Measure::Nmse(1e9), found, &expected);
            assert!(!check.ok && check.difference.is_none(), "{found:?}");
        }
        assert!(!check(Measure::Range(1.0), &[f32::NAN; 2], &[f32::NAN; 2]).ok);
        assert!(!check(Measure::Range(1.0), &[], &[]).ok, "nothing was compared");
        assert!(Check::skipped("a and b", "too long".into()).ok);
    }
}
