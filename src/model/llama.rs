//! `llama`: Llama 1 to 3.x, Mistral, SmolLM and all that share their block: RMS norm, grouped-query attention with
//! interleaved rotary embedding, SwiGLU. Llama 3.1 and later bring frequency factors, some fine-tunes biases, small
//! ones a tied output, Mixtral routed experts. `mistral3` (Ministral 3) is the same with YaRN and queries that grow with
//! their position.

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
            q_norm: None,
            k_norm: None,
            sinks: None,
        }),
        mixer_post_norm: None,
        ffn_norm: b.vector(&at("ffn_norm.weight"), h.d_model)?,
        ffn: feed_forward(b, h, i, SharedGate::None)?,
        ffn_post_norm: None,
    })
}
