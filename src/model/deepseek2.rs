//! `deepseek2`: DeepSeek-V2, V3, R1, Kimi-K2, GLM-4.7-Flash, Mistral Large 3; `mistral4`: Mistral Small 4. Multi-head
//! latent attention (MLA, arXiv 2405.04434), a few dense layers, then routed experts beside shared ones. Layers for
//! predicting further tokens at the end (`nextn_predict_layers`) are not bound.
//!
//! Per token the cache holds one latent `c` and one rotated key `r` that all heads share. With `W = kv_b`, head `h` has the
//! key `[W_key[h]·c, r]` and the value `W_value[h]·c`. Files have `W` whole, or cut: the keys' part transposed, so that
//! `W_key[h]ᵀ·q` is a plain product and the head can attend to `c` itself.

use super::binder::{Bias, Binder};
use super::experts::{SharedGate, feed_forward};
use super::{Error, Hparams, Layer, Linear, Mixer};
use crate::gguf::TensorInfo;

/// The numbers of latent attention, checked: `rope` is the model's `Rope::dims`, all are at least 1, the latent and
/// what is cached with it are multiples of 16.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LatentDims {
    /// Elements of the compressed query; 0 where queries are made at once.
    pub q_rank: usize,
    /// Elements of the latent.
    pub kv_rank: usize,
    /// Rotated elements of a head's query and key, its last.
    pub rope: usize,
    /// Those before them.
    pub nope: usize,
    /// Elements of a head's value.
    pub value: usize,
    /// Factor on the scores: `1/√(nope + rope)`, times the square of YaRN's `1 + yarn_log_multiplier · ln(factor)`.
    pub scale: f32,
}

impl LatentDims {
    /// Elements of a head's query and key.
    pub fn key(&self) -> usize {
        self.nope + self.rope
    }

    /// Elements of what is cached of a token.
    pub fn cached(&self) -> usize {
        self.kv_rank + self.rope
    }
}

/// Latent attention.
#[derive(Clone, Debug)]
pub struct Latent<T> {
    /// To the compressed query; `None` where there is none.
    pub q_down: Option<QueryDown<T>>,
    /// `attn_q_b` `[heads * (nope + rope), q_rank]`, or `attn_q` `[heads * (nope + rope), d_model]`.
    pub q: Linear<T>,
    /// `attn_kv_a_mqa` `[kv_rank + rope, d_model]`: the latent, and the key that all heads share.
    pub kv_down: Linear<T>,
    /// `attn_kv_a_norm.weight` `[kv_rank]`.
    pub kv_norm: T,
    /// From the latent to keys and values.
    pub kv_up: KeyValueUp<T>,
    /// `[d_model, heads * value]`.
    pub output: Linear<T>,
}

/// To the compressed query.
#[derive(Clone, Debug)]
pub struct QueryDown<T> {
    /// `attn_q_a` `[q_rank, d_model]`.
    pub linear: Linear<T>,
    /// `attn_q_a_norm.weight` `[q_rank]`.
    pub norm: T,
}

/// From the latent to keys and values, in one of the forms that files have.
#[derive(Clone, Debug)]
pub enum KeyValueUp<T> {
    /// `attn_kv_b.weight` `[heads * (nope + value), kv_rank]`: each head's key, then its value.
    Whole(T),
    /// Cut in two stacks of a matrix per head.
    Split {
        /// `attn_k_b.weight` `[heads * kv_rank, nope]`: each head's matrix transposed.
        key: T,
        /// `attn_v_b.weight` `[heads * value, kv_rank]`.
        value: T,
    },
}

/// Binds block `i`.
pub(super) fn layer(b: &mut Binder, h: &Hparams, i: usize) -> Result<Layer<TensorInfo>, Error> {
    let Some(dims) = &h.latent else { unreachable!("this architecture's numbers hold those of latent attention") };
    Ok(Layer {
        attn_norm: b.vector(&format!("blk.{i}.attn_norm.weight"), h.d_model)?,
        mixer: Mixer::Latent(Box::new(latent(b, h, dims, i)?)),
        mixer_post_norm: None,
        ffn_norm: b.vector(&format!("blk.{i}.ffn_norm.weight"), h.d_model)?,
        ffn: feed_forward(b, h, i, SharedGate::None)?,
        ffn_post_norm: None,
    })
}

fn latent(b: &mut Binder, h: &Hparams, d: &LatentDims, i: usize) -> Result<Latent<TensorInfo>, Error> {
    let at = |name: &str| format!("blk.{i}.{name}");
    let q_rows = h.heads * d.key();
    let (q_down, q) = if d.q_rank > 0 {
        let linear = b.linear(&at("attn_q_a"), d.q_rank, h.d_model, Bias::Optional)?;
        let norm = b.vector(&at("attn_q_a_norm.weight"), d.q_rank)?;
        (Some(QueryDown { linear, norm }), b.linear(&at("attn_q_b"), q_rows, d.q_rank, Bias::Optional)?)
    } else {
        (None, b.linear(&at("attn_q"), q_rows, h.d_model, Bias::Optional)?)
    };
    // The matrix alone where a file has both forms: the other one follows from it.
    let whole = b.optional_matrix(&at("attn_kv_b.weight"), h.heads.saturating_mul(d.nope + d.value), d.kv_rank)?;
    Ok(Latent {
        q_down,
        q,
        kv_down: b.linear(&at("attn_kv_a_mqa"), d.cached(), h.d_model, Bias::Optional)?,
        kv_norm: b.vector(&at("attn_kv_a_norm.weight"), d.kv_rank)?,
        kv_up: match whole {
            Some(whole) => KeyValueUp::Whole(whole),
            None => KeyValueUp::Split {
                key: b.plain_stack(&at("attn_k_b"), h.heads, d.kv_rank, d.nope)?,
                value: b.plain_stack(&at("attn_v_b"), h.heads, d.value, d.kv_rank)?,
            },
        },
        output: b.linear(&at("attn_output"), h.d_model, h.heads * d.value, Bias::Optional)?,
    })
}
