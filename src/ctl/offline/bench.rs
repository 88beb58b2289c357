//! `omnictl bench FILE`: tokens per second of prefill and decode through the executor alone, in llama-bench's terms, and
//! `--perplexity` of a text.

use super::perplexity::{LOGIT_ROWS, Perplexity, perplexity};
use super::{CpuArgs, Error, Need, executor, read_text, tokenizer};
use crate::exec::{Executor, Solo, Wanted};
use crate::load::Source;
use serde::Serialize;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::time::Instant;

/// Measure tokens per second, or the perplexity of a text, of a file without a daemon.
#[derive(clap::Args, Clone, Debug)]
pub struct BenchArgs {
    /// GGUF file; of a split set any one.
    pub file: PathBuf,
    /// Prompt lengths to measure; 0 for none.
    #[arg(short = 'p', long, value_delimiter = ',', default_value = "512", value_name = "TOKENS")]
    pub prompt: Vec<usize>,
    /// Numbers of generated tokens to measure; 0 for none.
    #[arg(short = 'n', long, value_delimiter = ',', default_value = "64", value_name = "TOKENS")]
    pub generate: Vec<usize>,
    /// Repetitions.
    #[arg(short = 'r', long, default_value_t = 3, value_name = "N")]
    pub repetitions: usize,
    /// Tokens per step of a prompt.
    #[arg(short = 'b', long, default_value_t = 512, value_name = "TOKENS", value_parser = super::at_least_one)]
    pub batch: usize,
    /// Compute the perplexity of --text instead.
    #[arg(long, requires = "text")]
    pub perplexity: bool,
    /// Text for --perplexity.
    #[arg(long, value_name = "FILE")]
    pub text: Option<PathBuf>,
    /// Context for --perplexity.
    #[arg(long, default_value_t = 512, value_name = "TOKENS")]
    pub ctx: usize,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// How to compute.
    #[command(flatten)]
    pub cpu: CpuArgs,
}

/// One measurement; fields are called as in llama-bench's JSON.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Row {
    pub model_filename: String,
    pub model_type: String,
    /// Bytes of weights.
    pub model_size: u64,
    pub model_n_params: u64,
    pub n_threads: usize,
    pub isa: String,
    pub n_batch: usize,
    /// Element type of the KV cache.
    pub type_k: String,
    pub n_prompt: usize,
    pub n_gen: usize,
    /// Mean tokens per second.
    pub avg_ts: f64,
    pub stddev_ts: f64,
    pub samples_ts: Vec<f64>,
}

/// Measures and prints to standard output.
///
/// # Errors
/// [`Error`].
pub fn run_bench(args: &BenchArgs) -> Result<(), Error> {
    match (&args.text, args.perplexity) {
        (Some(text), true) => run_perplexity(args, text.clone()),
        _ => run_speed(args),
    }
}

fn run_speed(args: &BenchArgs) -> Result<(), Error> {
    let rows = bench(args)?;
    let mut out = io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &rows).map_err(io::Error::from)?;
        writeln!(out)?;
    } else {
        writeln!(
            out,
            "{:<28} {:>10} {:>9} {:>7} {:>11} {:>7} {:>18}",
            "model", "size MiB", "params M", "threads", "isa", "test", "tokens/s"
        )?;
        for row in &rows {
            let test = if row.n_gen == 0 { format!("pp{}", row.n_prompt) } else { format!("tg{}", row.n_gen) };
            let (size, params) = (row.model_size as f64 / f64::from(1 << 20), row.model_n_params as f64 / 1e6);
            let speed = format!("{:.2} ± {:.2}", row.avg_ts, row.stddev_ts);
            writeln!(
                out,
                "{:<28} {size:>10.1} {params:>9.1} {:>7} {:>11} {test:>7} {speed:>18}",
                row.model_type, row.n_threads, row.isa
            )?;
        }
    }
    Ok(out.flush()?)
}

