//! Byte-level BPE (`gpt2`): pieces of the pre-tokenizer -> tokens, by the file's merges.
//!
//! Most pieces of natural text are one token. Whether merging a token's bytes gives that token again is remembered per
//! token, so that such a piece costs one table lookup. Others are merged by rank: small ones by rescanning, long ones with
//! a heap, so that no input takes quadratic time.

use super::pretokenizer::PreTokenizer;
use super::vocabulary::{NONE, Vocabulary, append_byte_level};
use super::{Error, metadata};
use crate::gguf::Metadata;
use rustc_hash::FxHashMap;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::atomic::{AtomicU8, Ordering};
use unicode_normalization::{UnicodeNormalization, is_nfc};

/// Pieces up to this many bytes are merged by rescanning; its steps grow with the square, the heap's do not.
const SHORT: usize = 48;

/// What old converters wrote, or nothing at all, where they did not know the pre-tokenizer.
pub(super) const UNNAMED: &str = "default";

const UNTRIED: u8 = 0;
const GIVES_ITSELF: u8 = 1;
const GIVES_OTHERS: u8 = 2;

/// The merges of a byte-level BPE vocabulary.
#[derive(Debug)]
pub(super) struct ByteLevelBpe {
    pre_tokenizer: PreTokenizer,
    /// Normalize to NFC before splitting.
    nfc: bool,
    /// A piece that is a token is that token, whatever merging would give.
    whole_pieces: bool,
    byte_ids: [u32; 256],
    /// (left, right) -> (rank, merged).
    merges: FxHashMap<u64, (u32, u32)>,
    /// Per token: `UNTRIED`, `GIVES_ITSELF` or `GIVES_OTHERS`. A memo: racing writers write the same.
    memo: Vec<AtomicU8>,
}

/// Buffers of one `encode` call.
#[derive(Default)]
struct Scratch {
    ids: Vec<u32>,
    ranks: Vec<(u32, u32)>,
}

impl ByteLevelBpe {
    /// Reads `tokenizer.ggml.{pre,merges}`.
    pub(super) fn from_metadata(file: &Metadata, vocabulary: &Vocabulary) -> Result<Self, Error> {
        const PRE: &str = "tokenizer.ggml.pre";
        const MERGES: &str = "tokenizer.ggml.merges";
        let name = metadata::string(file, PRE)?.filter(|name| !name.is_empty()).unwrap_or(UNNAMED);
        let (pre_tokenizer, nfc) = PreTokenizer::by_name(name)?;
        let list = metadata::strings(file, MERGES)?.ok_or(Error::MissingKey { key: MERGES })?;
        let mut byte_ids = [NONE; 256];
        for (byte, id) in (0..=u8::MAX).zip(&mut byte_ids) {
            *id = vocabulary.find(&[byte]).unwrap_or(NONE);
        }
        let mut merges = FxHashMap::with_capacity_and_hasher(list.len(), Default::default());
        let mut merged = Vec::new();
        for (rank, merge) in (0u32..).zip(list.iter()) {
            // A merge whose parts or result are no tokens can never apply.
            if let Some((pair, id)) = parse_merge(merge, vocabulary, &mut merged) {
                merges.entry(pair).or_insert((rank, id));
            }
        }
        let memo = (0..vocabulary.len()).map(|_| AtomicU8::new(UNTRIED)).collect();
        let whole_pieces = matches!(
            name,
            "llama-bpe" | "llama3" | "llama-v3" | "llama4" | "kimi-k2" | "tekken" | "glm4" | "chatglm-bpe"
        );
        Ok(Self { pre_tokenizer, nfc, whole_pieces, byte_ids, merges, memo })
    }

    /// Appends the tokens of a text that holds no special literals.
    pub(super) fn encode(&self, vocabulary: &Vocabulary, text: &str, out: &mut Vec<u32>) {
        if self.nfc && !text.is_ascii() && !is_nfc(text) {
            let normalized: String = text.nfc().collect();
            self.encode_pieces(vocabulary, &normalized, out);
        } else {
            self.encode_pieces(vocabulary, text, out);
        }
    }

    fn encode_pieces(&self, vocabulary: &Vocabulary, text: &str, out: &mut Vec<u32>) {
        let mut scratch = Scratch::default();
        self.pre_tokenizer.split(text, &mut |piece| self.encode_piece(vocabulary, piece.as_bytes(), &mut scratch, out));
    }

    #[inline]
    fn encode_piece(&self, vocabulary: &Vocabulary, piece: &[u8], scratch: &mut Scratch, out: &mut Vec<u32>) {
        let whole = vocabulary.find(piece);
        if let Some(id) = whole {
            let memo = &self.memo[id as usize];
            if self.whole_pieces || memo.load(Ordering::Relaxed) == GIVES_ITSELF {
                out.push(id);
                return;
            }
        }
        let begin = out.len();
        if piece.len() <= SHORT {
            self.merge_short(piece, scratch, out);
        } else {
            self.merge_long(piece, out);
        }
        if let Some(id) = whole {
            let state = if out[begin..] == [id] { GIVES_ITSELF } else { GIVES_OTHERS };
            self.memo[id as usize].store(state, Ordering::Relaxed);
        }
    }

