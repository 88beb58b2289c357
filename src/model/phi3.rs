//! `phi3`: Phi-3 mini and medium, Phi-3.5 mini, Phi-4 and Phi-4 mini: llama's block with NeoX pairing; q, k and v are one
//! tensor, and so are gate and up; LongRoPE's factors in models of long context, a window in some.

use super::binder::{Bias, Binder};
use super::{Attention, Error, FeedForward, Ffn, Hparams, Layer, Mixer, RopeScaling};
use crate::gguf::TensorInfo;

/// Binds the factors of LongRoPE: the short ones, and the long ones.
pub(super) fn factors(b: &mut Binder, h: &Hparams) -> Result<[Option<TensorInfo>; 2], Error> {
    const LONG: &str = "rope_factors_long.weight";
    let pairs = h.rope.dims / 2;
    let long = if outgrows(h) { Some(b.vector(LONG, pairs)?) } else { b.optional_vector(LONG, pairs)? };
    Ok([b.optional_vector("rope_factors_short.weight", pairs)?, long])
}

/// Whether the model is meant for more than its original context, which needs the long factors.
fn outgrows(h: &Hparams) -> bool {
    match h.rope.scaling {
        RopeScaling::LongRope { original_context, .. } => h.context > original_context as usize,
        _ => false,
    }
}

/// Binds block `i`.
pub(super) fn layer(b: &mut Binder, h: &Hparams, i: usize) -> Result<Layer<TensorInfo>, Error> {
    let at = |name: &str| format!("blk.{i}.{name}");
    let parts = [("q", h.heads * h.key_dim), ("k", h.kv_heads * h.key_dim), ("v", h.kv_heads * h.value_dim)];
    let [q, k, v] = b.fused(&at("attn_qkv"), parts, h.d_model)?;
    let [gate, up] = b.fused(&at("ffn_up"), [("gate", h.d_ff), ("up", h.d_ff)], h.d_model)?;
    Ok(Layer {
        attn_norm: b.vector(&at("attn_norm.weight"), h.d_model)?,
        mixer: Mixer::Attention(Attention {
            q,
            k,
            v,
            output: b.linear(&at("attn_output"), h.d_model, h.heads * h.value_dim, Bias::Optional)?,
            q_norm: None,
            k_norm: None,
            sinks: None,
        }),
        mixer_post_norm: None,
        ffn_norm: b.vector(&at("ffn_norm.weight"), h.d_model)?,
        ffn: FeedForward::Dense(Ffn { gate, up, down: b.linear(&at("ffn_down"), h.d_model, h.d_ff, Bias::Optional)? }),
        ffn_post_norm: None,
    })
}
