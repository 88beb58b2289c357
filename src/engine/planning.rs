//! What a plan must know of the engine before anything is loaded: the bytes that a setting takes besides the weights, counted
//! by the functions that reserve them. Starts nothing. Called by `omnictl plan`.

use super::options::{self, EngineOptions, limits};
use super::run::Engine;
use crate::exec::{self, KvType};
use crate::model::Bound;
use crate::plan::{Counts, Rule, Setting, resolve_names};

/// Parts into which a GPU cuts the contexts of a step, each with buffers like those of a compute thread of the CPU.
const GPU_SPLITS: usize = 64;

/// Bytes that `setting` takes for a model, with `threads` compute threads on the host.
pub fn counts(model: &Bound, setting: &Setting, threads: usize) -> Counts {
    // The name is one of the types' own, or nothing was asked for.
    let kv_type = setting.kv.parse().unwrap_or_default();
    let options = EngineOptions { kv_type, prefill_chunk: setting.micro_batch, ..EngineOptions::default() };
    let limits = limits(&model.hparams, &options, setting.context, setting.parallel);
    let exec_options = options::exec_options(&options, &limits);
    let made = exec::made_bytes(model, &exec_options);
    let buffers = |threads| exec::scratch_bytes(model, &exec_options, threads).saturating_sub(made);
    Counts {
        kv: exec::kv_bytes(&model.hparams, kv_type, limits.blocks),
        state: exec::state_bytes(&model.hparams, limits.state_slots()),
        made,
        cpu_buffers: buffers(threads),
        gpu_buffers: buffers(GPU_SPLITS),
        engine: Engine::bytes(&limits, model.hparams.vocab),
    }
}

/// Types of the KV cache that are smaller than `kv` and suit the model, the largest first.
pub fn smaller_kv(model: &Bound, kv: KvType) -> Vec<&'static str> {
    let bytes = |kv: KvType| exec::kv_bytes(&model.hparams, kv, 1);
    let mut smaller: Vec<KvType> = [KvType::Q8_0, KvType::Q4_1, KvType::Q4_0]
        .into_iter()
        .filter(|other| other.check(&model.hparams).is_ok() && bytes(*other) < bytes(kv))
        .collect();
    smaller.sort_by_key(|kv| std::cmp::Reverse(bytes(*kv)));
    smaller.into_iter().map(KvType::name).collect()
}

/// What an operator places by hand, against a model that is to be loaded now: patterns must match, and there is no GPU.
///
/// # Errors
/// What cannot be, and what to do.
pub(super) fn check_places(model: &Bound, places: &[(String, String)]) -> Result<(), String> {
    let read = |(tensors, device): &(String, String)| Rule::parse(tensors, device);
    let rules = places.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    resolve_names(&rules, model)?;
    match rules.iter().find(|rule| rule.device != crate::plan::Device::Cpu) {
        None => Ok(()),
        Some(rule) => Err(format!(
            "\"{}\" is to go to {}, but this build has no GPU backend; remove the rule, or look at it with omnictl plan",
            rule.tensors, rule.device
        )),
    }
}
