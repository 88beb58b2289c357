//! From a path to a running engine: find or open, bind, plan, load, start the thread.

use super::handle::Handle;
use super::options::{EngineOptions, cpu_options, exec_options, limits, needs};
use super::origin::Origin;
use super::planning::check_places;
use super::room::Room;
use super::run::Engine;
use super::shared::Shared;
use crate::exec::{self, Executor, Layouts};
use crate::gguf::TensorInfo;
use crate::load::{self, Keeper, LayoutOf, Loaded, Metadata, Nobody, Progress};
use crate::model::{Hparams, Model};
use crate::plan::{self, Placement, Refusal, Wish};
use crate::sched::Limits;
use crate::sys::affinity;
use crate::sys::numa::{self, Policy};
use crate::sys::topology::Topology;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, mpsc};

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
    /// Bytes of this process on huge pages once the weights were there; 0 until somebody counts those of weights that were
    /// kept ([`Keeper::settle`]), as for `pages`.
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
    /// As `Refused`, whatever others give back.
    #[error("{0}\nfreeing memory is not enough: this host, control group or NUMA node never has as much")]
    Never(Box<Refusal>),
    #[error(transparent)]
    Exec(#[from] exec::Error),
    #[error("cannot find out how much memory is available: {0}")]
    Memory(std::io::Error),
    #[error("{option} is 0; it must be at least 1")]
    Zero { option: &'static str },
    #[error("numa: {0}")]
    Numa(String),
    #[error("place: {0}")]
    Place(String),
    #[error("cannot start the engine thread: {0}; raise the limit on processes")]
    Thread(std::io::Error),
    #[error("the engine thread ended while it started; see the log")]
    Died,
}

impl OpenError {
    /// Whether and when trying again may help.
    pub fn remedy(&self) -> Remedy {
        match self {
            OpenError::Thread(_) | OpenError::Died | OpenError::Load(load::Error::Changed { .. }) => Remedy::Again,
            OpenError::Refused(_) | OpenError::Load(load::Error::Memory { .. }) | OpenError::Memory(_) => Remedy::Later,
            _ => Remedy::None,
        }
    }
}

/// What helps a model that could not be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// Trying again.
    Again,
    /// Trying again when there is more memory: others have it now.
    Later,
    /// Nothing, as long as file, settings and host stay the same.
    None,
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
    let wanted = Wanted { layout: &layout, policy: &policy, options };
    let found = Origin::find(path, &variant, &layout, keeper)?;
    let kept = found.0.kept();
    let mut fetched = match (wanted.fetch(found, keeper, progress), kept) {
        // What matches may still not be mapped; the file is there, too.
        (Err(OpenError::Load(error)), Some(id)) => {
            keeper.reject(&id, &error.to_string());
            wanted.fetch(Origin::file(path)?, keeper, progress)?
        }
        (fetched, _) => fetched?,
    };
    fetched.facts.notes.append(&mut notes);
    let Fetched { mut facts, limits, metadata, loaded: Loaded { model: weights, image }, is_new } = fetched;
    facts.nodes = image.nodes().clone();
    if is_new {
        image.touch();
        (facts.huge_page_bytes, facts.pages) = (load::huge_page_bytes(), image.pages());
        let handle = start(weights, options, limits, &mut facts)?;
        keeper.keep(path, &variant, image);
        return Ok(Opened { handle, facts, metadata });
    }
    // A restart waits neither for page tables nor for counting them.
    keeper.settle(image);
    let handle = start(weights, options, limits, &mut facts)?;
    Ok(Opened { handle, facts, metadata })
}

/// What is to be loaded, and how.
struct Wanted<'a> {
    layout: LayoutOf<'a>,
    policy: &'a Policy,
    options: &'a EngineOptions,
}

/// Weights in memory.
struct Fetched {
    facts: ModelFacts,
    limits: Limits,
    metadata: Metadata,
    loaded: Loaded,
    /// They had to be read.
    is_new: bool,
}

