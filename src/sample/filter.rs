//! The cuts: each keeps a subset of the candidates, never none. Order: logit descending, id ascending, which is total.
//!
//! Nothing is sorted but the few candidates around a border, so a vocabulary of 150k tokens costs some linear passes,
//! whatever its distribution. Probabilities are added as integers: a sum does not depend on the order, and what is kept
//! and drawn is to the last bit what sorting everything would keep and draw.

use std::cmp::Ordering;

/// Logits looked at together.
const CHUNK: usize = 64;
/// So few candidates are sorted, more are dealt to buckets first.
const FEW: usize = 64;
/// Bits of an order's key that one deal looks at.
const DIGIT: u32 = 11;
/// A weight below is none: e^x for smaller x is no normal number.
const LEAST: f32 = -87.0;

/// A token that may be drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Candidate {
    /// Token.
    pub id: u32,
    /// Adjusted logit; never NaN or +∞.
    pub logit: f32,
    /// Unnormalised probability: 1 for the best.
    pub weight: f32,
}

impl Candidate {
    /// The weight as an integer. One of less than 2⁻⁴² of the best's is none.
    pub(super) fn mass(&self) -> u64 {
        mass(self.weight)
    }
}

fn mass(weight: f32) -> u64 {
    (weight * (1u64 << 42) as f32) as i64 as u64
}

/// What weights of logits are relative to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Softmax {
    /// The largest logit.
    pub max: f32,
    pub temperature: f32,
}

impl Softmax {
    /// Of `logits`.
    pub(super) fn new(logits: &[f32], temperature: f32) -> Softmax {
        Softmax { max: maximum(logits), temperature }
    }

    /// `exp((logit - max) / temperature)`.
    fn weight(&self, logit: f32) -> f32 {
        exp((logit - self.max) / self.temperature)
    }

    fn candidate(&self, id: usize, logit: f32) -> Candidate {
        Candidate { id: id as u32, logit, weight: self.weight(logit) }
    }

    /// Weights of at most [`CHUNK`] logits, zeros behind them.
    fn weights(&self, logits: &[f32]) -> [f32; CHUNK] {
        let mut weights = [0.0; CHUNK];
        for (weight, &logit) in weights.iter_mut().zip(logits) {
            *weight = self.weight(logit);
        }
        weights
    }

    /// The mass of all tokens.
    pub(super) fn total(&self, logits: &[f32]) -> u64 {
        logits.chunks(CHUNK).map(|logits| self.weights(logits).into_iter().map(mass).sum::<u64>()).sum()
    }

    /// All tokens, in the order of their ids.
    pub(super) fn all(&self, logits: &[f32], candidates: &mut Vec<Candidate>) {
        candidates.clear();
        candidates.extend(logits.iter().enumerate().map(|(id, &logit)| self.candidate(id, logit)));
    }

    /// Tokens whose weight is at least `floor`, and perhaps some that are little below, in the order of their ids.
    pub(super) fn above(&self, floor: f64, logits: &[f32], candidates: &mut Vec<Candidate>) {
        let lowest = f64::from(self.max) + f64::from(self.temperature) * (floor.min(1.0).ln() - 1e-3);
        // Rounded down, for sure.
        let lowest = (lowest - 1e-6 * f64::from(self.max).abs()) as f32;
        self.at_least(lowest, logits, candidates);
    }

    /// Tokens whose logit is at least `lowest`, in the order of their ids.
    fn at_least(&self, lowest: f32, logits: &[f32], candidates: &mut Vec<Candidate>) {
        candidates.clear();
        for (nth, chunk) in logits.chunks(CHUNK).enumerate() {
            if maximum(chunk) >= lowest {
                let reach = chunk.iter().enumerate().filter(|(_, logit)| **logit >= lowest);
                candidates.extend(reach.map(|(i, &logit)| self.candidate(CHUNK * nth + i, logit)));
            }
        }
    }

