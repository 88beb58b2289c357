//! Numbers that only some architectures have: which layers see a window, and factors and caps along the way.

use super::hparams::Keys;
use super::{Activation, Architecture, Error, QueryGrowth, Rope, RopeScaling};
use crate::gguf::{Array, Value};

impl Keys<'_> {
    /// Window in tokens, and by layer whether it sees all positions nevertheless.
    pub(super) fn windows(
        &self,
        architecture: Architecture,
        layers: usize,
    ) -> Result<(Option<usize>, Vec<bool>), Error> {
        const PATTERN: &str = "attention.sliding_window_pattern";
        let Some(window) = self.get::<usize>("attention.sliding_window")?.filter(|&window| window > 0) else {
            return Ok((None, Vec::new()));
        };
        // Each so many layers the last one has no window.
        let period = match (self.metadata.find(&self.key(PATTERN)), architecture) {
            (Some(Value::Array(Array::Bool(windowed))), _) if windowed.len() >= layers => {
                return Ok((Some(window), windowed[..layers].iter().map(|windowed| !windowed).collect()));
            }
            (Some(Value::Array(array)), _) => {
                let found = format!("{} of {}", array.kind(), array.len());
                return Err(self.bad(
                    PATTERN,
                    found,
                    format!("it must be a number, or a flag for each of {layers} layers"),
                ));
            }
            (Some(_), _) => self.get::<u32>(PATTERN)?.unwrap_or(0) as usize,
            (None, Architecture::Gemma3) => 6,
            (None, Architecture::GptOss) => 2,
            (None, _) => 0,
        };
        let global = (0..layers).map(|layer| period > 0 && layer % period == period - 1).collect();
        Ok((Some(window), global))
    }

    /// Gemma 3's windowed layers turn by a base of their own and are never scaled.
    pub(super) fn window_rope(&self, architecture: Architecture, rope: &Rope) -> Result<Option<Rope>, Error> {
        if architecture != Architecture::Gemma3 {
            return Ok(None);
        }
        let base = self.positive_float("rope.freq_base_swa", Some(10_000.0))?;
        Ok(Some(Rope { base, scaling: RopeScaling::None, ..rope.clone() }))
    }

    /// Factor on the scores: `1/√` of a head's dimensions, of the model's share of a head in Gemma 3 27B, whose files do
    /// not say so.
    pub(super) fn attention_scale(
        &self,
        architecture: Architecture,
        [layers, d_model, heads, key_dim]: [usize; 4],
    ) -> Result<f32, Error> {
        const GEMMA3_27B_LAYERS: usize = 62;
        const SCALE: &str = "attention.scale";
        let width = match architecture {
            Architecture::Gemma3 if layers == GEMMA3_27B_LAYERS => d_model as f32 / heads as f32,
            _ => key_dim as f32,
        };
        match self.get::<f32>(SCALE)? {
            None | Some(0.0) => Ok(1.0 / width.sqrt()),
            Some(_) => self.positive_float(SCALE, None),
        }
    }

    /// How queries grow with their position.
    pub(super) fn query_growth(&self) -> Result<Option<QueryGrowth>, Error> {
        const SCALE: &str = "attention.temperature_scale";
        const LENGTH: &str = "attention.temperature_length";
        const ORIGINAL: &str = "rope.scaling.original_context_length";
        match self.get::<f32>(SCALE)? {
            None | Some(0.0) => Ok(None),
            Some(_) => {
                let scale = self.positive_float(SCALE, None)?;
                let every = self.positive(if self.get::<u32>(LENGTH)?.is_some() { LENGTH } else { ORIGINAL })?;
                // The cast is exact: counts are read as u32.
                Ok(Some(QueryGrowth { scale, every: every as u32 }))
            }
        }
    }

    /// The cap of the logits; 0 stands for none.
    pub(super) fn logit_cap(&self) -> Result<Option<f32>, Error> {
        const CAP: &str = "final_logit_softcapping";
        match self.get::<f32>(CAP)? {
            None | Some(0.0) => Ok(None),
            Some(_) => self.positive_float(CAP, None).map(Some),
        }
    }
}

impl Architecture {
    /// Whether it never has experts.
    pub(super) fn is_dense(self) -> bool {
        matches!(
            self,
            Architecture::Gemma3
                | Architecture::Phi3
                | Architecture::Qwen2
                | Architecture::Qwen3
                | Architecture::Qwen35
        )
    }

    /// Whether its attention is over a latent.
    pub(super) fn has_latent(self) -> bool {
        matches!(self, Architecture::Deepseek2 | Architecture::Mistral4)
    }

    /// Of its feed-forward layers.
    pub(super) fn activation(self) -> Activation {
        match self {
            Architecture::Gemma3 => Activation::Gelu,
            Architecture::GptOss => Activation::Clamped,
            _ => Activation::Silu,
        }
    }

    /// Factor on the embedding's rows.
    pub(super) fn embedding_scale(self, d_model: usize) -> f32 {
        match self {
            Architecture::Gemma3 => (d_model as f32).sqrt(),
            _ => 1.0,
        }
    }
}
