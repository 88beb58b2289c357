//! Where everything of a model lives, before a byte of it is read. Two plans, both pure:
//!
//! - [`place`]: whether it fits into the host's memory, as the engine runs it today. Weights, KV cache at full context, recurrent
//!   state, step buffers and headroom against the memory there is; a [`Placement`] or a [`Refusal`] with the numbers.
//!   `engine` calls it between binding a model and loading it.
//! - [`plan()`]: on a host with GPUs, where each layer and each expert goes and how fast that should be; a [`Plan`] or a
//!   [`Shortage`]. `omnictl plan` shows it; no engine runs it before there is a GPU backend.
//!
//! ```text
//! Parts (bytes of a model) + Host + Request ─▶ search: orders of GPUs × cuts × fills ─▶ Layout ─▶ cost ─▶ Plan
//! ```

pub mod cost; // seconds of a token on a layout, every constant with its source
mod host; // what a host has: memory, rates, links
mod layout; // where things live, and the bytes that makes
mod overrides; // what the operator places by hand
mod parts; // a model taken apart, to the byte
mod planner; // from wish to plan
pub mod prefill; // seconds of a prompt
mod reasons; // why a plan is as it is
mod refusal; // a model that the host's memory does not hold
mod search; // the layout with the least predicted time
mod setting; // what is asked of the planner
mod shortage; // a model that a host does not hold
mod show; // a plan as text

pub use host::{Device, Gpu, Host, Rates};
pub use layout::{DeviceBytes, LayerPlace, Layout, Share};
pub use overrides::{Fixed, Rule, resolve, resolve_names};
pub use parts::{Component, LayerParts, Parts, Weights};
pub use planner::{Decode, Manual, NoPlan, Plan, plan};
pub use refusal::Refusal;
pub use setting::{Ask, Count, Counts, DEFAULT_PARALLEL, Held, Request, Setting};
pub use shortage::{Shortage, Way};

use crate::model::Hparams;

/// Context when nobody asks for one and the model was trained for more.
pub const DEFAULT_CONTEXT: usize = 8192;

/// The least context that is worth loading for, when memory has to decide.
const LEAST_CONTEXT: usize = 512;

/// Kept free whatever is loaded: page tables, the HTTP side, read buffers.
const RESERVE: u64 = 512 << 20;

/// Besides, one part in so many: for the allocator, page tables and what is not counted.
const RESERVE_SHARE: u64 = 50;

/// What is asked for. All counts are at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    /// Tokens per sequence; `None`: see [`place`].
    pub context: Option<usize>,
    /// Sequences at once.
    pub parallel: usize,
}

/// What a model takes besides its weights, as those count it who will reserve it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Bytes of the KV cache.
    pub kv_bytes: u64,
    /// Bytes of recurrent state, of all sequences and snapshots.
    pub state_bytes: u64,
    /// Bytes of all buffers of a step.
    pub scratch_bytes: u64,
}

/// Where everything goes, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Weights.
    pub weight_bytes: u64,
    /// KV cache at full context.
    pub kv_bytes: u64,
    /// Recurrent state; 0 for a model without.
    pub state_bytes: u64,
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
    /// What the operator should know: a context shortened for want of memory, or beyond the trained one.
    pub notes: Vec<String>,
}

impl Placement {
    /// Bytes in all, headroom included.
    pub fn total_bytes(&self) -> u64 {
        self.weight_bytes + self.kv_bytes + self.state_bytes + self.scratch_bytes + self.reserve_bytes
    }
}

/// Decides the context and whether the model fits into `available` bytes. `needs` says what a context of so many tokens
/// for so many sequences takes; it never shrinks as they grow.
///
/// Without a wish the context is what the model was trained for, at most [`DEFAULT_CONTEXT`], and shortened (to 512 at
/// least) when memory asks for it. A context that was asked for is kept or refused, never shortened.
///
/// # Errors
/// [`Refusal`] with all numbers and what would fit.
pub fn place(
    model: &Hparams,
    weight_bytes: u64,
    wish: &Wish,
    available: u64,
    needs: impl Fn(usize, usize) -> Needs,
) -> Result<Placement, Box<Refusal>> {
    let measure = |context, parallel| measure(weight_bytes, context, parallel, available, needs(context, parallel));
    let fits = |context: usize, parallel: usize| measure(context, parallel).total_bytes() <= available;
    let default = model.context.clamp(1, DEFAULT_CONTEXT);
    let wanted = wish.context.unwrap_or(default).max(1);
    let mut placement = measure(wanted, wish.parallel);
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
        let mut placement = measure(context, wish.parallel);
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

fn measure(weight_bytes: u64, context: usize, parallel: usize, available_bytes: u64, needs: Needs) -> Placement {
    // Beyond any memory; their sum must not wrap.
    let needs = [needs.kv_bytes, needs.state_bytes, needs.scratch_bytes];
    let [kv_bytes, state_bytes, scratch_bytes] = needs.map(|bytes| bytes.min(u64::MAX >> 3));
    let reserve_bytes = RESERVE + (weight_bytes + kv_bytes + state_bytes + scratch_bytes) / RESERVE_SHARE;
    Placement {
        weight_bytes,
        kv_bytes,
        state_bytes,
        scratch_bytes,
        reserve_bytes,
        available_bytes,
        context,
        parallel,
        notes: Vec::new(),
    }
}

#[cfg(test)]
mod tests;
