//! Mixture of experts: which rows of a batch go to which matrix of a stack, by the router's scores.
//!
//! ```text
//! scores [rows, experts] ─▶ route ─▶ Routes: pairs (row, expert), grouped by expert
//! x [rows, cols] ─▶ expert_matmul ─▶ [pairs, …] ─▶ … ─▶ [pairs, d_model] ─▶ combine ─▶ [rows, d_model]
//! ```
//! The choice is plain code, the same in every tier: a row's experts depend on its own scores alone.

use super::Tensor;
use std::ops::Range;

/// How scores become probabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gating {
    /// Softmax over all experts.
    Softmax,
    /// Each one's sigmoid.
    Sigmoid,
    /// Softmax over those that were chosen by score.
    SoftmaxOfChosen,
}

/// How a row chooses. `1 ≤ used ≤ experts`; `groups` divides `experts` and is at
/// most [`MAX_GROUPS`]; the used groups hold at least `used` experts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RouteRule {
    /// Matrices of the stack.
    pub experts: usize,
    /// Chosen per row.
    pub used: usize,
    /// Scores to probabilities.
    pub gating: Gating,
    /// The chosen probabilities are divided by their sum.
    pub normalise: bool,
    /// Factor on the chosen probabilities.
    pub scale: f32,
    /// Groups of neighbouring experts, equally large; 1 for none. A group counts as much as its best expert, with
    /// [`Gating::Sigmoid`] as its best two together (DeepSeek-V2, arXiv 2405.04434; V3, 2412.19437).
    pub groups: usize,
    /// Experts are chosen from this many best groups.
    pub groups_used: usize,
}

/// Most groups that a model may have.
pub const MAX_GROUPS: usize = 64;

/// Least sum that chosen probabilities are divided by: all may underflow.
const LEAST_SUM: f32 = 1e-20;

impl RouteRule {
    /// Chooses for one row: the best `used` experts to `chosen`, best first, and their weights to `weights`. `bias` is
    /// added to the probabilities for the choice alone. `scores` is used up. Of equals the first is better.
    pub(crate) fn choose(&self, scores: &mut [f32], bias: Option<&[f32]>, chosen: &mut [u32], weights: &mut [f32]) {
        match self.gating {
            Gating::Softmax => softmax(scores),
            Gating::Sigmoid => scores.iter_mut().for_each(|s| *s = 1.0 / (1.0 + (-*s).exp())),
            Gating::SoftmaxOfChosen => {}
        }
        let merit = |e: usize| scores[e] + bias.map_or(0.0, |bias| bias[e]);
        if self.groups > 1 {
            let size = self.experts / self.groups;
            let count = if self.gating == Gating::Sigmoid { size.min(2) } else { 1 };
            let worth = |group: usize| {
                let mut top = [0u32; 2];
                best(group * size..(group + 1) * size, merit, &mut top[..count]);
                top[..count].iter().map(|&e| merit(e as usize)).sum()
            };
            let mut groups = [0u32; MAX_GROUPS];
            let groups = &mut groups[..self.groups_used];
            best(0..self.groups, worth, groups);
            groups.sort_unstable();
            best(groups.iter().flat_map(|&g| g as usize * size..(g as usize + 1) * size), merit, chosen);
        } else {
            best(0..self.experts, merit, chosen);
        }
        weights.iter_mut().zip(&*chosen).for_each(|(weight, &e)| *weight = scores[e as usize]);
        if self.gating == Gating::SoftmaxOfChosen {
            softmax(weights);
        }
        let sum = if self.normalise { weights.iter().sum::<f32>().max(LEAST_SUM) } else { 1.0 };
        weights.iter_mut().for_each(|weight| *weight = *weight / sum * self.scale);
    }
}

/// The best `top.len()` of `candidates` by `merit`, best first; of equals the earlier. NaN is worst.
fn best(candidates: impl IntoIterator<Item = usize>, merit: impl Fn(usize) -> f32, top: &mut [u32]) {
    let mut found = 0;
    for candidate in candidates {
        let worth = merit(candidate);
        let better = |other: u32| {
            let other = merit(other as usize);
            worth > other || (other.is_nan() && !worth.is_nan())
        };
        let at = (0..found).rev().take_while(|&i| better(top[i])).last().unwrap_or(found);
        if at == top.len() {
            continue;
        }
        found = (found + 1).min(top.len());
        top[at..found].rotate_right(1);
        top[at] = candidate as u32;
    }
}

fn softmax(x: &mut [f32]) {
    let largest = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for x in &mut *x {
        *x = (*x - largest).exp();
        sum += *x;
    }
    x.iter_mut().for_each(|x| *x /= sum);
}

/// Who goes where: made once per layer, used by all its products. A pair is a row and one of its experts; pairs are
/// numbered expert after expert, within one in the order of the rows.
#[derive(Default)]
pub struct Routes {
    /// Per row: its experts, best first, and their weights, `[rows, used]`.
    pub(crate) chosen: Vec<u32>,
    /// As `chosen`.
    pub(crate) weights: Vec<f32>,
    /// Each row's pairs, `[rows, used]`.
    pub(crate) pairs: Vec<u32>,
    /// Each pair's row.
    pub(crate) rows: Vec<u32>,
    /// First pair of each expert, and the number of pairs.
    starts: Vec<u32>,
    /// Of each row.
    used: usize,
}

