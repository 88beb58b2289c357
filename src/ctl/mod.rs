//! `omnictl`: one file per group of commands, over the daemon's Unix socket or on a file without a daemon. It decides
//! nothing: what it shows comes from the control API and OpenAI's endpoints. Called by `src/bin/omnictl.rs`.

pub mod bench; // speed of a file or a shape, limits of the host, goals, without a daemon
pub mod chat; // chat, complete
pub mod cli; // the command line and its dispatch
pub mod client; // HTTP over the Unix socket
pub mod demo; // the whole path in one command
pub mod doctor; // is this host fit: one line per check, without a daemon
pub mod documents; // man pages, shell completions
pub mod error; // what went wrong, and the exit status for it
pub mod experts; // status --experts: how evenly a model uses its experts
pub mod inspect; // what a GGUF file holds, without a daemon
pub mod load; // load, unload
pub mod models; // status, ps, health
pub mod offline; // logits and perplexity of a file, without a daemon
pub mod output; // tables, colours, sizes and times for people
pub mod plan; // where everything of a model would go on a host, without a daemon
pub mod progress; // the bar while a model loads
mod root; // the host's files below a root directory
pub mod selftest; // a model's own passes against each other and the reference, a line per check
pub mod sse; // server-sent events from bytes
mod sysctl; // kernel settings with their reasons
pub mod textcmds; // tokenize, detokenize, render, parse-chat, without a daemon
pub mod topology; // status --topology: the host drawn, without a daemon
pub mod tune; // settings of the host: shown, applied, rolled back
pub mod vault; // weights that stay in memory for the next worker
pub mod watch; // logs, events, reload
mod weights; // what the configured models need, from their headers

pub use cli::main;
pub use error::Error;
