//! What runs a model, on real files: logits and texts against llama.cpp and Hugging Face, perplexity, and the engine
//! under many readers. How the expected values were made stands in `tests/goldens/README.md`.

// Helpers outside of `#[test]` functions unwrap, too.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod bench;
mod cancel;
mod hybrid;
mod kv;
mod latent;
mod logits;
mod perplexity;
mod refusals;
mod selftest;
mod serving;
mod support;
mod texts;
mod types;
mod vault;
