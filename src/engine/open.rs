//! From a path to a running engine: find or open, bind, plan, load, start the thread.

use super::handle::Handle;
use super::run::Engine;
use super::shared::Shared;
use crate::exec::{self, CpuOptions, Executor, KV_BLOCK, KvType, Layouts};
use crate::gguf::TensorInfo;
use crate::load::{self, Adopted, Keeper, LayoutOf, Loaded, Metadata, Method, Nobody, Progress, Source};
use crate::model::{Hparams, Model};
use crate::plan::{self, Needs, Placement, Refusal, Wish};
use crate::sched::Limits;
use crate::sys::affinity;
use crate::sys::arena::free_reserved;
use crate::sys::numa::{self, Policy};
use crate::sys::topology::Topology;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

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
        }
    }
}

/// What was loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct ModelFacts {
    /// `general.architecture`.
    pub architecture: String,
    /// `general.name`.
    pub name: String,
    pub parameters: u64,
    pub weight_bytes: u64,
    pub kv_bytes: u64,
    /// Recurrent state of all sequences and snapshots; 0 for a model without.
    pub state_bytes: u64,
    pub scratch_bytes: u64,
    /// Context served, tokens.
    pub context: usize,
    pub trained_context: usize,
    pub parallel: usize,
    pub threads: usize,
    /// Kernels in use, e.g. `avx512vnni`.
    pub isa: String,
    pub vocab: usize,
    pub layers: usize,
    /// E.g. `f16` or `q8_0`.
    pub kv_type: String,
    /// How the file was read, e.g. `io_uring, direct`.
    pub read_by: String,
    /// Bytes of this process on huge pages once the weights were there.
    pub huge_page_bytes: u64,
    /// Bytes of the weights' memory on pages of each size.
    pub pages: BTreeMap<usize, u64>,
    /// Bytes of the weights' memory on each NUMA node; empty where the kernel does not say.
    pub nodes: BTreeMap<usize, u64>,
    /// What the operator should know, e.g. a context shortened for want of memory.
    pub notes: Vec<String>,
}

/// A running engine and what the tokenizer needs.
pub struct Opened {
    /// The engine.
    pub handle: Handle,
    /// What it runs.
    pub facts: ModelFacts,
    /// The file's metadata, for tokenizer and chat template.
    pub metadata: Metadata,
}

