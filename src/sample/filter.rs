//! The cuts: each keeps a subset of the candidates, never none. No cut sorts more than it keeps (times eight), so a
//! vocabulary of 150k tokens costs a few linear passes. Order: logit descending, id ascending, which is total.

use std::cmp::Ordering;

/// So many best are found by insertion, more by partition.
const FEW: usize = 64;

/// A token that may be drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Candidate {
    /// Token.
    pub id: u32,
    /// Adjusted logit; never NaN or +∞.
    pub logit: f32,
    /// Unnormalised probability, set by [`softmax`]: 1 for the best.
    pub weight: f32,
}

impl Candidate {
    pub(super) fn new(id: u32, logit: f32) -> Self {
        Candidate { id, logit, weight: 0.0 }
    }
}

/// Best first.
pub(super) fn by_rank(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id))
}

/// The first by rank. `candidates` is not empty.
pub(super) fn best(candidates: &[Candidate]) -> Candidate {
    let mut best = candidates[0];
    for candidate in candidates {
        // 0 and -0 tie here, as they do in a plain comparison of logits.
        if candidate.logit > best.logit || (candidate.logit == best.logit && candidate.id < best.id) {
            best = *candidate;
        }
    }
    best
}

/// Keeps the `k` best, in order; 0 is off.
pub(super) fn top_k(candidates: &mut Vec<Candidate>, k: usize) {
    if k == 0 || k >= candidates.len() {
        return;
    }
    keep_first(candidates, k, by_rank);
    candidates.truncate(k);
}

/// Sets each weight to `exp((logit - max) / temperature)`.
pub(super) fn softmax(candidates: &mut [Candidate], temperature: f32) {
    let max = best(candidates).logit;
    for candidate in candidates {
        candidate.weight = ((candidate.logit - max) / temperature).exp();
    }
}

/// Keeps the smallest set of best candidates that holds at least `mass` of the probability; 1 is off.
pub(super) fn top_p(candidates: &mut Vec<Candidate>, mass: f32) {
    if mass >= 1.0 {
        return;
    }
    // All candidates below the floor together hold less than what is cut away, so none of them is needed. This leaves
    // few to be sorted of a large vocabulary's long tail.
    let floor = (1.0 - f64::from(mass)) * total(candidates) / candidates.len() as f64;
    let target = total(candidates) * f64::from(mass.max(0.0));
    candidates.retain(|c| f64::from(c.weight) >= floor.min(1.0));
    keep_mass(candidates, target, by_rank);
}

/// Locally typical sampling (arXiv 2202.00666): keeps the smallest set of tokens whose surprise is nearest the entropy
/// and that holds at least `mass` of the probability; 1 is off.
pub(super) fn typical(candidates: &mut Vec<Candidate>, mass: f32) {
    if mass >= 1.0 {
        return;
    }
    let total = total(candidates);
    let surprise = |c: &Candidate| (total / f64::from(c.weight)).ln();
    let entropy: f64 =
        candidates.iter().filter(|c| c.weight > 0.0).map(|c| f64::from(c.weight) / total * surprise(c)).sum();
    let target = total * f64::from(mass.max(0.0));
    keep_mass(candidates, target, |a, b| {
        let distance = |c: &Candidate| (surprise(c) - entropy).abs();
        distance(a).total_cmp(&distance(b)).then(by_rank(a, b))
    });
}

/// Keeps candidates at least `ratio` times as probable as the best; 0 is off.
pub(super) fn min_p(candidates: &mut Vec<Candidate>, ratio: f32) {
    if ratio > 0.0 {
        let floor = candidates.iter().fold(0.0f32, |max, c| max.max(c.weight)) * ratio.min(1.0);
        candidates.retain(|c| c.weight >= floor);
    }
}

/// The candidate at the quantile `uniform` in `[0, 1)` of what is left, walking in the present order.
pub(super) fn pick(candidates: &[Candidate], uniform: f64) -> u32 {
    let target = uniform * total(candidates);
    let mut sum = 0.0;
    let mut last = candidates[0].id;
    for candidate in candidates.iter().filter(|c| c.weight > 0.0) {
        sum += f64::from(candidate.weight);
        last = candidate.id;
        if sum > target {
            break;
        }
    }
    last
}

fn total(candidates: &[Candidate]) -> f64 {
    candidates.iter().map(|c| f64::from(c.weight)).sum()
}

/// Keeps the shortest prefix in `order` that holds the weight `target`, in order; all when they hold less.
fn keep_mass(candidates: &mut Vec<Candidate>, target: f64, order: impl Fn(&Candidate, &Candidate) -> Ordering) {
    let mut sorted = 32;
    loop {
        sorted = sorted.min(candidates.len());
        keep_first(candidates, sorted, &order);
        let mut sum = 0.0;
        let reached = candidates[..sorted].iter().position(|c| {
            sum += f64::from(c.weight);
            sum >= target
        });
        if let Some(last) = reached {
            candidates.truncate(last + 1);
            return;
        }
        if sorted == candidates.len() {
            return;
        }
        sorted *= 8;
    }
}

/// Brings the first `n` in `order` to the front, sorted; the rest follows in any (deterministic) order.
pub(super) fn keep_first(
    candidates: &mut [Candidate],
    n: usize,
    order: impl Fn(&Candidate, &Candidate) -> Ordering + Copy,
) {
    if n == 0 {
        return;
    }
    if n > FEW && n < candidates.len() {
        candidates.select_nth_unstable_by(n, order);
    }
    candidates[..n].sort_unstable_by(order);
    if n > FEW {
        return;
    }
    // One pass: hardly any of a long list is better than the worst of the few best so far.
    for at in n..candidates.len() {
        if order(&candidates[at], &candidates[n - 1]).is_lt() {
            candidates.swap(at, n - 1);
            let new = candidates[n - 1];
            let place = candidates[..n - 1].partition_point(|c| order(c, &new).is_lt());
            candidates[place..n].rotate_right(1);
        }
    }
}
