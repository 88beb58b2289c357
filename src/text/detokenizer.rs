//! Token ids -> text, one at a time, for one stream.
//!
//! Never emits half a UTF-8 sequence: bytes wait until their character is complete, and bytes that can no longer become a
//! character turn into U+FFFD, exactly as `String::from_utf8_lossy` would turn the whole.

use super::Tokenizer;
use std::sync::Arc;

/// Incremental detokenizer of one stream.
#[derive(Clone, Debug)]
pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    with_special: bool,
    /// Control tokens that are shown all the same.
    shown: Arc<[u32]>,
    /// Bytes of a character that is not complete yet, at most 3.
    pending: Vec<u8>,
    /// Nothing but skipped tokens came so far, and a leading space is to be dropped.
    strip_space: bool,
}

impl Detokenizer {
    /// A stream that begins a text: a SentencePiece vocabulary's artificial leading space is dropped, as in
    /// [`Tokenizer::decode`]. `with_special` shows control tokens by their literal.
    pub fn new(tokenizer: Arc<Tokenizer>, with_special: bool) -> Self {
        let strip_space = tokenizer.strips_leading_space();
        Self { tokenizer, with_special, shown: Arc::default(), pending: Vec::new(), strip_space }
    }

    /// A stream that continues a prompt: a leading space is text and stays.
    pub fn continuing(tokenizer: Arc<Tokenizer>, with_special: bool) -> Self {
        Self { strip_space: false, ..Self::new(tokenizer, with_special) }
    }

    /// Shows these control tokens by their literals: markup that a later reader of the text needs.
    #[must_use]
    pub fn showing(self, shown: Arc<[u32]>) -> Self {
        Self { shown, ..self }
    }

    /// Takes the next token and returns the text that is certain now, often empty, never partial characters.
    pub fn push(&mut self, id: u32) -> String {
        let show = self.with_special || self.shown.contains(&id);
        self.tokenizer.append_piece(id, show, &mut self.strip_space, &mut self.pending);
        self.take_complete()
    }

    /// The stream is over: an incomplete character becomes U+FFFD.
    pub fn finish(&mut self) -> String {
        let rest = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        rest
    }

    fn take_complete(&mut self) -> String {
        let mut out = String::new();
        let mut used = 0;
        for chunk in self.pending.utf8_chunks() {
            out.push_str(chunk.valid());
            used += chunk.valid().len();
            let bad = chunk.invalid();
            if bad.is_empty() {
                continue;
            }
            if used + bad.len() == self.pending.len() && may_complete(bad) {
                break;
            }
            out.push(char::REPLACEMENT_CHARACTER);
            used += bad.len();
        }
        self.pending.drain(..used);
        out
    }
}

/// Whether more bytes could turn these into a character. `utf8_chunks` already cut the run at the first byte that breaks
/// a sequence, so only the expected length is left to check.
fn may_complete(bytes: &[u8]) -> bool {
    let expected = match bytes[0] {
        0xC2..=0xDF => 2,
        0xE0..=0xEF => 3,
        0xF0..=0xF4 => 4,
        _ => return false,
    };
    bytes.len() < expected
}
