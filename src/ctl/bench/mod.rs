//! `omnictl bench`: how fast a file, or a model of a true shape with random weights, runs here, and how near that is to
//! what the host can do; through the executor alone, without a daemon.
//!
//! ```text
//! subject (file | shapes ─▶ recipe ─▶ synth) ─▶ measure (rounds in turns, peer) ─▶ row ─▶ render | plot
//! probe, disk: the limits ─────────────────────────────────────────────────────▶ goals: verdicts
//! ```

mod args;
mod cold;
mod disk;
mod goals;

mod measure;
mod peer;
mod plot;
pub(super) mod probe;
mod profile;
pub(super) mod recipe;
mod render;
mod row;
pub(super) mod shapes;
mod subject;
pub(super) mod synth;
mod temporary;

pub use args::BenchArgs;
pub use row::{Case, PeerRow, Row};

use super::offline;
use super::output::Output;
use crate::plan::Refusal;
use crate::{exec, gguf, load, ops};
use args::What;
use measure::Need;
use peer::Peer;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use subject::Subject;
use synth::Synthetic;
use temporary::Temporary;

/// Why nothing was measured. The text says what to do.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum Error {
    #[error(transparent)]
    Load(#[from] load::Error),
    #[error(transparent)]
    Refused(#[from] Box<Refusal>),
    #[error("{refusal}\n{}", fewer_layers(shape, *layers))]
    ShapeTooLarge { refusal: Box<Refusal>, shape: &'static str, layers: Option<usize> },
    #[error(transparent)]
    Exec(#[from] exec::Error),
    #[error(transparent)]
    Ops(#[from] ops::Error),
    #[error(transparent)]
    Offline(#[from] offline::Error),
    #[error("the made file is not read back: {0}")]
    Gguf(#[from] gguf::Error),
    #[error("{shape} is of architecture {arch:?}, which this build does not run yet; it runs {}", architectures())]
    NoArchitecture { shape: &'static str, arch: &'static str },
    #[error(
        "no llama.cpp to compare with: {tried}; pip install llama-cpp-python, or name a Python with --peer=PYTHON, or a \
         llama-bench with --peer-bin PATH"
    )]
    NoPeer { tried: String },
    #[error("llama.cpp failed: {what}")]
    Peer { what: String },
    #[error("cannot read {} past the page cache: {source}", path.display())]
    Disk { path: PathBuf, source: io::Error },
    #[error("cannot write {}: {source}; name a place with room by --temp-dir", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("{} has {free} bytes free, {needed} are needed; name a place with room by --temp-dir", dir.display())]
    NoRoom { dir: PathBuf, free: u64, needed: u64 },
    #[error("no memory of {bytes} bytes to read: {source}")]
    NoMemory { bytes: usize, source: io::Error },
    #[error("cannot find out how much memory is available: {0}")]
    Memory(io::Error),
    #[error("cannot write the result: {0}")]
    Output(#[from] io::Error),
    #[error("the process that loads the file failed: {0}")]
    Child(String),
    #[error("{0}")]
    Usage(String),
}

fn architectures() -> String {
    crate::model::Architecture::ALL.map(crate::model::Architecture::name).join(", ")
}

fn fewer_layers(shape: &str, layers: Option<usize>) -> String {
    match layers {
        Some(layers) => format!("with fewer layers it fits: --shape {shape}:{layers}"),
        None => format!("not even --shape {shape}:1 fits"),
    }
}

/// Tells a person at a terminal what takes so long.
#[derive(Clone, Copy, Debug)]
pub struct Progress(bool);

impl Progress {
    fn say(&self, what: &str) {
        if self.0 {
            // Nobody misses a line that could not be shown.
            let _ = write!(io::stderr(), "\r\x1b[2K{what}");
        }
    }

    fn clear(&self) {
        self.say("");
    }
}

/// Measures and prints to standard output.
///
/// # Errors
/// [`Error`].
pub fn run(args: &BenchArgs, out: Output) -> Result<(), Error> {
    let show = Progress(io::stderr().is_terminal() && !out.json);
    match args.what()? {
        What::Perplexity(file, text) => {
            Ok(offline::run_perplexity(file, text, &args.cpu_args(), args.ctx, args.ubatch, out.json)?)
        }
        What::Probe => {
            let report = probe::report(&args.backends(true)?, args.path(), &args.temp_dir())?;
            let text = if out.json { json(&report)? } else { report.table(out) };
            print(&text)
        }
        What::Load(file) => {
            let cold = cold::load(file)?;
            print(&if out.json { json(&cold)? } else { cold.to_string() })
        }
        What::Write(sized, to) => {
            let made = Synthetic::new(sized, args.quant)?;
            let file = std::fs::File::create(to).map_err(|source| Error::Write { path: to.into(), source })?;
            made.write(file, to, &mut |done, all| show.say(&format!("writing {} of {} MiB", done >> 20, all >> 20)))?;
            show.clear();
            print(&format!("{}: {}, {}", to.display(), made.label, super::output::bytes(made.bytes())))
        }
        What::Goals => {
            let goals = goals::measure(args, &show)?;
            show.clear();
            print(&if out.json { json(&goals)? } else { goals::table(&goals, out) })
        }
        What::Speed => {
            let rows = bench_shown(args, &show)?;
            show.clear();
            if let Some(path) = &args.plot {
                let failed = |source| Error::Write { path: path.clone(), source };
                std::fs::write(path, plot::svg(&rows)).map_err(failed)?;
            }
            match (out.json, args.csv) {
                (true, _) => print(&json(&rows)?),
                (false, true) => print(render::csv(&rows).trim_end()),
                (false, false) => print(&render::table(&rows, out)),
            }
        }
    }
}

/// Measures every case of the command line.
///
/// # Errors
/// [`Error`].
pub fn bench(args: &BenchArgs) -> Result<Vec<Row>, Error> {
    bench_shown(args, &Progress(false))
}

fn bench_shown(args: &BenchArgs, show: &Progress) -> Result<Vec<Row>, Error> {
    let (cases, settings) = (args.cases()?, args.settings()?);
    let found = args.peer_wanted().map(|wanted| wanted.find()).transpose()?;
    let need = Need::of(&cases, settings.ubatch);
    // The peer needs a file; then ours comes from the same one.
    let written = match (&args.shape, &found) {
        (Some(sized), Some(_)) => Some(write_temporary(sized, args, show)?),
        _ => None,
    };
    let path = written.as_ref().map(|file| file.0.as_path()).or(args.path());
    let subject = match (path, &args.shape) {
        (Some(path), _) => Subject::open(path, &need, &settings, show)?,
        (None, Some(sized)) => Subject::make(sized, args.quant, &need, &settings, show)?,
        (None, None) => return Err(Error::Usage("name a file or --shape".into())),
    };
    let mut peer = match (&found, path) {
        (Some(found), Some(path)) => Some(Peer::start(found, path)?),
        _ => None,
    };
    measure::measure(&subject, &settings, &cases, peer.as_mut(), &mut |what| show.say(what))
}

/// The shape as a file that goes with the value returned.
fn write_temporary(sized: &shapes::Scaled, args: &BenchArgs, show: &Progress) -> Result<Temporary, Error> {
    let made = Synthetic::new(sized, args.quant)?;
    let dir = args.temp_dir();
    check_room(&dir, made.bytes())?;
    let file = Temporary::new(&dir, "shape.gguf");
    let out = file.create().map_err(|source| Error::Write { path: file.0.clone(), source })?;
    made.write(out, &file.0, &mut |done, all| show.say(&format!("writing {} of {} MiB", done >> 20, all >> 20)))?;
    Ok(file)
}

/// Refuses before a disk is filled.
fn check_room(dir: &Path, needed: u64) -> Result<(), Error> {
    let stat =
        nix::sys::statvfs::statvfs(dir).map_err(|errno| Error::Write { path: dir.into(), source: errno.into() })?;
    let free = stat.blocks_available() as u64 * stat.fragment_size() as u64;
    match free < needed.saturating_add(needed / 10) {
        true => Err(Error::NoRoom { dir: dir.into(), free, needed }),
        false => Ok(()),
    }
}

fn json(value: &impl serde::Serialize) -> Result<String, Error> {
    Ok(serde_json::to_string_pretty(value).map_err(io::Error::from)?)
}

fn print(text: &str) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    Ok(out.flush()?)
}
