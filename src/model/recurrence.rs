//! Gated delta net layers (arXiv 2412.06464), which keep a state of constant size instead of keys and values: the numbers of
//! the recurrence and the tensors of a layer, and which layers of a hybrid model have attention all the same.

use super::binder::{Bias, Binder};
use super::{Error, Hparams, Linear};
use crate::gguf::TensorInfo;

/// The numbers of a model's recurrent layers, checked: `key_heads` divides `value_heads`, dimensions are multiples of 16.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recurrence {
    /// For each layer whether it has attention instead.
    pub attention: Vec<bool>,
    /// Tokens that the convolution sees, from 2 to 8.
    pub kernel: usize,
    /// Heads of q and k.
    pub key_heads: usize,
    /// Heads of v, each with a state of its own.
    pub value_heads: usize,
    /// Dimensions of a q or k head.
    pub key_dim: usize,
    /// Dimensions of a v head.
    pub value_dim: usize,
    /// Which key head a value head reads.
    pub order: HeadOrder,
}

/// How value heads share key heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadOrder {
    /// Value head `h` reads key head `h / (value_heads / key_heads)` (Qwen3-Next).
    Grouped,
    /// Value head `h` reads key head `h % key_heads`: the converter's order for Qwen3.5.
    Tiled,
}

impl Recurrence {
    /// Width of all q or all k heads.
    pub fn keys(&self) -> usize {
        self.key_heads * self.key_dim
    }

    /// Width of all v heads.
    pub fn values(&self) -> usize {
        self.value_heads * self.value_dim
    }

    /// What the convolution runs over: q, k and v side by side.
    pub fn channels(&self) -> usize {
        2 * self.keys() + self.values()
    }

    /// F32 numbers of one layer's state of one sequence: the convolution's last inputs, and a matrix per value head.
    pub fn state_len(&self) -> usize {
        (self.kernel - 1) * self.channels() + self.value_heads * self.key_dim * self.value_dim
    }

    /// Recurrent layers.
    pub fn layers(&self) -> usize {
        self.attention.iter().filter(|&&attention| !attention).count()
    }
}

impl Hparams {
    /// Layers that keep keys and values.
    pub fn kv_layers(&self) -> usize {
        self.recurrence.as_ref().map_or(self.layers, |recurrence| self.layers - recurrence.layers())
    }

    /// Bytes of recurrent state that a sequence has besides its KV cache, whatever its length; 0 without such layers.
    pub fn state_bytes(&self) -> u64 {
        const F32_BYTES: u64 = 4;
        let elements = |r: &Recurrence| (r.layers() as u64).saturating_mul(r.state_len() as u64);
        self.recurrence.as_ref().map_or(0, elements).saturating_mul(F32_BYTES)
    }
}

/// A gated delta net layer. Widths are those of [`Recurrence`].
#[derive(Clone, Debug)]
pub struct DeltaNet<T> {
    /// What q, k, v and the output's gate are made with.
    pub input: DeltaInput<T>,
    /// What decay and update strength of each value head are made with.
    pub gates: DeltaGates<T>,
    /// `ssm_conv1d.weight` `[channels, kernel]`, F32, oldest token first.
    pub conv: T,
    /// `ssm_a` `[value_heads]`: `-exp(A)`, the decay's rate.
    pub rate: T,
    /// `ssm_dt.bias` `[value_heads]`.
    pub step_bias: T,
    /// `ssm_norm.weight` `[value_dim]`, over each head of the output.
    pub norm: T,
    /// `ssm_out` `[d_model, values]`.
    pub output: Linear<T>,
}

/// The input projection.
#[derive(Clone, Debug)]
pub enum DeltaInput<T> {
    /// As converters write it today.
    Split {
        /// `attn_qkv` `[channels, d_model]`.
        qkv: Linear<T>,
        /// `attn_gate` `[values, d_model]`.
        gate: Linear<T>,
    },
    /// `ssm_in` `[channels + values, d_model]`: for each key head its q, its k, then v and gate of its value heads.
    Grouped(Linear<T>),
}

/// The projections of what steers the recurrence.
#[derive(Clone, Debug)]
pub enum DeltaGates<T> {
    /// Qwen3.5.
    Split {
        /// `ssm_beta` `[value_heads, d_model]`: how much of the old value is replaced.
        beta: Linear<T>,
        /// `ssm_alpha` `[value_heads, d_model]`: the decay's step.
        alpha: Linear<T>,
    },
    /// `ssm_ba` `[2 * value_heads, d_model]`: for each key head beta, then alpha of its value heads (Qwen3-Next).
    Grouped(Linear<T>),
}

