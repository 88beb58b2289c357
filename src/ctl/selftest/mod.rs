//! `omnictl selftest`: does a model compute the same whichever way it is asked? Short prompts, long ones beyond every
//! window, several turns; kernels against the reference, chunks, one token at a time, a reused prefix, neighbours. A file
//! is examined without a daemon; a loaded model through it, by what it answers.

mod checks;
mod report;
mod served;

pub use checks::{Bench, Reference, SEQUENCES, SHORT, Traits};
pub use report::{Check, Measure, Report};
pub use served::run_served;

use super::error::Error;
use super::offline::{self, CpuArgs, Need};
use super::output::Output;
use crate::load::Source;
use clap::ArgMatches;
use clap::parser::ValueSource;
use std::path::Path;

/// Fewest tokens of the long prompt: chunks and turns are cut from it.
const LEAST: usize = 256;

/// Compare a model's ways to the same logits with each other and with slow reference code; exit status 1 when some differ
#[derive(clap::Args, Clone, Debug)]
pub struct SelftestArgs {
    /// GGUF file (of a split set any one), or the id of a loaded model, which is then asked through the daemon as it was
    /// loaded: --long is the only option for it
    pub model: String,
    /// Tokens of the long prompt [default: 640, or 96 beyond the model's window, at most 4608]
    #[arg(long, value_name = "TOKENS", value_parser = long_enough)]
    pub long: Option<usize>,
    /// Also compare with the reference where that takes many minutes
    #[arg(long)]
    pub all: bool,
    /// How to compute
    #[command(flatten)]
    pub cpu: CpuArgs,
}

impl SelftestArgs {
    /// Whether a file is meant, not a loaded model.
    pub fn is_file(&self) -> bool {
        self.model.contains('/') || self.model.ends_with(".gguf") || Path::new(&self.model).exists()
    }
}

/// Options that say how to compute, by clap's names for them.
const OF_FILES: [&str; 5] = ["threads", "cpus", "isa", "kv", "all"];

/// Refuses options without a meaning for a loaded model, which computes as the daemon's settings have it. `matches`
/// are the command's own.
///
/// # Errors
/// [`Error::Usage`] names those that were given.
pub fn refuse_options_of_files(matches: &ArgMatches) -> Result<(), Error> {
    let given = |name: &&str| matches.value_source(name) == Some(ValueSource::CommandLine);
    let given: Vec<String> = OF_FILES.iter().filter(|name| given(name)).map(|name| format!("--{name}")).collect();
    if given.is_empty() {
        return Ok(());
    }
    let [options, model] = [given.join(", "), matches.get_one::<String>("model").cloned().unwrap_or_default()];
    Err(Error::Usage(format!(
        "{options}: for files only. '{model}' is taken for the id of a loaded model, which computes as the daemon loaded it; \
         leave the option out, change the model's settings and load it again, or name its GGUF file"
    )))
}

fn long_enough(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(tokens) if tokens >= LEAST => Ok(tokens),
        Ok(_) => Err(format!("must be at least {LEAST}")),
        Err(error) => Err(format!("not a number: {error}")),
    }
}

/// Tokens that look like nothing, the same each time; `nth` sequence.
fn prompt(nth: u64, len: usize, vocab: usize) -> Vec<u32> {
    let mut state = nth.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % vocab.max(1) as u64) as u32
    };
    (0..len).map(|_| next()).collect()
}

/// Runs the checks on a file and prints a line for each as it ends.
///
/// # Errors
/// The file cannot be run, or some check failed.
pub fn run(args: &SelftestArgs, out: Output) -> Result<(), Error> {
    let report = examine(args, &mut |check| if out.json { Ok(()) } else { out.line(&check.line(out)) })?;
    conclude(&report, out)
}

/// Shows what is not shown yet; an error when some check failed.
fn conclude(report: &Report, out: Output) -> Result<(), Error> {
    let failed = report.checks.iter().filter(|check| !check.ok).count();
    if out.json {
        out.value(report)?;
    }
    match failed {
        0 => Ok(()),
        _ if out.json => Err(Error::Failed(String::new())),
        n => Err(Error::Failed(format!(
            "{n} of {} checks failed: do not serve {} with these kernels; try lesser instruction sets (--isa on a file, \
             disable_isa in the settings), and the file's checksum",
            report.checks.len(),
            report.model
        ))),
    }
}

/// Runs the checks on a file; `done` sees each as it ends.
///
/// # Errors
/// The file cannot be run.
pub fn examine(args: &SelftestArgs, done: &mut dyn FnMut(&Check) -> Result<(), Error>) -> Result<Report, Error> {
    let source = Source::open(Path::new(&args.model)).map_err(offline::Error::from)?;
    let model = source.bind().map_err(offline::Error::from)?;
    let traits = Traits::of(&model, args.cpu.backend.kv);
    let long = args.long.unwrap_or(traits.long());
    let need = Need { tokens: long, rows: traits.rows(long), logit_rows: traits.logit_rows(), sequences: SEQUENCES };
    let mut exec = offline::executor(&source, &args.cpu, &need)?;
    let (threads, isa) = (exec.threads(), exec.isa());
    let (mut checks, mut shown) = (Vec::new(), Ok(()));
    Bench::new(&mut exec, traits, long).run(
        &|exec, tokens, rows| exec.reference(tokens, rows, threads),
        args.all,
        &mut |check| {
            if shown.is_ok() {
                shown = done(&check);
            }
            checks.push(check);
        },
    );
    shown?;
    Ok(Report {
        model: args.model.clone(),
        architecture: model.hparams.architecture.name().into(),
        isa: isa.into(),
        ok: checks.iter().all(|check| check.ok),
        checks,
    })
}
