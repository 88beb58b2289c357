//! `omnictl logits` and `omnictl bench --perplexity`: what a file computes, without a daemon. One sequence, one process,
//! the same forward pass as the worker's. For comparisons with other engines and for the tests.

mod logits;
mod npy;
mod perplexity;

pub use logits::{LogitsArgs, run_logits};
pub use perplexity::{Perplexity, perplexity, run_perplexity};

use crate::exec::{self, CpuOptions, Executor, KV_BLOCK, KvType, Layouts};
use crate::load::{self, Source};
use crate::plan::{self, Needs, Refusal, Wish};
use crate::sys::numa::Policy;
use crate::text;
use std::io;
use std::path::{Path, PathBuf};

/// Instruction sets from the least to the most capable, as `--isa` names them.
const ISA: [&str; 5] = ["scalar", "avx2", "avx512", "avx512vnni", "avx512bf16"];

/// Why a command failed. The text says what to do.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum Error {
    #[error(transparent)]
    Load(#[from] load::Error),
    #[error(transparent)]
    Refused(#[from] Box<Refusal>),
    #[error(transparent)]
    Exec(#[from] exec::Error),
    #[error("{}: {source}", path.display())]
    Tokenizer { path: PathBuf, source: text::Error },
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot write the result: {0}")]
    Output(#[from] io::Error),
    #[error("cannot find out how much memory is available: {0}")]
    Memory(io::Error),
    #[error("token {id} is outside of the vocabulary of {vocab}")]
    BadToken { id: u32, vocab: usize },
    #[error("no token was given; use --tokens 1,2,3")]
    NoTokens,
    #[error("the text has {found} tokens; {needed} are needed at least: give a longer text or a smaller --ctx")]
    ShortText { found: usize, needed: usize },
    #[error("--ctx {ctx} is too small; use 8 at least")]
    SmallContext { ctx: usize },
}

/// How to compute; common to all commands here.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct CpuArgs {
    /// Compute threads; by default one per physical core.
    #[arg(short = 't', long, value_name = "N", value_parser = at_least_one)]
    pub threads: Option<usize>,
    /// Which CPUs and instructions.
    #[command(flatten)]
    pub backend: BackendArgs,
}

/// Which CPUs and instructions to compute with.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct BackendArgs {
    /// CPUs to run on, as in `taskset -c`.
    #[arg(long, value_name = "LIST")]
    pub cpus: Option<String>,
    /// Best instruction set to use: scalar, avx2, avx512, avx512vnni, avx512bf16; by default the host's best.
    #[arg(long, value_name = "NAME", value_parser = ISA)]
    pub isa: Option<String>,
    /// Element type of the KV cache: f16, bf16, q8_0, q4_1, q4_0 or f32.
    #[arg(long, value_name = "TYPE", default_value = "f16")]
    pub kv: KvType,
}

impl BackendArgs {
    /// For a backend with as many threads.
    pub(super) fn options(&self, threads: Option<usize>) -> CpuOptions {
        let best = self.isa.as_deref().and_then(|isa| ISA.iter().position(|known| *known == isa));
        let disabled = best.map_or(&[][..], |best| &ISA[best + 1..]);
        CpuOptions {
            threads,
            cpus: self.cpus.clone(),
            disable_isa: disabled.iter().map(ToString::to_string).collect(),
            pin: true,
            apart: false,
        }
    }
}

/// Reads a count.
pub(super) fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("must be at least 1".into()),
        Ok(n) => Ok(n),
        Err(error) => Err(format!("not a number: {error}")),
    }
}

/// What the sequences of a command may need.
pub(super) struct Need {
    /// Tokens of each sequence.
    pub tokens: usize,
    /// Tokens per step.
    pub rows: usize,
    /// Rows of a step that want logits.
    pub logit_rows: usize,
    /// Sequences at once.
    pub sequences: usize,
}

/// Plans and loads an opened file.
pub(super) fn executor(source: &Source, cpu: &CpuArgs, need: &Need) -> Result<Executor, Error> {
    let model = source.bind()?;
    cpu.backend.kv.check(&model.hparams)?;
    let wish = Wish { context: Some(need.tokens), parallel: 1 };
    let available = load::available(model.weight_bytes(), &Policy::Local).map_err(Error::Memory)?;
    let threads = cpu.backend.options(cpu.threads).compute_threads().map_err(exec::Error::from)?;
    let options = |tokens: usize| exec::Options {
        cpu: cpu.backend.options(cpu.threads),
        kv_type: cpu.backend.kv,
        context: tokens,
        kv_blocks: tokens.div_ceil(KV_BLOCK).saturating_mul(need.sequences),
        state_slots: need.sequences,
        max_rows: need.rows,
        max_logit_rows: need.logit_rows,
    };
    let placement = plan::place(&model.hparams, model.weight_bytes(), &wish, available, |tokens, _| {
        let options = options(tokens);
        Needs {
            kv_bytes: exec::kv_bytes(&model.hparams, cpu.backend.kv, options.kv_blocks),
            state_bytes: exec::state_bytes(&model.hparams, options.state_slots),
            scratch_bytes: exec::scratch_bytes(&model, &options, threads),
        }
    })?;
    let options = options(placement.context);
    let layouts = Layouts::new(&options.cpu).map_err(exec::Error::from)?;
    let weights = source.load(model, &|dtype, rows, cols| layouts.of(dtype, rows, cols), &mut |_| ())?;
    Ok(Executor::new(weights, &options)?)
}

/// The tokenizer of an opened file.
fn tokenizer(source: &Source) -> Result<text::Tokenizer, Error> {
    text::Tokenizer::from_metadata(&source.header.metadata)
        .map_err(|error| Error::Tokenizer { path: source.path().to_path_buf(), source: error })
}

fn read_text(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_path_buf(), source })
}
