//! The GGUF reader and the model binding: bundled models, the catalogue of malformed files, properties, `inspect`.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod alloc;
mod bundled;
mod handcrafted;
mod inspect;
mod latent;
mod malformed;
mod model;
mod properties;
mod published;
mod raw;
mod variants;
