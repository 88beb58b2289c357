//! Pre-tokenizers: where byte-level BPE may not merge across. Hand-written scanners for the vendors' patterns.
//!
//! Each scanner gives exactly the pieces of the pattern in its comment under leftmost-first matching. The pieces of a text
//! concatenate to the text. Called by the tokenizer only.

use super::Error;
use super::pretokenizer_passes::{Pass, split_by_passes};
use super::unicode::{CLASSES, Class, Classes, HAN, HEAD, LETTER, MARK, NEWLINE, NUMBER, SPACE, TAIL};

/// How a text falls into pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PreTokenizer {
    /// One scan, every character in some piece.
    Scan(Scan),
    /// Several patterns, each applied to all pieces of the one before.
    Passes(&'static [Pass]),
}

/// Where `'s`, `'t`, `'re`, `'ve`, `'m`, `'ll`, `'d` split off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Contractions {
    /// Nowhere.
    None,
    /// They are pieces of their own, lower case only.
    Own,
    /// They are pieces of their own, in either case.
    OwnAnyCase,
    /// They stay at the end of their word, in either case.
    Suffix,
}

/// What a word is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// ` ?\p{L}+`
    SpacedLetters,
    /// `[^\r\n\p{L}\p{N}]?\p{L}+`
    Letters,
    /// `[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+`
    LettersMarks,
    /// `[^\r\n\p{L}\p{N}]?` before `HEAD*TAIL+` or `HEAD+TAIL*`: breaks where lower case turns to upper case.
    Cased,
}

/// The parameters in which the patterns that descend from GPT-2's differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Scan {
    pub(super) contractions: Contractions,
    pub(super) word: Word,
    /// Most characters of a number piece; 0 means GPT-2's ` ?\p{N}+`.
    pub(super) digits: u8,
    /// `[\p{Han}]+` is a piece and no part of a word.
    pub(super) han: bool,
    /// Newlines belong to the punctuation before them, and end a whitespace piece.
    pub(super) newlines: bool,
    /// So does `/`.
    pub(super) slash: bool,
}

/// GPT-2's own pattern: `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`.
pub(super) const GPT2: Scan = Scan {
    contractions: Contractions::Own,
    word: Word::SpacedLetters,
    digits: 0,
    han: false,
    newlines: false,
    slash: false,
};

/// Llama 3: `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`.
const LLAMA3: Scan = Scan {
    contractions: Contractions::OwnAnyCase,
    word: Word::Letters,
    digits: 3,
    han: false,
    newlines: true,
    slash: false,
};

const QWEN2: Scan = Scan { digits: 1, ..LLAMA3 };
const QWEN35: Scan = Scan { word: Word::LettersMarks, ..QWEN2 };
const O200K: Scan = Scan { contractions: Contractions::Suffix, word: Word::Cased, slash: true, ..LLAMA3 };
const KIMI: Scan = Scan { han: true, slash: false, ..O200K };
const TEKKEN: Scan = Scan { contractions: Contractions::None, digits: 1, ..O200K };

