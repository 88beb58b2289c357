//! The tokenizer.

use super::Error;
use crate::gguf;

/// A vocabulary with its encoding rules; immutable, shared between threads.
#[derive(Debug)]
pub struct Tokenizer {
    end_of_generation: Vec<u32>,
}

impl Tokenizer {
    /// Builds the tokenizer a file describes.
    pub fn from_metadata(_m: &gguf::Metadata) -> Result<Tokenizer, Error> {
        Ok(Self { end_of_generation: Vec::new() })
    }
    /// Text to ids. `add_special` adds BOS and EOS as the file asks; `parse_special` lets literals of control tokens in
    /// the text become those tokens (never for text from untrusted users).
    pub fn encode(&self, _text: &str, _add_special: bool, _parse_special: bool) -> Vec<u32> {
        Vec::new()
    }
    /// A token's text as raw bytes; special ones give their literal.
    pub fn token_bytes(&self, _id: u32) -> Option<&[u8]> {
        None
    }
    /// Ids to bytes; control tokens only `with_special`.
    pub fn decode(&self, _ids: &[u32], _with_special: bool) -> Vec<u8> {
        Vec::new()
    }
    /// Number of ids.
    pub fn vocab_size(&self) -> usize {
        0
    }
    /// Beginning-of-sequence id.
    pub fn bos(&self) -> Option<u32> {
        None
    }
    /// End-of-sequence id.
    pub fn eos(&self) -> Option<u32> {
        None
    }
    /// Whether `encode` with `add_special` begins with BOS.
    pub fn add_bos(&self) -> bool {
        false
    }
    /// Ids that end an answer: eos, eot, `<|im_end|>` and the like, sorted.
    pub fn end_of_generation(&self) -> &[u32] {
        &self.end_of_generation
    }
    /// Whether the id is a control token, hidden from readers.
    pub fn is_special(&self, _id: u32) -> bool {
        false
    }
    /// The id of a token's literal text.
    pub fn token_to_id(&self, _literal: &str) -> Option<u32> {
        None
    }
    pub(super) fn strips_leading_space(&self) -> bool {
        false
    }
    pub(super) fn append_piece(&self, _id: u32, _with_special: bool, _strip: &mut bool, _out: &mut Vec<u8>) {}
}
