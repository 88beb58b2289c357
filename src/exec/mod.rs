//! The forward pass over loaded weights: [`Executor`] owns model, thread pool, KV cache and step buffers, and turns a
//! [`Batch`] of tokens into logits. It decides nothing: which tokens, which blocks and what becomes of the logits is the
//! caller's (`engine`, or a command that works without one).
//!
//! A row's logits depend on its own sequence alone, bit for bit: not on its neighbours in the batch, nor on how its
//! prompt was cut into chunks. (Latent attention has another form for chunks of 128 rows and more, equal up to rounding:
//! there the cut, which depends on what else is in the batch, shows in the last bits.)

mod buffers;
mod counts;
mod delta;
mod experts;
mod forward;
mod kv;
mod latent;
mod reference;
mod rope;
mod solo;
mod state;

pub use crate::ops::cpu::{Layouts, Options as CpuOptions};
pub use crate::ops::profile::Entry as ProfileEntry;
pub use crate::ops::{KV_BLOCK, SeqSlice, StateSave};
pub use buffers::scratch_bytes;
pub use counts::RoutingCounts;
pub use kv::{KvType, kv_bytes};
pub use latent::made_bytes;
pub use solo::{Solo, Wanted};
pub use state::state_bytes;

use crate::model::{Hparams, Matrix, Model};
use crate::ops::{self, Tensor, cpu};
use crate::quant::DType;
use buffers::Buffers;
use kv::KvCache;
use state::StateCache;
use std::collections::HashMap;
use std::sync::Arc;

/// Why a model cannot be made ready to run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The CPU backend could not start.
    #[error(transparent)]
    Ops(#[from] ops::Error),
    /// No address space for weights that are made from the file's.
    #[error("cannot reserve {bytes} bytes for a second form of {tensor}: {source}")]
    Weights {
        /// The file's tensor.
        tensor: String,
        /// Wanted.
        bytes: usize,
        /// The system's reason.
        source: std::io::Error,
    },
    /// No address space for the KV cache.
    #[error("cannot reserve {bytes} bytes for the KV cache: {source}; lower the context or the parallel sequences")]
    Kv {
        /// Wanted.
        bytes: usize,
        /// The system's reason.
        source: std::io::Error,
    },
    /// No address space for recurrent states.
    #[error("cannot reserve {bytes} bytes for recurrent states: {source}; lower the parallel sequences")]
    State {
        /// Wanted.
        bytes: usize,
        /// The system's reason.
        source: std::io::Error,
    },
}

impl Matrix for Tensor {
    fn dtype(&self) -> DType {
        self.dtype
    }

    fn cols(&self) -> usize {
        self.cols
    }
}

/// How to run a model.
#[derive(Clone, Debug)]
pub struct Options {
    /// Threads and instruction sets.
    pub cpu: CpuOptions,
    /// Element type of the KV cache.
    pub kv_type: KvType,
    /// Most tokens of a sequence: what rotary embedding a model has may depend on it.
    pub context: usize,
    /// Blocks of the KV cache, [`KV_BLOCK`] tokens each.
    pub kv_blocks: usize,
    /// Recurrent states, of sequences and snapshots together; without meaning for a model that has none.
    pub state_slots: usize,
    /// Most rows of a batch.
    pub max_rows: usize,
    /// Most rows of a batch that want logits.
    pub max_logit_rows: usize,
}

/// One step's work.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// One token per row, each below the vocabulary.
    pub tokens: &'a [u32],
    /// The rows' sequences: consecutive, covering all rows.
    pub seqs: &'a [SeqSlice<'a>],
    /// Recurrent state of each sequence, no slot named twice; not looked at for a model that has none.
    pub states: &'a [StateUse],
    /// Rows whose logits are wanted, ascending.
    pub logit_rows: &'a [usize],
}

/// What becomes of a sequence's recurrent state in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateUse {
    /// Its slot. A sequence that begins in this step begins with zeros, whatever lies there.
    pub slot: usize,
    /// A snapshot to be made on the way.
    pub save: Option<StateSave>,
}

/// The same model, each matrix with the factor that the file has beside it.
fn scaled(model: Model<Tensor>) -> Result<Model<Tensor>, Error> {
    // A matrix is followed by its bias and its factor.
    let (mut factors, mut nth, mut matrix) = (HashMap::new(), 0usize, 0);
    model.for_each(|path, tensor| {
        match path {
            "layers.scale" => drop(factors.insert(matrix, tensor.to_f32().into_owned())),
            _ if path.ends_with(".weight") => matrix = nth,
            _ => {}
        }
        nth += 1;
    });
    let mut nth = 0;
    model.try_map(|_, tensor| {
        nth += 1;
        Ok(match factors.get(&(nth - 1)) {
            Some(factors) => tensor.scaled(factors)?,
            None => tensor,
        })
    })
}

