//! SentencePiece unigram (`t5`): the segmentation with the highest sum of scores (Kudo, 2018), by Viterbi.

use super::Error;
use super::sentencepiece::ByteFallback;
use super::vocabulary::{Kind, NONE, Vocabulary};

/// How much worse than the worst token an unknown character scores, as SentencePiece sets it.
const UNKNOWN_PENALTY: f32 = 10.0;

/// The rules beside the vocabulary.
#[derive(Debug)]
pub(super) struct Unigram {
    fallback: ByteFallback,
    unknown_score: f32,
    /// Bytes of the longest token.
    longest: usize,
}

impl Unigram {
    /// Needs scores.
    pub(super) fn new(vocabulary: &Vocabulary, unknown: Option<u32>) -> Result<Self, Error> {
        if vocabulary.scores.is_empty() {
            return Err(Error::MissingKey { key: "tokenizer.ggml.scores" });
        }
        let score = |id: u32| vocabulary.scores[id as usize];
        let lowest = vocabulary.ids_of(Kind::Normal).map(score).filter(|score| score.is_finite()).fold(0.0, f32::min);
        let longest = vocabulary.ids_of(Kind::Normal).filter_map(|id| vocabulary.token(id)).map(<[u8]>::len).max();
        Ok(Self {
            fallback: ByteFallback::new(vocabulary, unknown),
            unknown_score: lowest - UNKNOWN_PENALTY,
            longest: longest.unwrap_or(0),
        })
    }

    /// Appends the tokens of a text that holds no special literals and already has its leading space.
    pub(super) fn encode(&self, vocabulary: &Vocabulary, text: &str, out: &mut Vec<u32>) {
        let bytes = text.as_bytes();
        // Per byte position: best score so far, where its last token began, and that token.
        let mut best = vec![(f32::NEG_INFINITY, 0, NONE); bytes.len() + 1];
        best[0].0 = 0.0;
        for (begin, c) in text.char_indices() {
            let here = best[begin].0;
            let mut reach = |end: usize, score: f32, id: u32| {
                if here + score > best[end].0 {
                    best[end] = (here + score, begin, id);
                }
            };
            reach(begin + c.len_utf8(), self.unknown_score, NONE);
            for end in (begin + 1..=bytes.len().min(begin + self.longest)).filter(|&end| text.is_char_boundary(end)) {
                if let Some(id) = vocabulary.find(&bytes[begin..end]) {
                    let score = vocabulary.scores[id as usize];
                    reach(end, if score.is_finite() { score } else { self.unknown_score }, id);
                }
            }
        }
        let mut path = Vec::new();
        let mut at = bytes.len();
        while at > 0 {
            let (_, begin, id) = best[at];
            path.push((begin, at, id));
            at = begin;
        }
        for (begin, end, id) in path.into_iter().rev() {
            if id == NONE { self.fallback.append(&bytes[begin..end], out) } else { out.push(id) }
        }
    }
}
