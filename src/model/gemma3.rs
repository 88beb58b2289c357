//! `gemma3`: Gemma 3, 270M to 27B, the text part: scaled embeddings, norms before and after attention and feed-forward, an
//! RMS norm over each head of q and k, five layers with a window and a rotation of their own to one without, GEGLU. The
//! files' norms have the 1 that Gemma adds to them.

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
            q_norm: Some(b.vector(&at("attn_q_norm.weight"), h.key_dim)?),
            k_norm: Some(b.vector(&at("attn_k_norm.weight"), h.key_dim)?),
            sinks: None,
        }),
        mixer_post_norm: Some(b.vector(&at("post_attention_norm.weight"), h.d_model)?),
        ffn_norm: b.vector(&at("ffn_norm.weight"), h.d_model)?,
        ffn: feed_forward(b, h, i, SharedGate::None)?,
        ffn_post_norm: Some(b.vector(&at("post_ffw_norm.weight"), h.d_model)?),
    })
}
