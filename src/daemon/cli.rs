//! The command line of `omni-inferd`, and the exit codes.

use super::{Options, Source, exit, run};
use crate::config::{self, Config, Environment, Model, format_size};
use clap::{CommandFactory, Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

/// Serves large language models from GGUF files on a local socket, one worker process per model.
#[derive(Parser)]
#[command(name = "omni-inferd", version, args_conflicts_with_subcommands = true, after_help = AFTER_HELP)]
struct Cli {
    /// Configuration file; without it /etc/omni-inferd/config.toml if that is there, else the defaults
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Only check the configuration: print "ok" and a summary, or everything that is wrong (exit code 78)
    #[arg(long)]
    check: bool,

    /// Program to start as worker instead of this one, for debugging; called as PROGRAM worker --log FILTER ID
    #[arg(long, value_name = "PROGRAM", hide = true, global = true)]
    worker_program: Option<PathBuf>,

    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Serve one GGUF file without any configuration
    Serve(Serve),
    /// One model's process; started by the daemon
    #[command(hide = true)]
    Worker {
        /// Log filter
        #[arg(long, default_value = "info")]
        log: String,
        /// The model's id, to be seen in the list of processes
        id: Option<String>,
    },
}

#[derive(clap::Args)]
struct Serve {
    /// GGUF file, the first of a split set
    file: PathBuf,
    /// Unix socket to listen on [default: in the runtime directory]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Tokens of context per sequence [default: as trained, at most 8192]
    #[arg(long, value_name = "N")]
    ctx: Option<usize>,
    /// Sequences that run at once
    #[arg(long, value_name = "N", default_value_t = 4)]
    parallel: usize,
    /// Compute threads [default: one per physical core]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// CPUs to run on, as for taskset -c [default: all allowed]
    #[arg(long, value_name = "LIST")]
    cpus: Option<String>,
    /// Name that clients use [default: the file's name]
    #[arg(long, value_name = "NAME")]
    id: Option<String>,
    /// Element type of the KV cache: f16, or for less memory q8_0, q4_1 or q4_0
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = config::KV_TYPES)]
    kv_type: String,
    /// Jinja file that replaces the chat template of the GGUF file
    #[arg(long, value_name = "FILE")]
    chat_template: Option<PathBuf>,
    /// Log filter: error, warn, info, debug, trace
    #[arg(long, value_name = "FILTER", default_value = "info")]
    log: String,
}

const AFTER_HELP: &str = "\
Signals: SIGTERM and SIGINT finish running streams (drain_timeout), a second one ends at once; SIGHUP reads the
configuration again.

Exit codes: 0 ended on request, 2 wrong command line, 70 internal error, 75 the socket is in use by a live daemon,
77 not permitted, 78 wrong configuration.

See config.example.toml for every setting, and omnictl(1) for control.";

/// The command line, for man pages and completions.
pub fn command() -> clap::Command {
    Cli::command()
}

/// The whole program. `work` is a worker's main function, which answers its exit status: the daemon itself knows no more
/// of workers than their protocol.
pub fn main(work: fn() -> i32) -> ExitCode {
    let cli = Cli::parse();
    let program = cli.worker_program;
    match cli.command {
        Some(Command::Worker { log, id: _ }) => {
            super::log::start_worker(&log);
            u8::try_from(work()).map_or(ExitCode::FAILURE, ExitCode::from)
        }
        Some(Command::Serve(serve)) => match serve.config() {
            Ok(config) => run(Options { config, source: Source::Fixed, program }),
            Err(message) => {
                eprintln!("omni-inferd: {message}");
                ExitCode::from(exit::CONFIG)
            }
        },
        None => match config::load(cli.config.as_deref()) {
            Ok(config) if cli.check => {
                print!("{}", summary(&config));
                ExitCode::SUCCESS
            }
            Ok(config) => run(Options { config, source: Source::Search(cli.config), program }),
            Err(error) => {
                eprintln!("{error}");
                ExitCode::from(exit::CONFIG)
            }
        },
    }
}

