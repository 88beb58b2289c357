//! The offline commands on the bundled model: perplexity over the bundled text, logits as a NumPy file.

use crate::support::{bundled, executor, json, root};
use clap::Parser;
use omni_inferd::ctl::bench::{self, BenchArgs};
use omni_inferd::ctl::offline::{LogitsArgs, perplexity, run_logits};
use omni_inferd::ctl::output::{ColorChoice, Output};
use omni_inferd::exec::{KvType, Solo, Wanted};
use omni_inferd::load::Source;
use omni_inferd::text::Tokenizer;

#[derive(Parser)]
struct Bench {
    #[command(flatten)]
    args: BenchArgs,
}

#[derive(Parser)]
struct Logits {
    #[command(flatten)]
    args: LogitsArgs,
}

/// Held-out text is scored in the fast tests over its first chunks; the golden is over all of it.
fn assert_perplexity(kind: &str) {
    let text = std::fs::read_to_string(root().join("models/omni-stories-heldout.txt")).unwrap();
    let source = Source::open(&bundled(kind)).unwrap();
    let tokenizer = Tokenizer::from_metadata(&source.header.metadata).unwrap();
    let tokens = tokenizer.encode(&text, true, false);
    let bos = tokenizer.bos().filter(|_| tokenizer.add_bos());
    let mut exec = executor(&bundled(kind), KvType::F16, 512);
    let found = perplexity(&mut exec, &tokens, bos, 512, 512, &mut |_, _| ()).unwrap();
    let golden = json("models/omni-stories.golden.json")["perplexity"][kind].as_f64().unwrap();
    println!("{kind}: {found:?}, llama.cpp {golden}");
    assert!((found.perplexity / golden - 1.0).abs() < 0.005, "{kind}: {} against {golden}", found.perplexity);
}

#[test]
fn perplexity_f32_is_within_half_a_percent_of_llama_cpp() {
    assert_perplexity("f32");
}

#[test]
fn perplexity_q4_k_m_is_within_half_a_percent_of_llama_cpp() {
    assert_perplexity("q4_k_m");
}

#[test]
fn logits_are_written_as_numpy_reads_them() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("logits.npy");
    let file = bundled("f16");
    let ids: Vec<u32> = (0..40).map(|i| i * 11 % 2000).collect();
    let list = ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let line = ["logits", file.to_str().unwrap(), "--tokens", &list, "--output", out.to_str().unwrap(), "-t", "1"];
    run_logits(&Logits::parse_from(line).args).unwrap();
    let bytes = std::fs::read(&out).unwrap();
    let header = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let found: Vec<f32> = bytes[header..].chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    let mut exec = executor(&file, KvType::F16, 64);
    assert_eq!(found, Solo::new(&mut exec).feed(&ids, Wanted::All));

    let bad = ["logits", file.to_str().unwrap(), "--tokens", "1,5000", "--output", out.to_str().unwrap()];
    assert!(run_logits(&Logits::parse_from(bad).args).unwrap_err().to_string().contains("vocabulary of 2048"));
}

#[test]
fn a_text_that_is_too_short_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("short.txt");
    std::fs::write(&text, "Once upon a time").unwrap();
    let file = bundled("q8_0");
    let line = ["bench", "--perplexity", file.to_str().unwrap(), "--text", text.to_str().unwrap()];
    let out = Output::new(false, ColorChoice::Never);
    let error = bench::run(&Bench::parse_from(line).args, out).unwrap_err();
    assert!(error.to_string().contains("1024 are needed"), "{error}");
    assert!(Bench::try_parse_from(["bench", "x.gguf", "--perplexity"]).is_err(), "a text is required");
}
