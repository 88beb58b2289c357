//! Text: vocabularies against their makers' vectors, detokenizing, stop strings, chat templates, output parsing.

mod commands;
mod outputs;
mod properties;
mod support;
mod templates;
mod vectors;
