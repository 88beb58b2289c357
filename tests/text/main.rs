//! Text: vocabularies against their makers' vectors, detokenizing, stop strings, chat templates, output parsing.

mod support;
mod templates;
mod vectors;
