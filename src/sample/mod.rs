//! Logits to token: pure and seeded. The same seed gives the same tokens at any batch size.
//!
//! One draw goes through these steps, in this order; each works on what the one before left:
//!
//! 1. logit bias, added;
//! 2. repetition penalty over the last tokens of prompt and output (divides positive logits, multiplies negative ones);
//! 3. frequency and presence penalties over the output;
//! 4. temperature 0: the highest logit wins (lowest id on a tie), nothing below applies;
//! 5. top-k; 6. temperature and softmax; 7. typical; 8. top-p; 9. min-p; 10. one uniform number picks the token.
//!
//! Temperature comes before the cuts by probability, as with OpenAI and Hugging Face: top-p 0.9 is 90% of the
//! distribution that is drawn from. Whatever the cuts, one candidate remains; the walk goes from the best down, or by
//! id where nothing is cut. Reads no clock and no global state;
//! `engine` calls it once per generated token.

mod filter;
mod logprob;
mod rng;
#[cfg(test)]
mod tests;

pub use logprob::logprobs_of;
pub use rng::uniform;

use filter::{Candidate, Softmax};
use std::collections::HashMap;
use std::collections::VecDeque;

/// What a request asks of the sampler; validated at the edge, so every number is finite and in range.
#[derive(Clone, Debug, PartialEq)]
pub struct Params {
    /// 0 is greedy (exact argmax, lowest id wins a tie).
    pub temperature: f32,
    /// 0 is off.
    pub top_k: usize,
    /// 1 is off.
    pub top_p: f32,
    /// 0 is off.
    pub min_p: f32,
    /// Locally typical sampling; 1 is off.
    pub typical_p: f32,
    /// Multiplicative, 1 is off; over the last `penalty_last_n` tokens of prompt and output.
    pub repetition_penalty: f32,
    /// Per occurrence in the output, OpenAI's meaning; 0 is off.
    pub frequency_penalty: f32,
    /// Once per token that occurs in the output, OpenAI's meaning; 0 is off.
    pub presence_penalty: f32,
    /// Tokens the repetition penalty looks back.
    pub penalty_last_n: usize,
    /// Added to the logits; -100 forbids and 100 forces in practice.
    pub logit_bias: Vec<(u32, f32)>,
    /// Seed of this sequence.
    pub seed: u64,
    /// `Some(n)`: report the chosen token's log-probability and the `n` best.
    pub logprobs: Option<usize>,
}

impl Default for Params {
    fn default() -> Self {
        Params {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            typical_p: 1.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            penalty_last_n: 64,
            logit_bias: Vec::new(),
            seed: 0,
            logprobs: None,
        }
    }
}

/// Log-probabilities (natural, of the model's own distribution: before temperature, penalties and cuts).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Logprobs {
    /// Of the token itself.
    pub chosen: f32,
    /// The best tokens, descending.
    pub top: Vec<(u32, f32)>,
}

/// Why no token could be drawn. The model or its file is broken: the sequence ends with this text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SampleError {
    /// Some logits are NaN or +∞.
    #[error(
        "the model produced {count} logits that are not finite (first at token {first}); \
         its weights are damaged or of a type that loses range: check the file"
    )]
    NotFinite {
        /// Lowest token id concerned.
        first: u32,
        /// How many.
        count: usize,
    },
    /// Every logit is -∞, or there is none.
    #[error("no token is possible: all {vocab} logits are -inf; check the file and the logit bias")]
    NoCandidate {
        /// Length of the logits.
        vocab: usize,
    },
}

/// A drawn token.
#[derive(Clone, Debug, PartialEq)]
pub struct Draw {
    /// Its id.
    pub id: u32,
    /// When [`Params::logprobs`] asks for them.
    pub logprobs: Option<Logprobs>,
}

/// Memory shared by all sequences' draws, so that no draw from a vocabulary of its size allocates.
#[derive(Debug, Default)]
pub struct Scratch {
    candidates: Vec<Candidate>,
    /// Logits after penalties.
    adjusted: Vec<f32>,
}

impl Scratch {
    /// Room for draws from `vocab` tokens.
    pub fn new(vocab: usize) -> Scratch {
        Scratch { candidates: Vec::with_capacity(vocab), adjusted: Vec::with_capacity(vocab) }
    }

    /// Bytes that [`Scratch::new`] reserves.
    pub fn bytes(vocab: usize) -> u64 {
        (vocab as u64).saturating_mul((size_of::<Candidate>() + size_of::<f32>()) as u64)
    }

    /// Bytes reserved.
    pub fn reserved(&self) -> u64 {
        (size_of::<Candidate>() * self.candidates.capacity() + size_of::<f32>() * self.adjusted.capacity()) as u64
    }
}

/// One sequence's sampler: its parameters, what it has seen, and how many tokens it has drawn.
#[derive(Clone, Debug)]
pub struct Sampler {
    params: Params,
    /// The last `penalty_last_n` tokens of prompt and output; empty when no repetition penalty is asked for.
    recent: VecDeque<u32>,
    /// How often each token occurs in `recent`, so that a long look-back costs one visit per distinct token.
    recent_counts: HashMap<u32, u32>,
    /// Occurrences in the output; empty when neither frequency nor presence penalty is asked for.
    counts: HashMap<u32, u32>,
    drawn: u64,
}

impl Sampler {
    /// A sampler for a sequence that starts with `prompt`.
    pub fn new(params: Params, prompt: &[u32]) -> Self {
        let mut sampler = Sampler {
            params,
            recent: VecDeque::new(),
            recent_counts: HashMap::new(),
            counts: HashMap::new(),
            drawn: 0,
        };
        let start = prompt.len().saturating_sub(sampler.params.penalty_last_n);
        for &id in &prompt[start..] {
            sampler.remember(id);
        }
        sampler
    }

