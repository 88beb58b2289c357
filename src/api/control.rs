//! The control API's wire types, under `/control/v1/` on the Unix socket only. Used by daemon and omnictl.
//!
//! | method and path | body | answer |
//! |---|---|---|
//! | `GET /control/v1/status` | | [`Status`] |
//! | `GET /control/v1/models` | | `{"models": [`[`ModelStatus`]`]}` |
//! | `GET /control/v1/models/{id}` | | [`ModelStatus`] |
//! | `POST /control/v1/models` | [`LoadFile`] | [`ModelStatus`]: adds a model that no configuration names and loads it |
//! | `POST /control/v1/models/{id}/load` | | [`ModelStatus`]; 202 at once, `?wait=true` answers when ready or failed |
//! | `POST /control/v1/models/{id}/unload` | | [`ModelStatus`]; waits for running streams, `?force=true` cuts them |
//! | `GET /control/v1/models/{id}/experts` | | [`ExpertChoices`]: how often each expert was chosen; 404 without experts |
//! | `POST /control/v1/reload` | | [`Reloaded`]: reads the configuration file again |
//! | `GET /control/v1/vault` | | [`VaultImages`]: weights that are kept for the next worker |
//! | `POST /control/v1/vault/verify?id=ID` | | [`VaultImages`]: compares checksums, of all without `id` |
//! | `POST /control/v1/vault/evict?id=ID` | | [`Evicted`]: frees one, or all that no model uses |
//! | `GET /control/v1/events` | | SSE of [`Event`], first a `status` of each model |
//! | `GET /control/v1/logs?model=ID&lines=N&follow=true` | | `text/plain` lines |

/// Figures of a worker's engine, as its heartbeat brings them.
pub use crate::engine::Stats;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A model's life. A failed model keeps its reason in [`ModelStatus::error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ModelState {
    /// Configured, no process.
    Unloaded,
    /// A worker is reading weights.
    Loading,
    /// Serving.
    Ready,
    /// Finishing its streams before it goes.
    Draining,
    /// The worker died; the next start waits for its back-off.
    Restarting,
    /// Refused or failed too often; `load` tries again.
    Failed,
}

impl ModelState {
    /// Its name as the wire has it.
    pub fn name(self) -> &'static str {
        match self {
            ModelState::Unloaded => "unloaded",
            ModelState::Loading => "loading",
            ModelState::Ready => "ready",
            ModelState::Draining => "draining",
            ModelState::Restarting => "restarting",
            ModelState::Failed => "failed",
        }
    }
}

/// Progress of a load.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Progress {
    /// Bytes of weights in place.
    pub bytes_done: u64,
    /// Bytes in all.
    pub bytes_total: u64,
    /// Bytes per second over the last moments.
    pub bytes_per_second: f64,
}

/// One model as the daemon sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ModelStatus {
    /// Id under which clients name it.
    pub id: String,
    /// Further names.
    pub aliases: Vec<String>,
    /// File.
    pub path: String,
    /// State.
    pub state: ModelState,
    /// Never unloaded by idle time.
    pub pinned: bool,
    /// Why it failed, with what to do.
    pub error: Option<String>,
    /// While loading.
    pub progress: Option<Progress>,
    /// Worker process.
    pub pid: Option<u32>,
    /// Times the worker was started again after a death.
    pub restarts: u64,
    /// Seconds since ready.
    pub uptime_seconds: Option<f64>,
    /// Seconds from spawn to ready.
    pub load_seconds: Option<f64>,
    /// Requests in flight through the daemon.
    pub active_requests: u64,
    /// Facts about the loaded model.
    pub info: Option<ModelInfo>,
    /// Engine figures of the last heartbeat.
    #[schema(value_type = Option<Object>)]
    pub stats: Option<Stats>,
}

/// What a worker reports once the model is bound.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ModelInfo {
    /// `general.architecture`.
    pub architecture: String,
    /// `general.name`.
    pub name: String,
    /// Parameters in all.
    pub parameters: u64,
    /// Bytes of weights resident.
    pub weight_bytes: u64,
    /// Bytes of KV cache reserved.
    pub kv_bytes: u64,
    /// Bytes of recurrent state reserved, of all sequences and snapshots; 0 for a model without.
    #[serde(default)]
    pub state_bytes: u64,
    /// Context served, tokens.
    pub context: usize,
    /// Context trained, tokens.
    pub trained_context: usize,
    /// Sequences at once.
    pub parallel: usize,
    /// Compute threads.
    pub threads: usize,
    /// Instruction set chosen, e.g. `avx512vnni`.
    pub isa: String,
    /// Vocabulary.
    pub vocab: usize,
    /// KV cache element type.
    pub kv_type: String,
    /// How the file was read: `io_uring, direct`, `threads, direct` or `threads, page cache`; or `the vault`: not at all.
    pub read_by: String,
    /// Bytes of the worker's memory on huge pages when the weights had been read.
    pub huge_page_bytes: u64,
    /// Bytes of the weights' memory on pages of each size.
    #[serde(default)]
    pub pages: Vec<PageBytes>,
    /// Bytes of the weights' memory on each NUMA node, as the kernel placed them.
    #[serde(default)]
    pub nodes: Vec<NodeBytes>,
}

