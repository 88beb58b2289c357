//! `glm4moe`: GLM-4.5, 4.5-Air, 4.6 and 4.7: attention with biases, a norm over each head of q and k in the larger ones,
//! NeoX pairing of a part of each head; a few dense layers, then routed experts beside a shared one. The layers for
//! predicting further tokens at the end (`nextn_predict_layers`) are not bound.

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
            q: b.linear(&at("attn_q"), h.heads * h.key_dim, h.d_model, Bias::Optional)?,
            k: b.linear(&at("attn_k"), h.kv_heads * h.key_dim, h.d_model, Bias::Optional)?,
            v: b.linear(&at("attn_v"), h.kv_heads * h.value_dim, h.d_model, Bias::Optional)?,
            output: b.linear(&at("attn_output"), h.d_model, h.heads * h.value_dim, Bias::Optional)?,
            q_norm: b.optional_vector(&at("attn_q_norm.weight"), h.key_dim)?,
            k_norm: b.optional_vector(&at("attn_k_norm.weight"), h.key_dim)?,
            sinks: None,
        }),
        mixer_post_norm: None,
        ffn_norm: b.vector(&at("post_attention_norm.weight"), h.d_model)?,
        ffn: feed_forward(b, h, i, SharedGate::None)?,
        ffn_post_norm: None,
    })
}
