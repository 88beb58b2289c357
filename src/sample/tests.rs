//! Each cut against a naive oracle that sorts everything; the distribution of draws against the exact probabilities.

use super::filter::{self, Candidate};
use super::*;
use proptest::prelude::*;

fn candidates(logits: &[f32], temperature: f32) -> Vec<Candidate> {
    let mut all: Vec<_> = logits.iter().enumerate().map(|(id, &l)| Candidate::new(id as u32, l)).collect();
    filter::softmax(&mut all, temperature);
    all
}

fn ids(candidates: &[Candidate]) -> Vec<u32> {
    candidates.iter().map(|c| c.id).collect()
}

fn sorted(mut all: Vec<Candidate>) -> Vec<Candidate> {
    all.sort_by(filter::by_rank);
    all
}

/// Probabilities in f64, by the definition.
fn probabilities(all: &[Candidate]) -> Vec<f64> {
    let total: f64 = all.iter().map(|c| f64::from(c.weight)).sum();
    all.iter().map(|c| f64::from(c.weight) / total).collect()
}

fn naive_mass(ordered: &[Candidate], mass: f32) -> usize {
    let mut sum = 0.0;
    for (nth, p) in probabilities(ordered).into_iter().enumerate() {
        sum += p;
        if sum >= f64::from(mass) - 1e-12 {
            return nth + 1;
        }
    }
    ordered.len()
}

fn logits_strategy() -> impl Strategy<Value = Vec<f32>> {
    let value = prop_oneof![8 => -20.0f32..20.0, 1 => Just(0.0f32), 1 => Just(f32::NEG_INFINITY)];
    prop::collection::vec(value, 1..400).prop_filter("one is possible", |v| v.iter().any(|l| l.is_finite()))
}

proptest! {
    #[test]
    fn top_k_is_the_head_of_a_full_sort(logits in logits_strategy(), k in 0usize..500) {
        let mut cut = candidates(&logits, 1.0);
        filter::top_k(&mut cut, k);
        let all = sorted(candidates(&logits, 1.0));
        if k == 0 || k >= logits.len() {
            prop_assert_eq!(cut.len(), logits.len());
        } else {
            prop_assert_eq!(ids(&cut), ids(&all[..k]));
        }
    }

    #[test]
    fn top_p_is_the_shortest_head_with_the_mass(logits in logits_strategy(), mass in 0.0f32..1.0, t in 0.1f32..3.0) {
        let mut cut = candidates(&logits, t);
        filter::top_p(&mut cut, mass);
        let all = sorted(candidates(&logits, t));
        // Rounding may move the border by one candidate of negligible weight.
        let naive = naive_mass(&all, mass);
        prop_assert!(cut.len().abs_diff(naive) <= 1, "{} against {naive}", cut.len());
        prop_assert_eq!(ids(&cut), ids(&all[..cut.len()]));
    }

    #[test]
    fn typical_keeps_the_nearest_to_the_entropy(logits in logits_strategy(), mass in 0.01f32..0.99) {
        let mut cut = candidates(&logits, 1.0);
        filter::typical(&mut cut, mass);
        let mut all = sorted(candidates(&logits, 1.0));
        let p = probabilities(&all);
        let entropy: f64 = p.iter().filter(|p| **p > 0.0).map(|p| -p * p.ln()).sum();
        let mut keyed: Vec<_> = all.drain(..).zip(p).map(|(c, p)| ((-p.ln() - entropy).abs(), c)).collect();
        keyed.sort_by(|a, b| a.0.total_cmp(&b.0));
        let limit = keyed[cut.len() - 1].0;
        for candidate in &cut {
            let (distance, _) = keyed.iter().find(|(_, c)| c.id == candidate.id).expect("kept ids exist");
            prop_assert!(*distance <= limit + 1e-6);
        }
        let total: f64 = keyed.iter().map(|(_, c)| f64::from(c.weight)).sum();
        let kept: f64 = cut.iter().map(|c| f64::from(c.weight)).sum();
        prop_assert!(kept / total >= f64::from(mass) - 1e-9);
    }

    #[test]
    fn min_p_keeps_what_is_near_the_best(logits in logits_strategy(), ratio in 0.0f32..1.0) {
        let mut cut = candidates(&logits, 1.0);
        filter::min_p(&mut cut, ratio);
        let naive: Vec<u32> = candidates(&logits, 1.0).iter().filter(|c| c.weight >= ratio).map(|c| c.id).collect();
        prop_assert_eq!(ids(&cut), naive);
    }

    #[test]
    fn any_parameters_give_a_possible_token(
        logits in logits_strategy(),
        (temperature, top_k, top_p) in (0.0f32..2.0, 0usize..50, 0.0f32..1.0),
        (min_p, typical_p, repetition) in (0.0f32..1.0, 0.01f32..1.0, 0.5f32..2.0),
        (frequency, presence, seed) in (-2.0f32..2.0, -2.0f32..2.0, any::<u64>()),
        bias in prop::collection::vec((0u32..500, -100.0f32..100.0), 0..4),
    ) {
        let params = Params {
            temperature, top_k, top_p, min_p, typical_p, repetition_penalty: repetition, frequency_penalty: frequency,
            presence_penalty: presence, seed, logit_bias: bias, logprobs: Some(5), penalty_last_n: 8,
        };
        let mut sampler = Sampler::new(params.clone(), &[1, 2, 3, 499]);
        let mut again = Sampler::new(params, &[1, 2, 3, 499]);
        let mut scratch = Scratch::default();
        for _ in 0..12 {
            let draw = sampler.draw(&logits, &mut scratch).expect("the logits are fine");
            prop_assert!((draw.id as usize) < logits.len());
            prop_assert_eq!(&draw, &again.draw(&logits, &mut Scratch::default()).expect("the logits are fine"));
            let logprobs = draw.logprobs.expect("asked for");
            prop_assert_eq!(logprobs.top.len(), 5.min(logits.len()));
            prop_assert!(logprobs.top.windows(2).all(|pair| pair[0].1 >= pair[1].1));
            prop_assert!(logprobs.chosen <= 1e-6);
        }
    }

    #[test]
    fn greedy_is_the_first_maximum(logits in logits_strategy()) {
        let params = Params { temperature: 0.0, ..Params::default() };
        let draw = Sampler::new(params, &[]).draw(&logits, &mut Scratch::default()).expect("the logits are fine");
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        prop_assert_eq!(Some(draw.id as usize), logits.iter().position(|&l| l == max));
    }
}

