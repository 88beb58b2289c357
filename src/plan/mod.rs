//! Whether a model fits, before a byte of it is read: weights, KV cache at full context, step buffers and headroom
//! against the memory there is. Yields a [`Placement`] or a refusal with the numbers. [`place`] is pure; `engine` calls it
//! between binding a model and loading it. (One place today: the host's memory.)

mod refusal;

pub use refusal::Refusal;

use crate::model::Hparams;
use crate::sys::memory::Memory;

/// Context when nobody asks for one and the model was trained for more.
pub const DEFAULT_CONTEXT: usize = 8192;

/// The least context that is worth loading for, when memory has to decide.
const LEAST_CONTEXT: usize = 512;

/// Kept free whatever is loaded: page tables, the HTTP side, read buffers.
const RESERVE: u64 = 512 << 20;

/// What is asked for. All counts are at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    /// Tokens per sequence; `None`: see [`place`].
    pub context: Option<usize>,
    /// Sequences at once.
    pub parallel: usize,
    /// Bytes of one cached element.
    pub kv_element_bytes: usize,
    /// Tokens per block of the cache.
    pub block_tokens: usize,
    /// Rows of the largest step.
    pub max_rows: usize,
    /// Rows of a step that may want logits.
    pub max_logit_rows: usize,
}

/// Where everything goes, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Weights.
    pub weight_bytes: u64,
    /// KV cache at full context.
    pub kv_bytes: u64,
    /// Step buffers.
    pub scratch_bytes: u64,
    /// Headroom.
    pub reserve_bytes: u64,
    /// Memory that was available.
    pub available_bytes: u64,
    /// Tokens per sequence.
    pub context: usize,
    /// Sequences at once.
    pub parallel: usize,
    /// Blocks of the cache, of all sequences.
    pub kv_blocks: usize,
    /// What the operator should know: a context shortened for want of memory, or beyond the trained one.
    pub notes: Vec<String>,
}

impl Placement {
    /// Bytes in all, headroom included.
    pub fn total_bytes(&self) -> u64 {
        self.weight_bytes + self.kv_bytes + self.scratch_bytes + self.reserve_bytes
    }
}

/// Decides the context and whether the model fits into `available` bytes.
///
/// Without a wish the context is what the model was trained for, at most [`DEFAULT_CONTEXT`], and shortened (to 512 at
/// least) when memory asks for it. A context that was asked for is kept or refused, never shortened.
///
/// # Errors
/// [`Refusal`] with all numbers and what would fit.
pub fn place(model: &Hparams, weight_bytes: u64, wish: &Wish, available: u64) -> Result<Placement, Box<Refusal>> {
    let fits = |context: usize, parallel: usize| {
        let placement = measure(model, weight_bytes, &Wish { parallel, ..*wish }, context, available);
        placement.total_bytes() <= available
    };
    let default = model.context.clamp(1, DEFAULT_CONTEXT);
    let wanted = wish.context.unwrap_or(default).max(1);
    let mut placement = measure(model, weight_bytes, wish, wanted, available);
    if placement.total_bytes() <= available {
        if wanted > model.context {
            placement.notes.push(format!(
                "the context of {wanted} tokens is beyond the {} the model was trained for: expect worse text there",
                model.context
            ));
        }
        return Ok(placement);
    }
    let longest = |parallel: usize| largest(wanted, |context| fits(context, parallel));
    if wish.context.is_none()
        && let Some(context) = longest(wish.parallel).filter(|c| *c >= LEAST_CONTEXT.min(default))
    {
        let mut placement = measure(model, weight_bytes, wish, context, available);
        placement.notes.push(format!("the context is {context} instead of {default} tokens: memory allows no more"));
        return Ok(placement);
    }
    Err(Box::new(Refusal {
        model: model.name.clone(),
        context_that_fits: longest(wish.parallel),
        parallel_that_fits: largest(wish.parallel, |parallel| fits(wanted, parallel)),
        context_alone_that_fits: longest(1),
        placement,
    }))
}

/// The largest number in `1..=most` for which `fits` holds (it holds for all smaller ones then).
fn largest(most: usize, fits: impl Fn(usize) -> bool) -> Option<usize> {
    let (mut low, mut high) = (0, most);
    while low < high {
        let middle = high - (high - low) / 2;
        if fits(middle) { low = middle } else { high = middle - 1 }
    }
    (low > 0).then_some(low)
}

fn measure(model: &Hparams, weight_bytes: u64, wish: &Wish, context: usize, available_bytes: u64) -> Placement {
    let blocks_per_sequence = context.div_ceil(wish.block_tokens);
    let kv_blocks = blocks_per_sequence.saturating_mul(wish.parallel);
    let kv_bytes = kv_bytes_per_token(model, wish.kv_element_bytes)
        .saturating_mul(wish.block_tokens as u64)
        .saturating_mul(kv_blocks as u64)
        .min(u64::MAX >> 2);
    let scratch_bytes = scratch_bytes(model, wish.max_rows, wish.max_logit_rows);
    // Two hundredths for the allocator, page tables and what is not counted.
    let reserve_bytes = RESERVE + (weight_bytes + kv_bytes + scratch_bytes) / 50;
    Placement {
        weight_bytes,
        kv_bytes,
        scratch_bytes,
        reserve_bytes,
        available_bytes,
        context,
        parallel: wish.parallel,
        kv_blocks,
        notes: Vec::new(),
    }
}

/// Bytes this process may still use, as the host and its control groups say.
///
/// # Errors
/// When `/proc/meminfo` cannot be read.
pub fn available_memory() -> std::io::Result<u64> {
    Ok(Memory::now()?.available)
}

/// Bytes of keys and values of one token in all layers.
pub fn kv_bytes_per_token(model: &Hparams, element_bytes: usize) -> u64 {
    (model.layers * model.kv_heads * (model.key_dim + model.value_dim) * element_bytes) as u64
}

/// Bytes of the buffers of a step of `rows` tokens: F32 activations, logits, and the activations quantised to 8 bit
/// (at most as large as in F32) of the widest product.
pub fn scratch_bytes(model: &Hparams, rows: usize, logit_rows: usize) -> u64 {
    let attention =
        model.heads * (model.key_dim + model.value_dim) + model.kv_heads * (model.key_dim + model.value_dim);
    let routing = model.routing;
    let dense = model.d_ff.max(routing.map_or(0, |r| r.shared_d_ff));
    // Each row passes through `used` experts; their inputs are gathered. Scores, choices, shared experts' output.
    let routed =
        routing.map_or(0, |r| r.used * (2 * r.d_ff + 2 * model.d_model + r.d_ff + 4) + r.experts + model.d_model + 1);
    let widest = dense.max(model.d_model).max(model.heads * model.value_dim);
    let per_row = 2 * model.d_model + attention + 2 * dense + model.rope.dims + widest + routed;
    let per_logit_row = model.d_model + model.vocab;
    // The sampler's candidates take three words per token of the vocabulary.
    let activations = (rows as u64).saturating_mul(per_row as u64);
    let logits = (logit_rows as u64).saturating_mul(per_logit_row as u64);
    activations.saturating_add(logits).saturating_add(3 * model.vocab as u64).min(u64::MAX >> 6) * 4
}

#[cfg(test)]
mod tests;
