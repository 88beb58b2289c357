//! The commands of `omnictl` that need only the text module.

use crate::support::{committed, decompressed};
use clap::Parser;
use omni_inferd::ctl::textcmds::{Detokenize, Error, ParseChat, Render, Tokenize};
use std::path::PathBuf;

#[derive(clap::Parser)]
enum Command {
    Tokenize(Tokenize),
    Detokenize(Detokenize),
    Render(Render),
    ParseChat(ParseChat),
}

fn run(arguments: &[&str], input: &str) -> Result<String, Error> {
    let mut out = Vec::new();
    let command = Command::try_parse_from([&["omnictl"], arguments].concat()).unwrap();
    match command {
        Command::Tokenize(command) => command.run(input.as_bytes(), &mut out)?,
        Command::Detokenize(command) => command.run(input.as_bytes(), &mut out)?,
        Command::Render(command) => command.run(input.as_bytes(), &mut out)?,
        Command::ParseChat(command) => command.run(input.as_bytes(), &mut out)?,
    }
    Ok(String::from_utf8(out).unwrap())
}

fn vocabulary(folder: &std::path::Path) -> PathBuf {
    let path = folder.join("vocab.gguf");
    std::fs::write(&path, decompressed(&committed("vocab").join("ggml-vocab-qwen2.gguf.xz"))).unwrap();
    path
}

#[test]
fn text_goes_to_ids_and_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = vocabulary(folder.path());
    let path = path.to_str().unwrap();
    let ids = run(&["tokenize", path, "--special"], "<|im_start|>Hello world").unwrap();
    assert_eq!(ids, "[151644,9707,1879]\n");
    assert_eq!(run(&["detokenize", path], &ids).unwrap(), "<|im_start|>Hello world");
    assert_eq!(run(&["detokenize", path, "--skip-special"], &ids).unwrap(), "Hello world");
    assert_eq!(run(&["detokenize", path, "9707", "1879"], "").unwrap(), "Hello world");
    assert_eq!(run(&["detokenize", path, "--json", "9707"], "").unwrap(), "{\"content\":\"Hello\"}\n");
    assert!(run(&["detokenize", path], "[1,").unwrap_err().to_string().contains("JSON array"));
}

#[test]
fn a_request_becomes_its_prompt() {
    let folder = tempfile::tempdir().unwrap();
    let path = vocabulary(folder.path());
    let request = r#"{"messages":[{"role":"user","content":"Hi"}]}"#;
    let prompt = run(&["render", path.to_str().unwrap()], request).unwrap();
    assert!(prompt.ends_with("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"), "{prompt}");
    let template = folder.path().join("t.jinja");
    std::fs::write(&template, "{{ bos_token }}{{ messages[0].content }}{{ x }}").unwrap();
    let request = r#"{"messages":[{"content":"Hi"}],"bos_token":"<s>","chat_template_kwargs":{"x":1.0}}"#;
    assert_eq!(run(&["render", template.to_str().unwrap()], request).unwrap(), "<s>Hi1.0");
    let json = run(&["render", template.to_str().unwrap(), "--json"], request).unwrap();
    assert_eq!(json, "{\"prompt\":\"<s>Hi1.0\"}\n");
}

#[test]
fn an_answer_is_taken_apart() {
    let template = committed("templates").join("Qwen-Qwen3-0.6B.jinja");
    let case = r#"{"output":"<think>\nhm\n</think>\n\nOk.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>",
        "tools":[{"type":"function","function":{"name":"f"}}]}"#;
    let parsed = run(&["parse-chat", template.to_str().unwrap()], case).unwrap();
    let want =
        r#"{"content":"Ok.","reasoning_content":"hm","tool_calls":[{"id":"","name":"f","arguments":"{\"a\": 1}"}]}"#;
    assert_eq!(parsed.trim(), want);
}

#[test]
fn unusable_files_are_named() {
    let error = run(&["tokenize", "/does/not/exist.gguf"], "").unwrap_err();
    assert!(error.to_string().contains("/does/not/exist.gguf"));
    let template = committed("templates").join("Qwen-Qwen3-0.6B.jinja");
    assert!(matches!(run(&["tokenize", template.to_str().unwrap()], ""), Err(Error::Gguf { .. })));
}
