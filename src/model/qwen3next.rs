//! `qwen3next` (Qwen3-Next, Qwen3-Coder-Next), `qwen35` and `qwen35moe` (Qwen3.5): gated delta net in most layers; in each
//! fourth, attention whose output is scaled by a gate beside q, a norm over each head of q and k, NeoX pairing of a part of
//! each head; experts with a gated shared one, or a dense feed-forward layer. Norms that transformers keeps around zero
//! have 1 added in the file. The sections of the rotary embedding (`rope.dimension_sections`) say how places in images
//! turn; those of text are equal in all of them, so it is the plain one.

use super::binder::{Bias, Binder};
use super::experts::{SharedGate, feed_forward};
use super::recurrence::delta_net;
use super::{Attention, Error, Hparams, Layer, Mixer};
use crate::gguf::TensorInfo;

/// Binds block `i`.
pub(super) fn layer(b: &mut Binder, h: &Hparams, i: usize) -> Result<Layer<TensorInfo>, Error> {
    let at = |name: &str| format!("blk.{i}.{name}");
    Ok(Layer {
        attn_norm: b.vector(&at("attn_norm.weight"), h.d_model)?,
        mixer: match &h.recurrence {
            Some(recurrence) if !recurrence.attention[i] => {
                Mixer::DeltaNet(Box::new(delta_net(b, h.d_model, recurrence, i)?))
            }
            _ => Mixer::GatedAttention(Attention {
                q: b.linear(&at("attn_q"), h.heads.saturating_mul(h.key_dim + h.value_dim), h.d_model, Bias::Optional)?,
                k: b.linear(&at("attn_k"), h.kv_heads * h.key_dim, h.d_model, Bias::Optional)?,
                v: b.linear(&at("attn_v"), h.kv_heads * h.value_dim, h.d_model, Bias::Optional)?,
                output: b.linear(&at("attn_output"), h.d_model, h.heads * h.value_dim, Bias::Optional)?,
                q_norm: Some(b.vector(&at("attn_q_norm.weight"), h.key_dim)?),
                k_norm: Some(b.vector(&at("attn_k_norm.weight"), h.key_dim)?),
                sinks: None,
            }),
        },
        mixer_post_norm: None,
        ffn_norm: b.vector(&at("post_attention_norm.weight"), h.d_model)?,
        ffn: feed_forward(b, h, i, SharedGate::Sigmoid)?,
        ffn_post_norm: None,
    })
}