impl Routes {
    /// Room for `rows` rows by `rule`, so that no step allocates.
    pub fn with_capacity(rule: &RouteRule, rows: usize) -> Routes {
        let pairs = rows * rule.used;
        Routes {
            chosen: Vec::with_capacity(pairs),
            weights: Vec::with_capacity(pairs),
            pairs: Vec::with_capacity(pairs),
            rows: Vec::with_capacity(pairs),
            starts: Vec::with_capacity(rule.experts + 1),
            used: rule.used,
        }
    }

    /// Bytes that [`Routes::with_capacity`] reserves.
    pub fn bytes(rule: &RouteRule, rows: usize) -> u64 {
        let per_row = super::f32_bytes(4 * rule.used);
        per_row.saturating_mul(rows as u64).saturating_add(super::f32_bytes(rule.experts + 1))
    }

    /// Bytes reserved.
    pub fn reserved(&self) -> u64 {
        let Routes { chosen, weights, pairs, rows, starts, used: _ } = self;
        let elements = chosen.capacity() + weights.capacity() + pairs.capacity() + rows.capacity() + starts.capacity();
        super::f32_bytes(elements)
    }

    /// Makes room for the choice of `rows` rows, which the caller fills in before [`Routes::group`].
    pub(crate) fn reset(&mut self, rule: &RouteRule, rows: usize) {
        self.used = rule.used;
        self.chosen.clear();
        self.chosen.resize(rows * rule.used, 0);
        self.weights.clear();
        self.weights.resize(rows * rule.used, 0.0);
    }

    /// Numbers the pairs of what was chosen.
    pub(crate) fn group(&mut self, experts: usize) {
        self.starts.clear();
        self.starts.resize(experts + 1, 0);
        self.chosen.iter().for_each(|&e| self.starts[e as usize + 1] += 1);
        for e in 0..experts {
            self.starts[e + 1] += self.starts[e];
        }
        self.pairs.clear();
        self.pairs.resize(self.chosen.len(), 0);
        self.rows.clear();
        self.rows.resize(self.chosen.len(), 0);
        for (i, &e) in self.chosen.iter().enumerate() {
            // `starts` serves as the next free pair of each expert, and is moved back below.
            let pair = self.starts[e as usize];
            self.starts[e as usize] += 1;
            self.pairs[i] = pair;
            self.rows[pair as usize] = (i / self.used) as u32;
        }
        self.starts.rotate_right(1);
        self.starts[0] = 0;
    }

    /// Number of pairs.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// True before anything was routed.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The row of a pair.
    pub fn row(&self, pair: usize) -> usize {
        self.rows[pair] as usize
    }

    /// Rows of the batch.
    pub fn batch(&self) -> usize {
        self.rows.len() / self.used.max(1)
    }

    /// The experts that were chosen by anybody, each with its pairs.
    pub fn active(&self) -> impl Iterator<Item = (usize, Range<usize>)> + '_ {
        let ranges = self.starts.windows(2).map(|w| w[0] as usize..w[1] as usize);
        ranges.enumerate().filter(|(_, pairs)| !pairs.is_empty())
    }

    /// Row `row`'s pairs and their weights, best first.
    pub fn of_row(&self, row: usize) -> impl Iterator<Item = (usize, f32)> + '_ {
        let range = row * self.used..(row + 1) * self.used;
        self.pairs[range.clone()].iter().map(|&pair| pair as usize).zip(self.weights[range].iter().copied())
    }
}

/// Activations of a product with experts.
#[derive(Clone, Copy)]
pub enum ExpertInput<'a> {
    /// `[rows, cols]`: each goes to all experts of its row.
    Rows(&'a [f32]),
    /// `[pairs, cols]`: what an earlier product yielded.
    Pairs(&'a [f32]),
}

/// One of several products with a stack of matrices: pair `p` of expert `e` with the rows `first..first + rows` of matrix
/// `e`, `out[p, r] = Σ_c weight[e, first + r, c] · x[·, c] (+ bias[e, first + r])`.
pub struct ExpertMatMul<'a> {
    /// `[experts * stride, cols]`: matrix after matrix.
    pub weight: &'a Tensor,
    /// `[experts * stride]` F32.
    pub bias: Option<&'a Tensor>,
    /// Rows of one matrix.
    pub stride: usize,
    /// The first of them that is wanted.
    pub first: usize,
    /// How many.
    pub rows: usize,
    /// `[pairs, rows]`.
    pub out: &'a mut [f32],
}