/// Name in `tokenizer.ggml.pre`, rule, and whether the vendor normalizes to NFC first.
const KNOWN: [(&str, PreTokenizer, bool); 22] = [
    ("llama-bpe", PreTokenizer::Scan(LLAMA3), false),
    ("llama3", PreTokenizer::Scan(LLAMA3), false),
    ("llama-v3", PreTokenizer::Scan(LLAMA3), false),
    // GPT-4's rule, by the name of the first model that had it; Phi-4's files have it.
    ("dbrx", PreTokenizer::Scan(LLAMA3), false),
    ("qwen2", PreTokenizer::Scan(QWEN2), true),
    ("deepseek-r1-qwen", PreTokenizer::Scan(QWEN2), false),
    ("qwen35", PreTokenizer::Scan(QWEN35), false),
    ("deepseek-llm", PreTokenizer::Passes(&Pass::DEEPSEEK_LLM), false),
    ("deepseek-coder", PreTokenizer::Passes(&Pass::DEEPSEEK_CODER), false),
    ("deepseek-v3", PreTokenizer::Passes(&Pass::DEEPSEEK_V3), false),
    // Unknown to the converter: most vocabularies of that time descend from GPT-2's.
    ("default", PreTokenizer::Scan(GPT2), false),
    ("gpt-2", PreTokenizer::Scan(GPT2), false),
    ("phi-2", PreTokenizer::Scan(GPT2), false),
    ("gpt-4o", PreTokenizer::Scan(O200K), false),
    ("o200k", PreTokenizer::Scan(O200K), false),
    ("llama4", PreTokenizer::Scan(O200K), false),
    ("glm4", PreTokenizer::Scan(LLAMA3), false),
    ("chatglm-bpe", PreTokenizer::Scan(LLAMA3), false),
    ("kimi-k2", PreTokenizer::Scan(KIMI), false),
    ("tekken", PreTokenizer::Scan(TEKKEN), false),
    ("smollm", PreTokenizer::Passes(&Pass::SMOLLM), false),
    ("starcoder", PreTokenizer::Passes(&Pass::SMOLLM), false),
];

impl PreTokenizer {
    /// The rule of that name, and whether text is normalized to NFC first.
    pub(super) fn by_name(name: &str) -> Result<(Self, bool), Error> {
        let found = KNOWN.iter().find(|(known, ..)| *known == name);
        found.map(|&(_, rule, nfc)| (rule, nfc)).ok_or_else(|| Error::UnknownPreTokenizer {
            name: name.to_owned(),
            known: KNOWN.map(|(known, ..)| known).join(", "),
        })
    }

    /// Calls `piece` with each piece in order.
    pub(super) fn split<'t>(self, text: &'t str, piece: &mut impl FnMut(&'t str)) {
        match self {
            Self::Scan(scan) => {
                let classes = &*CLASSES;
                let mut at = 0;
                while at < text.len() {
                    let end = scan.next(classes, text, at);
                    piece(&text[at..end]);
                    at = end;
                }
            }
            Self::Passes(passes) => split_by_passes(passes, text, piece),
        }
    }
}

impl Scan {
    /// End of the piece that begins at `at`, which must lie before the end of the text.
    #[inline]
    pub(super) fn next(self, classes: &Classes, text: &str, at: usize) -> usize {
        let (class, len) = classes.at(text, at);
        if self.han && class & HAN != 0 {
            return classes.run(text, at, HAN, 0);
        }
        if matches!(self.contractions, Contractions::Own | Contractions::OwnAnyCase) {
            let any_case = self.contractions == Contractions::OwnAnyCase;
            if let Some(end) = contraction(text, at, any_case) {
                return end;
            }
        }
        if let Some(end) = self.word(classes, text, at, class, len) {
            return end;
        }
        if class & NUMBER != 0 {
            return self.number(classes, text, at);
        }
        let spaced = text.as_bytes()[at] == b' ';
        let begin = if spaced { at + 1 } else { at };
        let (next, _) = if spaced { classes.at(text, begin) } else { (class, len) };
        if self.digits == 0 && next & NUMBER != 0 {
            return classes.run(text, begin, NUMBER, 0);
        }
        let end = classes.run_outside(text, begin, SPACE | LETTER | NUMBER | self.beyond_punctuation());
        if end > begin {
            return self.punctuation_tail(text, end);
        }
        whitespace(classes, text, at, self.newlines)
    }

    /// Marks are words where words have marks, punctuation elsewhere.
    fn beyond_punctuation(self) -> Class {
        if self.word == Word::LettersMarks { MARK } else { 0 }
    }

    fn number(self, classes: &Classes, text: &str, at: usize) -> usize {
        if self.digits == 0 {
            return classes.run(text, at, NUMBER, 0);
        }
        let mut end = at;
        for _ in 0..self.digits {
            let (class, len) = classes.at(text, end);
            if class & NUMBER == 0 {
                break;
            }
            end += len;
        }
        end
    }