    /// The `k` best tokens, in any order; `k` is not 0.
    pub(super) fn best(&self, k: usize, logits: &[f32], candidates: &mut Vec<Candidate>) {
        // The k-th largest of the chunks' maxima: at least k logits reach it, in k chunks.
        candidates.clear();
        candidates.extend(logits.chunks(CHUNK).map(|chunk| Candidate { id: 0, logit: maximum(chunk), weight: 0.0 }));
        let lowest = match candidates.len() < k {
            true => f32::NEG_INFINITY,
            false => candidates.select_nth_unstable_by(k - 1, by_rank).1.logit,
        };
        self.at_least(lowest, logits, candidates);
        if k < candidates.len() {
            candidates.select_nth_unstable_by(k, by_rank);
            candidates.truncate(k);
        }
    }

    /// The token at the quantile `uniform` in `[0, 1)` of all, walking in the order of their ids.
    pub(super) fn pick(&self, uniform: f64, logits: &[f32]) -> u32 {
        let target = quantile(uniform, self.total(logits));
        let mut sum = 0;
        for (nth, chunk) in logits.chunks(CHUNK).enumerate() {
            let weights = self.weights(chunk);
            let here: u64 = weights.into_iter().map(mass).sum();
            if sum + here < target {
                sum += here;
                continue;
            }
            for (i, weight) in weights.into_iter().enumerate() {
                sum += mass(weight);
                if sum >= target {
                    return (CHUNK * nth + i) as u32;
                }
            }
        }
        unreachable!("the quantile is at most the total")
    }
}

/// e^x for `x ≤ 0` to 2 ulp, 0 below [`LEAST`]: x = n·ln 2 + r, a polynomial of r, n into the exponent. Plain operations
/// without branches, which the compiler turns to vector code.
fn exp(x: f32) -> f32 {
    /// Adding and subtracting it rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    let inside = if x > LEAST { x } else { LEAST };
    let shifted = inside * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    // ln 2 in two parts, the first with few enough bits that n times it is exact.
    let r = (inside - n * 0.693_145_75) - n * 1.428_606_8e-6;
    let mut p = 1.388_889e-3f32;
    for c in [8.333_334e-3, 4.166_667e-2, 1.666_666_7e-1, 0.5, 1.0, 1.0] {
        p = p * r + c;
    }
    let exponent = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32).wrapping_add(127);
    let value = p * f32::from_bits((exponent as u32) << 23);
    if x < LEAST { 0.0 } else { value }
}

/// The largest; -∞ of nothing.
pub(super) fn maximum(x: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; 16];
    let (chunks, rest) = x.as_chunks::<16>();
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(lane, &x)| *lane = larger(*lane, x));
    }
    lanes.into_iter().chain(rest.iter().copied()).fold(f32::NEG_INFINITY, larger)
}

/// Best first.
pub(super) fn by_rank(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id))
}

/// Ascends as [`by_rank`], ties apart.
fn rank_key(candidate: &Candidate) -> u32 {
    let bits = candidate.logit.to_bits();
    if bits >> 31 == 1 { bits } else { !(bits | 1 << 31) }
}

/// Keeps the smallest set of best candidates that holds at least `share` of the mass `total`; 1 is off.
pub(super) fn top_p(candidates: &mut Vec<Candidate>, share: f32, total: u64) {
    if share < 1.0 {
        let kept = prefix(candidates, part(share, total), by_rank, rank_key);
        candidates.truncate(kept);
    }
}

/// The weight below which [`top_p`] needs no candidate of `n`: together they would hold less than what is cut away.
pub(super) fn top_p_floor(share: f32, total: u64, n: usize) -> f64 {
    (1.0 - f64::from(share)) * (total as f64 / mass(1.0) as f64) / n as f64
}

