//! Text: vocabularies against their makers' vectors, detokenizing, stop strings, chat templates, output parsing.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod commands;
mod outputs;
mod properties;
mod support;
mod templates;
mod vectors;
