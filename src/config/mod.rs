//! TOML to a checked [`Config`]: the only reader of settings (files, environment). Defaults work with no file at all.

pub mod paths;
pub mod proxy;

pub use paths::{client_socket, default_socket};

use std::path::PathBuf;
use std::time::Duration;

/// Everything configurable, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The file it came from.
    pub source: Option<PathBuf>,
    /// The daemon's own settings.
    pub daemon: Daemon,
    /// Models, in the file's order. Ids and aliases are unique.
    pub models: Vec<Model>,
}

/// `[daemon]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Daemon {
    /// Unix socket. Default: `/run/omni-inferd/omni.sock` as root or under systemd (`RUNTIME_DIRECTORY`), else
    /// `$XDG_RUNTIME_DIR/omni-inferd/omni.sock`, else `/tmp/omni-inferd-$UID/omni.sock`.
    pub socket: PathBuf,
    /// Group that may complete; the daemon's own user and root always may. Missing group: same user only.
    pub group: String,
    /// Group that may control.
    pub admin_group: String,
    /// On SIGTERM: how long running streams may finish.
    pub drain_timeout: Duration,
    /// A worker silent for so long is killed and started again.
    pub heartbeat_timeout: Duration,
    /// Loading on demand: how long a request waits for its model.
    pub load_timeout: Duration,
    /// First and longest pause before a dead worker is started again (doubles; resets after a quiet time).
    pub restart_backoff: (Duration, Duration),
    /// Deaths in a row after which a model is `failed`.
    pub restart_limit: u32,
    /// Most bytes of a request's body.
    pub max_body_bytes: usize,
    /// Most connections at once.
    pub max_connections: usize,
    /// A connection must send its header within.
    pub header_timeout: Duration,
    /// `error`, `warn`, `info`, `debug`, `trace`, or a tracing filter.
    pub log: String,
}

/// `[[model]]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// Id clients use.
    pub id: String,
    /// Further names.
    pub aliases: Vec<String>,
    /// GGUF file.
    pub path: PathBuf,
    /// Load when the daemon starts.
    pub preload: bool,
    /// Never unload by idle time.
    pub pinned: bool,
    /// Unload after so long without requests.
    pub idle_ttl: Option<Duration>,
    /// See `worker::protocol::Spec` for these.
    pub context: Option<usize>,
    /// Sequences at once, default 4.
    pub parallel: usize,
    /// Waiting requests, default 64.
    pub queue: usize,
    /// Threads.
    pub threads: Option<usize>,
    /// CPUs.
    pub cpus: Option<String>,
    /// `f16` (default) or `f32`.
    pub kv_type: String,
    /// Default 512.
    pub prefill_chunk: usize,
    /// Instruction sets switched off.
    pub disable_isa: Vec<String>,
    /// Replaces the file's chat template.
    pub chat_template: Option<PathBuf>,
}
