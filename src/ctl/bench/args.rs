//! The command line of `omnictl bench`, and what follows from it.

use super::Error;
use super::measure::Settings;
use super::peer::Where;
use super::recipe::Quant;
use super::row::Case;
use super::shapes::Scaled;
use crate::ctl::offline::{BackendArgs, CpuArgs, at_least_one};
use crate::exec::CpuOptions;
use crate::sys::topology::Topology;
use std::path::{Path, PathBuf};

/// Measure speed: of a file, of a model of a known shape with random weights, or, without either, all goals against the
/// limits of this host.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub struct BenchArgs {
    /// GGUF file; of a split set any one
    pub file: Option<PathBuf>,
    /// The same, as llama-bench names it
    #[arg(short = 'm', long, value_name = "FILE", conflicts_with_all = ["file", "shape"])]
    pub model: Option<PathBuf>,
    /// Measure a model of this true shape with random weights, with fewer layers if given: qwen2.5-0.5b, -1.5b, -7b or
    /// -32b, llama-3.1-8b, qwen3-0.6b, qwen3-4b and others
    #[arg(long, value_name = "NAME[:LAYERS]", conflicts_with = "file")]
    pub shape: Option<Scaled>,
    /// Types of the weights of --shape: q4_k_m, q5_k_m, q4_k_s, q5_k_s, q3_k_s, q6_k, q8_0, q4_0, q4_1, q5_0, q5_1, f16,
    /// bf16, mxfp4
    #[arg(long, value_name = "RECIPE", default_value = "q4_k_m")]
    pub quant: Quant,
    /// Lengths of prompts to measure; 0 for none
    #[arg(short = 'p', long, value_delimiter = ',', default_value = "512", value_name = "TOKENS")]
    pub prompt: Vec<usize>,
    /// Numbers of generated tokens to measure; 0 for none
    #[arg(short = 'n', long, value_delimiter = ',', default_value = "64", value_name = "TOKENS")]
    pub generate: Vec<usize>,
    /// Depths of context to measure at
    #[arg(short = 'd', long, value_delimiter = ',', default_value = "0", value_name = "TOKENS")]
    pub depth: Vec<usize>,
    /// Numbers of sequences at once
    #[arg(short = 'b', long, value_delimiter = ',', default_value = "1", value_name = "N", value_parser = at_least_one)]
    pub batch: Vec<usize>,
    /// Numbers of compute threads; by default one per physical core, --probe also fewer
    #[arg(short = 't', long, value_delimiter = ',', value_name = "N", value_parser = at_least_one)]
    pub threads: Vec<usize>,
    /// Rounds; each measures everything once, in turns
    #[arg(short = 'r', long, default_value_t = 3, value_name = "N", value_parser = at_least_one)]
    pub repetitions: usize,
    /// Tokens per step of a prompt
    #[arg(long, visible_alias = "ub", default_value_t = 512, value_name = "TOKENS", value_parser = at_least_one)]
    pub ubatch: usize,
    /// Which CPUs and instructions
    #[command(flatten)]
    pub backend: BackendArgs,

    /// Measure every goal with its limit, ratio and verdict; so does a command line that names no model
    #[arg(long, conflicts_with_all = ["file", "model", "shape", "probe"])]
    pub goals: bool,
    /// Goals on the smallest shape only, in a minute or two
    #[arg(long)]
    pub quick: bool,
    /// Measure what this host can do at most: memory, int8 arithmetic, disk (that of the file, or of --temp-dir)
    #[arg(long)]
    pub probe: bool,
    /// Tell per operation and type of weights what a step takes, and its GB/s and GOP/s
    #[arg(long)]
    pub profile: bool,
    /// Measure llama.cpp in turns on the same file, by a Python with llama-cpp-python [default: python3], else llama-bench
    #[arg(long, value_name = "PYTHON", num_args = 0..=1, require_equals = true)]
    #[allow(clippy::option_option, reason = "with and without a value")]
    pub peer: Option<Option<PathBuf>>,
    /// Measure llama.cpp in turns on the same file, by this llama-bench
    #[arg(long, value_name = "PATH")]
    pub peer_bin: Option<PathBuf>,
    /// Load the file and tell how long it took and how much memory
    #[arg(long, conflicts_with_all = ["shape", "probe", "goals"])]
    pub load: bool,
    /// Write the model of --shape to a file instead of measuring it
    #[arg(long, value_name = "FILE.gguf", requires = "shape")]
    pub write: Option<PathBuf>,
    /// Print CSV
    #[arg(long)]
    pub csv: bool,
    /// Draw tokens per second against depth and threads as SVG
    #[arg(long, value_name = "FILE.svg")]
    pub plot: Option<PathBuf>,
    /// Where temporary files go [default: the system's place for them]
    #[arg(long, value_name = "DIR")]
    pub temp_dir: Option<PathBuf>,

    /// Compute the perplexity of --text instead
    #[arg(long, requires = "text", conflicts_with = "shape")]
    pub perplexity: bool,
    /// Text for --perplexity
    #[arg(long, value_name = "FILE")]
    pub text: Option<PathBuf>,
    /// Context for --perplexity
    #[arg(long, default_value_t = 512, value_name = "TOKENS")]
    pub ctx: usize,
}

