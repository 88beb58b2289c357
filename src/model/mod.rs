//! Tensor names bound once to typed fields with strict shapes, one file per architecture. No weights are read here.
//!
//! `Model<TensorInfo>` is what [`bind`] yields; `load` maps it to `Model<ops::Tensor>`; `exec` reads only these fields.
//! Shapes in this file are `[rows, cols]`, row-major; GGUF lists them the other way round. [`report`] says what
//! a file holds, also for architectures that cannot be bound. Called by `load`, `plan` and `omnictl inspect`.

mod binder;
mod deepseek2;
mod error;
mod experts;
mod extras;
mod gemma3;
mod glm4;
mod gpt_oss;
mod hparams;
mod llama;
mod minimax;
mod nearest;
mod phi3;
mod qwen2;
mod qwen3;
mod qwen3next;
mod recurrence;
pub mod report;
mod walk;

pub use deepseek2::{KeyValueUp, Latent, LatentDims, QueryDown};
pub use error::Error;
pub use experts::{Experts, Gating, Routing, Shared};
pub use recurrence::{DeltaGates, DeltaInput, DeltaNet, HeadOrder, Recurrence};
pub use walk::{Bound, Matrix};

use crate::gguf::{File, TensorInfo};
use binder::Binder;

/// The architectures this build runs, by `general.architecture`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Architecture {
    Deepseek2,
    Gemma3,
    Glm4Moe,
    GptOss,
    Llama,
    MinimaxM2,
    Mistral3,
    Mistral4,
    Phi3,
    Qwen2,
    Qwen2Moe,
    Qwen3,
    Qwen35,
    Qwen35Moe,
    Qwen3Moe,
    Qwen3Next,
}

impl Architecture {
    /// All of them.
    pub const ALL: [Architecture; 16] = [
        Architecture::Deepseek2,
        Architecture::Gemma3,
        Architecture::Glm4Moe,
        Architecture::GptOss,
        Architecture::Llama,
        Architecture::MinimaxM2,
        Architecture::Mistral3,
        Architecture::Mistral4,
        Architecture::Phi3,
        Architecture::Qwen2,
        Architecture::Qwen2Moe,
        Architecture::Qwen3,
        Architecture::Qwen35,
        Architecture::Qwen35Moe,
        Architecture::Qwen3Moe,
        Architecture::Qwen3Next,
    ];

    /// As `general.architecture` has it, and as the prefix of its keys.
    pub const fn name(self) -> &'static str {
        match self {
            Architecture::Deepseek2 => "deepseek2",
            Architecture::Gemma3 => "gemma3",
            Architecture::Glm4Moe => "glm4moe",
            Architecture::GptOss => "gpt-oss",
            Architecture::Llama => "llama",
            Architecture::MinimaxM2 => "minimax-m2",
            Architecture::Mistral3 => "mistral3",
            Architecture::Mistral4 => "mistral4",
            Architecture::Phi3 => "phi3",
            Architecture::Qwen2 => "qwen2",
            Architecture::Qwen2Moe => "qwen2moe",
            Architecture::Qwen3 => "qwen3",
            Architecture::Qwen35 => "qwen35",
            Architecture::Qwen35Moe => "qwen35moe",
            Architecture::Qwen3Moe => "qwen3moe",
            Architecture::Qwen3Next => "qwen3next",
        }
    }

    /// The architecture of that name, if this build runs it.
    pub fn from_name(name: &str) -> Option<Architecture> {
        Self::ALL.into_iter().find(|architecture| architecture.name() == name)
    }
}

/// Binds a file's tensors to a model, all or nothing.
///
/// Refuses, in this order: an unknown architecture, an incomplete split set, numbers that make no model, and a tensor
/// that is missing, misshapen or of a type without a decoder. Reads no weight.
pub fn bind(file: &File) -> Result<Model<TensorInfo>, Error> {
    let architecture = hparams::architecture(&file.metadata)?;
    let split = file.split_count()?;
    if split != file.files {
        return Err(Error::Incomplete { count: split, files: file.files });
    }
    let hparams = hparams::read(file, architecture)?;
    let mut binder = Binder::new(file);
    let layer: BindLayer = match architecture {
        Architecture::Deepseek2 | Architecture::Mistral4 => deepseek2::layer,
        Architecture::Gemma3 => gemma3::layer,
        Architecture::Glm4Moe => glm4::layer,
        Architecture::GptOss => gpt_oss::layer,
        Architecture::Llama | Architecture::Mistral3 => llama::layer,
        Architecture::MinimaxM2 => minimax::layer,
        Architecture::Phi3 => phi3::layer,
        Architecture::Qwen2 | Architecture::Qwen2Moe => qwen2::layer,
        Architecture::Qwen3 | Architecture::Qwen3Moe => qwen3::layer,
        Architecture::Qwen35 | Architecture::Qwen35Moe | Architecture::Qwen3Next => qwen3next::layer,
    };
    let mut model = whole(&mut binder, hparams, layer)?;
    model.ignored = binder.unused();
    Ok(model)
}

