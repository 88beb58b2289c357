//! Going through all tensors of a model in one place, so that a new field is forgotten nowhere: `load` maps them, plans
//! and reports sum over them.

use super::{
    Attention, DeltaNet, Experts, FeedForward, Ffn, Hparams, KeyValueUp, Latent, Layer, Linear, Mixer, Model,
    QueryDown, Shared,
};
use crate::gguf::TensorInfo;
use crate::quant::DType;
use std::convert::Infallible;

impl<T> Model<T> {
    /// Turns every tensor into another kind, in file-like order (embedding, output, then block by block), and stops at
    /// the first error. `f` gets the field's path, e.g. `layers.attention.q.weight`; the tensor itself knows its block.
    pub fn try_map<U, E>(self, mut f: impl FnMut(&'static str, T) -> Result<U, E>) -> Result<Model<U>, E> {
        Ok(Model {
            hparams: self.hparams,
            embedding: f("embedding", self.embedding)?,
            output_norm: f("output_norm", self.output_norm)?,
            output: self.output.map(|t| f("output", t)).transpose()?,
            rope_factors: self.rope_factors.map(|t| f("rope_factors", t)).transpose()?,
            rope_factors_long: self.rope_factors_long.map(|t| f("rope_factors_long", t)).transpose()?,
            layers: self.layers.into_iter().map(|layer| layer.try_map(&mut f)).collect::<Result<_, E>>()?,
            ignored: self.ignored,
        })
    }

    /// The same model over references.
    pub fn as_ref(&self) -> Model<&T> {
        Model {
            hparams: self.hparams.clone(),
            embedding: &self.embedding,
            output_norm: &self.output_norm,
            output: self.output.as_ref(),
            rope_factors: self.rope_factors.as_ref(),
            rope_factors_long: self.rope_factors_long.as_ref(),
            layers: self.layers.iter().map(Layer::as_ref).collect(),
            ignored: self.ignored.clone(),
        }
    }

    /// Calls `f` for every tensor with its field's path, as [`Model::try_map`] does.
    pub fn for_each<'a>(&'a self, mut f: impl FnMut(&'static str, &'a T)) {
        let Ok(_) = self.as_ref().try_map(|path, tensor| {
            f(path, tensor);
            Ok::<(), Infallible>(())
        });
    }

    /// All tensors, in the order of [`Model::try_map`].
    pub fn tensors(&self) -> Vec<&T> {
        let mut all = Vec::new();
        self.for_each(|_, tensor| all.push(tensor));
        all
    }
}

/// What the size of a product's activations depends on, known before and after loading.
pub trait Matrix {
    /// Type of the elements.
    fn dtype(&self) -> DType;
    /// Elements of a row.
    fn cols(&self) -> usize;
}

impl Matrix for TensorInfo {
    fn dtype(&self) -> DType {
        self.dtype
    }

    fn cols(&self) -> usize {
        // Exact: binding checked the shapes against numbers of this size.
        self.shape.first().copied().unwrap_or(1) as usize
    }
}

/// A model over the entries of a file's directory: what `bind` yields.
pub type Bound = Model<TensorInfo>;

impl Model<TensorInfo> {
    /// Elements of all weights. A tied output counts once.
    pub fn parameters(&self) -> u64 {
        self.tensors().iter().fold(0, |sum, tensor| sum.saturating_add(tensor.elements()))
    }

    /// Bytes of all weights as they lie in the file.
    pub fn weight_bytes(&self) -> u64 {
        self.tensors().iter().fold(0, |sum, tensor| sum.saturating_add(tensor.size))
    }
}

impl Hparams {
    /// Bytes that one token of context takes in the KV cache of all layers, in elements of `dtype`.
    pub fn kv_bytes_per_token(&self, dtype: DType) -> u64 {
        // A latent's values are a part of its keys.
        let value_dim = if self.latent.is_some() { 0 } else { self.value_dim as u64 };
        let per_head = self.key_dim as u64 + value_dim;
        let elements = (self.kv_layers() as u64).saturating_mul(self.kv_heads as u64).saturating_mul(per_head);
        elements.saturating_mul(dtype.block_bytes() as u64) / dtype.block_len() as u64
    }
}