    #[inline]
    fn rank(&self, left: u32, right: u32) -> (u32, u32) {
        self.merges.get(&pair(left, right)).copied().unwrap_or((NONE, NONE))
    }

    /// Merges the pair of lowest rank, leftmost first, until none is left; rescans after each.
    fn merge_short(&self, piece: &[u8], scratch: &mut Scratch, out: &mut Vec<u32>) {
        let Scratch { ids, ranks } = scratch;
        ids.clear();
        ids.extend(piece.iter().map(|&byte| self.byte_ids[byte as usize]));
        ranks.clear();
        ranks.extend(ids.windows(2).map(|two| self.rank(two[0], two[1])));
        while let Some((at, &(rank, merged))) = ranks.iter().enumerate().min_by_key(|(_, (rank, _))| *rank) {
            if rank == NONE {
                break;
            }
            ids[at] = merged;
            ids.remove(at + 1);
            ranks.remove(at);
            if at > 0 {
                ranks[at - 1] = self.rank(ids[at - 1], merged);
            }
            if at < ranks.len() {
                ranks[at] = self.rank(merged, ids[at + 1]);
            }
        }
        out.extend(ids.iter().filter(|&&id| id != NONE));
    }

    /// The same with a heap of candidate pairs over a linked list: O(n log n).
    fn merge_long(&self, piece: &[u8], out: &mut Vec<u32>) {
        let count = piece.len();
        let mut ids: Vec<u32> = piece.iter().map(|&byte| self.byte_ids[byte as usize]).collect();
        // `count` ends the list on the right; a node merged away is its own successor.
        let mut next: Vec<usize> = (1..=count).collect();
        let mut previous: Vec<Option<usize>> = (0..count).map(|at| at.checked_sub(1)).collect();
        let mut heap = BinaryHeap::new();
        let offer = |heap: &mut BinaryHeap<_>, ids: &[u32], left: usize, right: usize| {
            if right < count {
                let (rank, merged) = self.rank(ids[left], ids[right]);
                if rank != NONE {
                    heap.push(Reverse((rank, left, ids[left], ids[right], merged)));
                }
            }
        };
        (0..count - 1).for_each(|at| offer(&mut heap, &ids, at, at + 1));
        while let Some(Reverse((_, left, left_id, right_id, merged))) = heap.pop() {
            let right = next[left];
            let stale = right == left || right >= count || ids[left] != left_id || ids[right] != right_id;
            if stale {
                continue;
            }
            ids[left] = merged;
            next[left] = next[right];
            next[right] = right;
            if next[left] < count {
                previous[next[left]] = Some(left);
            }
            if let Some(before) = previous[left] {
                offer(&mut heap, &ids, before, left);
            }
            offer(&mut heap, &ids, left, next[left]);
        }
        let mut at = 0;
        while at < count {
            if ids[at] != NONE {
                out.push(ids[at]);
            }
            at = next[at];
        }
    }
}

fn pair(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

/// `left right` in the file's spelling -> the pair and what it becomes.
fn parse_merge(merge: &[u8], vocabulary: &Vocabulary, merged: &mut Vec<u8>) -> Option<(u64, u32)> {
    // A token may begin with a space in no spelling, but one that is a single odd byte is not worth a panic.
    let space = 1 + merge.iter().skip(1).position(|&byte| byte == b' ')?;
    merged.clear();
    append_byte_level(&merge[..space], merged);
    let middle = merged.len();
    append_byte_level(&merge[space + 1..], merged);
    let left = vocabulary.find(&merged[..middle])?;
    let right = vocabulary.find(&merged[middle..])?;
    Some((pair(left, right), vocabulary.find(merged)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::{Array, Value};
    use crate::text::vocabulary::Spelling;
    use proptest::prelude::*;

    /// A small alphabet with merges whose ranks compete.
    fn small() -> (Vocabulary, ByteLevelBpe) {
        let strings = |list: &[&str]| Value::Array(Array::String(list.iter().collect()));
        let tokens = ["a", "b", "c", "ab", "aa", "bc", "aab", "abc", "aaaa", "bcab"];
        let merges = ["b c", "a b", "a a", "a ab", "a bc", "aa aa", "bc ab"];
        let entries = vec![
            ("tokenizer.ggml.pre".to_owned(), Value::String("gpt-2".to_owned())),
            ("tokenizer.ggml.tokens".to_owned(), strings(&tokens)),
            ("tokenizer.ggml.merges".to_owned(), strings(&merges)),
        ];
        let file = Metadata { entries };
        let vocabulary = Vocabulary::from_metadata(&file, Spelling::ByteLevel).unwrap();
        let bpe = ByteLevelBpe::from_metadata(&file, &vocabulary).unwrap();
        (vocabulary, bpe)
    }

    proptest! {
        #[test]
        fn both_ways_of_merging_agree(piece in "[abcx]{1,120}") {
            let (_, bpe) = small();
            let (mut short, mut long) = (Vec::new(), Vec::new());
            bpe.merge_short(piece.as_bytes(), &mut Scratch::default(), &mut short);
            bpe.merge_long(piece.as_bytes(), &mut long);
            prop_assert_eq!(short, long);
        }
    }
}
