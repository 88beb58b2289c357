//! Sampling fields of a request, checked: what is out of range is refused by name, what is absent gets its default.
//!
//! Ranges are OpenAI's, but for `temperature`, which may go to 5 (OpenAI stops at 2; with `min_p` more makes sense), and
//! the number of stop strings (16 instead of 4).

use super::backend::random;
use super::error::ApiError;
use super::wire::{Sampling, Stop};
use crate::sample::Params;
use crate::text::Tokenizer;
use std::ops::RangeInclusive;

/// Choices one request may ask for, over all its prompts.
pub const MAX_CHOICES: usize = 128;
/// Most `logprobs` and `top_logprobs`.
pub const MAX_LOGPROBS: i64 = 20;
const MAX_STOPS: usize = 16;
const MAX_STOP_BYTES: usize = 1024;
const MAX_STOP_TOKENS: usize = 256;

/// The sampling fields of a request, valid.
#[derive(Clone, Debug, PartialEq)]
pub struct Checked {
    /// For the sampler; each choice adds its place to the seed.
    pub params: Params,
    /// Tokens that end the text.
    pub stop_tokens: Vec<u32>,
    /// Strings that end the text, none empty.
    pub stops: Vec<String>,
    /// Choices per prompt, 1 to [`MAX_CHOICES`].
    pub n: usize,
    /// Stream.
    pub stream: bool,
    /// Usage in the stream.
    pub include_usage: bool,
    /// Token ids in the answer.
    pub token_ids: bool,
    /// Use the prefix cache.
    pub cache: bool,
}

/// Checks the fields common to both endpoints. `logprobs` was checked by the endpoint.
pub fn check(fields: &Sampling, logprobs: Option<usize>, tokenizer: &Tokenizer) -> Result<Checked, ApiError> {
    let vocab = tokenizer.vocab_size();
    let n = integer("n", fields.n, 1..=MAX_CHOICES as i64)?.unwrap_or(1);
    let include_usage = fields.stream_options.as_ref().and_then(|options| options.include_usage).unwrap_or(false);
    Ok(Checked {
        params: params(fields, logprobs, vocab)?,
        stop_tokens: stop_tokens(fields, tokenizer)?,
        stops: stops(fields.stop.as_ref())?,
        n,
        stream: fields.stream.unwrap_or(false),
        include_usage,
        token_ids: fields.return_token_ids.unwrap_or(false),
        cache: fields.cache_prompt.unwrap_or(true),
    })
}

fn params(fields: &Sampling, logprobs: Option<usize>, vocab: usize) -> Result<Params, ApiError> {
    let default = Params::default();
    let above_zero = f64::from(f32::MIN_POSITIVE);
    let repetition = match fields.repetition_penalty {
        Some(_) => number("repetition_penalty", fields.repetition_penalty, above_zero..=10.0)?,
        None => number("repeat_penalty", fields.repeat_penalty, above_zero..=10.0)?,
    };
    Ok(Params {
        temperature: number("temperature", fields.temperature, 0.0..=5.0)?.unwrap_or(default.temperature),
        top_k: integer("top_k", fields.top_k, -1..=i64::from(u32::MAX))?.unwrap_or(default.top_k),
        top_p: number("top_p", fields.top_p, 0.0..=1.0)?.unwrap_or(default.top_p),
        min_p: number("min_p", fields.min_p, 0.0..=1.0)?.unwrap_or(default.min_p),
        typical_p: number("typical_p", fields.typical_p, above_zero..=1.0)?.unwrap_or(default.typical_p),
        repetition_penalty: repetition.unwrap_or(default.repetition_penalty),
        frequency_penalty: number("frequency_penalty", fields.frequency_penalty, -2.0..=2.0)?.unwrap_or(0.0),
        presence_penalty: number("presence_penalty", fields.presence_penalty, -2.0..=2.0)?.unwrap_or(0.0),
        penalty_last_n: match fields.repeat_last_n {
            Some(-1) => usize::MAX,
            some => integer("repeat_last_n", some, 0..=i64::from(u32::MAX))?.unwrap_or(default.penalty_last_n),
        },
        logit_bias: logit_bias(fields, vocab)?,
        seed: seed(fields)?,
        logprobs,
    })
}