impl<T> Layer<T> {
    fn try_map<U, E>(self, f: &mut impl FnMut(&'static str, T) -> Result<U, E>) -> Result<Layer<U>, E> {
        Ok(Layer {
            attn_norm: f("layers.attn_norm", self.attn_norm)?,
            mixer: self.mixer.try_map(f)?,
            mixer_post_norm: self.mixer_post_norm.map(|t| f("layers.mixer_post_norm", t)).transpose()?,
            ffn_norm: f("layers.ffn_norm", self.ffn_norm)?,
            ffn: self.ffn.try_map(f)?,
            ffn_post_norm: self.ffn_post_norm.map(|t| f("layers.ffn_post_norm", t)).transpose()?,
        })
    }

    fn as_ref(&self) -> Layer<&T> {
        Layer {
            attn_norm: &self.attn_norm,
            mixer: self.mixer.as_ref(),
            mixer_post_norm: self.mixer_post_norm.as_ref(),
            ffn_norm: &self.ffn_norm,
            ffn: self.ffn.as_ref(),
            ffn_post_norm: self.ffn_post_norm.as_ref(),
        }
    }
}

impl<T> Mixer<T> {
    fn try_map<U, E>(self, f: &mut impl FnMut(&'static str, T) -> Result<U, E>) -> Result<Mixer<U>, E> {
        Ok(match self {
            Mixer::Attention(attention) => Mixer::Attention(attention.try_map(f)?),
            Mixer::Latent(latent) => Mixer::Latent(Box::new(latent.try_map(f)?)),
            Mixer::GatedAttention(attention) => Mixer::GatedAttention(attention.try_map(f)?),
            Mixer::DeltaNet(net) => Mixer::DeltaNet(Box::new(net.try_map(f)?)),
        })
    }

    fn as_ref(&self) -> Mixer<&T> {
        match self {
            Mixer::Attention(attention) => Mixer::Attention(attention.as_ref()),
            Mixer::Latent(latent) => Mixer::Latent(Box::new(Latent::as_ref(latent))),
            Mixer::GatedAttention(attention) => Mixer::GatedAttention(attention.as_ref()),
            Mixer::DeltaNet(net) => Mixer::DeltaNet(Box::new(DeltaNet::as_ref(net))),
        }
    }
}

impl<T> Attention<T> {
    fn try_map<U, E>(self, f: &mut impl FnMut(&'static str, T) -> Result<U, E>) -> Result<Attention<U>, E> {
        Ok(Attention {
            q: self.q.try_map(["layers.attention.q.weight", "layers.attention.q.bias"], f)?,
            k: self.k.try_map(["layers.attention.k.weight", "layers.attention.k.bias"], f)?,
            v: self.v.try_map(["layers.attention.v.weight", "layers.attention.v.bias"], f)?,
            output: self.output.try_map(["layers.attention.output.weight", "layers.attention.output.bias"], f)?,
            q_norm: self.q_norm.map(|t| f("layers.attention.q_norm", t)).transpose()?,
            k_norm: self.k_norm.map(|t| f("layers.attention.k_norm", t)).transpose()?,
            sinks: self.sinks.map(|t| f("layers.attention.sinks", t)).transpose()?,
        })
    }

    fn as_ref(&self) -> Attention<&T> {
        Attention {
            q: self.q.as_ref(),
            k: self.k.as_ref(),
            v: self.v.as_ref(),
            output: self.output.as_ref(),
            q_norm: self.q_norm.as_ref(),
            k_norm: self.k_norm.as_ref(),
            sinks: self.sinks.as_ref(),
        }
    }
}

impl<T> Latent<T> {
    fn try_map<U, E>(self, f: &mut impl FnMut(&'static str, T) -> Result<U, E>) -> Result<Latent<U>, E> {
        let q_down = ["layers.latent.q_down.weight", "layers.latent.q_down.bias"];
        Ok(Latent {
            q_down: match self.q_down {
                Some(QueryDown { linear, norm }) => {
                    let linear = linear.try_map(q_down, f)?;
                    Some(QueryDown { linear, norm: f("layers.latent.q_norm", norm)? })
                }
                None => None,
            },
            q: self.q.try_map(["layers.latent.q.weight", "layers.latent.q.bias"], f)?,
            kv_down: self.kv_down.try_map(["layers.latent.kv_down.weight", "layers.latent.kv_down.bias"], f)?,
            kv_norm: f("layers.latent.kv_norm", self.kv_norm)?,
            kv_up: match self.kv_up {
                KeyValueUp::Whole(whole) => KeyValueUp::Whole(f("layers.latent.kv_up", whole)?),
                KeyValueUp::Split { key, value } => {
                    let key = f("layers.latent.key_up", key)?;
                    KeyValueUp::Split { key, value: f("layers.latent.value_up", value)? }
                }
            },
            output: self.output.try_map(["layers.latent.output.weight", "layers.latent.output.bias"], f)?,
        })
    }

    fn as_ref(&self) -> Latent<&T> {
        Latent {
            q_down: self.q_down.as_ref().map(|q| QueryDown { linear: q.linear.as_ref(), norm: &q.norm }),
            q: self.q.as_ref(),
            kv_down: self.kv_down.as_ref(),
            kv_norm: &self.kv_norm,
            kv_up: match &self.kv_up {
                KeyValueUp::Whole(whole) => KeyValueUp::Whole(whole),
                KeyValueUp::Split { key, value } => KeyValueUp::Split { key, value },
            },
            output: self.output.as_ref(),
        }
    }
}

/// Paths of a matrix and of its bias.
type Paths = [&'static str; 2];

impl<T> FeedForward<T> {
    fn try_map<U, E>(self, f: &mut impl FnMut(&'static str, T) -> Result<U, E>) -> Result<FeedForward<U>, E> {
        const DENSE: [Paths; 3] = [
            ["layers.ffn.gate.weight", "layers.ffn.gate.bias"],
            ["layers.ffn.up.weight", "layers.ffn.up.bias"],
            ["layers.ffn.down.weight", "layers.ffn.down.bias"],
        ];
        Ok(match self {
            FeedForward::Dense(ffn) => FeedForward::Dense(ffn.try_map(DENSE, f)?),
            FeedForward::Experts(experts) => FeedForward::Experts(Box::new(experts.try_map(f)?)),
        })
    }

    fn as_ref(&self) -> FeedForward<&T> {
        match self {
            FeedForward::Dense(ffn) => FeedForward::Dense(ffn.as_ref()),
            FeedForward::Experts(experts) => FeedForward::Experts(Box::new(Experts::as_ref(experts))),
        }
    }
}

impl<T> Experts<T> {
    fn try_map<U, E>(self, f: &mut impl FnMut(&'static str, T) -> Result<U, E>) -> Result<Experts<U>, E> {
        let gate = ["layers.experts.gate.weight", "layers.experts.gate.bias"];
        Ok(Experts {
            router: self.router.try_map(["layers.experts.router.weight", "layers.experts.router.bias"], f)?,
            choice_bias: self.choice_bias.map(|t| f("layers.experts.choice_bias", t)).transpose()?,
            gate: self.gate.map(|t| t.try_map(gate, f)).transpose()?,
            up: self.up.try_map(["layers.experts.up.weight", "layers.experts.up.bias"], f)?,
            down: self.down.try_map(["layers.experts.down.weight", "layers.experts.down.bias"], f)?,
            shared: self.shared.map(|t| t.try_map(f)).transpose()?,
        })
    }

    fn as_ref(&self) -> Experts<&T> {
        Experts {
            router: self.router.as_ref(),
            choice_bias: self.choice_bias.as_ref(),
            gate: self.gate.as_ref().map(Linear::as_ref),
            up: self.up.as_ref(),
            down: self.down.as_ref(),
            shared: self.shared.as_ref().map(|s| Shared { ffn: s.ffn.as_ref(), gate: s.gate.as_ref() }),
        }
    }
}

impl<T> Shared<T> {
    fn try_map<U, E>(self, f: &mut impl FnMut(&'static str, T) -> Result<U, E>) -> Result<Shared<U>, E> {
        const SHARED: [Paths; 3] = [
            ["layers.experts.shared.gate.weight", "layers.experts.shared.gate.bias"],
            ["layers.experts.shared.up.weight", "layers.experts.shared.up.bias"],
            ["layers.experts.shared.down.weight", "layers.experts.shared.down.bias"],
        ];
        Ok(Shared {
            ffn: self.ffn.try_map(SHARED, f)?,
            gate: self.gate.map(|t| f("layers.experts.shared.gate", t)).transpose()?,
        })
    }
}

impl<T> Ffn<T> {
    fn try_map<U, E>(
        self,
        paths: [Paths; 3],
        f: &mut impl FnMut(&'static str, T) -> Result<U, E>,
    ) -> Result<Ffn<U>, E> {
        Ok(Ffn {
            gate: self.gate.try_map(paths[0], f)?,
            up: self.up.try_map(paths[1], f)?,
            down: self.down.try_map(paths[2], f)?,
        })
    }

    fn as_ref(&self) -> Ffn<&T> {
        Ffn { gate: self.gate.as_ref(), up: self.up.as_ref(), down: self.down.as_ref() }
    }
}

impl<T> Linear<T> {
    pub(super) fn try_map<U, E>(
        self,
        [weight, bias]: Paths,
        f: &mut impl FnMut(&'static str, T) -> Result<U, E>,
    ) -> Result<Linear<U>, E> {
        Ok(Linear {
            weight: f(weight, self.weight)?,
            bias: self.bias.map(|t| f(bias, t)).transpose()?,
            scale: self.scale.map(|t| f("layers.scale", t)).transpose()?,
        })
    }

    pub(super) fn as_ref(&self) -> Linear<&T> {
        Linear { weight: &self.weight, bias: self.bias.as_ref(), scale: self.scale.as_ref() }
    }
}
