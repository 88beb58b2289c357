//! `omni-proxy` on the command line: options over the file's settings, start, signals, exit codes. Called by the binary.

use super::keys;
use super::server::{Error, Handle, Server};
use crate::config::paths::no_color;
use crate::config::proxy::{NETWORK, Proxy, network};
use crate::config::{self, log_filter};
use crate::sys::{listen, notify};
use clap::{CommandFactory, Parser};
use ipnet::IpNet;
use std::io::{self, BufRead, IsTerminal};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Something broke while running (`EX_SOFTWARE`).
const FAILED: u8 = 70;
/// The settings are wrong (`EX_CONFIG`): starting again will not help.
const BAD_CONFIG: u8 = 78;

const AFTER_HELP: &str = "\
Signals: SIGTERM and SIGINT let running answers finish, then exit; SIGHUP reads the key file again.
Sockets passed by a service manager (LISTEN_FDS) replace --listen.

Exit status: 0 stopped as asked, 2 wrong usage, 70 failed, 78 wrong settings.

Examples:
  omni-proxy --listen 0.0.0.0:8080 --keys /etc/omni-inferd/keys --allow 10.0.0.0/8
  omni-proxy --hash-key alice >> /etc/omni-inferd/keys";

/// Serve omni-inferd's API over TCP: /v1/*, /health and /ready, with keys and limits
#[derive(Debug, Default, Parser)]
#[command(name = "omni-proxy", version, after_help = AFTER_HELP)]
pub struct Args {
    /// The daemon's Unix socket
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Address to listen on; may be given several times [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Vec<SocketAddr>,
    /// File of hashed API keys; without one no key is asked for
    #[arg(long, value_name = "FILE")]
    pub keys: Option<PathBuf>,
    /// Network clients may come from; may be given several times [default: any]
    #[arg(long, value_name = "CIDR", value_parser = allowed)]
    pub allow: Vec<IpNet>,
    /// Settings: the [proxy] table of this TOML file; options above win over it
    #[allow(rustdoc::broken_intra_doc_links, reason = "the words are the help of --config; [proxy] is TOML, no link")]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// What to log: error, warn, info, debug, trace, or a filter
    #[arg(long, value_name = "FILTER", value_parser = log_filter)]
    pub log: Option<String>,
    /// Check settings and keys, then exit
    #[arg(long)]
    pub check: bool,
    /// Print the key file's line for NAME: of the key on standard input, or of a new key, which is shown once
    #[arg(long, value_name = "NAME", num_args = 0..=1, default_missing_value = "client", value_parser = name)]
    pub hash_key: Option<String>,
}

fn name(text: &str) -> Result<String, String> {
    let refusal = || "a name has up to 64 of A-Z a-z 0-9 . _ - @".to_string();
    if keys::is_name(text) { Ok(text.into()) } else { Err(refusal()) }
}

/// The command, for man pages and completions.
pub fn command() -> clap::Command {
    Args::command()
}

/// Runs the proxy as the command line says.
pub fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(name) = &args.hash_key {
        return hash_key(name);
    }
    let proxy = match settings(&args) {
        Ok(proxy) => proxy,
        Err(error) => return fail(BAD_CONFIG, &error),
    };
    if args.check {
        return match proxy.keys.as_deref().map(keys::Keys::from_file).transpose() {
            Ok(_) => ExitCode::SUCCESS,
            Err(error) => fail(BAD_CONFIG, &error),
        };
    }
    if let Ok(filter) = tracing_subscriber::EnvFilter::try_new(&proxy.log) {
        let colours = io::stderr().is_terminal() && !no_color();
        tracing_subscriber::fmt().with_writer(io::stderr).with_ansi(colours).with_env_filter(filter).init();
    }
    raise_descriptor_limit();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(FAILED, &error),
    };
    match runtime.block_on(run(proxy)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error @ Error::Keys(_)) => fail(BAD_CONFIG, &error),
        Err(error) => fail(FAILED, &error),
    }
}

fn fail(code: u8, error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("omni-proxy: {error}");
    ExitCode::from(code)
}

/// A value of `--allow`.
fn allowed(text: &str) -> Result<IpNet, String> {
    network(text).map_err(|what| format!("{what}; write {NETWORK}"))
}

