//! The command line of `omnictl plan`, and what follows from it.

use super::configuration;
use crate::config;
use crate::ctl::bench::recipe::Quant;
use crate::ctl::bench::shapes::Scaled;
use crate::ctl::bench::synth::Synthetic;
use crate::ctl::error::Error;
use crate::exec::KvType;
use crate::plan::{DEFAULT_PARALLEL, Device, Request, Rule};
use clap::builder::RangedU64ValueParser;
use std::path::{Path, PathBuf};

/// Show where every layer and expert of a model would go on a host, its bytes on each device, and how fast that should be;
/// or what is missing and what would fit. Reads headers only.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub struct PlanArgs {
    /// GGUF files (of a split set any one), http(s) addresses or ids of configured models, planned one after the other
    /// [default: all configured models]
    #[arg(value_name = "MODEL")]
    pub models: Vec<String>,
    /// Plan for the host that this TOML file describes [default: this host, its CPU measured]
    #[arg(long, value_name = "FILE")]
    pub host: Option<PathBuf>,
    /// Plan a model of this known shape, before the MODELs; may be given again
    #[arg(long, value_name = "NAME[:LAYERS]")]
    pub shape: Vec<Scaled>,
    /// Types of the weights of --shape, as omnictl bench --help lists them; one for all shapes, or one for each
    #[arg(long, value_name = "RECIPE", default_value = "q4_k_m")]
    pub quant: Vec<Quant>,
    /// Tokens per sequence [default: what the model was trained for, at most 8192 and what fits]
    #[arg(short = 'c', long, value_name = "TOKENS", value_parser = up_to(1 << 30))]
    pub context: Option<usize>,
    /// Sequences at once [default: 4]
    #[arg(long, value_name = "N", value_parser = up_to(4096))]
    pub parallel: Option<usize>,
    /// Element type of the KV cache: f16, bf16, q8_0, q4_1, q4_0 or f32 [default: f16]
    #[arg(long, value_name = "TYPE")]
    pub kv: Option<KvType>,
    /// Most prompt tokens per step [default: 512, or fewer where that makes more fit]
    #[arg(long, visible_alias = "ub", value_name = "TOKENS", value_parser = up_to(65_536))]
    pub ubatch: Option<usize>,
    /// Most memory of a device, e.g. gpu0=20GiB or cpu=64GiB; may be given again
    #[arg(long, value_name = "DEVICE=SIZE", value_parser = limit)]
    pub device_limit: Vec<(Device, u64)>,
    /// Refuse what does not fit on GPUs: the CPU computes nothing
    #[arg(long)]
    pub gpu_only: bool,
    /// Place by hand what matches a regular expression over names of tensors, as [[model.place]] does; may be given again
    #[arg(long, value_name = "PATTERN=DEVICE", value_parser = rule)]
    pub place: Vec<Rule>,
    /// Where models are configured [default: the system's configuration]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  omnictl plan model.gguf                              on this host
  omnictl plan --host /usr/share/omni-inferd/hosts/host-a.toml model-00001-of-00009.gguf
  omnictl plan --host /usr/share/omni-inferd/hosts/host-b.toml --shape glm-4.7-flash --quant q8_0 -c 131072 --kv q8_0
  omnictl plan --host /usr/share/omni-inferd/hosts/host-a.toml oracle.gguf executor.gguf       the second beside the first
  omnictl plan --host /usr/share/omni-inferd/hosts/host-a.toml model.gguf --place 'blk\\.(1[0-9])\\..*_exps=gpu1'";

/// Numbers from 1 to `most`: the bounds that the configuration has.
fn up_to(most: u64) -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=most)
}

/// `DEVICE=SIZE`.
fn limit(text: &str) -> Result<(Device, u64), String> {
    let (device, size) = text.split_once('=').ok_or("write DEVICE=SIZE, for instance gpu0=20GiB")?;
    let bytes = config::parse_size(size).map_err(|error| error.to_string())?;
    Ok((device.parse()?, bytes as u64))
}

/// `PATTERN=DEVICE`; a pattern may hold further `=`.
fn rule(text: &str) -> Result<Rule, String> {
    let (pattern, device) = text.rsplit_once('=').ok_or("write PATTERN=DEVICE, for instance _exps=cpu")?;
    Rule::parse(pattern, device)
}

/// What a word on the command line names.
pub(super) enum Target {
    /// A file or an address.
    File(String),
    /// A configured model.
    Configured(Box<config::Model>),
}

impl PlanArgs {
    /// What is wanted of every model.
    pub(super) fn request(&self) -> Result<Request, Error> {
        Ok(Request {
            context: self.context,
            parallel: self.parallel.unwrap_or(DEFAULT_PARALLEL),
            micro_batch: self.ubatch,
            kv: self.kv.unwrap_or_default().name(),
            smaller_kv: Vec::new(),
            gpu_only: self.gpu_only,
            limits: self.device_limit.clone(),
            rules: self.place.clone(),
        })
    }

    /// The named models; all configured ones where nothing is named.
    pub(super) fn targets(&self) -> Result<Vec<Target>, Error> {
        let is_file = |name: &String| name.contains("://") || Path::new(name).exists();
        if self.models.iter().all(is_file) && (!self.models.is_empty() || !self.shape.is_empty()) {
            return Ok(self.models.iter().cloned().map(Target::File).collect());
        }
        let config = configuration(self.config.as_deref())?;
        if self.models.is_empty() {
            return Ok(config.models.into_iter().map(|model| Target::Configured(Box::new(model))).collect());
        }
        let target = |name: &String| {
            let named = |model: &&config::Model| model.id == *name || model.aliases.contains(name);
            match config.models.iter().find(named) {
                Some(model) if !is_file(name) => Target::Configured(Box::new(model.clone())),
                _ => Target::File(name.clone()),
            }
        };
        Ok(self.models.iter().map(target).collect())
    }
}

/// Headers of all shapes, each with its recipe.
pub(super) fn quantised(shapes: &[Scaled], quants: &[Quant]) -> Result<Vec<Synthetic>, Error> {
    if quants.len() > 1 && quants.len() != shapes.len() {
        let what =
            format!("--quant is given {} times, --shape {}: give it once, or for each", quants.len(), shapes.len());
        return Err(Error::Usage(what));
    }
    let quant = |index: usize| quants.get(index).or(quants.first()).copied();
    let made = shapes.iter().enumerate().filter_map(|(index, shape)| Some(Synthetic::new(shape, quant(index)?)));
    Ok(made.collect::<Result<_, _>>()?)
}
