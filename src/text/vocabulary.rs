//! The tokens of a file: their bytes, kinds and scores, and the way from bytes back to the id.
//!
//! One flat byte store and one open-addressing table of 8-byte slots: a vocabulary of 200,000 tokens takes some 6 MB.
//! Knows nothing of merging; the encoders build on it.

use super::{Error, metadata};
use crate::gguf::Metadata;
use rustc_hash::FxHasher;
use std::hash::Hasher;

/// `tokenizer.ggml.token_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Made by training; merges make it.
    Normal,
    /// Stands for what the vocabulary cannot spell.
    Unknown,
    /// Steers the model; hidden from readers, never made from untrusted text.
    Control,
    /// Found in any text before merging, visible to readers.
    UserDefined,
    /// Padding of the embedding table.
    Unused,
    /// `<0xXX>`, one raw byte.
    Byte,
}

impl Kind {
    fn from_metadata(number: i32) -> Self {
        match number {
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => Self::Normal,
        }
    }
}

/// Which spelling the file uses for the bytes of normal tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spelling {
    /// GPT-2's: each byte is a printable character.
    ByteLevel,
    /// SentencePiece's: U+2581 is a space, `<0xXX>` a byte.
    SentencePiece,
}

/// What SentencePiece writes for a space.
pub(super) const SPACE_MARK: char = '\u{2581}';

/// No id.
pub(super) const NONE: u32 = u32::MAX;

/// All tokens of a file.
#[derive(Debug)]
pub(super) struct Vocabulary {
    bytes: Vec<u8>,
    /// End of each token in `bytes`.
    ends: Vec<u32>,
    kinds: Vec<Kind>,
    /// SentencePiece scores; empty when the file has none.
    pub(super) scores: Vec<f32>,
    /// Normal tokens by their bytes: high 32 bits of the hash, and the id.
    slots: Vec<(u32, u32)>,
    mask: usize,
}

impl Vocabulary {
    /// Reads `tokenizer.ggml.{tokens,token_type,scores}`.
    pub(super) fn from_metadata(file: &Metadata, spelling: Spelling) -> Result<Self, Error> {
        const TOKENS: &str = "tokenizer.ggml.tokens";
        let tokens = metadata::strings(file, TOKENS)?.ok_or(Error::MissingKey { key: TOKENS })?;
        let types = metadata::integers(file, "tokenizer.ggml.token_type")?;
        let scores = metadata::floats(file, "tokenizer.ggml.scores")?.unwrap_or_default();
        let same_length = |what: &str, length: usize| {
            let what = format!("{} tokens but {length} {what}", tokens.len());
            if length == tokens.len() { Ok(()) } else { Err(Error::Vocabulary { what }) }
        };
        if let Some(types) = &types {
            same_length("token types", types.len())?;
        }
        if !scores.is_empty() {
            same_length("scores", scores.len())?;
        }
        let total = tokens.total_bytes();
        if tokens.is_empty() || tokens.len() >= NONE as usize / 4 || total >= NONE as usize {
            return Err(Error::Vocabulary { what: format!("{} tokens of {total} bytes", tokens.len()) });
        }
        let kind = |id: usize| types.as_ref().map_or(Kind::Normal, |types| Kind::from_metadata(types[id]));
        let kinds: Vec<Kind> = (0..tokens.len()).map(kind).collect();
        let mut bytes = Vec::with_capacity(total);
        let mut ends = Vec::with_capacity(tokens.len());
        for (token, kind) in tokens.iter().zip(&kinds) {
            spelling.append(token, *kind, &mut bytes);
            ends.push(bytes.len() as u32);
        }
        let slots = vec![(0, NONE); (tokens.len() * 2).next_power_of_two()];
        let mut vocabulary = Self { bytes, ends, kinds, scores, mask: slots.len() - 1, slots };
        for id in 0..tokens.len() as u32 {
            if vocabulary.merges_make(id) {
                vocabulary.insert(id);
            }
        }
        Ok(vocabulary)
    }

    /// Number of ids.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// A token's raw bytes.
    pub(super) fn token(&self, id: u32) -> Option<&[u8]> {
        let id = id as usize;
        let end = *self.ends.get(id)? as usize;
        let begin = if id == 0 { 0 } else { self.ends[id - 1] as usize };
        Some(&self.bytes[begin..end])
    }

    /// A token's kind.
    pub(super) fn kind(&self, id: u32) -> Option<Kind> {
        self.kinds.get(id as usize).copied()
    }