/// Pearson's statistic of `draws` seeds against `expected` probabilities must stay below `bound`.
fn chi_square(params: Params, logits: &[f32], expected: &[f64], bound: f64) {
    let draws = 20_000u64;
    let mut counts = vec![0u64; logits.len()];
    let mut scratch = Scratch::default();
    for seed in 0..draws {
        let mut sampler = Sampler::new(Params { seed, ..params.clone() }, &[]);
        counts[sampler.draw(logits, &mut scratch).expect("the logits are fine").id as usize] += 1;
    }
    let mut statistic = 0.0;
    for (&count, &p) in counts.iter().zip(expected) {
        if p == 0.0 {
            assert_eq!(count, 0, "a token that was cut away was drawn");
        } else {
            let mean = p * draws as f64;
            statistic += (count as f64 - mean).powi(2) / mean;
        }
    }
    assert!(statistic < bound, "chi-square {statistic} over {bound}: {counts:?}");
}

fn softmax(logits: &[f32], temperature: f64, keep: impl Fn(usize) -> bool) -> Vec<f64> {
    let weights: Vec<f64> = logits
        .iter()
        .enumerate()
        .map(|(id, &l)| if keep(id) { (f64::from(l) / temperature).exp() } else { 0.0 })
        .collect();
    let total: f64 = weights.iter().sum();
    weights.into_iter().map(|w| w / total).collect()
}

const LOGITS: [f32; 8] = [0.5, 2.0, -1.0, 1.0, 0.0, 1.5, -0.5, 0.25];

#[test]
fn draws_follow_the_softmax() {
    // 7 degrees of freedom: 29.9 is the 0.9999 quantile.
    chi_square(Params::default(), &LOGITS, &softmax(&LOGITS, 1.0, |_| true), 29.9);
}

#[test]
fn draws_follow_the_temperature() {
    let params = Params { temperature: 0.6, ..Params::default() };
    chi_square(params, &LOGITS, &softmax(&LOGITS, f64::from(0.6f32), |_| true), 29.9);
}

