//! Text and tokens: GGUF vocabularies, chat templates, output parsing, incremental detokenizing, stop strings.
//!
//! Pure: no I/O, no clock (the template's `strftime_now` takes the time as an argument), no tensor. Called by the API,
//! the workers and `omnictl`; the engine never sees a string.
//!
//! ```text
//! request ─▶ ChatTemplate::render ─▶ Tokenizer::encode ─▶ (engine) ─▶ Detokenizer::push ─▶ StopMatcher::push ─▶ parse_output
//! ```

mod byte_level;
mod chat_parse;
mod detokenizer;
mod error;
mod metadata;
mod pretokenizer;
mod pretokenizer_passes;
mod sentencepiece;
mod special;
mod stop;
mod template;
mod tokenizer;
mod unicode;
mod unigram;
mod vocabulary;

pub use chat_parse::{OutputFormat, ParseOptions, ParsedOutput, ToolCall, parse_output, parse_output_for_tools};
pub use detokenizer::Detokenizer;
pub use error::Error;
pub use stop::{StopMatcher, StopResult};
pub use template::{ChatInput, ChatTemplate};
pub use tokenizer::Tokenizer;
