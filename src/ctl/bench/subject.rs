//! What is measured: a model in memory, from a file or made, that was planned for before it was loaded.

use super::measure::{Need, Settings};
use super::recipe::Quant;
use super::shapes::Scaled;
use super::synth::Synthetic;
use super::{Error, Progress};
use crate::exec::{self, Layouts};
use crate::gguf::TensorInfo;
use crate::load::{self, Source};
use crate::model::Model;
use crate::ops::Tensor;
use crate::plan::{self, Needs, Wish};
use crate::quant::Layout;
use crate::sys::numa::Policy;
use std::path::Path;

/// A loaded model and the numbers that speeds are computed from.
pub struct Subject {
    /// `general.name`.
    pub name: String,
    /// The file; empty where there is none.
    pub file: String,
    /// The weights.
    pub model: Model<Tensor>,
    /// Bytes of all weights.
    pub weight_bytes: u64,
    /// Elements of all weights.
    pub parameters: u64,
    /// Bytes of weights that decoding one token reads: all but an embedding that is not the head, and the experts that are
    /// not chosen.
    pub step_bytes: u64,
    /// Elements that a token of a prompt is multiplied with: all but embedding, head and the experts that are not chosen.
    pub step_parameters: u64,
}

/// What of the experts' weights a token does not use, `of` each tensor.
fn idle(model: &Model<TensorInfo>, of: &dyn Fn(Option<&TensorInfo>) -> u64) -> u64 {
    let Some(routing) = &model.hparams.routing else { return 0 };
    let exps = model.tensors().into_iter().filter(|tensor| tensor.name.contains("_exps."));
    let share = (routing.experts - routing.used) as u64;
    exps.map(|tensor| of(Some(tensor)) / routing.experts as u64 * share).sum()
}

impl Subject {
    /// Loads a file or a split set.
    ///
    /// # Errors
    /// [`Error::Load`], or [`Error::Refused`] when it does not fit.
    pub fn open(path: &Path, need: &Need, settings: &Settings, show: &Progress) -> Result<Subject, Error> {
        let source = Source::open(path)?;
        let model = plan_for(&source, need, settings)?;
        Subject::load(&source, model, path.display().to_string(), settings, show)
    }

    /// Makes a model of this shape.
    ///
    /// # Errors
    /// As [`Subject::open`]; a refusal says how many layers would fit.
    pub fn make(
        sized: &Scaled,
        quant: Quant,
        need: &Need,
        settings: &Settings,
        show: &Progress,
    ) -> Result<Subject, Error> {
        let made = Synthetic::new(sized, quant)?;
        let source = made.source();
        let model = plan_for(&source, need, settings).map_err(|error| match error {
            Error::Refused(refusal) => {
                let fits = |layers: usize| {
                    let fewer = Synthetic::new(&Scaled { layers, ..sized.clone() }, quant);
                    fewer.is_ok_and(|made| plan_for(&made.source(), need, settings).is_ok())
                };
                let layers = (1..sized.layers).rev().find(|&layers| fits(layers));
                Error::ShapeTooLarge { refusal, shape: sized.shape.name, layers }
            }
            other => other,
        })?;
        Subject::load(&source, model, String::new(), settings, show)
    }

    fn load(
        source: &Source,
        info: Model<TensorInfo>,
        file: String,
        settings: &Settings,
        show: &Progress,
    ) -> Result<Subject, Error> {
        let bytes = |tensor: Option<&TensorInfo>| tensor.map_or(0, |tensor| tensor.size);
        let elements = |tensor: Option<&TensorInfo>| tensor.map_or(0, TensorInfo::elements);
        let (weight_bytes, parameters) = (info.weight_bytes(), info.parameters());
        let (embedding, head) = (Some(&info.embedding), info.output.as_ref());
        let unused = |of: &dyn Fn(Option<&TensorInfo>) -> u64| idle(&info, of);
        let step_bytes = weight_bytes - unused(&bytes) - if head.is_some() { bytes(embedding) } else { 0 };
        let step_parameters = parameters - unused(&elements) - elements(embedding) - elements(head);
        let name = info.hparams.name.clone();
        // All backends are of one instruction set.
        let layouts = settings.backends.first().map(Layouts::new).transpose().map_err(exec::Error::from)?;
        let layout = |dtype, rows, cols| layouts.as_ref().map_or(Layout::Plain, |all| all.of(dtype, rows, cols));
        let model = source.load(info, &layout, &mut |p| {
            show.say(&format!("loading {name}: {} of {} MiB", p.bytes_done >> 20, p.bytes_total >> 20));
        })?;
        Ok(Subject { name, file, model, weight_bytes, parameters, step_bytes, step_parameters })
    }
}

fn plan_for(source: &Source, need: &Need, settings: &Settings) -> Result<Model<TensorInfo>, Error> {
    let model = source.bind()?;
    let available = load::available(model.weight_bytes(), &Policy::Local).map_err(Error::Memory)?;
    let mut needs = Needs::default();
    // Each backend has a cache and buffers of its own, all at once.
    for cpu in &settings.backends {
        let options = need.options(cpu, settings.kv);
        let threads = cpu.compute_threads().map_err(exec::Error::from)?;
        needs.kv_bytes += exec::kv_bytes(&model.hparams, settings.kv, options.kv_blocks);
        needs.state_bytes += exec::state_bytes(&model.hparams, options.state_slots);
        needs.scratch_bytes += exec::scratch_bytes(&model, &options, threads);
    }
    let wish = Wish { context: Some(need.context), parallel: need.batch };
    plan::place(&model.hparams, model.weight_bytes(), &wish, available, |_, _| needs)?;
    Ok(model)
}