    /// Draws the next token from `logits` `[vocab]` and remembers it.
    ///
    /// # Errors
    /// [`SampleError`] when the logits hold NaN or +∞, or nothing but -∞.
    pub fn draw(&mut self, logits: &[f32], scratch: &mut Scratch) -> Result<Draw, SampleError> {
        check(logits)?;
        let id = if self.is_plain_greedy() {
            argmax(logits)
        } else {
            let Scratch { candidates, adjusted } = scratch;
            self.choose(self.adjust(logits, adjusted), candidates)
        };
        let logprobs = self.params.logprobs.map(|top| logprob::checked(logits, id, top, scratch));
        self.drawn += 1;
        if self.params.frequency_penalty != 0.0 || self.params.presence_penalty != 0.0 {
            *self.counts.entry(id).or_default() += 1;
        }
        self.remember(id);
        Ok(Draw { id, logprobs })
    }

    fn remember(&mut self, id: u32) {
        if self.params.repetition_penalty == 1.0 || self.params.penalty_last_n == 0 {
            return;
        }
        if self.recent.len() == self.params.penalty_last_n
            && let Some(oldest) = self.recent.pop_front()
            && let Some(count) = self.recent_counts.get_mut(&oldest)
        {
            *count -= 1;
            if *count == 0 {
                self.recent_counts.remove(&oldest);
            }
        }
        self.recent.push_back(id);
        *self.recent_counts.entry(id).or_default() += 1;
    }

    fn is_plain_greedy(&self) -> bool {
        let p = &self.params;
        p.temperature <= 0.0 && p.logit_bias.is_empty() && self.recent.is_empty() && self.counts.is_empty()
    }

    /// Steps 1 to 3: the logits, in `room` where some are adjusted.
    fn adjust<'a>(&self, logits: &'a [f32], room: &'a mut Vec<f32>) -> &'a [f32] {
        if self.params.logit_bias.is_empty() && self.recent_counts.is_empty() && self.counts.is_empty() {
            return logits;
        }
        room.clear();
        room.extend_from_slice(logits);
        // A bias may be huge, an infinity would turn into NaN below.
        let mut change = |id: u32, f: &dyn Fn(f32) -> f32| {
            if let Some(logit) = room.get_mut(id as usize) {
                *logit = f(*logit).clamp(f32::MIN, f32::MAX);
            }
        };
        for &(id, bias) in &self.params.logit_bias {
            change(id, &|logit| logit + bias);
        }
        let penalty = self.params.repetition_penalty;
        for &id in self.recent_counts.keys() {
            change(id, &|logit| if logit > 0.0 { logit / penalty } else { logit * penalty });
        }
        for (&id, &count) in &self.counts {
            let penalty = count as f32 * self.params.frequency_penalty + self.params.presence_penalty;
            change(id, &|logit| logit - penalty);
        }
        room
    }

    /// Steps 4 to 10.
    fn choose(&self, logits: &[f32], candidates: &mut Vec<Candidate>) -> u32 {
        let p = &self.params;
        if p.temperature <= 0.0 {
            return argmax(logits);
        }
        let uniform = rng::uniform(p.seed, self.drawn);
        let softmax = Softmax::new(logits, p.temperature);
        let top_k = (1..logits.len()).contains(&p.top_k);
        if !top_k && p.typical_p >= 1.0 {
            if p.top_p >= 1.0 && p.min_p <= 0.0 {
                return softmax.pick(uniform, logits);
            }
            // Only what the cuts by probability may keep becomes a candidate.
            let total = if p.top_p < 1.0 { softmax.total(logits) } else { 0 };
            let floor = if p.top_p < 1.0 { filter::top_p_floor(p.top_p, total, logits.len()) } else { 0.0 };
            softmax.above(floor.max(f64::from(p.min_p)), logits, candidates);
            filter::top_p(candidates, p.top_p, total);
        } else {
            match top_k {
                true => softmax.best(p.top_k, logits, candidates),
                false => softmax.all(logits, candidates),
            }
            filter::typical(candidates, p.typical_p, &softmax);
            let total = filter::total(candidates);
            filter::top_p(candidates, p.top_p, total);
        }
        filter::min_p(candidates, p.min_p);
        filter::pick(candidates, uniform)
    }
}

/// Refuses logits no token can be drawn from. -∞ forbids its token and is allowed.
fn check(logits: &[f32]) -> Result<(), SampleError> {
    let mut possible = false;
    let mut broken = false;
    for &logit in logits {
        possible |= logit > f32::NEG_INFINITY;
        broken |= logit.is_nan() || logit == f32::INFINITY;
    }
    if broken {
        let is_broken = |logit: &&f32| logit.is_nan() || **logit == f32::INFINITY;
        let first = logits.iter().position(|logit| is_broken(&logit)).unwrap_or(0) as u32;
        return Err(SampleError::NotFinite { first, count: logits.iter().filter(is_broken).count() });
    }
    if possible { Ok(()) } else { Err(SampleError::NoCandidate { vocab: logits.len() }) }
}

/// Index of the highest value, the lowest on a tie; 0 for an empty slice (which [`check`] refuses).
fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    let mut value = f32::NEG_INFINITY;
    for (id, &logit) in logits.iter().enumerate() {
        if logit > value {
            best = id;
            value = logit;
        }
    }
    best as u32
}