/// Locally typical sampling (arXiv 2202.00666): keeps the smallest set of tokens whose surprise is nearest the entropy
/// and that holds at least `share` of the probability; 1 is off.
pub(super) fn typical(candidates: &mut Vec<Candidate>, share: f32, softmax: &Softmax) {
    if share >= 1.0 {
        return;
    }
    let all = total(candidates);
    let log_total = (all as f64 / mass(1.0) as f64).ln();
    let surprise =
        |c: &Candidate| log_total - (f64::from(c.logit) - f64::from(softmax.max)) / f64::from(softmax.temperature);
    let probable = candidates.iter().filter(|c| c.mass() > 0);
    let entropy: f64 = probable.map(|c| c.mass() as f64 / all as f64 * surprise(c)).sum();
    let distance = |c: &Candidate| (surprise(c) - entropy).abs();
    let order = |a: &Candidate, b: &Candidate| distance(a).total_cmp(&distance(b)).then(by_rank(a, b));
    let kept = prefix(candidates, part(share, all), order, |c| (distance(c) as f32).to_bits());
    candidates.truncate(kept);
}

/// Keeps candidates at least `ratio` times as probable as the best; 0 is off.
pub(super) fn min_p(candidates: &mut Vec<Candidate>, ratio: f32) {
    if ratio > 0.0 {
        let floor = candidates.iter().fold(0.0f32, |max, c| max.max(c.weight)) * ratio.min(1.0);
        candidates.retain(|c| c.weight >= floor);
    }
}

/// The candidate at the quantile `uniform` in `[0, 1)` of what is left, best first.
pub(super) fn pick(candidates: &mut [Candidate], uniform: f64) -> u32 {
    let target = quantile(uniform, total(candidates));
    let kept = prefix(candidates, target, by_rank, rank_key);
    candidates[kept - 1].id
}

/// The mass of all candidates.
pub(super) fn total(candidates: &[Candidate]) -> u64 {
    candidates.iter().map(Candidate::mass).sum()
}

/// A share of a mass, rounded up.
fn part(share: f32, total: u64) -> u64 {
    (f64::from(share.max(0.0)) * total as f64).ceil() as u64
}

/// The sum at which the quantile `uniform` is reached, from 1 to `total`.
fn quantile(uniform: f64, total: u64) -> u64 {
    ((uniform * total as f64) as u64 + 1).min(total)
}

/// How many candidates the shortest head in `order` has that holds the mass `target` (and some): they are brought to the
/// front, the last of them to its end. All, in any order, where they hold less. `key` ascends as `order`.
fn prefix(
    candidates: &mut [Candidate],
    target: u64,
    order: impl Fn(&Candidate, &Candidate) -> Ordering,
    key: impl Fn(&Candidate) -> u32,
) -> usize {
    let target = target.max(1);
    // The border is in `start..end`, and `sum` is in front of it.
    let (mut start, mut end, mut sum) = (0, candidates.len(), 0);
    for shift in [32 - DIGIT, 32 - 2 * DIGIT, 0] {
        if end - start <= FEW {
            break;
        }
        let digit = |c: &Candidate| (key(c) >> shift) as usize % (1 << DIGIT);
        let mut masses = [0u64; 1 << DIGIT];
        candidates[start..end].iter().for_each(|c| masses[digit(c)] += c.mass());
        let border = masses.iter().position(|mass| {
            let reached = sum + mass >= target;
            sum += if reached { 0 } else { *mass };
            reached
        });
        let Some(border) = border else { return candidates.len() };
        let (mut at, mut behind) = (start, end);
        while at < behind {
            match digit(&candidates[at]).cmp(&border) {
                Ordering::Less => {
                    candidates.swap(at, start);
                    (start, at) = (start + 1, at + 1);
                }
                Ordering::Equal => at += 1,
                Ordering::Greater => {
                    behind -= 1;
                    candidates.swap(at, behind);
                }
            }
        }
        end = behind;
    }
    candidates[start..end].sort_unstable_by(order);
    let reached = candidates[start..end].iter().position(|c| {
        sum += c.mass();
        sum >= target
    });
    reached.map_or(candidates.len(), |last| start + last + 1)
}
