//! What must hold for any text, any ids and any vocabulary.

use crate::support::{committed, tokenizer};
use omni_inferd::gguf::{Array, Metadata, Value};
use omni_inferd::text::{Detokenizer, Error, OutputFormat, ParseOptions, StopMatcher, Tokenizer, parse_output};
use proptest::prelude::*;
use std::sync::{Arc, LazyLock};

fn committed_tokenizer(name: &str) -> Arc<Tokenizer> {
    Arc::new(tokenizer(&committed("vocab").join(format!("ggml-vocab-{name}.gguf.xz"))))
}

static GPT2: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| committed_tokenizer("gpt-2"));
static QWEN2: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| committed_tokenizer("qwen2"));
static PHI3: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| committed_tokenizer("phi-3"));

/// Text with what tokenizers stumble over: newlines, contractions, runs, marks, literals of special tokens.
fn text() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        any::<String>(),
        "[ \\t\\r\\n]{0,6}",
        "[a-zA-Z0-9 '.,!?/]{0,20}",
        "[\u{300}-\u{320}éßſ中文あア가각½]{0,6}",
        Just("<|endoftext|>".to_owned()),
        Just("a".repeat(200)),
        Just("\u{2581}<0x0A>".to_owned()),
    ];
    proptest::collection::vec(part, 0..6).prop_map(|parts| parts.concat())
}

proptest! {
    #[test]
    fn byte_level_text_comes_back(text in text(), special: bool) {
        prop_assert_eq!(GPT2.decode(&GPT2.encode(&text, false, special), true), text.as_bytes());
        // Qwen's own tokenizer normalizes first.
        let normal: String = unicode_normalization::UnicodeNormalization::nfc(text.as_str()).collect();
        prop_assert_eq!(QWEN2.decode(&QWEN2.encode(&normal, false, special), true), normal.as_bytes());
    }

    #[test]
    fn sentencepiece_text_comes_back(text in text()) {
        let text = text.replace('\u{2581}', " ");
        prop_assert_eq!(PHI3.decode(&PHI3.encode(&text, false, false), true), text.as_bytes());
    }

    #[test]
    fn pieces_concatenate_to_the_whole(ids in proptest::collection::vec(0u32..40_000, 0..40), special: bool) {
        for tokenizer in [&*GPT2, &*PHI3] {
            let mut stream = Detokenizer::new(tokenizer.clone(), special);
            let mut pieces: String = ids.iter().map(|&id| stream.push(id)).collect();
            pieces += &stream.finish();
            let whole = tokenizer.decode(&ids, special);
            prop_assert_eq!(pieces, String::from_utf8_lossy(&whole));
        }
    }

    #[test]
    fn stop_strings_are_never_sent_and_nothing_else_is_lost(
        pieces in proptest::collection::vec("[abß]{0,4}", 0..12),
        stops in proptest::collection::vec("[abß]{0,4}", 0..4),
    ) {
        let whole = pieces.concat();
        let first = stops.iter().filter(|stop| !stop.is_empty()).filter_map(|stop| whole.find(stop.as_str())).min();
        let mut matcher = StopMatcher::new(stops.clone());
        let (mut sent, mut matched) = (String::new(), None);
        for piece in &pieces {
            let result = matcher.push(piece);
            sent += &result.text;
            matched = result.matched;
            if matched.is_some() {
                break;
            }
        }
        sent += &matcher.finish();
        prop_assert_eq!(matched.is_some(), first.is_some());
        prop_assert!(stops.iter().filter(|stop| !stop.is_empty()).all(|stop| !sent.contains(stop.as_str())));
        match matched {
            Some(index) => prop_assert!(whole.starts_with(&(sent + &stops[index]))),
            None => prop_assert_eq!(sent, whole),
        }
    }

    #[test]
    fn any_output_is_parsed(raw in "(<think>|</think>|<tool_call>|[{\"name: ,}ß]|<function=|<parameter=|>|\n){0,20}", partial: bool) {
        let formats = [OutputFormat::Hermes, OutputFormat::FunctionTags, OutputFormat::Glm, OutputFormat::Harmony, OutputFormat::Llama3];
        for format in formats {
            parse_output(&raw, &ParseOptions { format, prompt: "<think>\n", split_reasoning: true, tools: true, partial });
        }
    }

    #[test]
    fn damaged_vocabularies_are_refused_or_work(
        tokens in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..4), 0..30),
        merges in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..6), 0..20),
        types in proptest::collection::vec(-1i32..9, 30),
        scores in proptest::collection::vec(any::<f32>(), 30),
        short in 0usize..2,
        model in 0usize..3,
        ids in proptest::collection::vec(any::<u32>(), 3),
    ) {
        let count = tokens.len();
        let entry = |key: &str, value| (format!("tokenizer.ggml.{key}"), value);
        let entries = vec![
            entry("model", Value::String(["llama", "gpt2", "t5"][model].to_owned())),
            entry("pre", Value::String("qwen2".to_owned())),
            entry("tokens", Value::Array(Array::String(tokens.into_iter().collect()))),
            entry("token_type", Value::Array(Array::I32(types[..count].to_vec()))),
            entry("scores", Value::Array(Array::F32(scores[..count.saturating_sub(short)].to_vec()))),
            entry("merges", Value::Array(Array::String(merges.into_iter().collect()))),
            entry("bos_token_id", Value::U32(ids[0])),
            entry("eos_token_id", Value::U32(ids[1])),
        ];
        if let Ok(tokenizer) = Tokenizer::from_metadata(&Metadata { entries }) {
            let encoded = tokenizer.encode("Any téxt <a> ▁ 123\n", true, true);
            prop_assert!(encoded.iter().all(|&id| (id as usize) < tokenizer.vocab_size()));
            tokenizer.decode(&ids, true);
        }
    }
}

