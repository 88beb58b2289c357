//! Character classes for the pre-tokenizers: one table lookup per character instead of a regular expression engine.
//!
//! Built once from the Unicode tables of `regex-syntax`, so that the classes are those of `\p{…}` in the vendors' patterns.

use std::sync::LazyLock;

/// A set of classes; a character is in several.
pub(super) type Class = u16;

/// `\p{L}`.
pub(super) const LETTER: Class = 1;
/// `\p{N}`.
pub(super) const NUMBER: Class = 1 << 1;
/// `\p{M}`.
pub(super) const MARK: Class = 1 << 2;
/// `\p{P}`.
pub(super) const PUNCTUATION: Class = 1 << 3;
/// `\p{S}`.
pub(super) const SYMBOL: Class = 1 << 4;
/// `\s`, the White_Space property.
pub(super) const SPACE: Class = 1 << 5;
/// `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]`: may stand in the head of a cased word.
pub(super) const HEAD: Class = 1 << 6;
/// `[\p{Ll}\p{Lm}\p{Lo}\p{M}]`: may stand in the tail of a cased word.
pub(super) const TAIL: Class = 1 << 7;
/// `\p{Han}`.
pub(super) const HAN: Class = 1 << 8;
/// `[\r\n]`.
pub(super) const NEWLINE: Class = 1 << 9;

const PATTERNS: [(&str, Class); 10] = [
    (r"\p{L}", LETTER),
    (r"\p{N}", NUMBER),
    (r"\p{M}", MARK),
    (r"\p{P}", PUNCTUATION),
    (r"\p{S}", SYMBOL),
    (r"\s", SPACE),
    (r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", HEAD),
    (r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]", TAIL),
    (r"\p{Han}", HAN),
    (r"[\r\n]", NEWLINE),
];

const BLOCK: usize = 256;
const CODE_POINTS: usize = 0x11_0000;

/// Two-level table: equal blocks of 256 characters are stored once.
pub(super) struct Classes {
    ascii: [Class; 128],
    block_of: Vec<u16>,
    blocks: Vec<Class>,
}

/// The table, built at first use (a few milliseconds).
pub(super) static CLASSES: LazyLock<Classes> = LazyLock::new(Classes::build);

impl Classes {
    fn build() -> Self {
        let mut flat = vec![0 as Class; CODE_POINTS];
        for (pattern, class) in PATTERNS {
            for (first, last) in ranges(pattern) {
                flat[first as usize..=last as usize].iter_mut().for_each(|entry| *entry |= class);
            }
        }
        let mut ascii = [0; 128];
        ascii.copy_from_slice(&flat[..128]);
        let mut seen = rustc_hash::FxHashMap::default();
        let mut blocks = Vec::new();
        let block_of = flat
            .chunks_exact(BLOCK)
            .map(|block| {
                *seen.entry(block).or_insert_with(|| {
                    blocks.extend_from_slice(block);
                    // At most 4352 blocks exist, so the index fits.
                    (blocks.len() / BLOCK - 1) as u16
                })
            })
            .collect();
        Self { ascii, block_of, blocks }
    }

    /// Classes of one character.
    #[inline]
    pub(super) fn of(&self, c: char) -> Class {
        let code = c as usize;
        self.blocks[self.block_of[code / BLOCK] as usize * BLOCK + code % BLOCK]
    }

    /// Classes and byte length of the character that begins at byte `at`; `(0, 0)` at the end of the text.
    #[inline]
    pub(super) fn at(&self, text: &str, at: usize) -> (Class, usize) {
        match text.as_bytes().get(at) {
            None => (0, 0),
            Some(&byte) if byte < 0x80 => (self.ascii[byte as usize], 1),
            Some(_) => text[at..].chars().next().map_or((0, 0), |c| (self.of(c), c.len_utf8())),
        }
    }

    /// End of the run of characters from byte `at` that are in `any` and not in `none`.
    #[inline]
    pub(super) fn run(&self, text: &str, mut at: usize, any: Class, none: Class) -> usize {
        loop {
            let (class, len) = self.at(text, at);
            if class & any == 0 || class & none != 0 {
                return at;
            }
            at += len;
        }
    }

    /// End of the run of characters from byte `at` that are in none of the classes.
    #[inline]
    pub(super) fn run_outside(&self, text: &str, mut at: usize, none: Class) -> usize {
        loop {
            let (class, len) = self.at(text, at);
            if len == 0 || class & none != 0 {
                return at;
            }
            at += len;
        }
    }
}

/// The code point ranges of a character class pattern.
fn ranges(pattern: &str) -> Vec<(char, char)> {
    #[expect(clippy::expect_used, reason = "the patterns are constants of this file and a test parses each of them")]
    let hir = regex_syntax::parse(pattern).expect("a character class");
    match hir.kind() {
        regex_syntax::hir::HirKind::Class(regex_syntax::hir::Class::Unicode(class)) => {
            class.ranges().iter().map(|range| (range.start(), range.end())).collect()
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_have_their_classes() {
        let class = |c| CLASSES.of(c);
        assert_eq!(class('a'), LETTER | TAIL);
        assert_eq!(class('A'), LETTER | HEAD);
        assert_eq!(class('あ'), LETTER | HEAD | TAIL);
        assert_eq!(class('中'), LETTER | HEAD | TAIL | HAN);
        assert_eq!(class('\u{301}'), MARK | HEAD | TAIL);
        assert_eq!(class('½'), NUMBER);
        assert_eq!(class('\n'), SPACE | NEWLINE);
        assert_eq!(class('\u{a0}'), SPACE);
        assert_eq!(class('$'), SYMBOL);
        assert_eq!(class('!'), PUNCTUATION);
        assert_eq!(class('\u{200b}'), 0);
        assert_eq!(class('\u{10ffff}'), 0);
    }
}
