//! Pre-tokenizers made of several patterns, each applied to all pieces of the one before (DeepSeek, SmolLM).
//!
//! What a pattern does not match between two matches is a piece too. Called by `pretokenizer` only.

use super::pretokenizer::{GPT2, whitespace};
use super::unicode::{CLASSES, Classes, LETTER, MARK, NEWLINE, NUMBER, PUNCTUATION, SPACE, SYMBOL};

/// One pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pass {
    /// `[\r\n]`
    Newline,
    /// `\s?` before a run of the listed cased letters.
    CasedLetters,
    /// `\s?` before a run of ASCII, full-width and general punctuation as DeepSeek-LLM lists it.
    ListedPunctuation,
    /// `\s?\p{L}+`
    Letters,
    /// `\s?\p{P}+`
    Punctuation,
    /// `\s+$`
    TrailingSpace,
    /// `[一-龥ࠀ-一가-퟿]+`
    EastAsian,
    /// `[一-龥぀-ゟ゠-ヿ]+`
    HanKana,
    /// `\p{N}`
    Digit,
    /// `\p{N}{1,3}`
    ThreeDigits,
    /// DeepSeek-V3's main pattern, see [`deepseek_v3`].
    DeepSeekV3,
    /// GPT-2's pattern.
    Gpt2,
}

impl Pass {
    pub(super) const DEEPSEEK_LLM: [Pass; 6] =
        [Pass::Newline, Pass::CasedLetters, Pass::ListedPunctuation, Pass::TrailingSpace, Pass::EastAsian, Pass::Digit];
    pub(super) const DEEPSEEK_CODER: [Pass; 5] =
        [Pass::Newline, Pass::Letters, Pass::Punctuation, Pass::EastAsian, Pass::Digit];
    pub(super) const DEEPSEEK_V3: [Pass; 3] = [Pass::ThreeDigits, Pass::HanKana, Pass::DeepSeekV3];
    pub(super) const SMOLLM: [Pass; 2] = [Pass::Digit, Pass::Gpt2];

    /// End of the match that begins at `at`, or how far no match begins.
    fn step(self, classes: &Classes, text: &str, at: usize) -> Step {
        let (class, len) = classes.at(text, at);
        let run = |begin: usize, inside: fn(char) -> bool| {
            text[begin..].char_indices().find(|&(_, c)| !inside(c)).map_or(text.len(), |(n, _)| begin + n)
        };
        let spaced = |end_of_run: &dyn Fn(usize) -> usize| {
            let begins = [(class & SPACE != 0).then_some(at + len), Some(at)];
            begins.into_iter().flatten().map(|b| (b, end_of_run(b))).find(|(b, end)| end > b).map(|(_, end)| end)
        };
        let end = match self {
            Self::Newline => (class & NEWLINE != 0).then_some(at + len),
            Self::CasedLetters => spaced(&|begin| run(begin, is_listed_letter)),
            Self::ListedPunctuation => spaced(&|begin| run(begin, is_listed_punctuation)),
            Self::Letters => spaced(&|begin| classes.run(text, begin, LETTER, 0)),
            Self::Punctuation => spaced(&|begin| classes.run(text, begin, PUNCTUATION, 0)),
            Self::TrailingSpace => {
                let end = classes.run(text, at, SPACE, 0);
                return if end > at && end == text.len() { Step::Match(end) } else { Step::Gap(end.max(at + len)) };
            }
            Self::EastAsian => Some(run(at, |c| matches!(c, '\u{0800}'..='\u{9FA5}' | '\u{AC00}'..='\u{D7FF}')))
                .filter(|&end| end > at),
            Self::HanKana => Some(run(at, |c| matches!(c, '\u{3040}'..='\u{30FF}' | '\u{4E00}'..='\u{9FA5}')))
                .filter(|&end| end > at),
            Self::Digit => (class & NUMBER != 0).then_some(at + len),
            Self::ThreeDigits => three_digits(classes, text, at),
            Self::DeepSeekV3 => deepseek_v3(classes, text, at),
            Self::Gpt2 => Some(GPT2.next(classes, text, at)),
        };
        end.map_or(Step::Gap(at + len), Step::Match)
    }
}

enum Step {
    Match(usize),
    Gap(usize),
}

/// Calls `piece` with each piece of the text after all passes.
pub(super) fn split_by_passes<'t>(passes: &[Pass], text: &'t str, piece: &mut dyn FnMut(&'t str)) {
    let Some((pass, rest)) = passes.split_first() else {
        piece(text);
        return;
    };
    let classes = &*CLASSES;
    let (mut gap, mut at) = (0, 0);
    while at < text.len() {
        match pass.step(classes, text, at) {
            Step::Gap(end) => at = end,
            Step::Match(end) => {
                if gap < at {
                    split_by_passes(rest, &text[gap..at], piece);
                }
                split_by_passes(rest, &text[at..end], piece);
                (gap, at) = (end, end);
            }
        }
    }
    if gap < text.len() {
        split_by_passes(rest, &text[gap..], piece);
    }
}

fn three_digits(classes: &Classes, text: &str, at: usize) -> Option<usize> {
    let mut end = at;
    for _ in 0..3 {
        let (class, len) = classes.at(text, end);
        if class & NUMBER == 0 {
            break;
        }
        end += len;
    }
    (end > at).then_some(end)
}

