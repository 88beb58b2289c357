//! The command line of `omnictl`, and which function runs each command.

use super::client::Client;
use super::error::{EXIT_STATUS, Error};
use super::output::{ColorChoice, Output};
use super::{
    bench, chat, demo, doctor, documents, experts, inspect, load, models, offline, plan, selftest, textcmds, topology,
    tune, vault, watch,
};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

/// See and steer omni-inferd, and talk to its models
#[derive(Debug, Parser)]
#[command(name = "omnictl", version, after_help = EXIT_STATUS)]
pub struct Cli {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub global: Global,
    #[command(subcommand)]
    #[allow(missing_docs)]
    pub command: Command,
}

/// Options of every command.
#[derive(Clone, Debug, Args)]
pub struct Global {
    /// The daemon's Unix socket [default: $OMNI_SOCKET, else the user's, else the system's]
    #[arg(long, global = true, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Results as JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// When to use colours
    #[arg(long, global = true, value_name = "WHEN", value_enum, default_value_t, hide_possible_values = false)]
    pub color: ColorChoice,
}

/// Every command.
#[derive(Debug, Subcommand)]
pub enum Command {
    #[command(flatten)]
    #[allow(missing_docs)]
    Daemon(DaemonCommand),
    #[command(flatten)]
    #[allow(missing_docs)]
    File(FileCommand),
}

/// Commands that talk with a daemon.
#[derive(Debug, Subcommand)]
pub enum DaemonCommand {
    /// Show the daemon and every model it knows
    Status(models::StatusArgs),
    /// Show the models that have a process: memory, speed, requests
    Ps,
    /// Load a model by id, or a GGUF file, and wait until it is ready
    Load(load::Load),
    /// Unload a model; waits for its running streams
    Unload(load::Unload),
    /// Talk with a model, or answer one prompt
    Chat(chat::Chat),
    /// Continue a text
    Complete(chat::Complete),
    /// Tell by the exit status whether the daemon is well
    Health(models::Health),
    /// Show log lines of the daemon or of a model
    Logs(watch::Logs),
    /// Show what happens in the daemon as it happens
    Events,
    /// Make the daemon read its configuration again
    Reload,
    /// Show the weights that stay in memory for the next worker; compare their checksums, let them go
    Vault(vault::VaultArgs),
    /// Start a daemon with the bundled model, stream a story, stop it
    Demo(demo::Demo),
}

/// Commands that need no daemon.
#[derive(Debug, Subcommand)]
pub enum FileCommand {
    /// Show what a GGUF file or address holds and whether it runs here, reading its header only
    Inspect(inspect::InspectArgs),
    /// Show where every layer and expert of a model would go on a host, its bytes, and how fast that should be
    Plan(Box<plan::PlanArgs>),
    /// Turn standard input into token ids, with a GGUF file's vocabulary
    Tokenize(textcmds::Tokenize),
    /// Turn token ids into text, with a GGUF file's vocabulary
    Detokenize(textcmds::Detokenize),
    /// Render a chat request on standard input with a chat template
    Render(textcmds::Render),
    /// Take a model's raw answer on standard input apart: content, reasoning, tool calls
    ParseChat(textcmds::ParseChat),
    /// Write the logits of a token sequence as a NumPy file
    Logits(offline::LogitsArgs),
    /// Compare a model's ways to the same logits with each other and with slow reference code; exit status 1 when some differ
    Selftest(selftest::SelftestArgs),
    /// Measure speed: of a file, of a known shape, or all goals against the limits of this host
    Bench(Box<bench::BenchArgs>),
    /// Examine the host and the configuration: what was found, why it matters, what to do
    Doctor(doctor::Doctor),
    /// Show which settings of the host should change and why; change them, take them back
    Tune(tune::Tune),
    /// Print a completion script for a shell
    Completions(documents::Completions),
    /// Write the man pages
    Man(documents::Man),
}