/// A number in `range`, or its absence.
pub fn number(name: &str, value: Option<f64>, range: RangeInclusive<f64>) -> Result<Option<f32>, ApiError> {
    match value {
        Some(value) if !range.contains(&value) => {
            // The smallest positive number stands for "above 0".
            let low = if *range.start() == f64::from(f32::MIN_POSITIVE) { 0.0 } else { *range.start() };
            let bound = if low == *range.start() { "from" } else { "above" };
            Err(ApiError::invalid(name, format!("must be {bound} {low} to {}, not {value}", range.end())))
        }
        #[expect(clippy::cast_possible_truncation, reason = "the range is far inside of f32's")]
        value => Ok(value.map(|value| value as f32)),
    }
}

/// An integer in `range`, or its absence. Negative ones in range (they mean "off") become 0.
pub fn integer(name: &str, value: Option<i64>, range: RangeInclusive<i64>) -> Result<Option<usize>, ApiError> {
    match value {
        Some(value) if !range.contains(&value) => {
            let (low, high) = (range.start(), range.end());
            Err(ApiError::invalid(name, format!("must be from {low} to {high}, not {value}")))
        }
        value => Ok(value.map(|value| usize::try_from(value).unwrap_or(0))),
    }
}

fn logit_bias(fields: &Sampling, vocab: usize) -> Result<Vec<(u32, f32)>, ApiError> {
    let mut biases = Vec::new();
    for (key, bias) in fields.logit_bias.iter().flatten() {
        let id = key.parse::<u32>().ok().filter(|id| (*id as usize) < vocab).ok_or_else(|| {
            ApiError::invalid("logit_bias", format!("'{key}' is no token id of this vocabulary of {vocab}"))
        })?;
        if let Some(bias) = number("logit_bias", Some(*bias), -100.0..=100.0)? {
            biases.push((id, bias));
        }
    }
    Ok(biases)
}

fn seed(fields: &Sampling) -> Result<u64, ApiError> {
    let Some(seed) = &fields.seed else { return Ok(random()) };
    #[expect(clippy::cast_sign_loss, reason = "a negative seed is as good as any other 64 bits")]
    let signed = seed.as_i64().map(|seed| seed as u64);
    signed.or(seed.as_u64()).ok_or_else(|| ApiError::invalid("seed", format!("must be a 64-bit integer, not {seed}")))
}

fn stops(stop: Option<&Stop>) -> Result<Vec<String>, ApiError> {
    let stops = match stop {
        None => Vec::new(),
        Some(Stop::One(stop)) => vec![stop.clone()],
        Some(Stop::Many(stops)) => stops.clone(),
    };
    if stops.len() > MAX_STOPS {
        return Err(ApiError::invalid("stop", format!("at most {MAX_STOPS} strings, not {}", stops.len())));
    }
    if stops.iter().any(String::is_empty) {
        return Err(ApiError::invalid("stop", "an empty string would end every text at once; leave it out"));
    }
    if let Some(long) = stops.iter().find(|stop| stop.len() > MAX_STOP_BYTES) {
        return Err(ApiError::invalid("stop", format!("at most {MAX_STOP_BYTES} bytes each, not {}", long.len())));
    }
    Ok(stops)
}

fn stop_tokens(fields: &Sampling, tokenizer: &Tokenizer) -> Result<Vec<u32>, ApiError> {
    let vocab = tokenizer.vocab_size();
    let given = fields.stop_token_ids.as_deref().unwrap_or_default();
    if given.len() > MAX_STOP_TOKENS {
        return Err(ApiError::invalid("stop_token_ids", format!("at most {MAX_STOP_TOKENS}, not {}", given.len())));
    }
    if let Some(id) = given.iter().find(|id| **id as usize >= vocab) {
        return Err(ApiError::invalid("stop_token_ids", format!("{id} is outside of the vocabulary of {vocab}")));
    }
    let own = if fields.ignore_eos.unwrap_or(false) { &[] } else { tokenizer.end_of_generation() };
    let mut all = [own, given].concat();
    all.sort_unstable();
    all.dedup();
    Ok(all)
}

/// How many tokens may be generated for a prompt: what was asked for, or else `default`, as far as the context holds it.
/// A prompt that leaves no room for one token is refused with both numbers.
pub fn room(prompt: usize, asked: Option<usize>, default: usize, context: usize) -> Result<usize, ApiError> {
    if prompt >= context {
        let message = format!(
            "the prompt has {prompt} tokens, the context holds {context} with at least one for the answer; shorten the \
             prompt or load the model with a larger context"
        );
        return Err(ApiError::bad_request(message).param("prompt").code("context_length_exceeded"));
    }
    Ok(asked.unwrap_or(default).min(context - prompt))
}