/// Measures every length asked for, after one unmeasured run of each.
///
/// # Errors
/// [`Error`].
pub fn bench(args: &BenchArgs) -> Result<Vec<Row>, Error> {
    let source = Source::open(&args.file)?;
    let model = source.bind()?;
    let (model_size, model_n_params) = (model.weight_bytes(), model.parameters());
    let tests = args.prompt.iter().map(|&p| (p, 0)).chain(args.generate.iter().map(|&n| (0, n)));
    let tests: Vec<(usize, usize)> = tests.filter(|(p, n)| p + n > 0).collect();
    let longest = tests.iter().map(|(p, n)| p + n).max().unwrap_or(1);
    let mut exec =
        executor(&source, &args.cpu, &Need { tokens: longest, rows: args.batch.min(longest), logit_rows: 1 })?;
    let mut rows = Vec::with_capacity(tests.len());
    for (n_prompt, n_gen) in tests {
        time(&mut exec, n_prompt, n_gen, args.batch);
        let samples: Vec<f64> =
            (0..args.repetitions.max(1)).map(|_| time(&mut exec, n_prompt, n_gen, args.batch)).collect();
        let (avg_ts, stddev_ts) = mean_and_deviation(&samples);
        rows.push(Row {
            model_filename: args.file.display().to_string(),
            model_type: exec.hparams().name.clone(),
            model_size,
            model_n_params,
            n_threads: exec.threads(),
            isa: exec.isa().to_string(),
            n_batch: args.batch,
            type_k: args.cpu.kv.name().to_string(),
            n_prompt,
            n_gen,
            avg_ts,
            stddev_ts,
            samples_ts: samples,
        });
    }
    Ok(rows)
}

/// Tokens per second of a prompt of `prompt` tokens, then of `generate` single ones.
fn time(exec: &mut Executor, prompt: usize, generate: usize, batch: usize) -> f64 {
    let vocab = exec.hparams().vocab as u64;
    // Any tokens do: the work does not depend on them.
    let tokens: Vec<u32> = (0..(prompt + generate) as u64).map(|i| (i * 7919 % vocab) as u32).collect();
    let mut solo = Solo::new(exec);
    let start = Instant::now();
    for chunk in tokens[..prompt].chunks(batch) {
        let last = solo.len() + chunk.len() == prompt;
        solo.feed(chunk, if last { Wanted::Last } else { Wanted::Nothing });
    }
    for token in &tokens[prompt..] {
        solo.feed(std::slice::from_ref(token), Wanted::Last);
    }
    tokens.len() as f64 / start.elapsed().as_secs_f64().max(1e-9)
}

/// Mean, and standard deviation of the sample.
fn mean_and_deviation(samples: &[f64]) -> (f64, f64) {
    let n = samples.len().max(1) as f64;
    let mean = samples.iter().sum::<f64>() / n;
    let squares: f64 = samples.iter().map(|s| (s - mean).powi(2)).sum();
    (mean, (squares / (n - 1.0).max(1.0)).sqrt())
}

fn run_perplexity(args: &BenchArgs, path: PathBuf) -> Result<(), Error> {
    let source = Source::open(&args.file)?;
    let tokenizer = tokenizer(&source)?;
    let tokens = tokenizer.encode(&read_text(&path)?, true, false);
    let rows = args.batch.clamp(LOGIT_ROWS, args.ctx.max(LOGIT_ROWS));
    let mut exec = executor(&source, &args.cpu, &Need { tokens: args.ctx, rows, logit_rows: LOGIT_ROWS })?;
    let bos = tokenizer.bos().filter(|_| tokenizer.add_bos());
    let show = io::stderr().is_terminal() && !args.json;
    let result = perplexity(&mut exec, &tokens, bos, args.ctx, rows, &mut |done, all| {
        if show {
            eprint!("\rchunk {done} of {all}");
        }
    })?;
    if show {
        eprintln!();
    }
    let mut out = io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &result).map_err(io::Error::from)?;
        writeln!(out)?;
    } else {
        let Perplexity { perplexity, error, chunks, context, .. } = result;
        writeln!(out, "perplexity {perplexity:.4} ± {error:.4} ({chunks} chunks of {context} tokens)")?;
    }
    Ok(out.flush()?)
}
