//! The tokenizer a GGUF file describes: special literals, then the file's algorithm on the text between them.

use super::byte_level::{ByteLevelBpe, UNNAMED};
use super::sentencepiece::SentencePieceBpe;
use super::special::Literals;
use super::unigram::Unigram;
use super::vocabulary::{Kind, SPACE_MARK, Spelling, Vocabulary};
use super::{Error, metadata};
use crate::gguf::Metadata;

/// Literals that end an answer in the families that mark turns, whatever the file says of them.
const END_LITERALS: [&str; 14] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|eom_id|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<end_of_turn>",
    "<turn|>",
    "<|end_of_turn|>",
    "<｜end▁of▁sentence｜>",
    "[EOT]",
    "[EOS]",
];

/// Told to users of files that do not say how to split text.
const UNNAMED_PRE_TOKENIZER: &str = "the file does not name its pre-tokenizer (`tokenizer.ggml.pre`), so text is split as \
                                     GPT-2 does; answers may be worse than they should be: convert the model again";

/// A vocabulary with its encoding rules; immutable, shared between threads.
#[derive(Debug)]
pub struct Tokenizer {
    vocabulary: Vocabulary,
    algorithm: Algorithm,
    /// A space goes before text at the beginning and after a special token.
    space_prefix: bool,
    /// Literals found in any text.
    user_defined: Literals,
    /// Literals found when special tokens are parsed.
    special: Literals,
    bos: Option<u32>,
    eos: Option<u32>,
    add_bos: bool,
    add_eos: bool,
    end_of_generation: Vec<u32>,
    warning: Option<&'static str>,
}

#[derive(Debug)]
enum Algorithm {
    ByteLevel(ByteLevelBpe),
    SentencePiece(SentencePieceBpe),
    Unigram(Unigram),
}

impl Tokenizer {
    /// Builds the tokenizer that a file's `tokenizer.ggml.*` keys describe.
    ///
    /// # Errors
    /// Missing or mistyped keys, unknown algorithms and pre-tokenizers (by name), vocabularies that contradict themselves.
    pub fn from_metadata(file: &Metadata) -> Result<Self, Error> {
        const MODEL: &str = "tokenizer.ggml.model";
        let model = metadata::string(file, MODEL)?.ok_or(Error::MissingKey { key: MODEL })?;
        let spelling = match model {
            "gpt2" => Spelling::ByteLevel,
            "llama" | "t5" => Spelling::SentencePiece,
            other => return Err(Error::UnknownModel { name: other.to_owned(), known: "llama, gpt2, t5".to_owned() }),
        };
        let vocabulary = Vocabulary::from_metadata(file, spelling)?;
        let id = |key| metadata::token_id(file, key, vocabulary.len());
        let unknown = id("tokenizer.ggml.unknown_token_id").or_else(|| vocabulary.ids_of(Kind::Unknown).next());
        let algorithm = match model {
            "gpt2" => Algorithm::ByteLevel(ByteLevelBpe::from_metadata(file, &vocabulary)?),
            "t5" => Algorithm::Unigram(Unigram::new(&vocabulary, unknown)?),
            _ => Algorithm::SentencePiece(SentencePieceBpe::new(&vocabulary, unknown)?),
        };
        let byte_level = spelling == Spelling::ByteLevel;
        // Files older than the flag: Llama's tokenizers begin with BOS, others do not.
        let pre = metadata::string(file, "tokenizer.ggml.pre")?.unwrap_or_default();
        let llama_bpe = matches!(pre, "llama-bpe" | "llama3" | "llama-v3");
        // Kimi's own tokenizer takes the literals of these two for plain text.
        let not_parsed = match pre {
            "kimi-k2" => [id("tokenizer.ggml.unknown_token_id"), id("tokenizer.ggml.padding_token_id")],
            _ => [None, None],
        };
        let literals = |kinds: &[Kind]| {
            let ids =
                kinds.iter().flat_map(|&kind| vocabulary.ids_of(kind)).filter(|id| !not_parsed.contains(&Some(*id)));
            Literals::new(ids.filter_map(|id| vocabulary.token(id).map(|bytes| (bytes, id))))
        };
        let mut tokenizer = Self {
            space_prefix: metadata::flag(file, "tokenizer.ggml.add_space_prefix", !byte_level),
            user_defined: literals(&[Kind::UserDefined]),
            special: literals(&[Kind::UserDefined, Kind::Control, Kind::Unknown]),
            bos: id("tokenizer.ggml.bos_token_id"),
            eos: id("tokenizer.ggml.eos_token_id"),
            add_bos: metadata::flag(file, "tokenizer.ggml.add_bos_token", model == "llama" || llama_bpe),
            add_eos: metadata::flag(file, "tokenizer.ggml.add_eos_token", model == "t5"),
            end_of_generation: Vec::new(),
            warning: (byte_level && matches!(pre, "" | UNNAMED)).then_some(UNNAMED_PRE_TOKENIZER),
            algorithm,
            vocabulary,
        };
        tokenizer.end_of_generation = tokenizer.find_end_of_generation(file);
        Ok(tokenizer)
    }