impl Wanted<'_> {
    /// Plans and loads what was found.
    fn fetch(
        &self,
        (origin, model): (Origin, Model<TensorInfo>),
        keeper: &mut dyn Keeper,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Fetched, OpenError> {
        let options = self.options;
        options.kv_type.check(&model.hparams)?;
        check_places(&model, &options.place).map_err(OpenError::Place)?;
        let placement = self.plan(&model, origin.resident(), keeper, progress)?;
        let limits = limits(&model.hparams, options, placement.context, placement.parallel);
        let mut facts = facts(&model.hparams, model.parameters(), &placement, options);
        facts.notes.extend(origin.note());
        let mut watch = |now: Progress| {
            facts.read_by = now.method.to_string();
            progress(now);
        };
        let memory = (self.policy, keeper.keeps());
        let (metadata, loaded, is_new) = origin.load(model, self.layout, memory, &mut watch)?;
        Ok(Fetched { facts, limits, metadata, loaded, is_new })
    }

    /// Decides what the model takes. `resident` bytes of it are there already; images that nobody uses make room first.
    fn plan(
        &self,
        model: &Model<TensorInfo>,
        resident: u64,
        keeper: &mut dyn Keeper,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Placement, OpenError> {
        let (options, weights) = (self.options, model.weight_bytes());
        let threads = cpu_options(options).compute_threads().map_err(exec::Error::from)?;
        let wish = Wish { context: options.context, parallel: options.parallel };
        let place = |available| {
            plan::place(&model.hparams, weights, &wish, available, |context, parallel| {
                needs(model, options, &limits(&model.hparams, options, context, parallel), threads)
            })
        };
        // What never fits takes nobody else's weights.
        place(load::most(self.policy).map_err(OpenError::Memory)?).map_err(OpenError::Never)?;
        if let Some(bytes) = options.memory {
            return Ok(place(bytes)?);
        }
        // What is there already is room, too; it may be longer than the weights, by parts of pages.
        let missing = weights.saturating_sub(resident);
        let available = || Ok(load::available(missing, self.policy)?.saturating_add(weights - missing));
        let mut reclaim = |bytes| {
            let free = load::reserved(missing, self.policy);
            keeper.reclaim(bytes, missing.saturating_sub(free))
        };
        let mut wait = || progress(Progress { bytes_total: weights, ..Progress::default() });
        let room = Room::new(&available, &mut reclaim, &mut wait);
        let bytes = room.make(place(u64::MAX)?.total_bytes()).map_err(OpenError::Memory)?;
        Ok(place(bytes)?)
    }
}

/// The options for this host, and its memory policy, set for this thread: one node's memory goes with its CPUs.
fn at_home(options: &EngineOptions) -> Result<(EngineOptions, Policy, Vec<String>), OpenError> {
    let host = Topology::detect();
    let mut options = options.clone();
    if let (numa::Wish::Bind(node), None) = (&options.numa, &options.cpus) {
        let cpus: Vec<usize> = host.cpus.iter().filter(|cpu| cpu.node == *node).map(|cpu| cpu.id).collect();
        options.cpus = Some(affinity::format_list(&cpus)).filter(|_| !cpus.is_empty());
    }
    let cpus = options.cpus.as_deref().and_then(|list| affinity::parse_list(list).ok());
    let own = cpus.map_or_else(|| host.clone(), |cpus| host.restricted(&cpus));
    let threads = cpu_options(&options).compute_threads().map_err(exec::Error::from)?;
    let policy = options.numa.on(&own, threads).map_err(OpenError::Numa)?;
    match policy.set_thread() {
        Ok(()) => Ok((options, policy, Vec::new())),
        Err(error) => {
            let note = format!("memory cannot be placed over NUMA nodes ({policy}): {error}");
            Ok((options, Policy::Local, vec![note]))
        }
    }
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