impl ExpertMatMul<'_> {
    /// Bytes that must move: the weights of every active expert and the outputs, each once.
    pub fn bytes_moved(&self, routes: &Routes) -> u64 {
        let active = routes.active().count() as u64;
        active * (self.rows * self.weight.row_bytes()) as u64 + super::f32_bytes(self.out.len())
    }

    /// Multiplications and additions.
    pub fn operations(&self, routes: &Routes) -> u64 {
        2 * routes.len() as u64 * self.rows as u64 * self.weight.cols as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(experts: usize, used: usize) -> RouteRule {
        let gating = Gating::Softmax;
        RouteRule { experts, used, gating, normalise: true, scale: 1.0, groups: 1, groups_used: 1 }
    }

    fn choose(rule: &RouteRule, scores: &[f32], bias: Option<&[f32]>) -> (Vec<u32>, Vec<f32>) {
        let (mut chosen, mut weights) = (vec![0; rule.used], vec![0.0; rule.used]);
        rule.choose(&mut scores.to_vec(), bias, &mut chosen, &mut weights);
        (chosen, weights)
    }

    #[test]
    fn the_best_are_chosen_best_first() {
        let scores = [0.0, 3.0, -1.0, 2.0, 3.0, f32::NAN];
        let (chosen, _) = choose(&rule(6, 5), &scores, None);
        // One NaN makes every softmax NaN: the order is the experts'.
        assert_eq!(chosen, [0, 1, 2, 3, 4]);
        let (chosen, weights) = choose(&rule(5, 3), &scores[..5], None);
        assert_eq!(chosen, [1, 4, 3]);
        let e = 1.0 / (2.0 + (-1.0f32).exp());
        assert!((weights[0] - e).abs() < 1e-6 && weights[0] == weights[1], "{weights:?}");
        assert!((weights.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        let mut by_score = vec![0; 3];
        best(0..6, |e| scores[e], &mut by_score);
        assert_eq!(by_score, [1, 4, 3], "NaN is worst");
    }

    #[test]
    fn gatings_normalisation_and_scale() {
        let scores = [1.0f32, 2.0, 0.5, -1.0];
        let all: f32 = scores.iter().map(|s| s.exp()).sum();
        let plain = RouteRule { normalise: false, scale: 2.5, ..rule(4, 2) };
        let (chosen, weights) = choose(&plain, &scores, None);
        assert_eq!(chosen, [1, 0]);
        assert!((weights[0] - 2.5 * 2.0f32.exp() / all).abs() < 1e-6);
        let sigmoid = RouteRule { gating: Gating::Sigmoid, ..plain };
        // The bias moves the choice, the weight stays the probability's.
        let (chosen, weights) = choose(&sigmoid, &scores, Some(&[0.0, 0.0, 0.0, 9.0]));
        assert_eq!(chosen, [3, 1]);
        assert!((weights[0] - 2.5 / (1.0 + 1.0f32.exp())).abs() < 1e-6);
        let late = RouteRule { gating: Gating::SoftmaxOfChosen, scale: 1.0, ..plain };
        let (chosen, weights) = choose(&late, &scores, None);
        assert_eq!(chosen, [1, 0]);
        assert!((weights[0] - 1.0 / (1.0 + (-1.0f32).exp())).abs() < 1e-6);
        // All probabilities underflow: no division by zero.
        let (_, weights) = choose(&RouteRule { normalise: true, ..sigmoid }, &[-200.0; 4], None);
        assert!(weights.iter().all(|w| w.is_finite()), "{weights:?}");
    }

    #[test]
    fn groups_limit_the_choice() {
        // Four groups of two; the best single expert stands in group 0, the best pair in group 2.
        let scores = [5.0, -9.0, 3.0, 2.0, 4.0, 4.0, 1.0, 0.0];
        let limited = |gating, groups_used| RouteRule { gating, groups: 4, groups_used, ..rule(8, 2) };
        assert_eq!(choose(&limited(Gating::Softmax, 1), &scores, None).0, [0, 1]);
        assert_eq!(choose(&limited(Gating::Softmax, 2), &scores, None).0, [0, 4]);
        assert_eq!(choose(&limited(Gating::Sigmoid, 1), &scores, None).0, [4, 5]);
        assert_eq!(choose(&limited(Gating::Sigmoid, 4), &scores, None).0, [0, 4]);
    }

    #[test]
    fn pairs_are_grouped_by_expert() {
        let rule = rule(4, 2);
        let mut routes = Routes::with_capacity(&rule, 3);
        for _ in 0..2 {
            routes.reset(&rule, 3);
            routes.chosen.copy_from_slice(&[3, 1, 1, 0, 3, 1]);
            routes.weights.copy_from_slice(&[0.6, 0.4, 0.7, 0.3, 0.9, 0.1]);
            routes.group(4);
            assert_eq!((routes.len(), routes.batch()), (6, 3));
            let active: Vec<_> = routes.active().collect();
            assert_eq!(active, [(0, 0..1), (1, 1..4), (3, 4..6)]);
            assert_eq!(routes.rows, [1, 0, 1, 2, 0, 2]);
            let pairs: Vec<_> = (0..3).map(|row| routes.of_row(row).collect::<Vec<_>>()).collect();
            assert_eq!(pairs, [[(4, 0.6), (1, 0.4)], [(2, 0.7), (0, 0.3)], [(5, 0.9), (3, 0.1)]]);
        }
    }
}