    fn punctuation_tail(self, text: &str, mut end: usize) -> usize {
        if self.newlines {
            let tail = |byte: &u8| matches!(byte, b'\r' | b'\n') || (self.slash && *byte == b'/');
            end += text.as_bytes()[end..].iter().take_while(|byte| tail(byte)).count();
        }
        end
    }

    #[inline]
    fn word(self, classes: &Classes, text: &str, at: usize, class: Class, len: usize) -> Option<usize> {
        let letters = match self.word {
            Word::Cased => return self.cased(classes, text, at, class, len),
            Word::SpacedLetters | Word::Letters => LETTER,
            Word::LettersMarks => LETTER | MARK,
        };
        let may_lead = match self.word {
            Word::SpacedLetters => text.as_bytes()[at] == b' ',
            _ => class & (NEWLINE | LETTER | NUMBER) == 0,
        };
        let begin = if class & letters == 0 && may_lead { at + len } else { at };
        let end = classes.run(text, begin, letters, 0);
        (end > begin).then_some(end)
    }

    fn cased(self, classes: &Classes, text: &str, at: usize, class: Class, len: usize) -> Option<usize> {
        let none = if self.han { HAN } else { 0 };
        let lead = (class & (NEWLINE | LETTER | NUMBER) == 0).then_some(at + len);
        let begins = [lead, Some(at)];
        let begins = || begins.into_iter().flatten();
        let end = begins().find_map(|begin| head_then_tail(classes, text, begin, none)).or_else(|| {
            begins().map(|begin| (begin, classes.run(text, begin, HEAD, none))).find(|(b, e)| e > b).map(|(_, end)| end)
        })?;
        let suffix = if self.contractions == Contractions::Suffix { contraction(text, end, true) } else { None };
        Some(suffix.unwrap_or(end))
    }
}

/// `HEAD*TAIL+` with backtracking: the tail takes back the last character of the head that can be a tail.
fn head_then_tail(classes: &Classes, text: &str, begin: usize, none: Class) -> Option<usize> {
    let mut at = begin;
    let mut last_both = None;
    loop {
        let (class, len) = classes.at(text, at);
        if class & HEAD == 0 || class & none != 0 {
            break;
        }
        at += len;
        if class & TAIL != 0 {
            last_both = Some(at);
        }
    }
    let end = classes.run(text, at, TAIL, none);
    if end > at { Some(end) } else { last_both }
}

/// End of the contraction at `at`. In either case, the long s folds to s as in the vendors' regular expression engines.
#[inline]
fn contraction(text: &str, at: usize, any_case: bool) -> Option<usize> {
    let rest = &text.as_bytes()[at..];
    if rest.first() != Some(&b'\'') {
        return None;
    }
    let fold = |byte: Option<&u8>| byte.map_or(0, |byte| if any_case { byte.to_ascii_lowercase() } else { *byte });
    match (fold(rest.get(1)), fold(rest.get(2))) {
        (b's' | b't' | b'm' | b'd', _) => Some(at + 2),
        (b'r' | b'v', b'e') | (b'l', b'l') => Some(at + 3),
        (0xC5, 0xBF) if any_case => Some(at + 3),
        _ => None,
    }
}

/// `\s*[\r\n]+|\s+(?!\S)|\s+`, without the first where `newlines` is false; `at` must be whitespace.
pub(super) fn whitespace(classes: &Classes, text: &str, at: usize, newlines: bool) -> usize {
    let (mut end, mut last, mut after_newline) = (at, at, None);
    loop {
        let (class, len) = classes.at(text, end);
        if class & SPACE == 0 {
            break;
        }
        last = end;
        end += len;
        if class & NEWLINE != 0 {
            after_newline = Some(end);
        }
    }
    match after_newline {
        Some(after) if newlines => after,
        // The last space before a word belongs to the word.
        _ if end < text.len() && last > at => last,
        // Nothing matched: take one character, so that a scan always moves on.
        _ if end == at => at + classes.at(text, at).1.max(1),
        _ => end,
    }
}