const EXAMPLES: &str = "\
Examples:
  omnictl bench                                        all goals of this host, some minutes
  omnictl bench --probe                                what the host can do at most
  omnictl bench model.gguf -d 0,4096,16384 -b 1,4 --plot speed.svg
  omnictl bench --shape qwen2.5-7b --quant q8_0 -t 1,2,4 --peer
  omnictl bench --shape llama-3.1-8b -p 0 -n 32 --profile";

/// What a command line asks for.
#[derive(Debug)]
pub(super) enum What<'a> {
    Goals,
    Probe,
    Load(&'a Path),
    Write(&'a Scaled, &'a Path),
    Perplexity(&'a Path, &'a Path),
    Speed,
}

impl BenchArgs {
    /// The file, however it is named.
    pub(super) fn path(&self) -> Option<&Path> {
        self.file.as_deref().or(self.model.as_deref())
    }

    pub(super) fn what(&self) -> Result<What<'_>, Error> {
        let file = || self.path().ok_or_else(|| Error::Usage("name a file".into()));
        match (&self.shape, &self.write, &self.text) {
            (Some(shape), Some(to), _) => Ok(What::Write(shape, to)),
            (_, _, Some(text)) if self.perplexity => Ok(What::Perplexity(file()?, text)),
            _ if self.load => Ok(What::Load(file()?)),
            _ if self.probe => Ok(What::Probe),
            (None, ..) if self.goals || self.path().is_none() => Ok(What::Goals),
            _ => Ok(What::Speed),
        }
    }

    /// Every combination, prompts before decoding, shallow before deep.
    pub(super) fn cases(&self) -> Result<Vec<Case>, Error> {
        let mut cases = Vec::new();
        let works = self.prompt.iter().map(|&p| (p, 0)).chain(self.generate.iter().map(|&n| (0, n)));
        for (n_prompt, n_gen) in works.filter(|(p, n)| p + n > 0) {
            for &batch in &self.batch {
                cases.extend(self.depth.iter().map(|&depth| Case { n_prompt, n_gen, depth, batch }));
            }
        }
        match cases.is_empty() {
            true => Err(Error::Usage("nothing to measure: -p and -n are both 0".into())),
            false => Ok(cases),
        }
    }

    pub(super) fn settings(&self) -> Result<Settings, Error> {
        Ok(Settings {
            backends: self.backends(false)?,
            kv: self.backend.kv,
            ubatch: self.ubatch,
            repetitions: self.repetitions,
            profile: self.profile,
        })
    }

    /// A backend per number of threads that was asked for; without a wish the default one, `sweep`: 1, 2, 4 and so on up to
    /// it.
    pub(super) fn backends(&self, sweep: bool) -> Result<Vec<CpuOptions>, Error> {
        let counts = match (self.threads.as_slice(), sweep) {
            ([], false) => vec![None],
            ([], true) => thread_counts(Topology::detect().compute_threads()).into_iter().map(Some).collect(),
            (asked, _) => asked.iter().copied().map(Some).collect(),
        };
        Ok(counts.into_iter().map(|threads| self.backend.options(threads)).collect())
    }

    /// For one backend.
    pub(super) fn cpu_args(&self) -> CpuArgs {
        CpuArgs { threads: self.threads.first().copied(), backend: self.backend.clone() }
    }

    /// Where to look for the peer, where one is wanted.
    pub(super) fn peer_wanted(&self) -> Option<Where> {
        let python = self.peer.clone().flatten();
        (self.peer.is_some() || self.peer_bin.is_some()).then(|| Where { python, program: self.peer_bin.clone() })
    }

    pub(super) fn temp_dir(&self) -> PathBuf {
        self.temp_dir.clone().unwrap_or_else(std::env::temp_dir)
    }
}

