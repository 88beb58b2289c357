//! SentencePiece BPE (`llama`): merges by score, byte fallback for what the vocabulary cannot spell.
//!
//! Spaces are plain spaces here; the vocabulary has undone the U+2581 spelling. Where no token holds a space after another
//! character, no merge crosses from a word into the space before the next, and the text falls into words that are
//! merged one by one: most are a single token, remembered as such.

use super::Error;
use super::vocabulary::{Kind, NONE, Vocabulary};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::atomic::{AtomicU8, Ordering};

const UNTRIED: u8 = 0;
const GIVES_ITSELF: u8 = 1;
const GIVES_OTHERS: u8 = 2;

/// The rules beside the vocabulary.
#[derive(Debug)]
pub(super) struct SentencePieceBpe {
    fallback: ByteFallback,
    /// Words can be merged one by one.
    splits_at_spaces: bool,
    memo: Vec<AtomicU8>,
}

/// What stands for characters that are no tokens.
#[derive(Debug)]
pub(super) struct ByteFallback {
    byte_ids: [u32; 256],
    unknown: Option<u32>,
}

impl ByteFallback {
    /// `unknown` serves vocabularies without byte tokens.
    pub(super) fn new(vocabulary: &Vocabulary, unknown: Option<u32>) -> Self {
        let mut byte_ids = [NONE; 256];
        for id in vocabulary.ids_of(Kind::Byte) {
            if let Some(&[byte]) = vocabulary.token(id) {
                byte_ids[byte as usize] = id;
            }
        }
        Self { byte_ids, unknown }
    }

    /// Appends the byte tokens of `bytes`, or one unknown token where a byte has none, or nothing without either.
    pub(super) fn append(&self, bytes: &[u8], out: &mut Vec<u32>) {
        let ids = || bytes.iter().map(|&byte| self.byte_ids[byte as usize]);
        if ids().all(|id| id != NONE) { out.extend(ids()) } else { out.extend(self.unknown) }
    }
}

/// A stretch of text that is one symbol by now; a doubly linked list by index.
struct Symbol {
    begin: usize,
    end: usize,
    previous: usize,
    next: usize,
}

/// Buffers of one `encode` call, so that a word costs no allocation.
#[derive(Default)]
struct Scratch {
    symbols: Vec<Symbol>,
    heap: BinaryHeap<Candidate>,
}

/// A possible merge: higher score first, then further left. Its end tells whether it still fits the symbols.
type Candidate = (Score, Reverse<usize>, usize, usize);

/// Scores in total order; NaN, which only a damaged file holds, is lowest.
#[derive(Clone, Copy, PartialEq)]
struct Score(f32);

impl Eq for Score {}

impl PartialOrd for Score {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Score {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let key = |score: f32| if score.is_nan() { f32::NEG_INFINITY } else { score + 0.0 };
        key(self.0).total_cmp(&key(other.0))
    }
}

impl SentencePieceBpe {
    /// Needs scores.
    pub(super) fn new(vocabulary: &Vocabulary, unknown: Option<u32>) -> Result<Self, Error> {
        if vocabulary.scores.is_empty() {
            return Err(Error::MissingKey { key: "tokenizer.ggml.scores" });
        }
        let inner_space = |token: &[u8]| token.windows(2).any(|two| two[0] != b' ' && two[1] == b' ');
        let splits_at_spaces = !vocabulary.ids_of(Kind::Normal).filter_map(|id| vocabulary.token(id)).any(inner_space);
        let memo = (0..vocabulary.len()).map(|_| AtomicU8::new(UNTRIED)).collect();
        Ok(Self { fallback: ByteFallback::new(vocabulary, unknown), splits_at_spaces, memo })
    }

    /// Appends the tokens of a text that holds no special literals and already has its leading space.
    pub(super) fn encode(&self, vocabulary: &Vocabulary, text: &str, out: &mut Vec<u32>) {
        let mut scratch = Scratch::default();
        if !self.splits_at_spaces {
            self.merge(vocabulary, text, &mut scratch, out);
            return;
        }
        let bytes = text.as_bytes();
        let mut begin = 0;
        for at in 1..=bytes.len() {
            let boundary = at == bytes.len() || (bytes[at] == b' ' && bytes[at - 1] != b' ');
            if boundary {
                self.encode_word(vocabulary, &text[begin..at], &mut scratch, out);
                begin = at;
            }
        }
    }

    fn encode_word(&self, vocabulary: &Vocabulary, word: &str, scratch: &mut Scratch, out: &mut Vec<u32>) {
        let whole = vocabulary.find(word.as_bytes());
        if let Some(id) = whole
            && self.memo[id as usize].load(Ordering::Relaxed) == GIVES_ITSELF
        {
            out.push(id);
            return;
        }
        let begin = out.len();
        self.merge(vocabulary, word, scratch, out);
        if let Some(id) = whole {
            let state = if out[begin..] == [id] { GIVES_ITSELF } else { GIVES_OTHERS };
            self.memo[id as usize].store(state, Ordering::Relaxed);
        }
    }

    /// Merges neighbours into tokens, best score first, until none fits; O(n log n).
    fn merge(&self, vocabulary: &Vocabulary, text: &str, scratch: &mut Scratch, out: &mut Vec<u32>) {
        let Scratch { symbols, heap } = scratch;
        symbols.clear();
        heap.clear();
        for (begin, c) in text.char_indices() {
            let at = symbols.len();
            symbols.push(Symbol { begin, end: begin + c.len_utf8(), previous: at.wrapping_sub(1), next: at + 1 });
        }
        let count = symbols.len();
        let offer = |heap: &mut BinaryHeap<Candidate>, symbols: &[Symbol], left: usize, right: usize| {
            if left < count && right < count {
                let end = symbols[right].end;
                if let Some(id) = vocabulary.find(&text.as_bytes()[symbols[left].begin..end]) {
                    heap.push((Score(vocabulary.scores[id as usize]), Reverse(left), right, end));
                }
            }
        };
        (1..count).for_each(|right| offer(heap, symbols, right - 1, right));
        while let Some((_, Reverse(left), right, end)) = heap.pop() {
            let gone = |at: usize| symbols[at].begin == symbols[at].end;
            if gone(left) || gone(right) || symbols[left].next != right || symbols[right].end != end {
                continue;
            }
            symbols[left].end = end;
            symbols[left].next = symbols[right].next;
            symbols[right].begin = end;
            let next = symbols[left].next;
            if next < count {
                symbols[next].previous = left;
            }
            offer(heap, symbols, symbols[left].previous, left);
            offer(heap, symbols, left, next);
        }
        for symbol in symbols.iter().filter(|symbol| symbol.begin < symbol.end) {
            let bytes = &text.as_bytes()[symbol.begin..symbol.end];
            match vocabulary.find(bytes) {
                Some(id) => out.push(id),
                None => self.fallback.append(bytes, out),
            }
        }
    }
}
