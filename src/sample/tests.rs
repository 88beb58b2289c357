//! Each cut against a naive oracle that sorts everything; the distribution of draws against the exact probabilities.

use super::filter::{self, Candidate, Softmax};
use super::*;
use proptest::prelude::*;

fn candidates(logits: &[f32], temperature: f32) -> Vec<Candidate> {
    let mut all = Vec::new();
    Softmax::new(logits, temperature).all(logits, &mut all);
    all
}

fn ids(candidates: &[Candidate]) -> Vec<u32> {
    candidates.iter().map(|c| c.id).collect()
}

fn sorted(mut all: Vec<Candidate>) -> Vec<Candidate> {
    all.sort_by(filter::by_rank);
    all
}

/// How many of `ordered` hold the mass.
fn naive_prefix(ordered: &[Candidate], target: u64) -> usize {
    let mut sum = 0;
    let reached = |c: &Candidate| {
        sum += c.mass();
        sum >= target.max(1)
    };
    ordered.iter().position(reached).map_or(ordered.len(), |last| last + 1)
}

fn share(share: f32, total: u64) -> u64 {
    (f64::from(share) * total as f64).ceil() as u64
}

/// What [`Sampler::draw`] promises, in the steps of the module's head, sorting everything. Typical sampling apart.
fn naive_draw(params: &Params, logits: &[f32]) -> u32 {
    let by_id = candidates(logits, params.temperature);
    let mut all = sorted(by_id.clone());
    let cut = params.top_k > 0 && params.top_k < all.len();
    if cut {
        all.truncate(params.top_k);
    }
    if params.top_p < 1.0 {
        all.truncate(naive_prefix(&all, share(params.top_p, filter::total(&all))));
    }
    all.retain(|c| c.weight >= params.min_p);
    let walk = if cut || params.top_p < 1.0 || params.min_p > 0.0 { all } else { by_id };
    let total = filter::total(&walk);
    let target = ((uniform(params.seed, 0) * total as f64) as u64 + 1).min(total);
    walk[naive_prefix(&walk, target) - 1].id
}

fn logits_strategy() -> impl Strategy<Value = Vec<f32>> {
    let value = prop_oneof![8 => -20.0f32..20.0, 1 => Just(0.0f32), 1 => Just(f32::NEG_INFINITY)];
    prop::collection::vec(value, 1..400).prop_filter("one is possible", |v| v.iter().any(|l| l.is_finite()))
}

proptest! {
    #[test]
    fn top_k_is_the_head_of_a_full_sort(logits in logits_strategy(), k in 1usize..500) {
        let mut cut = Vec::new();
        Softmax::new(&logits, 1.0).best(k, &logits, &mut cut);
        let all = sorted(candidates(&logits, 1.0));
        prop_assert_eq!(ids(&sorted(cut)), ids(&all[..k.min(all.len())]));
    }

    #[test]
    fn top_p_is_the_shortest_head_with_the_mass(logits in logits_strategy(), mass in 0.0f32..1.0, t in 0.1f32..3.0) {
        let mut cut = candidates(&logits, t);
        let total = filter::total(&cut);
        filter::top_p(&mut cut, mass, total);
        let all = sorted(candidates(&logits, t));
        let naive = naive_prefix(&all, share(mass, total));
        prop_assert_eq!(ids(&sorted(cut)), ids(&all[..naive]));
    }

    #[test]
    fn weights_are_those_of_the_softmax(logits in logits_strategy(), t in 0.1f32..3.0) {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        for c in candidates(&logits, t) {
            let exact = f64::from((c.logit - max) / t).exp();
            prop_assert!((f64::from(c.weight) - exact).abs() <= 6e-7 * exact + 1e-37, "{c:?}: {exact}");
        }
    }

    #[test]
    fn typical_keeps_the_nearest_to_the_entropy(logits in logits_strategy(), mass in 0.01f32..0.99) {
        let mut cut = candidates(&logits, 1.0);
        filter::typical(&mut cut, mass, &Softmax::new(&logits, 1.0));
        let all = candidates(&logits, 1.0);
        let total = filter::total(&all) as f64;
        let p: Vec<f64> = all.iter().map(|c| f64::from(c.weight) / all.iter().map(|c| f64::from(c.weight)).sum::<f64>()).collect();
        let entropy: f64 = p.iter().filter(|p| **p > 0.0).map(|p| -p * p.ln()).sum();
        let mut keyed: Vec<_> = all.into_iter().zip(p).map(|(c, p)| ((-p.ln() - entropy).abs(), c)).collect();
        keyed.sort_by(|a, b| a.0.total_cmp(&b.0));
        let limit = keyed[cut.len() - 1].0;
        for candidate in &cut {
            let (distance, _) = keyed.iter().find(|(_, c)| c.id == candidate.id).expect("kept ids exist");
            prop_assert!(*distance <= limit + 1e-5);
        }
        prop_assert!(filter::total(&cut) as f64 / total >= f64::from(mass) - 1e-9);
    }

    #[test]
    fn min_p_keeps_what_is_near_the_best(logits in logits_strategy(), ratio in 0.0f32..1.0) {
        let mut cut = candidates(&logits, 1.0);
        filter::min_p(&mut cut, ratio);
        let naive: Vec<u32> = candidates(&logits, 1.0).iter().filter(|c| c.weight >= ratio).map(|c| c.id).collect();
        prop_assert_eq!(ids(&cut), naive);
    }

    /// The draw, too, is that of a full sort, at sizes where it deals to buckets.
    #[test]
    fn draws_are_those_of_a_full_sort(
        (n, spread, step) in (1usize..6000, prop_oneof![Just(0.0f32), 1e-3f32..1.0, 1.0f32..30.0], 0.0f32..0.5),
        (temperature, top_k) in (0.05f32..3.0, prop_oneof![Just(0usize), 1usize..100, 1usize..6000]),
        (top_p, min_p) in (prop_oneof![Just(1.0f32), 0.0f32..1.0], prop_oneof![Just(0.0f32), 0.0f32..1.0]),
        seed in any::<u64>(),
    ) {
        let mut state = seed;
        let logits: Vec<f32> = (0..n).map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let x = (state >> 40) as f32 / (1 << 24) as f32 * spread;
            // Some vocabularies have ties.
            if step > 0.25 { (x / step).floor() * step } else { x }
        }).collect();
        let params = Params { temperature, top_k, top_p, min_p, seed, ..Params::default() };
        let draw = Sampler::new(params.clone(), &[]).draw(&logits, &mut Scratch::default()).expect("the logits are fine");
        prop_assert_eq!(draw.id, naive_draw(&params, &logits));
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