/// 1, 2, 4 … below `all`, and `all`.
pub(super) fn thread_counts(all: usize) -> Vec<usize> {
    let powers = std::iter::successors(Some(1), |n| Some(n * 2)).take_while(|&n| n < all);
    powers.chain([all]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: BenchArgs,
    }

    fn read(line: &str) -> Result<BenchArgs, clap::Error> {
        Line::try_parse_from(std::iter::once("bench").chain(line.split_whitespace())).map(|line| line.args)
    }

    #[test]
    fn flags_are_those_of_llama_bench() {
        let args = read("-m m.gguf -t 1,2 -p 128,0 -n 16 -d 0,4096 -b 1,4 -r 5").unwrap();
        assert_eq!((args.path(), args.repetitions), (Some(Path::new("m.gguf")), 5));
        let labels: Vec<String> = args.cases().unwrap().into_iter().map(Case::label).collect();
        let wanted = "pp128, pp128 @ d4096, pp128 x4, pp128 @ d4096 x4, tg16, tg16 @ d4096, tg16 x4, tg16 @ d4096 x4";
        assert_eq!(labels.join(", "), wanted);
        let threads: Vec<_> = args.backends(false).unwrap().iter().map(|cpu| cpu.threads).collect();
        assert_eq!(threads, [Some(1), Some(2)]);
        assert!(read("x.gguf -p 0 -n 0").unwrap().cases().is_err());
        assert_eq!(
            (thread_counts(1), thread_counts(2), thread_counts(12)),
            (vec![1], vec![1, 2], vec![1, 2, 4, 8, 12])
        );
    }

    #[test]
    fn what_is_asked_for_is_clear() {
        let what = |line: &str| format!("{:?}", read(line).unwrap().what());
        let table = [
            ("", "Goals"),
            ("--quick", "Goals"),
            ("--goals", "Goals"),
            ("--probe", "Probe"),
            ("m.gguf", "Speed"),
            ("--shape qwen2.5-7b", "Speed"),
            ("m.gguf --load", "Load"),
            ("--load", "name a file"),
            ("--shape qwen2.5-7b --write o.gguf", "Write"),
            ("m.gguf --perplexity --text t", "Perplexity"),
        ];
        for (line, wanted) in table {
            assert!(what(line).contains(wanted), "{line}: {}", what(line));
        }
        for line in [
            "m.gguf --shape qwen2.5-7b",
            "--shape nobody",
            "--quant q9",
            "--write o.gguf",
            "-b 0",
            "m.gguf --perplexity",
        ] {
            assert!(read(line).is_err(), "{line}");
        }
    }

    #[test]
    fn the_peer_is_named_or_looked_for() {
        let wanted = |line: &str| read(line).unwrap().peer_wanted();
        assert_eq!(wanted("m.gguf"), None);
        assert_eq!(wanted("--peer m.gguf"), Some(Where::default()));
        assert_eq!(wanted("m.gguf --peer=py").unwrap().python, Some("py".into()));
        assert_eq!(wanted("m.gguf --peer-bin b").unwrap().program, Some("b".into()));
    }
}