/// The block that a tensor belongs to.
fn block_of(tensor: &str) -> Option<usize> {
    tensor.strip_prefix("blk.")?.split_once('.')?.0.parse().ok()
}

/// The same, of a tensor that only blocks for predicting further tokens have (MTP: multi-token prediction).
fn further_block(tensor: &str) -> Option<usize> {
    block_of(tensor).filter(|_| tensor.contains(".nextn."))
}

/// Binds what stands around the blocks, and each of them by `layer`.
fn whole(b: &mut Binder, h: Hparams, layer: BindLayer) -> Result<Model<TensorInfo>, Error> {
    let [rope_factors, rope_factors_long] = match h.architecture {
        Architecture::Phi3 => phi3::factors(b, &h)?,
        _ => [b.optional_vector("rope_freqs.weight", h.rope.dims / 2)?, None],
    };
    Ok(Model {
        embedding: b.matrix("token_embd.weight", h.vocab, h.d_model)?,
        output_norm: b.vector("output_norm.weight", h.d_model)?,
        output: b.optional_matrix("output.weight", h.vocab, h.d_model)?,
        rope_factors,
        rope_factors_long,
        layers: (0..h.layers).map(|i| layer(b, &h, i)).collect::<Result<_, _>>()?,
        ignored: Vec::new(),
        hparams: h,
    })
}

/// Binds one block of an architecture.
type BindLayer = fn(&mut Binder, &Hparams, usize) -> Result<Layer<TensorInfo>, Error>;

/// Rotary embedding: which pairs turn together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeKind {
    /// Pairs `(2i, 2i+1)`: llama's GGUF layout.
    Norm,
    /// Pairs `(i, i + n/2)`: NeoX, Qwen.
    Neox,
}

/// How positions beyond the trained context are mapped.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum RopeScaling {
    None,
    Linear {
        factor: f32,
    },
    /// YaRN (arXiv 2309.00071). `attention` multiplies the paper's own magnitude `0.1 · ln(factor) + 1`, it does not
    /// replace it; `extrapolation` is the share of the ramp that is applied, 1 in all known models; with `whole_pairs` the
    /// ramp begins and ends at whole pairs.
    Yarn {
        factor: f32,
        original_context: u32,
        extrapolation: f32,
        attention: f32,
        beta_fast: f32,
        beta_slow: f32,
        whole_pairs: bool,
    },
    /// LongRoPE (arXiv 2402.13753): each pair's frequency is divided by a factor of its own, a longer one where contexts
    /// may exceed the original. `attention` is the magnitude.
    LongRope {
        original_context: u32,
        attention: f32,
    },
}

/// Rotary position embedding of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Pairing.
    pub kind: RopeKind,
    /// Rotated dimensions per head, even, at most the head's.
    pub dims: usize,
    /// `rope.freq_base`.
    pub base: f32,
    /// Scaling by metadata.
    pub scaling: RopeScaling,
}

