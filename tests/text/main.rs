//! Text: vocabularies against their makers' vectors, detokenizing, stop strings, chat templates, output parsing.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

/// A template's memory is bounded where the program's allocator is this one.
#[global_allocator]
static HEAP: omni_inferd::sys::heap::Metered = omni_inferd::sys::heap::Metered;

mod commands;
mod outputs;
mod properties;
mod support;
mod templates;
mod vectors;