#[test]
fn draws_follow_what_the_cuts_leave() {
    let best_three = |id: usize| [1, 5, 3].contains(&id);
    chi_square(Params { top_k: 3, ..Params::default() }, &LOGITS, &softmax(&LOGITS, 1.0, best_three), 18.5);
    // Weights against the best: 1, .61, .37, .22, ..: min-p 0.3 leaves three as well.
    chi_square(Params { min_p: 0.3, ..Params::default() }, &LOGITS, &softmax(&LOGITS, 1.0, best_three), 18.5);
    // Cumulative .379, .609, .748: top-p 0.7 needs three.
    chi_square(Params { top_p: 0.7, ..Params::default() }, &LOGITS, &softmax(&LOGITS, 1.0, best_three), 18.5);
}

#[test]
fn positions_of_one_sequence_are_independent_draws() {
    let mut sampler = Sampler::new(Params { seed: 7, ..Params::default() }, &[]);
    let mut scratch = Scratch::default();
    let mut pairs = [[0u32; 2]; 2];
    let mut before = 0;
    for _ in 0..20_000 {
        let id = sampler.draw(&[0.0, 0.0], &mut scratch).expect("the logits are fine").id as usize;
        pairs[before][id] += 1;
        before = id;
    }
    for count in pairs.as_flattened() {
        assert!((4700..5300).contains(count), "{pairs:?}");
    }
}

#[test]
fn penalties_and_bias_do_what_they_say() {
    let greedy = |params: Params, prompt: &[u32], n: usize| {
        let mut sampler = Sampler::new(Params { temperature: 0.0, ..params }, prompt);
        let mut scratch = Scratch::default();
        (0..n).map(|_| sampler.draw(&[2.0, 1.5, 1.0], &mut scratch).expect("fine").id).collect::<Vec<_>>()
    };
    assert_eq!(greedy(Params::default(), &[], 3), [0, 0, 0]);
    assert_eq!(greedy(Params { presence_penalty: 0.7, ..Params::default() }, &[], 4), [0, 1, 0, 0]);
    assert_eq!(greedy(Params { frequency_penalty: 0.6, ..Params::default() }, &[], 5), [0, 1, 0, 2, 1]);
    assert_eq!(greedy(Params { frequency_penalty: 0.6, ..Params::default() }, &[0, 0, 0], 1), [0], "output only");
    let repetition = Params { repetition_penalty: 2.0, penalty_last_n: 2, ..Params::default() };
    assert_eq!(greedy(repetition.clone(), &[0], 1), [1], "the prompt counts");
    assert_eq!(greedy(repetition, &[0, 2, 2], 1), [0], "what is too long ago does not");
    assert_eq!(greedy(Params { logit_bias: vec![(0, -100.0), (2, 0.6)], ..Params::default() }, &[], 1), [2]);
}

#[test]
fn broken_logits_are_an_error_not_a_hang() {
    let mut scratch = Scratch::default();
    for params in [Params::default(), Params { temperature: 0.0, ..Params::default() }] {
        let mut sampler = Sampler::new(params, &[]);
        let nan = sampler.draw(&[0.0, f32::NAN, f32::INFINITY], &mut scratch);
        assert_eq!(nan, Err(SampleError::NotFinite { first: 1, count: 2 }));
        let none = sampler.draw(&[f32::NEG_INFINITY; 3], &mut scratch);
        assert_eq!(none, Err(SampleError::NoCandidate { vocab: 3 }));
        assert_eq!(sampler.draw(&[], &mut scratch), Err(SampleError::NoCandidate { vocab: 0 }));
        assert_eq!(sampler.draw(&[f32::NEG_INFINITY, -1.0], &mut scratch).expect("one is left").id, 1);
        assert!(sampler.draw(&[f32::MAX, f32::MIN, f32::MAX], &mut scratch).is_ok());
    }
}

#[test]
fn logprobs_are_those_of_the_model() {
    let params = Params { temperature: 0.0, logit_bias: vec![(2, 100.0)], logprobs: Some(2), ..Params::default() };
    let draw = Sampler::new(params, &[]).draw(&[1.0, 3.0, 2.0], &mut Scratch::default()).expect("fine");
    let logprobs = draw.logprobs.expect("asked for");
    let total = (1f64.exp() + 3f64.exp() + 2f64.exp()).ln();
    assert_eq!(draw.id, 2);
    assert!((f64::from(logprobs.chosen) - (2.0 - total)).abs() < 1e-6);
    assert_eq!(logprobs.top.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 2]);
    let outside = logprobs_of(&[0.0], 9, 0, &mut Scratch::default()).expect("fine");
    assert_eq!(outside.chosen, f32::NEG_INFINITY);
}
