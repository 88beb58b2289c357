//! Log-probabilities of the model's own distribution: what the logits say before bias, penalties and temperature.

use super::filter::{self, Softmax};
use super::{Logprobs, SampleError, Scratch, check};

/// Natural log-probability of `id` under `logits` `[vocab]` and the `top` most probable tokens, best first.
///
/// # Errors
/// [`SampleError`] when the logits are not a distribution.
pub fn logprobs_of(logits: &[f32], id: u32, top: usize, scratch: &mut Scratch) -> Result<Logprobs, SampleError> {
    check(logits)?;
    Ok(checked(logits, id, top, scratch))
}

/// [`logprobs_of`] for logits that were checked. An id outside of the vocabulary has probability 0.
pub(super) fn checked(logits: &[f32], id: u32, top: usize, scratch: &mut Scratch) -> Logprobs {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from((logit - max).exp())).sum();
    let log_total = f64::from(max) + sum.ln();
    let logprob = |logit: f32| (f64::from(logit) - log_total) as f32;

    let chosen = logits.get(id as usize).map_or(f32::NEG_INFINITY, |&logit| logprob(logit));
    let mut best = Vec::new();
    let top = top.min(logits.len());
    if top > 0 {
        let candidates = &mut scratch.candidates;
        Softmax { max, temperature: 1.0 }.best(top, logits, candidates);
        candidates.sort_unstable_by(filter::by_rank);
        best.extend(candidates.iter().map(|c| (c.id, logprob(c.logit))));
    }
    Logprobs { chosen, top: best }
}