/// Binds the recurrent part of block `i`.
pub(super) fn delta_net(
    b: &mut Binder,
    d_model: usize,
    r: &Recurrence,
    i: usize,
) -> Result<DeltaNet<TensorInfo>, Error> {
    let at = |name: &str| format!("blk.{i}.{name}");
    let (channels, values) = (r.channels(), r.values());
    let input = match b.optional_matrix(&at("ssm_in.weight"), channels + values, d_model)? {
        Some(weight) => DeltaInput::Grouped(Linear { weight, bias: None, scale: None }),
        None => DeltaInput::Split {
            qkv: b.linear(&at("attn_qkv"), channels, d_model, Bias::Optional)?,
            gate: b.linear(&at("attn_gate"), values, d_model, Bias::Optional)?,
        },
    };
    let gates = match b.optional_matrix(&at("ssm_ba.weight"), 2 * r.value_heads, d_model)? {
        Some(weight) => DeltaGates::Grouped(Linear { weight, bias: None, scale: None }),
        None => DeltaGates::Split {
            beta: b.linear(&at("ssm_beta"), r.value_heads, d_model, Bias::Optional)?,
            alpha: b.linear(&at("ssm_alpha"), r.value_heads, d_model, Bias::Optional)?,
        },
    };
    Ok(DeltaNet {
        input,
        gates,
        conv: b.float_matrix(&at("ssm_conv1d.weight"), channels, r.kernel)?,
        rate: b.vector(&at("ssm_a"), r.value_heads)?,
        step_bias: b.vector(&at("ssm_dt.bias"), r.value_heads)?,
        norm: b.vector(&at("ssm_norm.weight"), r.value_dim)?,
        output: b.linear(&at("ssm_out"), d_model, values, Bias::Optional)?,
    })
}

type Paths = [&'static str; 2];

impl<T> DeltaNet<T> {
    pub(super) fn try_map<U, E>(self, f: &mut impl FnMut(&'static str, T) -> Result<U, E>) -> Result<DeltaNet<U>, E> {
        const QKV: Paths = ["layers.delta_net.qkv.weight", "layers.delta_net.qkv.bias"];
        const GATE: Paths = ["layers.delta_net.gate.weight", "layers.delta_net.gate.bias"];
        const BETA: Paths = ["layers.delta_net.beta.weight", "layers.delta_net.beta.bias"];
        const ALPHA: Paths = ["layers.delta_net.alpha.weight", "layers.delta_net.alpha.bias"];
        const OUTPUT: Paths = ["layers.delta_net.output.weight", "layers.delta_net.output.bias"];
        Ok(DeltaNet {
            input: match self.input {
                DeltaInput::Split { qkv, gate } => {
                    DeltaInput::Split { qkv: qkv.try_map(QKV, f)?, gate: gate.try_map(GATE, f)? }
                }
                DeltaInput::Grouped(linear) => DeltaInput::Grouped(linear.try_map(QKV, f)?),
            },
            gates: match self.gates {
                DeltaGates::Split { beta, alpha } => {
                    DeltaGates::Split { beta: beta.try_map(BETA, f)?, alpha: alpha.try_map(ALPHA, f)? }
                }
                DeltaGates::Grouped(linear) => DeltaGates::Grouped(linear.try_map(BETA, f)?),
            },
            conv: f("layers.delta_net.conv", self.conv)?,
            rate: f("layers.delta_net.rate", self.rate)?,
            step_bias: f("layers.delta_net.step_bias", self.step_bias)?,
            norm: f("layers.delta_net.norm", self.norm)?,
            output: self.output.try_map(OUTPUT, f)?,
        })
    }

    pub(super) fn as_ref(&self) -> DeltaNet<&T> {
        DeltaNet {
            input: match &self.input {
                DeltaInput::Split { qkv, gate } => DeltaInput::Split { qkv: qkv.as_ref(), gate: gate.as_ref() },
                DeltaInput::Grouped(linear) => DeltaInput::Grouped(linear.as_ref()),
            },
            gates: match &self.gates {
                DeltaGates::Split { beta, alpha } => DeltaGates::Split { beta: beta.as_ref(), alpha: alpha.as_ref() },
                DeltaGates::Grouped(linear) => DeltaGates::Grouped(linear.as_ref()),
            },
            conv: &self.conv,
            rate: &self.rate,
            step_bias: &self.step_bias,
            norm: &self.norm,
            output: self.output.as_ref(),
        }
    }
}
