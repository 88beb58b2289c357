//! Exact bytes, kept wishes, refusals with what fits.

use super::*;
use crate::model::{Architecture, Rope, RopeKind, RopeScaling};

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
        d_ff: 14336,
        vocab: 128_256,
        context: 131_072,
        rms_eps: 1e-5,
        rope: Rope { kind: RopeKind::Norm, dims: 128, base: 500_000.0, scaling: RopeScaling::None },
        window: None,
        routing: None,
    }
}

fn wish(context: Option<usize>, parallel: usize) -> Wish {
    Wish { context, parallel, kv_element_bytes: 2, block_tokens: 32, max_rows: 516, max_logit_rows: 36 }
}

const GIB: u64 = 1 << 30;
const WEIGHTS: u64 = 5 * GIB;

#[test]
fn bytes_are_exact() {
    assert_eq!(kv_bytes_per_token(&model(), 2), 131_072, "Llama 3 8B: 128 KiB per token");
    let placement = place(&model(), WEIGHTS, &wish(Some(1000), 4), 64 * GIB).unwrap();
    assert_eq!(placement.kv_blocks, 4 * 32, "1000 tokens are 32 blocks of 32");
    assert_eq!(placement.kv_bytes, 131_072 * 32 * 32 * 4);
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
