//! `minimax-m2`: MiniMax-M2: one norm over all heads of q together, one over those of k, NeoX pairing of a part of each
//! head, routed experts in every layer.

use super::binder::{Bias, Binder};
use super::experts::{SharedGate, feed_forward};
use super::{Attention, Error, Hparams, Layer, Mixer};
use crate::gguf::TensorInfo;

/// Binds block `i`.
pub(super) fn layer(b: &mut Binder, h: &Hparams, i: usize) -> Result<Layer<TensorInfo>, Error> {
    let at = |name: &str| format!("blk.{i}.{name}");
    let (q, k) = (h.heads * h.key_dim, h.kv_heads * h.key_dim);
    Ok(Layer {
        attn_norm: b.vector(&at("attn_norm.weight"), h.d_model)?,
        mixer: Mixer::Attention(Attention {
            q: b.linear(&at("attn_q"), q, h.d_model, Bias::Optional)?,
            k: b.linear(&at("attn_k"), k, h.d_model, Bias::Optional)?,
            v: b.linear(&at("attn_v"), h.kv_heads * h.value_dim, h.d_model, Bias::Optional)?,
            output: b.linear(&at("attn_output"), h.d_model, h.heads * h.value_dim, Bias::Optional)?,
            q_norm: Some(b.vector(&at("attn_q_norm.weight"), q)?),
            k_norm: Some(b.vector(&at("attn_k_norm.weight"), k)?),
            sinks: None,
        }),
        mixer_post_norm: None,
        ffn_norm: b.vector(&at("ffn_norm.weight"), h.d_model)?,
        ffn: feed_forward(b, h, i, SharedGate::None)?,
        ffn_post_norm: None,
    })
}
