//! How to run a model, and what that makes executor and scheduler reserve.

use super::run::Engine;
use crate::exec::{self, CpuOptions, KV_BLOCK, KvType};
use crate::gguf::TensorInfo;
use crate::model::{Hparams, Model};
use crate::plan::Needs;
use crate::sched::Limits;
use crate::sys::numa;

/// Prompt rows per step whose log-probabilities are asked for: bounds the logits' buffer.
const PROMPT_LOGITS: usize = 32;

/// Snapshots of recurrent state for each sequence at once: the end of its prompt, the end of what it generated, and one
/// where prompts part.
const SNAPSHOTS: usize = 3;

/// How to run a model.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Tokens per sequence; `None`: what the model was trained for, at most 8192 and what memory allows.
    pub context: Option<usize>,
    /// Sequences at once.
    pub parallel: usize,
    /// Requests that may wait.
    pub queue: usize,
    /// Compute threads; `None`: one per physical core.
    pub threads: Option<usize>,
    /// CPUs to run on, as in `taskset -c`; `None`: all allowed ones.
    pub cpus: Option<String>,
    /// Binds each compute thread to a CPU.
    pub pin: bool,
    /// Instruction sets not to use.
    pub disable_isa: Vec<String>,
    /// Element type of the KV cache.
    pub kv_type: KvType,
    /// Most prompt tokens per step.
    pub prefill_chunk: usize,
    /// Bytes the model may take; `None`: what the host and its control groups have available now.
    pub memory: Option<u64>,
    /// Over which NUMA nodes its memory is to lie.
    pub numa: numa::Wish,
    /// What is placed by hand: patterns over tensor names, and a device each.
    pub place: Vec<(String, String)>,
}

impl Default for EngineOptions {
    fn default() -> Self {
        EngineOptions {
            context: None,
            parallel: 4,
            queue: 64,
            threads: None,
            cpus: None,
            pin: true,
            disable_isa: Vec::new(),
            kv_type: KvType::F16,
            prefill_chunk: 512,
            memory: None,
            numa: numa::Wish::default(),
            place: Vec::new(),
        }
    }
}

pub(super) fn limits(model: &Hparams, options: &EngineOptions, context: usize, parallel: usize) -> Limits {
    Limits {
        blocks: context.div_ceil(KV_BLOCK).saturating_mul(parallel),
        block_tokens: KV_BLOCK,
        parallel,
        // More rows than a context has are never used.
        prefill_chunk: options.prefill_chunk.min(context),
        prompt_logits: PROMPT_LOGITS,
        context,
        snapshots: model.recurrence.as_ref().map(|_| parallel.saturating_mul(SNAPSHOTS)),
    }
}

/// What executor and engine thread will reserve, each part counted by its owner.
pub(super) fn needs(model: &Model<TensorInfo>, options: &EngineOptions, limits: &Limits, threads: usize) -> Needs {
    let scratch = exec::scratch_bytes(model, &exec_options(options, limits), threads);
    Needs {
        kv_bytes: exec::kv_bytes(&model.hparams, options.kv_type, limits.blocks),
        state_bytes: exec::state_bytes(&model.hparams, limits.state_slots()),
        scratch_bytes: scratch.saturating_add(Engine::bytes(limits, model.hparams.vocab)),
    }
}

pub(super) fn exec_options(options: &EngineOptions, limits: &Limits) -> exec::Options {
    exec::Options {
        cpu: cpu_options(options),
        kv_type: options.kv_type,
        context: limits.context,
        kv_blocks: limits.blocks,
        state_slots: limits.state_slots(),
        max_rows: limits.max_rows(),
        max_logit_rows: limits.max_logit_rows(),
    }
}

pub(super) fn cpu_options(options: &EngineOptions) -> CpuOptions {
    CpuOptions {
        threads: options.threads,
        cpus: options.cpus.clone(),
        disable_isa: options.disable_isa.clone(),
        pin: options.pin,
        apart: options.numa == numa::Wish::Partition,
    }
}
