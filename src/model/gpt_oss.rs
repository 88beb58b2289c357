//! `gpt-oss`: gpt-oss-20b and 120b: biases everywhere, attention sinks, a window in every other layer, NeoX pairing with
//! YaRN, routed experts in every layer whose SwiGLU is clamped.

use super::binder::{Bias, Binder};
use super::experts::{SharedGate, feed_forward};
use super::{Attention, Error, Hparams, Layer, Mixer};
use crate::gguf::TensorInfo;

/// Binds block `i`.
pub(super) fn layer(b: &mut Binder, h: &Hparams, i: usize) -> Result<Layer<TensorInfo>, Error> {
    let at = |name: &str| format!("blk.{i}.{name}");
    Ok(Layer {
        attn_norm: b.vector(&at("attn_norm.weight"), h.d_model)?,
        mixer: Mixer::Attention(Attention {
            q: b.linear(&at("attn_q"), h.heads * h.key_dim, h.d_model, Bias::Required)?,
            k: b.linear(&at("attn_k"), h.kv_heads * h.key_dim, h.d_model, Bias::Required)?,
            v: b.linear(&at("attn_v"), h.kv_heads * h.value_dim, h.d_model, Bias::Required)?,
            output: b.linear(&at("attn_output"), h.d_model, h.heads * h.value_dim, Bias::Required)?,
            q_norm: None,
            k_norm: None,
            sinks: Some(b.vector(&at("attn_sinks.weight"), h.heads)?),
        }),
        mixer_post_norm: None,
        ffn_norm: b.vector(&at("post_attention_norm.weight"), h.d_model)?,
        ffn: feed_forward(b, h, i, SharedGate::None)?,
        ffn_post_norm: None,
    })
}