impl Serve {
    /// One pinned model, loaded at start.
    fn config(self) -> Result<Config, String> {
        let environment = Environment::current();
        let path = std::fs::canonicalize(&self.file).map_err(|error| format!("{}: {error}", self.file.display()))?;
        (environment.readable)(&path).map_err(|reason| format!("{}: {reason}", path.display()))?;
        let chat_template = match self.chat_template {
            Some(file) => Some(std::fs::canonicalize(&file).map_err(|error| format!("{}: {error}", file.display()))?),
            None => None,
        };
        let id = self.id.unwrap_or_else(|| Model::id_from_path(&path));
        let model = Model {
            preload: true,
            pinned: true,
            context: self.ctx,
            parallel: self.parallel,
            threads: self.threads,
            cpus: self.cpus,
            kv_type: self.kv_type,
            chat_template,
            ..Model::new(id, path)
        };
        model.check().map_err(|(key, what)| format!("{key}: {what}"))?;
        let mut config = Config::with_defaults(&environment);
        if let Some(socket) = self.socket {
            config.daemon.socket = std::path::absolute(socket).map_err(|error| format!("--socket: {error}"))?;
        }
        config.daemon.log = self.log;
        config.models.push(model);
        Ok(config)
    }
}

/// What `--check` prints.
fn summary(config: &Config) -> String {
    use std::fmt::Write as _;
    let source = config.source.as_ref().map_or("defaults, no file".into(), |path| path.display().to_string());
    let daemon = &config.daemon;
    let mut text = format!("ok: {source}\n  socket  {}\n", daemon.socket.display());
    let _ = writeln!(text, "  groups  {} completes, {} controls", daemon.group, daemon.admin_group);
    let _ = writeln!(
        text,
        "  limits  {} connections, bodies of {}, drain within {}",
        daemon.max_connections,
        format_size(daemon.max_body_bytes),
        humantime::format_duration(daemon.drain_timeout)
    );
    for model in &config.models {
        let mut notes = Vec::new();
        if !model.aliases.is_empty() {
            notes.push(format!("also {}", model.aliases.join(", ")));
        }
        if model.preload {
            notes.push("loaded at start".into());
        }
        if model.pinned {
            notes.push("pinned".into());
        }
        if let Some(ttl) = model.idle_ttl {
            notes.push(format!("unloaded after {}", humantime::format_duration(ttl)));
        }
        let notes = if notes.is_empty() { "loaded on demand".into() } else { notes.join("; ") };
        let _ = writeln!(text, "  model   {}: {} ({notes})", model.id, model.path.display());
    }
    if config.models.is_empty() {
        text.push_str("  model   none; add a [[model]] block, or use `omnictl load FILE`\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn serving_a_file_needs_no_configuration() {
        let file = tempfile::Builder::new().suffix(".gguf").tempfile().unwrap();
        let parse = |more: &[&str]| {
            let path = file.path().to_str().unwrap();
            let line = [&["omni-inferd", "serve", path], more].concat();
            match Cli::try_parse_from(line).unwrap().command {
                Some(Command::Serve(serve)) => serve.config(),
                _ => panic!("not a serve command"),
            }
        };
        let config = parse(&["--socket", "x.sock", "--ctx", "256", "--id", "story"]).unwrap();
        let model = &config.models[0];
        assert!(config.daemon.socket.is_absolute() && model.preload && model.pinned);
        assert_eq!((model.id.as_str(), model.context, model.parallel), ("story", Some(256), 4));
        assert!(parse(&["--id", "auto"]).unwrap_err().contains("reserved"));
        assert!(parse(&["--threads", "0"]).unwrap_err().contains("from 1 to"));
        assert!(Cli::try_parse_from(["omni-inferd", "--check", "serve", "x"]).is_err());
    }

    #[test]
    fn the_summary_names_models_and_socket() {
        let mut config = Config::with_defaults(&Environment::pure());
        assert!(summary(&config).contains("model   none"));
        config.models.push(Model { aliases: vec!["b".into()], pinned: true, ..Model::new("a", "/m/a.gguf") });
        assert!(summary(&config).contains("model   a: /m/a.gguf (also b; pinned)"), "{}", summary(&config));
    }
}
