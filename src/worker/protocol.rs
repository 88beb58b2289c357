//! Daemon ↔ worker control channel: one JSON object per line over a Unix socket pair (descriptor 4 of the worker).
//! End of file on it ends the worker; end of file from the worker tells the daemon of its death.

use crate::api::control::{ExpertChoices, ModelInfo, PageBytes, Progress, Stats};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What to load: the first line a worker reads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spec {
    /// Id under which it answers.
    pub id: String,
    /// Further ids it answers to.
    pub aliases: Vec<String>,
    /// GGUF file, first of a split set.
    pub path: PathBuf,
    /// Context per sequence in tokens; `None`: what the model was trained for, at most 8192 and what memory allows.
    pub context: Option<usize>,
    /// Sequences at once.
    pub parallel: usize,
    /// Requests that may wait.
    pub queue: usize,
    /// Compute threads; `None`: one per physical core.
    pub threads: Option<usize>,
    /// CPUs to run on, as in `taskset -c`; `None`: all allowed ones.
    pub cpus: Option<String>,
    /// `f32` or `f16`.
    pub kv_type: String,
    /// Most prompt tokens per step.
    pub prefill_chunk: usize,
    /// Instruction sets not to use: `avx2`, `avx512`, `avx512vnni`, `avx512bf16`.
    pub disable_isa: Vec<String>,
    /// Chat template that replaces the file's.
    pub chat_template: Option<PathBuf>,
    /// Most bytes of a request's body.
    pub max_body_bytes: usize,
    /// Over which NUMA nodes its memory is to lie: `interleave`, `bind:N` or `partition`.
    pub numa: String,
    /// What is placed by hand: patterns over tensor names, and a device each.
    #[serde(default)]
    pub place: Vec<(String, String)>,
    /// Weights are taken from the daemon's vault and left in it.
    pub vault: bool,
}

/// Daemon to worker, after [`Spec`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Command {
    /// Take no new requests, finish the running ones, then exit 0.
    Drain,
    /// Exit now.
    Stop,
}

/// Worker to daemon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Report {
    /// Weights are being read.
    Loading {
        /// How far.
        progress: Progress,
    },
    /// The socket answers.
    Ready {
        /// What was loaded.
        info: Box<ModelInfo>,
    },
    /// What pages lie under weights that were found in the vault; comes once, after `Ready`.
    Pages {
        /// Bytes of the process on huge pages.
        huge_page_bytes: u64,
        /// Bytes of the weights on pages of each size.
        pages: Vec<PageBytes>,
    },
    /// Loading is impossible (bad file, not enough memory): do not restart, show the reason.
    Refused {
        /// What, why, what to do.
        error: String,
        /// Only for now: there was too little memory, which others may give back.
        #[serde(default)]
        for_now: bool,
    },
    /// Five times a second. The daemon restarts a worker whose heartbeat stops, or whose engine thread stops
    /// (`stats.beat_age_ms`).
    Heartbeat {
        /// Figures.
        stats: Stats,
    },
    /// At most every few seconds, when there are new ones.
    Experts {
        /// Since the worker started.
        choices: ExpertChoices,
    },
}