#[test]
fn unknown_pre_tokenizers_are_refused_by_name() {
    let strings = |list: &[&str]| Value::Array(Array::String(list.iter().collect()));
    let entries = vec![
        ("tokenizer.ggml.model".to_owned(), Value::String("gpt2".to_owned())),
        ("tokenizer.ggml.pre".to_owned(), Value::String("next-year".to_owned())),
        ("tokenizer.ggml.tokens".to_owned(), strings(&["a"])),
        ("tokenizer.ggml.merges".to_owned(), strings(&[])),
    ];
    let error = Tokenizer::from_metadata(&Metadata { entries }).unwrap_err();
    assert!(matches!(&error, Error::UnknownPreTokenizer { name, .. } if name == "next-year"));
    assert!(error.to_string().contains("qwen2"), "{error}");
}

#[test]
fn files_without_a_pre_tokenizers_name_split_as_gpt2_and_say_so() {
    let strings = |list: &[&str]| Value::Array(Array::String(list.iter().collect()));
    for pre in [None, Some(""), Some("default")] {
        let mut entries = vec![
            ("tokenizer.ggml.model".to_owned(), Value::String("gpt2".to_owned())),
            ("tokenizer.ggml.tokens".to_owned(), strings(&["a", "b", "ab"])),
            ("tokenizer.ggml.merges".to_owned(), strings(&["a b"])),
        ];
        entries.extend(pre.map(|pre| ("tokenizer.ggml.pre".to_owned(), Value::String(pre.to_owned()))));
        let tokenizer = Tokenizer::from_metadata(&Metadata { entries }).unwrap();
        assert_eq!(tokenizer.encode("abb", false, false), [2, 1]);
        assert!(tokenizer.warning().unwrap().contains("tokenizer.ggml.pre"));
    }
    assert_eq!(GPT2.warning(), None);
}

#[test]
fn chosen_control_tokens_are_shown() {
    let ids = PHI3.encode("a<|end|>b<|user|>", false, true);
    let shown = [PHI3.token_to_id("<|end|>").unwrap()];
    let mut stream = Detokenizer::continuing(PHI3.clone(), false).showing(shown.into());
    let text: String = ids.iter().map(|&id| stream.push(id)).collect();
    assert_eq!(text.replace(' ', ""), "a<|end|>b");
    let markup: Vec<&str> = OutputFormat::Kimi.markup(true).collect();
    assert!(markup.contains(&"<|tool_call_argument_begin|>") && markup.contains(&"<think>"));
    assert!(!OutputFormat::Kimi.markup(false).any(|literal| literal.contains("tool")));
    assert!(OutputFormat::Harmony.markup(false).any(|literal| literal == "<|channel|>"));
}

#[test]
fn half_a_character_waits() {
    let ids = GPT2.encode("日", false, false);
    assert!(ids.len() > 1);
    let mut stream = Detokenizer::new(GPT2.clone(), false);
    let pieces: Vec<String> = ids.iter().map(|&id| stream.push(id)).collect();
    assert_eq!(pieces.last().map(String::as_str), Some("日"));
    assert!(pieces[..pieces.len() - 1].iter().all(String::is_empty));
    let mut stream = Detokenizer::new(GPT2.clone(), false);
    stream.push(ids[0]);
    assert_eq!(stream.finish(), "\u{FFFD}");
}

#[test]
fn a_continued_text_keeps_its_space() {
    let ids = PHI3.encode("Hello", false, false);
    assert_eq!(Detokenizer::new(PHI3.clone(), false).push(ids[0]), "Hello");
    assert_eq!(Detokenizer::continuing(PHI3.clone(), false).push(ids[0]), " Hello");
}

#[test]
fn answers_end_where_their_family_ends_them() {
    let literals = |tokenizer: &Tokenizer| -> Vec<String> {
        let text = |id: &u32| String::from_utf8_lossy(tokenizer.token_bytes(*id).unwrap()).into_owned();
        tokenizer.end_of_generation().iter().map(text).collect()
    };
    assert_eq!(literals(&QWEN2), ["<|endoftext|>", "<|im_end|>"]);
    assert_eq!(literals(&PHI3), ["<|endoftext|>", "<|end|>"]);
    assert_eq!(PHI3.bos(), Some(1));
    assert!(PHI3.add_bos() && PHI3.is_special(1) && !QWEN2.add_bos());
    assert_eq!(QWEN2.token_to_id("<|im_end|>"), Some(151_645));
    assert_eq!(PHI3.encode("", true, false), [1]);
}