/// ASCII punctuation before ASCII letters, or `[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+`, or ` ?[\p{P}\p{S}]+[\r\n]*`, or
/// `\s*[\r\n]+|\s+(?!\S)|\s+`.
fn deepseek_v3(classes: &Classes, text: &str, at: usize) -> Option<usize> {
    let bytes = text.as_bytes();
    let (class, len) = classes.at(text, at);
    if bytes[at].is_ascii_punctuation() {
        let letters = bytes[at + 1..].iter().take_while(|byte| byte.is_ascii_alphabetic()).count();
        if letters > 0 {
            return Some(at + 1 + letters);
        }
    }
    if class & (NEWLINE | LETTER | PUNCTUATION | SYMBOL) == 0 {
        let end = classes.run(text, at + len, LETTER | MARK, 0);
        if end > at + len {
            return Some(end);
        }
    }
    let end = classes.run(text, at, LETTER | MARK, 0);
    if end > at {
        return Some(end);
    }
    let begin = if bytes[at] == b' ' { at + 1 } else { at };
    let end = classes.run(text, begin, PUNCTUATION | SYMBOL, 0);
    if end > begin {
        return Some(end + bytes[end..].iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count());
    }
    (class & SPACE != 0).then(|| whitespace(classes, text, at, true))
}

/// DeepSeek-LLM's list of punctuation; its ASCII range holds the letters too, which the pass before has already split.
fn is_listed_punctuation(c: char) -> bool {
    matches!(c, '!'..='/' | ':'..='~' | '！'..='／' | '：'..='～' | '\u{2018}'..='\u{201F}' | '\u{3000}'..='\u{3002}')
}

/// DeepSeek-LLM's list of cased letters.
fn is_listed_letter(c: char) -> bool {
    if c.is_ascii() {
        return c.is_ascii_alphabetic();
    }
    let code = c as u32;
    let after = LISTED_LETTERS.partition_point(|&(first, _)| first <= code);
    after > 0 && code <= LISTED_LETTERS[after - 1].1
}

/// Code points of DeepSeek-LLM's letter class beyond ASCII, in order.
#[rustfmt::skip]
const LISTED_LETTERS: &[(u32, u32)] = &[
    (0xB5, 0xB5), (0xC0, 0xD6), (0xD8, 0xF6), (0xF8, 0x1BA), (0x1BC, 0x1BF), (0x1C4, 0x293), (0x295, 0x2AF),
    (0x370, 0x373), (0x376, 0x377), (0x37B, 0x37D), (0x37F, 0x37F), (0x386, 0x386), (0x388, 0x38A), (0x38C, 0x38C),
    (0x38E, 0x3A1), (0x3A3, 0x3F5), (0x3F7, 0x481), (0x48A, 0x52F), (0x531, 0x556), (0x10A0, 0x10C5),
    (0x13A0, 0x13F5), (0x13F8, 0x13FD), (0x1C90, 0x1CBA), (0x1CBD, 0x1CBF), (0x1D00, 0x1D2B), (0x1D6B, 0x1D77),
    (0x1D79, 0x1D9A), (0x1E00, 0x1F15), (0x1F18, 0x1F1D), (0x1F20, 0x1F45), (0x1F48, 0x1F4D), (0x1F50, 0x1F57),
    (0x1F59, 0x1F59), (0x1F5B, 0x1F5B), (0x1F5D, 0x1F5D), (0x1F5F, 0x1F7D), (0x1F80, 0x1FB4), (0x1FB6, 0x1FBC),
    (0x1FBE, 0x1FBE), (0x1FC2, 0x1FC4), (0x1FC6, 0x1FCC), (0x1FD0, 0x1FD3), (0x1FD6, 0x1FDB), (0x1FE0, 0x1FEC),
    (0x1FF2, 0x1FF4), (0x1FF6, 0x1FFC), (0x2102, 0x2102), (0x2107, 0x2107), (0x210A, 0x2113), (0x2115, 0x2115),
    (0x2119, 0x211D), (0x2124, 0x2124), (0x2126, 0x2126), (0x2128, 0x2128), (0x212A, 0x212D), (0x212F, 0x2134),
    (0x2139, 0x2139), (0x213C, 0x213F), (0x2145, 0x2149), (0x214E, 0x214E), (0x2183, 0x2184), (0x2C00, 0x2C7B),
    (0x2C7E, 0x2CE4), (0x2CEB, 0x2CEE), (0x2CF2, 0x2CF3), (0xA640, 0xA66D), (0xA680, 0xA69B), (0xA722, 0xA76F),
    (0xA771, 0xA787), (0xA78B, 0xA78E), (0xAB70, 0xABBF), (0xFB00, 0xFB06), (0xFB13, 0xFB17), (0xFF21, 0xFF3A),
    (0xFF41, 0xFF5A), (0x10400, 0x1044F), (0x104B0, 0x104D3), (0x104D8, 0x104FB), (0x10C80, 0x10CB2),
    (0x10CC0, 0x10CF2), (0x118A0, 0x118DF), (0x1E900, 0x1E943),
];
