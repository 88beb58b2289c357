//! Exact bytes, kept wishes, refusals with what fits.

mod cost;
mod hosts;
mod planner;

use super::*;
use crate::model::{Activation, Architecture, Rope, RopeKind, RopeScaling};
use crate::quant::DType;

fn model() -> Hparams {
    Hparams {
        architecture: Architecture::Llama,
        name: "test".into(),
        layers: 32,
        d_model: 4096,
        heads: 32,
        kv_heads: 8,
        key_dim: 128,
        value_dim: 128,
        latent: None,
        d_ff: 14336,
        vocab: 128_256,
        context: 131_072,
        rms_eps: 1e-5,
        rope: Rope { kind: RopeKind::Norm, dims: 128, base: 500_000.0, scaling: RopeScaling::None },
        window_rope: None,
        window: None,
        global: vec![],
        attention_scale: 1.0,
        query_growth: None,
        activation: Activation::Silu,
        embedding_scale: 1.0,
        logit_cap: None,
        recurrence: None,
        routing: None,
    }
}

fn wish(context: Option<usize>, parallel: usize) -> Wish {
    Wish { context, parallel }
}

/// A cache of F16 in blocks of 32 tokens, and some buffers.
fn needs(context: usize, parallel: usize) -> Needs {
    let blocks = (context.div_ceil(32) as u64).saturating_mul(parallel as u64);
    let per_block = 32 * model().kv_bytes_per_token(DType::F16);
    Needs { kv_bytes: blocks.saturating_mul(per_block), state_bytes: 0, scratch_bytes: 100 << 20 }
}

fn place(model: &Hparams, weights: u64, wish: &Wish, available: u64) -> Result<Placement, Box<Refusal>> {
    super::place(model, weights, wish, available, needs)
}

const GIB: u64 = 1 << 30;
const WEIGHTS: u64 = 5 * GIB;

#[test]
fn bytes_are_exact() {
    assert_eq!(model().kv_bytes_per_token(DType::F16), 131_072, "Llama 3 8B: 128 KiB per token");
    let placement = place(&model(), WEIGHTS, &wish(Some(1000), 4), 64 * GIB).unwrap();
    assert_eq!(placement.kv_bytes, 131_072 * 32 * 32 * 4, "1000 tokens are 32 blocks of 32");
    assert_eq!(placement.scratch_bytes, 100 << 20);
    let counted = placement.weight_bytes + placement.kv_bytes + placement.scratch_bytes;
    assert_eq!(placement.total_bytes(), counted + RESERVE + counted / 50);
    assert!(placement.notes.is_empty());
}

#[test]
fn the_default_context_is_bounded_and_shrinks_to_memory() {
    assert_eq!(place(&model(), WEIGHTS, &wish(None, 4), 64 * GIB).unwrap().context, 8192);
    let small = Hparams { context: 2048, ..model() };
    assert_eq!(place(&small, WEIGHTS, &wish(None, 4), 64 * GIB).unwrap().context, 2048);
    let tight = place(&model(), WEIGHTS, &wish(None, 4), 8 * GIB).unwrap();
    assert!((512..8192).contains(&tight.context), "{}", tight.context);
    assert!(tight.total_bytes() <= 8 * GIB);
    assert_eq!(tight.notes.len(), 1);
    let one_more = place(&model(), WEIGHTS, &wish(Some(tight.context + 32), 4), 8 * GIB);
    assert!(one_more.is_err(), "it is the longest that fits");
}

#[test]
fn a_wish_is_kept_or_refused_with_what_fits() {
    let refusal = place(&model(), WEIGHTS, &wish(Some(32_768), 4), 12 * GIB).unwrap_err();
    let context = refusal.context_that_fits.unwrap();
    assert!(place(&model(), WEIGHTS, &wish(Some(context), 4), 12 * GIB).is_ok());
    let parallel = refusal.parallel_that_fits.unwrap();
    assert!(place(&model(), WEIGHTS, &wish(Some(32_768), parallel), 12 * GIB).is_ok());
    assert!(place(&model(), WEIGHTS, &wish(Some(32_768), parallel + 1), 12 * GIB).is_err());
    let text = refusal.to_string();
    for part in ["weights", "5120.0 MiB", "KV cache, 4 x 32768 tokens", "16384.0 MiB", "missing", "what fits"] {
        assert!(text.contains(part), "{part} is not in:\n{text}");
    }
}

#[test]
fn weights_that_do_not_fit_are_said_to() {
    let refusal = place(&model(), 400 * GIB, &wish(None, 1), 64 * GIB).unwrap_err();
    assert_eq!((refusal.context_that_fits, refusal.parallel_that_fits), (None, None));
    assert!(refusal.to_string().contains("smaller quantisation"));
}

#[test]
fn absurd_wishes_do_not_overflow() {
    assert!(place(&model(), WEIGHTS, &wish(Some(usize::MAX / 2), 1 << 20), 64 * GIB).is_err());
}

#[test]
fn a_context_beyond_training_is_noted() {
    let small = Hparams { context: 2048, ..model() };
    let placement = place(&small, WEIGHTS, &wish(Some(4096), 1), 64 * GIB).unwrap();
    assert!(placement.notes[0].contains("2048"));
}
