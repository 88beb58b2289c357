//! `qwen2`: Qwen2, Qwen2.5 and Qwen2.5-Coder: llama's block with biases on q, k and v and the NeoX pairing. `qwen2moe`
//! (Qwen1.5-MoE, Qwen2-57B-A14B): the same with routed experts, and shared ones behind a gate.

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
            output: b.linear(&at("attn_output"), h.d_model, h.heads * h.value_dim, Bias::Optional)?,
            q_norm: None,
            k_norm: None,
            sinks: None,
        }),
        mixer_post_norm: None,
        ffn_norm: b.vector(&at("ffn_norm.weight"), h.d_model)?,
        ffn: feed_forward(b, h, i, SharedGate::Sigmoid)?,
        ffn_post_norm: None,
    })
}