/// Why a model could not be started. The text says what to do.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum OpenError {
    #[error(transparent)]
    Load(#[from] load::Error),
    #[error(transparent)]
    Refused(#[from] Box<Refusal>),
    #[error(transparent)]
    Exec(#[from] exec::Error),
    #[error("cannot find out how much memory is available: {0}")]
    Memory(std::io::Error),
    #[error("{option} is 0; it must be at least 1")]
    Zero { option: &'static str },
    #[error("numa: {0}")]
    Numa(String),
    #[error("cannot start the engine thread: {0}; raise the limit on processes")]
    Thread(std::io::Error),
    #[error("the engine thread ended while it started; see the log")]
    Died,
}

impl OpenError {
    /// True when trying again cannot help as long as file, settings and host stay the same.
    pub fn is_permanent(&self) -> bool {
        !matches!(self, OpenError::Thread(_) | OpenError::Died | OpenError::Load(load::Error::Changed { .. }))
    }
}

/// Opens a GGUF file (or split set), checks that it fits, loads it and starts its engine. `progress` is called while
/// weights are read. Blocks for as long as the file takes to read.
///
/// # Errors
/// [`OpenError`]; nothing is read beyond the header when the model is unknown or does not fit.
pub fn open(path: &Path, options: &EngineOptions, progress: &mut dyn FnMut(Progress)) -> Result<Opened, OpenError> {
    open_kept(path, options, &mut Nobody, progress)
}

/// As [`open`], with the weights that `keeper` kept when file, layout and settings are still the same; what had to be read
/// is given to it. The memory policy becomes that of the calling thread.
///
/// # Errors
/// As [`open`].
pub fn open_kept(
    path: &Path,
    options: &EngineOptions,
    keeper: &mut dyn Keeper,
    progress: &mut dyn FnMut(Progress),
) -> Result<Opened, OpenError> {
    for (option, value) in [("parallel", options.parallel), ("prefill_chunk", options.prefill_chunk)] {
        if value == 0 {
            return Err(OpenError::Zero { option });
        }
    }
    let (options, policy, mut notes) = at_home(options)?;
    let options = &options;
    let layouts = Layouts::new(&cpu_options(options)).map_err(exec::Error::from)?;
    let layout = |dtype, rows, cols| layouts.of(dtype, rows, cols);
    let variant = load::variant(&layout, &policy);
    let (origin, model) = Origin::find(path, &variant, &layout, keeper)?;
    notes.extend(origin.note());
    options.kv_type.check(&model.hparams)?;
    let threads = cpu_options(options).compute_threads().map_err(exec::Error::from)?;
    let placement = plan(&model, options, threads, origin.resident(), keeper)?;
    let limits = limits(&model.hparams, options, placement.context, placement.parallel);
    let mut facts = facts(&model.hparams, model.parameters(), &placement, options);
    let mut watch = |now: Progress| {
        facts.read_by = now.method.to_string();
        progress(now);
    };
    let (metadata, Loaded { model: weights, image }, is_new) =
        origin.load(model, &layout, (&policy, keeper.keeps()), &mut watch)?;
    (facts.huge_page_bytes, facts.pages, facts.nodes) = (load::huge_page_bytes(), image.pages(), image.nodes().clone());
    facts.notes.extend(notes);
    let handle = start(weights, options, limits, &mut facts)?;
    if is_new {
        keeper.keep(path, &variant, image);
    }
    Ok(Opened { handle, facts, metadata })
}

/// The options for this host, and its memory policy, set for this thread: one node's memory goes with its CPUs.
fn at_home(options: &EngineOptions) -> Result<(EngineOptions, Policy, Vec<String>), OpenError> {
    let host = Topology::detect();
    let policy = options.numa.on(&host).map_err(OpenError::Numa)?;
    let mut options = options.clone();
    if let (numa::Wish::Bind(node), None) = (&options.numa, &options.cpus) {
        let cpus: Vec<usize> = host.cpus.iter().filter(|cpu| cpu.node == *node).map(|cpu| cpu.id).collect();
        options.cpus = Some(affinity::format_list(&cpus)).filter(|_| !cpus.is_empty());
    }
    match policy.set_thread() {
        Ok(()) => Ok((options, policy, Vec::new())),
        Err(error) => {
            let note = format!("memory cannot be placed over NUMA nodes ({policy}): {error}");
            Ok((options, Policy::Local, vec![note]))
        }
    }
}

/// Where weights come from.
enum Origin {
    File(Source),
    Kept(Box<Adopted>),
}

impl Origin {
    /// What is kept, if it matches; else the file.
    fn find(
        path: &Path,
        variant: &str,
        layout: LayoutOf<'_>,
        keeper: &mut dyn Keeper,
    ) -> Result<(Origin, Model<TensorInfo>), OpenError> {
        if let Some((id, descriptors)) = keeper.find(path, variant) {
            let adopted = Adopted::open(descriptors, path, variant);
            match adopted.and_then(|adopted| adopted.bind(layout).map(|model| (adopted, model))) {
                Ok((adopted, model)) => return Ok((Origin::Kept(Box::new(adopted)), model)),
                Err(reason) => keeper.reject(&id, &reason),
            }
        }
        let source = Source::open(path)?;
        let model = source.bind()?;
        Ok((Origin::File(source), model))
    }

    /// Bytes of memory that the weights take already.
    fn resident(&self) -> u64 {
        match self {
            Origin::File(_) => 0,
            Origin::Kept(adopted) => adopted.resident(),
        }
    }

    fn note(&self) -> Option<String> {
        let Origin::Kept(adopted) = self else { return None };
        let gone = adopted.gone.first()?.display();
        Some(format!("{gone} is gone; the model is served from the weights that were kept, and cannot be loaded anew"))
    }

    /// The weights, the file's metadata, and whether they had to be read.
    fn load(
        self,
        model: Model<TensorInfo>,
        layout: LayoutOf<'_>,
        memory: (&Policy, bool),
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(Metadata, Loaded, bool), OpenError> {
        match self {
            Origin::File(source) => {
                let loaded = source.load_at(model, layout, memory, progress)?;
                Ok((source.header.metadata, loaded, true))
            }
            Origin::Kept(mut adopted) => {
                let (metadata, bytes) = (std::mem::take(&mut adopted.header.metadata), model.weight_bytes());
                let loaded = adopted.load(model, layout)?;
                progress(Progress { bytes_done: bytes, bytes_total: bytes, method: Method::Kept });
                Ok((metadata, loaded, false))
            }
        }
    }
}

/// Freed memory is back within; who freed it may be a process that is told to.
const FREED: Duration = Duration::from_secs(3);

/// Decides what the model takes. `resident` bytes of it are there already; images that nobody uses make room first.
fn plan(
    model: &Model<TensorInfo>,
    options: &EngineOptions,
    threads: usize,
    resident: u64,
    keeper: &mut dyn Keeper,
) -> Result<Placement, OpenError> {
    let wish = Wish { context: options.context, parallel: options.parallel };
    let place = |available| {
        plan::place(&model.hparams, model.weight_bytes(), &wish, available, |context, parallel| {
            needs(model, options, &limits(&model.hparams, options, context, parallel), threads)
        })
    };
    // What is there already, or else the pages that are reserved for weights.
    let besides = || if resident > 0 { resident } else { free_reserved().min(model.weight_bytes()) };
    let available = || plan::available_memory().map(|bytes| bytes.saturating_add(besides())).map_err(OpenError::Memory);
    if let Some(bytes) = options.memory {
        return Ok(place(bytes)?);
    }
    let (wanted, mut now) = (place(u64::MAX)?.total_bytes(), available()?);
    if wanted > now && keeper.reclaim(wanted - now) > 0 {
        let start = Instant::now();
        while wanted > now && start.elapsed() < FREED {
            std::thread::sleep(Duration::from_millis(20));
            now = available()?;
        }
    }
    Ok(place(now)?)
}

/// Starts the engine's thread and waits until it runs.
fn start(
    weights: Model<crate::ops::Tensor>,
    options: &EngineOptions,
    limits: Limits,
    facts: &mut ModelFacts,
) -> Result<Handle, OpenError> {
    let exec_options = exec_options(options, &limits);
    let shared = Arc::new(Shared::new(limits.context, weights.hparams.vocab, limits.parallel, options.queue));
    let (inbox, submissions) = mpsc::sync_channel(shared.capacity());
    let (started, outcome) = mpsc::channel();
    let own = shared.clone();
    // The pool counts the thread that uses it, so it is made where it is used.
    let start = move || match Executor::new(weights, &exec_options) {
        Ok(exec) => {
            let _ = started.send(Ok((exec.threads(), exec.isa(), exec.routing_counts())));
            Engine::new(exec, limits, submissions, own).run();
        }
        Err(error) => drop(started.send(Err(error))),
    };
    let thread = std::thread::Builder::new().name("engine".into()).spawn(start).map_err(OpenError::Thread)?;
    let (threads, isa, routing) = outcome.recv().map_err(|_| OpenError::Died)??;
    (facts.threads, facts.isa) = (threads, isa.to_string());
    if let Some(asked) = options.threads.filter(|&asked| asked > threads) {
        let why = "as many as there are CPUs, or CPU time of the control group, for it";
        facts.notes.push(format!("{threads} compute threads run instead of {asked}: {why}"));
    }
    Ok(Handle::new(shared, inbox, thread, routing))
}

fn limits(model: &Hparams, options: &EngineOptions, context: usize, parallel: usize) -> Limits {
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
fn needs(model: &Model<TensorInfo>, options: &EngineOptions, limits: &Limits, threads: usize) -> Needs {
    let scratch = exec::scratch_bytes(model, &exec_options(options, limits), threads);
    Needs {
        kv_bytes: exec::kv_bytes(&model.hparams, options.kv_type, limits.blocks),
        state_bytes: exec::state_bytes(&model.hparams, limits.state_slots()),
        scratch_bytes: scratch.saturating_add(Engine::bytes(limits, model.hparams.vocab)),
    }
}

fn exec_options(options: &EngineOptions, limits: &Limits) -> exec::Options {
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

fn cpu_options(options: &EngineOptions) -> CpuOptions {
    CpuOptions {
        threads: options.threads,
        cpus: options.cpus.clone(),
        disable_isa: options.disable_isa.clone(),
        pin: options.pin,
    }
}

fn facts(hparams: &Hparams, parameters: u64, placement: &Placement, options: &EngineOptions) -> ModelFacts {
    ModelFacts {
        architecture: hparams.architecture.name().to_string(),
        name: hparams.name.clone(),
        parameters,
        weight_bytes: placement.weight_bytes,
        kv_bytes: placement.kv_bytes,
        state_bytes: placement.state_bytes,
        scratch_bytes: placement.scratch_bytes,
        context: placement.context,
        trained_context: hparams.context,
        parallel: placement.parallel,
        threads: 0,
        isa: String::new(),
        vocab: hparams.vocab,
        layers: hparams.layers,
        kv_type: options.kv_type.name().to_string(),
        read_by: String::new(),
        huge_page_bytes: 0,
        pages: BTreeMap::new(),
        nodes: BTreeMap::new(),
        notes: placement.notes.clone(),
    }
}
