//! `omnictl logits`: the logits of every position of a token sequence, as a NumPy file.

use super::{CpuArgs, Error, Need, executor, npy};
use crate::exec::{Solo, Wanted};
use crate::load::Source;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;

/// Rows per step: bounds the logits in memory.
const ROWS: usize = 32;

/// Write the logits of a token sequence, float32 [tokens, vocabulary].
#[derive(clap::Args, Clone, Debug)]
pub struct LogitsArgs {
    /// GGUF file; of a split set any one.
    pub file: PathBuf,
    /// Token ids, separated by commas.
    #[arg(long, value_delimiter = ',', required = true, value_name = "IDS")]
    pub tokens: Vec<u32>,
    /// NumPy file to write.
    #[arg(short, long, value_name = "OUT.npy")]
    pub output: PathBuf,
    /// How to compute.
    #[command(flatten)]
    pub cpu: CpuArgs,
}

/// What was written.
#[derive(Debug, serde::Serialize)]
pub struct Written {
    /// The file.
    pub output: PathBuf,
    /// NumPy's name of the elements.
    pub dtype: &'static str,
    /// `[tokens, vocabulary]`.
    pub shape: [usize; 2],
    /// Of the elements.
    pub bytes: u64,
}

/// Computes and writes.
///
/// # Errors
/// [`Error`]; a file that was begun is left incomplete.
pub fn run_logits(args: &LogitsArgs) -> Result<Written, Error> {
    if args.tokens.is_empty() {
        return Err(Error::NoTokens);
    }
    let source = Source::open(&args.file)?;
    let need = Need { tokens: args.tokens.len(), rows: ROWS, logit_rows: ROWS, sequences: 1 };
    let mut exec = executor(&source, &args.cpu, &need)?;
    let vocab = exec.hparams().vocab;
    if let Some(&id) = args.tokens.iter().find(|id| **id as usize >= vocab) {
        return Err(Error::BadToken { id, vocab });
    }
    let write = |source| Error::Write { path: args.output.clone(), source };
    let mut out = BufWriter::new(File::create(&args.output).map_err(write)?);
    npy::write_header(&mut out, args.tokens.len(), vocab).map_err(write)?;
    let mut solo = Solo::new(&mut exec);
    for chunk in args.tokens.chunks(ROWS) {
        npy::write_f32(&mut out, solo.feed(chunk, Wanted::All)).map_err(write)?;
    }
    out.flush().map_err(write)?;
    let shape = [args.tokens.len(), vocab];
    let bytes = (shape[0] * shape[1] * size_of::<f32>()) as u64;
    Ok(Written { output: args.output.clone(), dtype: "float32", shape, bytes })
}