    /// Ids of a kind, ascending.
    pub(super) fn ids_of(&self, kind: Kind) -> impl Iterator<Item = u32> + '_ {
        (0..).zip(&self.kinds).filter(move |&(_, k)| *k == kind).map(|(id, _)| id)
    }

    /// The normal token with exactly these bytes; of duplicates the last.
    #[inline]
    pub(super) fn find(&self, bytes: &[u8]) -> Option<u32> {
        let (tag, mut slot) = self.place(bytes);
        loop {
            let (other, id) = self.slots[slot];
            if id == NONE {
                return None;
            }
            if other == tag && self.token(id) == Some(bytes) {
                return Some(id);
            }
            slot = (slot + 1) & self.mask;
        }
    }

    /// Empty tokens and those that stand for something else than their text cannot come out of a merge.
    fn merges_make(&self, id: u32) -> bool {
        self.kinds[id as usize] == Kind::Normal && self.token(id).is_some_and(|bytes| !bytes.is_empty())
    }

    fn insert(&mut self, id: u32) {
        let bytes = self.token(id).unwrap_or_default();
        let (tag, mut slot) = self.place(bytes);
        loop {
            let (other, there) = self.slots[slot];
            if there == NONE || (other == tag && self.token(there) == Some(bytes)) {
                self.slots[slot] = (tag, id);
                return;
            }
            slot = (slot + 1) & self.mask;
        }
    }

    #[inline]
    fn place(&self, bytes: &[u8]) -> (u32, usize) {
        let mut hasher = FxHasher::default();
        hasher.write(bytes);
        let hash = hasher.finish();
        ((hash >> 32) as u32, hash as usize & self.mask)
    }
}

impl Spelling {
    /// Appends the raw bytes of a token as the file spells it.
    fn append(self, token: &[u8], kind: Kind, out: &mut Vec<u8>) {
        match (self, kind) {
            (_, Kind::Control | Kind::Unknown | Kind::UserDefined | Kind::Unused) => out.extend_from_slice(token),
            (_, Kind::Byte) => match parse_byte(token) {
                Some(byte) => out.push(byte),
                None => out.extend_from_slice(token),
            },
            (Self::SentencePiece, Kind::Normal) => append_with_spaces(token, out),
            (Self::ByteLevel, Kind::Normal) => append_byte_level(token, out),
        }
    }
}

/// The byte of `<0xXX>`.
pub(super) fn parse_byte(token: &[u8]) -> Option<u8> {
    let digits = std::str::from_utf8(token).ok()?.strip_prefix("<0x")?.strip_suffix('>')?;
    let hex = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    hex.then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

/// Copies text, turning each U+2581 into a space.
fn append_with_spaces(mut text: &[u8], out: &mut Vec<u8>) {
    const MARK: &[u8] = "\u{2581}".as_bytes();
    while let Some(at) = text.windows(MARK.len()).position(|window| window == MARK) {
        out.extend_from_slice(&text[..at]);
        out.push(b' ');
        text = &text[at + MARK.len()..];
    }
    out.extend_from_slice(text);
}

/// Undoes GPT-2's spelling; a token with a character that spells no byte is taken literally.
pub(super) fn append_byte_level(token: &[u8], out: &mut Vec<u8>) {
    let begin = out.len();
    let decoded = std::str::from_utf8(token).is_ok_and(|text| {
        text.chars().all(|c| {
            spelled_byte(c).is_some_and(|byte| {
                out.push(byte);
                true
            })
        })
    });
    if !decoded {
        out.truncate(begin);
        out.extend_from_slice(token);
    }
}

/// The byte a character stands for in GPT-2's spelling: printable Latin-1 stands for itself, the other 68 bytes follow
/// in order from U+0100.
fn spelled_byte(c: char) -> Option<u8> {
    match c as u32 {
        code @ (0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) => Some(code as u8),
        code @ 0x100..=0x120 => Some((code - 0x100) as u8),
        code @ 0x121..=0x142 => Some((code - 0x121 + 0x7F) as u8),
        0x143 => Some(0xAD),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_alphabet_is_complete() {
        let mut bytes: Vec<u8> = (0..0x200).filter_map(char::from_u32).filter_map(spelled_byte).collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        assert_eq!(spelled_byte('Ġ'), Some(b' '));
        assert_eq!(spelled_byte('Ċ'), Some(b'\n'));
    }

    #[test]
    fn spaces_and_bytes_are_spelled_out() {
        let mut out = Vec::new();
        append_with_spaces("▁a▁▁b".as_bytes(), &mut out);
        assert_eq!(out, b" a  b");
        assert_eq!(parse_byte(b"<0x0A>"), Some(10));
        assert_eq!(parse_byte(b"<0xA>"), None);
        assert_eq!(parse_byte(b"<0x+1>"), None);
    }
}
