//! TOML to a checked [`Config`]: the only reader of settings (files, environment). Defaults work with no file at all.
//!
//! It opens no socket and starts nothing; the daemon and `omnictl` call [`load`]. Everything wrong with a file is
//! reported at once, each with its line, key and remedy ([`Problem`]).

mod document; // a table of the file: typed getters that collect problems
mod environment; // what the process and the host add: user, directories, existing files
mod error; // what is wrong, where, and what to do
pub mod paths; // default places: the socket as clients find it, temporary files
pub mod proxy; // the [proxy] table, on its own
mod read; // document -> Config
#[cfg(test)]
mod tests;
mod units; // durations, sizes, CPU lists, log filters, nearest names

pub use environment::Environment;
pub use error::{Error, Problem};
pub use paths::{client_socket, default_socket};
pub use read::{known_keys, parse};
pub use units::{format_size, log_filter, parse_cpus, parse_size};

use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the configuration is looked for when nobody names a file.
pub const SYSTEM_FILE: &str = "/etc/omni-inferd/config.toml";

/// Instruction sets that `disable_isa` may name.
pub const INSTRUCTION_SETS: [&str; 4] = ["avx2", "avx512", "avx512vnni", "avx512bf16"];

/// Element types that `kv_type` may name.
pub const KV_TYPES: [&str; 6] = ["f16", "bf16", "q8_0", "q4_1", "q4_0", "f32"];

/// The file named, or [`SYSTEM_FILE`] when it is there, or the defaults.
///
/// # Errors
/// [`Error::Read`] when a file cannot be read, [`Error::Invalid`] with everything that is wrong in it.
pub fn load(explicit: Option<&Path>) -> Result<Config, Error> {
    let environment = Environment::current();
    let path = match explicit {
        Some(path) => path,
        None if Path::new(SYSTEM_FILE).exists() => Path::new(SYSTEM_FILE),
        None => return Ok(Config::with_defaults(&environment)),
    };
    // Absolute, so that paths relative to it stay right wherever a worker or a later reload looks at them.
    let path = &std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let text = std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_path_buf(), source })?;
    parse(&text, path, &environment)
}

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
    /// Keep loaded weights in memory for the next worker.
    pub vault: bool,
    /// So long after the last worker that used them.
    pub vault_ttl: Duration,
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
    /// One of [`KV_TYPES`], `f16` by default.
    pub kv_type: String,
    /// Default 512.
    pub prefill_chunk: usize,
    /// Over which NUMA nodes its memory lies: `interleave` (default), `bind:N` or `partition`.
    pub numa: String,
    /// Instruction sets switched off.
    pub disable_isa: Vec<String>,
    /// Replaces the file's chat template.
    pub chat_template: Option<PathBuf>,
    /// What is placed by hand, the first pattern that matches a tensor first.
    pub place: Vec<Place>,
}

/// `[[model.place]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// A regular expression over names of tensors.
    pub tensors: String,
    /// `cpu`, or `gpu` and a number.
    pub device: String,
}

impl Config {
    /// What applies with no file: no models, the default socket.
    pub fn with_defaults(environment: &Environment) -> Self {
        Self { source: None, daemon: Daemon::with_defaults(environment), models: Vec::new() }
    }
}

impl Daemon {
    /// The defaults; only the socket depends on the process.
    pub fn with_defaults(environment: &Environment) -> Self {
        Self {
            socket: environment.default_socket.clone(),
            group: "omni".into(),
            admin_group: "omni-admin".into(),
            drain_timeout: Duration::from_secs(30),
            heartbeat_timeout: Duration::from_secs(30),
            load_timeout: Duration::from_secs(600),
            restart_backoff: (Duration::from_secs(1), Duration::from_secs(60)),
            restart_limit: 10,
            max_body_bytes: 32 << 20,
            max_connections: 1024,
            header_timeout: Duration::from_secs(10),
            vault: true,
            vault_ttl: Duration::from_secs(600),
            log: "info".into(),
        }
    }
}

impl Model {
    /// A model with every setting at its default.
    pub fn new(id: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        Self {
            id: id.into(),
            aliases: Vec::new(),
            path: path.into(),
            preload: false,
            pinned: false,
            idle_ttl: None,
            context: None,
            parallel: 4,
            queue: 64,
            threads: None,
            cpus: None,
            kv_type: "f16".into(),
            prefill_chunk: 512,
            numa: "interleave".into(),
            disable_isa: Vec::new(),
            chat_template: None,
            place: Vec::new(),
        }
    }

    /// An id for a file that nobody named: its stem without a split suffix (`-00001-of-00009`), with characters that
    /// an id may not hold replaced by `-`.
    pub fn id_from_path(path: &Path) -> String {
        let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        let base = match stem.rsplit_once("-of-") {
            Some((head, total)) if !total.is_empty() && total.bytes().all(|b| b.is_ascii_digit()) => {
                let part = head.trim_end_matches(|c: char| c.is_ascii_digit());
                part.strip_suffix('-').unwrap_or(head)
            }
            _ => &stem,
        };
        let id: String = base.chars().take(120).map(|c| if read::id_char(c) { c } else { '-' }).collect();
        if id.is_empty() || id == read::RESERVED_ID { "model".into() } else { id }
    }
}