    /// Text to ids. `add_special` adds BOS and EOS as the file asks. `parse_special` lets the literals of control tokens
    /// in the text become those tokens; leave it off for text from users, on for a rendered chat template.
    pub fn encode(&self, text: &str, add_special: bool, parse_special: bool) -> Vec<u32> {
        let mut out = Vec::with_capacity(text.len() / 4 + 2);
        if add_special && self.add_bos {
            out.extend(self.bos);
        }
        let literals = if parse_special { &self.special } else { &self.user_defined };
        let mut at = 0;
        while let Some(found) = literals.first(text.as_bytes(), at) {
            self.encode_plain(&text[at..found.begin], &mut out);
            out.push(found.id);
            at = found.end;
        }
        self.encode_plain(&text[at..], &mut out);
        if add_special && self.add_eos {
            out.extend(self.eos);
        }
        out
    }

    /// A token's text as raw bytes (a space where SentencePiece writes U+2581); special tokens give their literal.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.vocabulary.token(id)
    }

    /// Ids to bytes. Control tokens only `with_special`; ids outside of the vocabulary give nothing. The space that
    /// encoding put before the text is dropped.
    pub fn decode(&self, ids: &[u32], with_special: bool) -> Vec<u8> {
        let mut strip_space = self.strips_leading_space();
        let mut out = Vec::new();
        ids.iter().for_each(|&id| self.append_piece(id, with_special, &mut strip_space, &mut out));
        out
    }

    /// Number of ids.
    pub fn vocab_size(&self) -> usize {
        self.vocabulary.len()
    }

    /// Beginning-of-sequence id.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// End-of-sequence id.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// Whether `encode` with `add_special` begins with BOS.
    pub fn add_bos(&self) -> bool {
        self.add_bos
    }

    /// Ids that end an answer: eos, eot, `<|im_end|>` and the like; ascending.
    pub fn end_of_generation(&self) -> &[u32] {
        &self.end_of_generation
    }

    /// What a user should know of this vocabulary: it may not split text as its model learned it.
    pub fn warning(&self) -> Option<&'static str> {
        self.warning
    }

    /// Whether the id steers the model and is hidden from readers (control and unknown tokens).
    pub fn is_special(&self, id: u32) -> bool {
        matches!(self.vocabulary.kind(id), Some(Kind::Control | Kind::Unknown))
    }

    /// The id whose text is exactly this; special tokens by their literal.
    pub fn token_to_id(&self, literal: &str) -> Option<u32> {
        self.special.find(literal.as_bytes()).or_else(|| self.vocabulary.find(literal.as_bytes()))
    }

    /// Whether decoding drops the first space.
    pub(super) fn strips_leading_space(&self) -> bool {
        self.space_prefix && !matches!(self.algorithm, Algorithm::ByteLevel(_))
    }

    /// Appends what a reader sees of one token. `strip_space` is cleared by the first token that shows anything.
    pub(super) fn append_piece(&self, id: u32, with_special: bool, strip_space: &mut bool, out: &mut Vec<u8>) {
        let hidden = self.is_special(id) && !with_special;
        let Some(bytes) = self.vocabulary.token(id).filter(|_| !hidden) else {
            return;
        };
        let drop_space = std::mem::take(strip_space) && self.vocabulary.kind(id) == Some(Kind::Normal);
        out.extend_from_slice(bytes.strip_prefix(b" ").filter(|_| drop_space).unwrap_or(bytes));
    }

    /// Text between special literals.
    fn encode_plain(&self, text: &str, out: &mut Vec<u32>) {
        if text.is_empty() {
            return;
        }
        if let Algorithm::ByteLevel(bpe) = &self.algorithm {
            bpe.encode(&self.vocabulary, text, out);
            return;
        }
        let mut spaced = String::with_capacity(text.len() + 1);
        if self.space_prefix {
            spaced.push(' ');
        }
        for part in text.split_inclusive(SPACE_MARK) {
            match part.strip_suffix(SPACE_MARK) {
                Some(words) => spaced.extend([words, " "]),
                None => spaced.push_str(part),
            }
        }
        match &self.algorithm {
            Algorithm::SentencePiece(bpe) => bpe.encode(&self.vocabulary, &spaced, out),
            Algorithm::Unigram(unigram) => unigram.encode(&self.vocabulary, &spaced, out),
            Algorithm::ByteLevel(_) => {}
        }
    }

    fn find_end_of_generation(&self, file: &Metadata) -> Vec<u32> {
        let keys = ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];
        let stated = keys.iter().filter_map(|key| metadata::token_id(file, key, self.vocabulary.len()));
        // In the harmony format `<|end|>` closes one message of an answer; `<|return|>` and `<|call|>` end it.
        let harmony = ["<|return|>", "<|call|>"].iter().all(|literal| self.special.find(literal.as_bytes()).is_some());
        let literals = END_LITERALS.iter().filter(|&&literal| !(harmony && literal == "<|end|>"));
        let known = literals.filter_map(|literal| self.special.find(literal.as_bytes()));
        let mut ids: Vec<u32> = stated.chain(known.filter(|&id| self.is_special(id))).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}
