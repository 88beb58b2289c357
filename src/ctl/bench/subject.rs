//! What is measured: a model in memory, from a file or made, that was planned for before it was loaded.

use super::measure::Need;
use super::recipe::Quant;
use super::shapes::Scaled;
use super::synth::Synthetic;
use super::{Error, Progress};
use crate::exec::KvType;
use crate::gguf::TensorInfo;
use crate::load::Source;
use crate::model::Model;
use crate::ops::Tensor;
use crate::plan;
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
    /// Bytes of weights that decoding one token reads: all but an embedding that is not the head.
    pub step_bytes: u64,
    /// Elements that every token of a prompt is multiplied with: all but embedding and head.
    pub step_parameters: u64,
}

impl Subject {
    /// Loads a file or a split set.
    ///
    /// # Errors
    /// [`Error::Load`], or [`Error::Refused`] when it does not fit.
    pub fn open(path: &Path, need: &Need, kv: KvType, backends: usize, show: &Progress) -> Result<Subject, Error> {
        let source = Source::open(path)?;
        let model = plan_for(&source, need, kv, backends)?;
        Subject::load(&source, model, path.display().to_string(), show)
    }

    /// Makes a model of this shape.
    ///
    /// # Errors
    /// As [`Subject::open`]; a refusal says how many layers would fit.
    pub fn make(
        sized: &Scaled,
        quant: Quant,
        need: &Need,
        kv: KvType,
        backends: usize,
        show: &Progress,
    ) -> Result<Subject, Error> {
        let made = Synthetic::new(sized, quant)?;
        let source = made.source();
        let model = plan_for(&source, need, kv, backends).map_err(|error| match error {
            Error::Refused(refusal) => {
                let fits = |layers: usize| {
                    let fewer = Synthetic::new(&Scaled { layers, ..sized.clone() }, quant);
                    fewer.is_ok_and(|made| plan_for(&made.source(), need, kv, backends).is_ok())
                };
                let layers = (1..sized.layers).rev().find(|&layers| fits(layers));
                Error::ShapeTooLarge { refusal, shape: sized.shape.name, layers }
            }
            other => other,
        })?;
        Subject::load(&source, model, String::new(), show)
    }

    fn load(source: &Source, info: Model<TensorInfo>, file: String, show: &Progress) -> Result<Subject, Error> {
        let bytes = |tensor: Option<&TensorInfo>| tensor.map_or(0, |tensor| tensor.size);
        let elements = |tensor: Option<&TensorInfo>| tensor.map_or(0, TensorInfo::elements);
        let (weight_bytes, parameters) = (info.weight_bytes(), info.parameters());
        let (embedding, head) = (Some(&info.embedding), info.output.as_ref());
        let step_bytes = weight_bytes - if head.is_some() { bytes(embedding) } else { 0 };
        let step_parameters = parameters - elements(embedding) - elements(head);
        let name = info.hparams.name.clone();
        let model = source.load(info, &mut |p| {
            show.say(&format!("loading {name}: {} of {} MiB", p.bytes_done >> 20, p.bytes_total >> 20));
        })?;
        Ok(Subject { name, file, model, weight_bytes, parameters, step_bytes, step_parameters })
    }
}

fn plan_for(source: &Source, need: &Need, kv: KvType, backends: usize) -> Result<Model<TensorInfo>, Error> {
    let model = source.bind()?;
    let available = plan::available_memory().map_err(Error::Memory)?;
    plan::place(&model.hparams, model.weight_bytes(), &need.wish(kv, backends), available)?;
    Ok(model)
}