/// The file's settings with the options over them.
fn settings(args: &Args) -> Result<Proxy, config::Error> {
    let mut proxy = args.config.as_deref().map_or_else(|| Ok(Proxy::default()), Proxy::from_file)?;
    if let Some(socket) = &args.socket {
        proxy.socket.clone_from(socket);
    }
    if !args.listen.is_empty() {
        proxy.listen.clone_from(&args.listen);
    }
    if !args.allow.is_empty() {
        proxy.allow.clone_from(&args.allow);
    }
    proxy.keys = args.keys.clone().or(proxy.keys);
    proxy.log = args.log.clone().unwrap_or(proxy.log);
    Ok(proxy)
}

async fn run(proxy: Proxy) -> Result<(), Error> {
    let inherited = listen::inherited_tcp().map_err(Error::Inherited)?;
    let (socket, open) = (proxy.socket.clone(), proxy.keys.is_none() && proxy.allow.is_empty());
    let server = Server::bind(proxy, inherited)?;
    let handle = server.handle();
    for address in handle.addresses() {
        tracing::info!("listening on {address} for {}", socket.display());
        if open && !address.ip().is_loopback() {
            tracing::warn!("{address} is open to everybody: no --keys and no --allow are set");
        }
    }
    let mut signals = Signals::new().map_err(Error::Inherited)?;
    notify::ready();
    let mut serving = std::pin::pin!(server.run());
    loop {
        tokio::select! {
            cut = serving.as_mut() => {
                match cut {
                    0 => tracing::info!("stopped"),
                    cut => tracing::warn!("stopped; {cut} connections took too long and were cut"),
                }
                return Ok(());
            }
            stop = signals.next() => match stop {
                true => {
                    tracing::info!("stopping; {} connections are open", handle.connections());
                    notify::stopping();
                    handle.stop();
                }
                false => reload(&handle),
            }
        }
    }
}

/// Reads the keys again, telling the service manager before and after.
fn reload(handle: &Handle) {
    notify::reloading();
    match handle.reload_keys() {
        Ok(count) => tracing::info!("read {count} keys"),
        Err(error) => tracing::error!("{error}; the old keys stay in use"),
    }
    notify::ready();
}

/// The signals that steer the proxy.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    reload: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            reload: signal(SignalKind::hangup())?,
        })
    }

    /// Whether the next signal means to stop; otherwise to reload.
    async fn next(&mut self) -> bool {
        tokio::select! {
            _ = self.terminate.recv() => true,
            _ = self.interrupt.recv() => true,
            _ = self.reload.recv() => false,
        }
    }
}

/// Each client costs two descriptors; the soft limit of 1024 is a relic of select(2), which is not used here.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised =
        getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!("cannot raise the limit of open files: {error}");
    }
}

/// Prints the line for a key file: hashes the key on standard input; makes one when that is a terminal or empty.
fn hash_key(name: &str) -> ExitCode {
    let given = || -> io::Result<String> {
        let mut line = String::new();
        if !io::stdin().is_terminal() {
            io::stdin().lock().read_line(&mut line)?;
        }
        match line.trim() {
            "" => keys::generate().inspect(|key| eprintln!("new key for {name}, shown only now: {key}")),
            key => Ok(key.to_string()),
        }
    };
    match given() {
        Ok(key) => {
            println!("{}", keys::line(&key, name));
            ExitCode::SUCCESS
        }
        Err(error) => fail(FAILED, &error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_win_over_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("proxy.toml");
        std::fs::write(&file, "[proxy]\nlisten = '0.0.0.0:1'\nkeys = 'k'\nlog = 'debug'\n").unwrap();
        let path = file.to_str().unwrap();
        let args = Args::parse_from(["omni-proxy", "--config", path, "--listen", "[::1]:2", "--allow", "10.0.0.1"]);
        let proxy = settings(&args).unwrap();
        assert_eq!(proxy.listen, ["[::1]:2".parse().unwrap()]);
        assert_eq!(proxy.keys.unwrap(), dir.path().join("k"));
        assert_eq!((proxy.allow[0].to_string().as_str(), proxy.log.as_str()), ("10.0.0.1/32", "debug"));
    }

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
        assert!(Args::try_parse_from(["omni-proxy", "--allow", "10.0.0.0/99"]).is_err());
        assert_eq!(Args::parse_from(["omni-proxy", "--hash-key"]).hash_key.as_deref(), Some("client"));
        assert!(Args::try_parse_from(["omni-proxy", "--hash-key", "a b"]).is_err());
    }
}