/// The numbers of a model, checked: no zero, no division with a rest.
#[derive(Clone, Debug, PartialEq)]
pub struct Hparams {
    /// Architecture.
    pub architecture: Architecture,
    /// `general.name`, or the architecture.
    pub name: String,
    /// Transformer blocks.
    pub layers: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`. Latent attention caches one, whose values are a part of its keys.
    pub kv_heads: usize,
    /// Dimensions of a key (and query) head.
    pub key_dim: usize,
    /// Dimensions of a value head.
    pub value_dim: usize,
    /// Latent attention: what its heads are made from.
    pub latent: Option<LatentDims>,
    /// Width of the dense feed-forward layers; 0 where all layers are routed.
    pub d_ff: usize,
    /// Mixture of experts.
    pub routing: Option<Routing>,
    /// Rows of the embedding.
    pub vocab: usize,
    /// Context the model was trained for, tokens.
    pub context: usize,
    /// Epsilon of every RMS norm, positive and finite.
    pub rms_eps: f32,
    /// Rotary embedding.
    pub rope: Rope,
    /// Rotary embedding of the layers with a window, where they have one of their own.
    pub window_rope: Option<Rope>,
    /// Sliding window in tokens where the metadata asks for one.
    pub window: Option<usize>,
    /// By layer, whether it sees all positions although there is a window; empty where none does.
    pub global: Vec<bool>,
    /// Factor on the scores.
    pub attention_scale: f32,
    /// How queries grow with their position.
    pub query_growth: Option<QueryGrowth>,
    /// Of all feed-forward layers.
    pub activation: Activation,
    /// Factor on the embedding's rows.
    pub embedding_scale: f32,
    /// `logits = cap · tanh(logits / cap)`.
    pub logit_cap: Option<f32>,
    /// Layers with a recurrent state among those with attention.
    pub recurrence: Option<Recurrence>,
}

impl Hparams {
    /// The window of a layer, `None` where it sees all positions.
    pub fn window_of(&self, layer: usize) -> Option<usize> {
        self.window.filter(|_| !self.global.get(layer).copied().unwrap_or(false))
    }
}

/// What makes a feed-forward layer's `gate` and `up` one: SwiGLU and GEGLU (arXiv 2002.05202), and gpt-oss's form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `silu(gate) · up`.
    Silu,
    /// `gelu(gate) · up`, by the approximation with tanh.
    Gelu,
    /// `g · sigmoid(1.702 g) · (u + 1)` with `g = min(gate, 7)`, `u` = `up` within ±7.
    Clamped,
}

/// Queries at position `p` are multiplied by `1 + scale · ln(1 + ⌊p / every⌋)` (Llama 4's, Ministral 3's, Mistral Large 3's).
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct QueryGrowth {
    pub scale: f32,
    /// Positions; at least 1.
    pub every: u32,
}

/// A whole model over tensors of kind `T`.
#[derive(Clone, Debug)]
pub struct Model<T> {
    /// Its numbers.
    pub hparams: Hparams,
    /// `token_embd.weight` `[vocab, d_model]`.
    pub embedding: T,
    /// `output_norm.weight` `[d_model]`.
    pub output_norm: T,
    /// `output.weight` `[vocab, d_model]`; `None` when tied to the embedding.
    pub output: Option<T>,
    /// `rope_freqs.weight` `[rope.dims / 2]`, Llama 3's frequency factors, or LongRoPE's `rope_factors_short.weight`.
    pub rope_factors: Option<T>,
    /// `rope_factors_long.weight`, LongRoPE's factors where contexts may exceed the original.
    pub rope_factors_long: Option<T>,
    /// The blocks, in order.
    pub layers: Vec<Layer<T>>,
    /// Names of the file's tensors that this architecture has no use for, those of further blocks among them: worth a
    /// warning, no reason to refuse.
    pub ignored: Vec<String>,
}

impl<T> Model<T> {
    /// Of [`Model::ignored`], those of blocks for predicting further tokens, which are not run; and the others.
    pub fn further_and_unknown(&self) -> (Vec<&str>, Vec<&str>) {
        let further = |name: &&str| block_of(name).is_some_and(|block| block >= self.hparams.layers);
        self.ignored.iter().map(String::as_str).partition(further)
    }
}

/// One transformer block.
#[derive(Clone, Debug)]
pub struct Layer<T> {
    /// `attn_norm.weight` `[d_model]`.
    pub attn_norm: T,
    /// What lets tokens see those before them.
    pub mixer: Mixer<T>,
    /// Norm of the mixer's output, before it is added `[d_model]`.
    pub mixer_post_norm: Option<T>,
    /// `ffn_norm.weight` `[d_model]`.
    pub ffn_norm: T,
    /// Feed-forward.
    pub ffn: FeedForward<T>,
    /// Norm of the feed-forward's output, before it is added `[d_model]`.
    pub ffn_post_norm: Option<T>,
}

/// Token mixing of a block.
#[derive(Clone, Debug)]
pub enum Mixer<T> {
    /// Grouped-query attention over cached keys and values.
    Attention(Attention<T>),
    /// Attention over a cached latent that all heads' keys and values are made from.
    Latent(Box<Latent<T>>),
    /// Grouped-query attention whose output is scaled by the sigmoid of a gate: q is `[heads * (key_dim + value_dim), d_model]`,
    /// each head's query and then its gate.
    GatedAttention(Attention<T>),
    /// A recurrent state per head.
    DeltaNet(Box<DeltaNet<T>>),
}

/// Feed-forward of a block.
#[derive(Clone, Debug)]
pub enum FeedForward<T> {
    /// Every token passes all of it.
    Dense(Ffn<T>),
    /// Each token passes some experts.
    Experts(Box<Experts<T>>),
}

/// Grouped-query attention.
#[derive(Clone, Debug)]
pub struct Attention<T> {
    /// `[heads * key_dim, d_model]`.
    pub q: Linear<T>,
    /// `[kv_heads * key_dim, d_model]`.
    pub k: Linear<T>,
    /// `[kv_heads * value_dim, d_model]`.
    pub v: Linear<T>,
    /// `[d_model, heads * value_dim]`.
    pub output: Linear<T>,
    /// `attn_q_norm.weight` `[key_dim]`, over each head, or `[heads * key_dim]`, over all of them.
    pub q_norm: Option<T>,
    /// `attn_k_norm.weight`, likewise.
    pub k_norm: Option<T>,
    /// `attn_sinks.weight` `[heads]`: a score per head that takes its share of the softmax and brings no value.
    pub sinks: Option<T>,
}

/// Gated feed-forward, with [`Hparams::activation`].
#[derive(Clone, Debug)]
pub struct Ffn<T> {
    /// `[d_ff, d_model]`.
    pub gate: Linear<T>,
    /// `[d_ff, d_model]`.
    pub up: Linear<T>,
    /// `[d_model, d_ff]`.
    pub down: Linear<T>,
}

/// A matrix with an optional bias of its rows.
#[derive(Clone, Debug)]
pub struct Linear<T> {
    /// `[rows, cols]`.
    pub weight: T,
    /// `[rows]`, F32.
    pub bias: Option<T>,
    /// `{name}.scale` F32, of a stack `[matrices]`: a factor on all that a matrix yields, its bias aside (NVFP4).
    pub scale: Option<T>,
}
