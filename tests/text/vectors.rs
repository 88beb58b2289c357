//! Every vocabulary against the ids its makers' tokenizers give, token for token.

use crate::support::{committed, metadata, shared, tokenizer};
use omni_inferd::gguf;
use omni_inferd::text::Tokenizer;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Cases of one `.inp` and `.out` pair that differ, described.
fn check_pair(tokenizer: &Tokenizer, stem: &Path) -> (usize, Vec<String>) {
    let input = std::fs::read_to_string(stem.with_extension("gguf.inp")).unwrap();
    let output = std::fs::read_to_string(stem.with_extension("gguf.out")).unwrap();
    let texts: Vec<&str> = input.split("\n__ggml_vocab_test__\n").collect();
    let expected: Vec<Vec<u32>> =
        output.lines().map(|line| line.split_whitespace().map(|id| id.parse().unwrap()).collect()).collect();
    assert!(texts.len() >= expected.len() && !expected.is_empty(), "{}", stem.display());
    let differ = texts.iter().zip(&expected).filter_map(|(text, ids)| {
        let got = tokenizer.encode(text, false, false);
        (got != *ids).then(|| format!("{}: {text:?}\n  got  {got:?}\n  want {ids:?}", stem.display()))
    });
    (expected.len(), differ.collect())
}

/// Checks all vocabularies of a folder and says how many cases there were.
fn check_folder(folder: &Path) {
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "xz"));
    files.sort();
    assert!(!files.is_empty());
    let mut wrong = Vec::new();
    for path in files {
        let tokenizer = tokenizer(&path);
        let (count, differ) = check_pair(&tokenizer, &path.with_extension("").with_extension(""));
        println!("{}: {} of {count} cases equal", path.display(), count - differ.len());
        wrong.extend(differ);
    }
    assert!(wrong.is_empty(), "{} cases differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn committed_vocabularies_give_their_vectors() {
    check_folder(&committed("vocab"));
}

/// GPT-2's vocabulary under the names of other pre-tokenizers, as llama.cpp splits then: its merges are the same, so ids differ
/// where pieces do.
#[test]
fn pre_tokenizers_split_as_llama_cpps_do() {
    let folder = committed("vocab");
    let golden: Value = serde_json::from_slice(&std::fs::read(folder.join("pre.json")).unwrap()).unwrap();
    let input = std::fs::read_to_string(folder.join("ggml-vocab-gpt-2.gguf.inp")).unwrap();
    let texts: Vec<&str> = input.split("\n__ggml_vocab_test__\n").collect();
    let file = "ggml-vocab-gpt-2.gguf.xz";
    let own = tokenizer(&folder.join(file));
    let mut wrong = Vec::new();
    let goldens = golden[file].as_object().unwrap();
    assert!(goldens.contains_key("dbrx"));
    for (name, ids) in goldens {
        let mut metadata = metadata(&folder.join(file));
        let pre = metadata.entries.iter_mut().find(|(key, _)| key == "tokenizer.ggml.pre").unwrap();
        pre.1 = gguf::Value::String(name.as_str().into());
        let tokenizer = Tokenizer::from_metadata(&metadata).unwrap();
        let expected: Vec<Vec<u32>> = serde_json::from_value(ids.clone()).unwrap();
        assert_eq!(expected.len(), texts.len(), "{name}");
        let (before, mut others) = (wrong.len(), 0);
        for (text, ids) in texts.iter().zip(&expected) {
            let got = tokenizer.encode(text, false, false);
            others += usize::from(*ids != own.encode(text, false, false));
            if got != *ids {
                wrong.push(format!("{name}: {text:?}\n  got  {got:?}\n  want {ids:?}"));
            }
        }
        println!("{name}: {} of {} cases equal", texts.len() + before - wrong.len(), texts.len());
        assert!(others > 0, "{name}: the cases do not tell it from GPT-2's");
    }
    assert!(wrong.is_empty(), "{} cases differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn shared_vocabularies_give_their_vectors() {
    if let Some(folder) = shared("vocab") {
        check_folder(&folder);
    }
}

#[test]
fn mixed_texts_give_their_vectors() {
    let Some(folder) = shared("vocab") else { return };
    let lines = std::fs::read_to_string(folder.join("cases.jsonl")).unwrap();
    let mut cases: BTreeMap<String, Vec<serde_json::Value>> = BTreeMap::new();
    for line in lines.lines() {
        let case: serde_json::Value = serde_json::from_str(line).unwrap();
        let name = case["vocab"].as_str().unwrap().rsplit('/').next().unwrap().to_owned();
        cases.entry(name).or_default().push(case);
    }
    let (mut equal, mut wrong) = (0, Vec::new());
    for (name, cases) in cases {
        let path = folder.join(format!("{name}.gguf.xz"));
        if !path.is_file() {
            println!("skipped: {} cases of {name}, whose vocabulary is not there", cases.len());
            continue;
        }
        let tokenizer = tokenizer(&path);
        for case in cases {
            let text = case["text"].as_str().unwrap();
            let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
            let got = tokenizer.encode(text, false, case["parse_special"].as_bool().unwrap());
            if got == ids {
                equal += 1;
            } else {
                let at = got.iter().zip(&ids).take_while(|(got, want)| got == want).count();
                let part = |ids: &[u32]| ids[at..ids.len().min(at + 6)].to_vec();
                wrong.push(format!("{name} {}: from {at} got {:?} want {:?}", case["i"], part(&got), part(&ids)));
            }
        }
    }
    println!("{equal} cases equal");
    assert!(wrong.is_empty(), "{} cases differ:\n{}", wrong.len(), wrong.join("\n"));
}
