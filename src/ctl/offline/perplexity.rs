//! Perplexity of a text, by the definition of llama-perplexity, so that figures compare: chunks of the context that do
//! not overlap (a shorter rest is dropped), each a sequence of its own whose first token becomes BOS where the model
//! wants one; only the second half is scored, so that every scored token has half a context before it.

use super::{CpuArgs, Error, Need, executor, read_text, tokenizer};
use crate::exec::{Executor, Solo, Wanted};
use crate::load::Source;
use std::io::{self, IsTerminal, Write};
use std::path::Path;

/// Scored rows per step: bounds the logits in memory.
const LOGIT_ROWS: usize = 64;

/// The least context that makes sense.
const LEAST_CONTEXT: usize = 8;

/// Result over a text.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Perplexity {
    /// exp of the mean negative log-likelihood.
    pub perplexity: f64,
    /// Its standard error.
    pub error: f64,
    /// Chunks.
    pub chunks: usize,
    /// Scored tokens.
    pub scored: usize,
    /// Context per chunk, tokens.
    pub context: usize,
}

/// Perplexity of `tokens` (tokenized with BOS where the model wants one) in chunks of `context`. `bos`: the token that
/// begins each chunk. `after_chunk` gets the chunks done and in all. The executor takes steps of `rows` tokens and 64
/// logits at least, and one context.
///
/// # Errors
/// [`Error::ShortText`] when the text is shorter than two chunks, [`Error::SmallContext`] below 8 tokens.
pub fn perplexity(
    exec: &mut Executor,
    tokens: &[u32],
    bos: Option<u32>,
    context: usize,
    rows: usize,
    after_chunk: &mut dyn FnMut(usize, usize),
) -> Result<Perplexity, Error> {
    if context < LEAST_CONTEXT {
        return Err(Error::SmallContext { ctx: context });
    }
    if tokens.len() < 2 * context {
        return Err(Error::ShortText { found: tokens.len(), needed: 2 * context });
    }
    let vocab = exec.hparams().vocab;
    let chunks = tokens.len() / context;
    let (mut sum, mut squares, mut scored) = (0.0, 0.0, 0usize);
    for (nth, chunk) in tokens.chunks_exact(context).enumerate() {
        let mut input = chunk.to_vec();
        input[0] = bos.unwrap_or(input[0]);
        let mut solo = Solo::new(exec);
        for part in input[..context / 2].chunks(rows) {
            solo.feed(part, Wanted::Nothing);
        }
        let mut next = context / 2 + 1;
        // The last token has nothing to predict.
        for part in input[context / 2..context - 1].chunks(LOGIT_ROWS.min(rows)) {
            for row in solo.feed(part, Wanted::All).chunks_exact(vocab) {
                let loss = -log_probability(row, chunk[next]);
                (sum, squares, scored) = (sum + loss, squares + loss * loss, scored + 1);
                next += 1;
            }
        }
        after_chunk(nth + 1, chunks);
    }
    let mean = sum / scored as f64;
    let variance = (squares / scored as f64 - mean * mean).max(0.0);
    let perplexity = mean.exp();
    let error = (variance / scored.saturating_sub(1).max(1) as f64).sqrt() * perplexity;
    Ok(Perplexity { perplexity, error, chunks, scored, context })
}

fn log_probability(logits: &[f32], id: u32) -> f64 {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|&l| (f64::from(l) - max).exp()).sum();
    f64::from(logits[id as usize]) - max - sum.ln()
}

/// Computes the perplexity of a text in chunks of `ctx` tokens, at most `ubatch` a step, and prints it.
///
/// # Errors
/// [`Error`].
pub fn run_perplexity(
    file: &Path,
    text: &Path,
    cpu: &CpuArgs,
    ctx: usize,
    ubatch: usize,
    json: bool,
) -> Result<(), Error> {
    let source = Source::open(file)?;
    let tokenizer = tokenizer(&source)?;
    let tokens = tokenizer.encode(&read_text(text)?, true, false);
    let rows = ubatch.clamp(LOGIT_ROWS, ctx.max(LOGIT_ROWS));
    let mut exec = executor(&source, cpu, &Need { tokens: ctx, rows, logit_rows: LOGIT_ROWS, sequences: 1 })?;
    let bos = tokenizer.bos().filter(|_| tokenizer.add_bos());
    let show = io::stderr().is_terminal() && !json;
    let result = perplexity(&mut exec, &tokens, bos, ctx, rows, &mut |done, all| {
        if show {
            eprint!("\rchunk {done} of {all}");
        }
    })?;
    if show {
        eprintln!();
    }
    let mut out = io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, &result).map_err(io::Error::from)?;
        writeln!(out)?;
    } else {
        let Perplexity { perplexity, error, chunks, context, .. } = result;
        writeln!(out, "perplexity {perplexity:.4} ± {error:.4} ({chunks} chunks of {context} tokens)")?;
    }
    Ok(out.flush()?)
}