/// The command, for man pages and completions.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs `omnictl`. `others` are the command lines of the daemon and the proxy, which only their man pages need.
pub fn main(others: Vec<clap::Command>) -> ExitCode {
    let matches = command().get_matches();
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    let out = Output::new(cli.global.json, cli.global.color);
    let done = match cli.command {
        Command::File(FileCommand::Selftest(args)) if !args.is_file() => {
            let client = Client::new(cli.global.socket.unwrap_or_else(crate::config::client_socket));
            let own = matches.subcommand_matches("selftest");
            let fits = own.map_or(Ok(()), selftest::refuse_options_of_files);
            fits.and_then(|()| with_runtime(async { selftest::run_served(&client, &args, out).await }))
        }
        Command::File(command) => on_file(command, others, out),
        Command::Daemon(DaemonCommand::Status(args)) if args.topology => topology::show(out),
        Command::Daemon(command) => with_runtime(with_daemon(command, cli.global.socket, out)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report(&error),
    }
}

fn with_runtime(work: impl Future<Output = Result<(), Error>>) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let done = runtime.block_on(work);
    // A thread may wait for a line from the terminal; it must not keep the process.
    runtime.shutdown_background();
    done
}

fn report(error: &Error) -> ExitCode {
    if error.is_broken_pipe() {
        return ExitCode::SUCCESS;
    }
    let text = error.to_string();
    if !text.is_empty() {
        eprintln!("omnictl: {text}");
    }
    ExitCode::from(error.code())
}

async fn with_daemon(command: DaemonCommand, socket: Option<PathBuf>, out: Output) -> Result<(), Error> {
    let client = Client::new(socket.unwrap_or_else(crate::config::client_socket));
    match command {
        DaemonCommand::Status(models::StatusArgs { experts: Some(model), .. }) => {
            experts::show(&client, model.as_deref(), out).await
        }
        DaemonCommand::Status(_) => models::status(&client, out).await,
        DaemonCommand::Ps => models::ps(&client, out).await,
        DaemonCommand::Load(args) => load::load(&client, args, out).await,
        DaemonCommand::Unload(args) => load::unload(&client, args, out).await,
        DaemonCommand::Chat(args) => chat::chat(&client, args, out).await,
        DaemonCommand::Complete(args) => chat::complete(&client, args, out).await,
        DaemonCommand::Health(args) => models::health(&client, args, out).await,
        DaemonCommand::Logs(args) => watch::logs(&client, args, out).await,
        DaemonCommand::Events => watch::events(&client, out).await,
        DaemonCommand::Reload => watch::reload(&client, out).await,
        DaemonCommand::Vault(args) => vault::run(&client, args, out).await,
        DaemonCommand::Demo(args) => demo::demo(args, out).await,
    }
}

fn on_file(command: FileCommand, others: Vec<clap::Command>, out: Output) -> Result<(), Error> {
    let programs = || [vec![self::command()], others].concat();
    let (input, output) = (|| io::stdin().lock(), || io::stdout().lock());
    match command {
        FileCommand::Inspect(args) => inspect::run(&args)?,
        FileCommand::Plan(args) => plan::run(&args, out)?,
        FileCommand::Tokenize(args) => args.run(input(), output())?,
        FileCommand::Detokenize(args) => args.run(input(), output())?,
        FileCommand::Render(args) => args.run(input(), output())?,
        FileCommand::ParseChat(args) => args.run(input(), output())?,
        FileCommand::Logits(args) => {
            let written = offline::run_logits(&args)?;
            let [tokens, vocab] = written.shape;
            match out.json {
                true => out.value(&written)?,
                false => out.line(&format!("{}: float32 [{tokens}, {vocab}]", written.output.display()))?,
            }
        }
        FileCommand::Selftest(args) => selftest::run(&args, out)?,
        FileCommand::Bench(args) => bench::run(&args, out)?,
        FileCommand::Doctor(args) => doctor::run(&args, out)?,
        FileCommand::Tune(args) => tune::run(&args, out)?,
        FileCommand::Completions(args) => documents::completions(&args, &programs(), out)?,
        FileCommand::Man(args) => documents::man(&args, &programs(), out)?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
        let cli = Cli::try_parse_from(["omnictl", "load", "m", "--json", "--socket", "/x"]).unwrap();
        assert!(cli.global.json && matches!(cli.command, Command::Daemon(DaemonCommand::Load(_))));
    }

    /// A default of another type than its field shows only when a command line is read.
    #[test]
    fn every_command_is_read() {
        let lines = "status --experts m;ps;load m;unload m;chat m;complete m;health;logs;events;reload;vault;demo;inspect f;plan f;tokenize f;\
                     detokenize f;render f;parse-chat f;logits f --tokens 1 --output o;selftest f;bench f;doctor;tune;completions bash;man";
        let mut read = 0;
        for line in lines.split(';') {
            let words = std::iter::once("omnictl").chain(line.split_whitespace());
            Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{line}: {error}"));
            read += 1;
        }
        assert_eq!(read, command().get_subcommands().count(), "each command has its line");
    }
}