/// How often each expert of a loaded model was chosen since its worker started.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ExpertChoices {
    /// Experts that a token uses in each layer.
    pub used: usize,
    /// The layers that have experts.
    pub layers: Vec<LayerChoices>,
}

/// How often each expert of a layer was chosen.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LayerChoices {
    /// The layer's number in the model, from 0.
    pub layer: usize,
    /// By expert.
    pub chosen: Vec<u64>,
}

/// What a layer's choices look like. Shares are of all its choices; equal use gives each expert `1 / experts`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Skew {
    /// Share of the expert that was chosen least.
    pub min: f64,
    /// Of the one in the middle.
    pub median: f64,
    /// Of the one that was chosen most.
    pub max: f64,
    /// How many times its equal share the most chosen one has: 1 when all are used alike.
    pub skew: f64,
    /// Experts never chosen.
    pub unused: usize,
}

impl LayerChoices {
    /// Choices in all.
    pub fn total(&self) -> u64 {
        self.chosen.iter().sum()
    }

    /// Zeros while nothing was chosen.
    pub fn skew(&self) -> Skew {
        let (total, count) = (self.total(), self.chosen.len());
        let mut sorted = self.chosen.clone();
        sorted.sort_unstable();
        let unused = sorted.iter().filter(|&&chosen| chosen == 0).count();
        let (Some(&least), Some(&most)) = (sorted.first(), sorted.last()) else { return Skew::default() };
        if total == 0 {
            return Skew { unused, ..Skew::default() };
        }
        let share = |chosen: u64| chosen as f64 / total as f64;
        let median = (share(sorted[(count - 1) / 2]) + share(sorted[count / 2])) / 2.0;
        Skew { min: share(least), median, max: share(most), skew: share(most) * count as f64, unused }
    }

    /// The experts that were chosen most, with their shares, best first; of equals the first.
    pub fn top(&self, count: usize) -> Vec<(usize, f64)> {
        let total = self.total().max(1) as f64;
        let mut order: Vec<usize> = (0..self.chosen.len()).filter(|&expert| self.chosen[expert] > 0).collect();
        order.sort_by_key(|&expert| std::cmp::Reverse(self.chosen[expert]));
        order.into_iter().take(count).map(|expert| (expert, self.chosen[expert] as f64 / total)).collect()
    }
}

/// Memory on pages of one size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PageBytes {
    /// Bytes of a page.
    pub page: u64,
    /// Bytes on such pages.
    pub bytes: u64,
}

/// Memory on one NUMA node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeBytes {
    /// The node's number.
    pub node: u64,
    /// Bytes on it.
    pub bytes: u64,
}

/// An image of loaded weights that the daemon keeps.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VaultImage {
    /// Name.
    pub id: String,
    /// The model's file.
    pub path: String,
    /// How the weights lie.
    pub variant: String,
    /// Bytes of memory that it takes.
    pub bytes: u64,
    /// Models whose worker uses it now.
    pub models: Vec<String>,
    /// Seconds since the last of them went.
    pub idle_seconds: Option<f64>,
    /// Seconds since it was made.
    pub age_seconds: f64,
    /// Seconds since its checksums were last found right.
    pub verified_seconds: Option<f64>,
    /// The service manager holds it, too: it outlives the daemon.
    pub stored: bool,
}

/// `GET /control/v1/vault`, and what `verify` found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VaultImages {
    /// Those that are kept.
    pub images: Vec<VaultImage>,
    /// Those that were found damaged and let go, with what was damaged.
    #[serde(default)]
    pub damaged: Vec<String>,
}

/// `POST /control/v1/vault/evict`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Evicted {
    /// Those let go.
    pub images: Vec<VaultImage>,
    /// Bytes of memory that they took.
    pub bytes: u64,
}

/// The daemon and all it runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// Package version.
    pub version: String,
    /// Process.
    pub pid: u32,
    /// Seconds since start.
    pub uptime_seconds: f64,
    /// Where it listens.
    pub socket: String,
    /// Configuration file, when one was read.
    pub config: Option<String>,
    /// Refusing new work because it is about to stop.
    pub draining: bool,
    /// Bytes of memory in the host, and free for use.
    pub memory_total: u64,
    /// See `memory_total`.
    pub memory_available: u64,
    /// Every model known.
    pub models: Vec<ModelStatus>,
}

/// `POST /control/v1/models`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct LoadFile {
    /// GGUF file, first of a split set.
    pub path: String,
    /// Id; from the file's name when absent.
    pub id: Option<String>,
    /// Context in tokens.
    pub context: Option<usize>,
    /// Sequences at once.
    pub parallel: Option<usize>,
    /// Compute threads.
    pub threads: Option<usize>,
}

/// `POST /control/v1/reload`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Reloaded {
    /// Ids added.
    pub added: Vec<String>,
    /// Ids removed (drained).
    pub removed: Vec<String>,
    /// Ids whose settings changed; they take effect at their next load.
    pub changed: Vec<String>,
    /// Settings that need a restart of the daemon.
    pub needs_restart: Vec<String>,
}

/// One event of `/control/v1/events`; the SSE event name is `kind`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Event {
    /// A model's state or progress changed.
    Status {
        /// The model now.
        model: Box<ModelStatus>,
    },
    /// The configuration was read again.
    Reloaded {
        /// What changed.
        changes: Reloaded,
    },
    /// The daemon is stopping.
    Stopping,
}