/// A model ready to run.
pub struct Executor {
    model: Model<Tensor>,
    cpu: cpu::Cpu,
    scratch: cpu::Scratch,
    rope: rope::Tables,
    kv: KvCache,
    state: StateCache,
    buffers: Buffers,
    /// Of layers with latent attention, in order; they are all or none.
    ups: Vec<latent::Up>,
    /// Of models with experts.
    counts: Option<Arc<RoutingCounts>>,
}

impl Executor {
    /// Starts the compute threads and reserves cache and buffers; their pages come into being as they are used.
    ///
    /// # Errors
    /// [`Error`] when threads or memory are refused or a CPU option is wrong.
    pub fn new(model: Model<Tensor>, options: &Options) -> Result<Executor, Error> {
        let model = scaled(model)?;
        let mut cpu = cpu::Cpu::new(&options.cpu)?;
        cpu.reserve_attention(&buffers::attention_size(&model.hparams, options));
        let scratch = cpu::Scratch::with_size(&buffers::acts_size(&model, options));
        let rope = rope::Tables::new(&model, options.context);
        let kv = KvCache::new(&model.hparams, options.kv_type, options.kv_blocks)?;
        let state = StateCache::new(&model.hparams, options.state_slots)?;
        let buffers = Buffers::new(&model.hparams, options.max_rows, options.max_logit_rows);
        let ups = latent::ups(&model, options, &cpu)?;
        let counts = RoutingCounts::new(&model.hparams).map(Arc::new);
        Ok(Executor { model, cpu, scratch, rope, kv, state, buffers, ups, counts })
    }

    /// The model's numbers.
    pub fn hparams(&self) -> &Hparams {
        &self.model.hparams
    }

    /// Compute threads.
    pub fn threads(&self) -> usize {
        self.cpu.threads()
    }

    /// Kernels in use.
    pub fn isa(&self) -> &'static str {
        self.cpu.isa()
    }

    /// How often each expert was chosen; `None` for a model without.
    pub fn routing_counts(&self) -> Option<Arc<RoutingCounts>> {
        self.counts.clone()
    }

    /// Begins or stops to note what each operation of a step takes.
    pub fn profile(&self, on: bool) {
        self.cpu.profile(on);
    }

    /// What was noted since the last call, the longest first.
    pub fn take_profile(&self) -> Vec<ProfileEntry> {
        self.cpu.take_profile()
    }

    /// Fills the cache of a sequence with arbitrary keys and values for its first `tokens` positions, as if they had been
    /// evaluated: for measurements at a depth that would take minutes to reach.
    pub fn pretend(&mut self, blocks: &[u32], tokens: usize) {
        let (kv_heads, key_dim, value_dim) =
            (self.model.hparams.kv_heads, self.model.hparams.key_dim, self.model.hparams.value_dim);
        let mut state = 1u32;
        let mut noise = |n: usize| -> Vec<f32> {
            let mut next = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 23) as f32 - 1.0
            };
            (0..n).map(|_| next()).collect()
        };
        // A latent's values are a part of its keys.
        let value_dim = if self.model.hparams.latent.is_some() { 0 } else { value_dim };
        let (k, v) = (noise(KV_BLOCK * kv_heads * key_dim), noise(KV_BLOCK * kv_heads * value_dim));
        for layer in 0..self.model.hparams.kv_layers() {
            let mut cache = self.kv.layer(layer);
            for start in (0..tokens).step_by(KV_BLOCK) {
                let rows = KV_BLOCK.min(tokens - start);
                let (k, v) = (&k[..rows * kv_heads * key_dim], &v[..rows * kv_heads * value_dim]);
                self.cpu.kv_write(&mut cache, k, v, &[SeqSlice { first_row: 0, rows, start, blocks }]);
            }
        }
    }

    /// Copies a recurrent state from one slot to another: a sequence goes on from a snapshot.
    pub fn copy_state(&mut self, from: usize, to: usize) {
        self.state.copy(from, to);
    }

    /// Bytes reserved for recurrent states.
    pub fn state_bytes(&self) -> usize {
        self.state.bytes()
    }

    /// Bytes reserved for the KV cache.
    pub fn kv_bytes(&self) -> usize {
        self.kv.bytes()
    }

    /// Bytes of the step buffers; see [`scratch_bytes`].
    pub fn buffer_bytes(&self) -> u64 {
        let made: u64 = self.ups.iter().map(latent::Up::reserved).sum();
        let counts = self.counts.as_ref().map_or(0, |counts| counts.reserved());
        self.buffers.reserved() + self.scratch.reserved() + self.cpu.reserved() + made + counts
    }
}
