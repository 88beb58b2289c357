//! `omnictl bench` from its command line to its rows: on the bundled model and on a tiny made one.

use crate::support::bundled;
use clap::Parser;
use omni_inferd::ctl::bench::{BenchArgs, Row, bench};
use serde_json::Value;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: BenchArgs,
}

fn rows(line: &str) -> Vec<Row> {
    let words = std::iter::once("bench").chain(line.split_whitespace());
    bench(&Line::parse_from(words).args).unwrap()
}

fn refusal(line: &str) -> String {
    let words = std::iter::once("bench").chain(line.split_whitespace());
    bench(&Line::parse_from(words).args).unwrap_err().to_string()
}

#[test]
fn rows_have_llama_benchs_names() {
    let file = bundled("q8_0");
    let rows = rows(&format!("-m {} -p 16,32 -n 4 -t 2 -r 2 --isa scalar", file.display()));
    let tests: Vec<_> = rows.iter().map(|r| (r.n_prompt, r.n_gen)).collect();
    assert_eq!(tests, [(16, 0), (32, 0), (0, 4)]);
    let json = serde_json::to_value(&rows).unwrap();
    let row = &json[0];
    let strings = ["model", "model_filename", "isa", "type_k", "type_v"];
    assert!(strings.iter().all(|key| row[key].is_string()), "{row}");
    let counts = [
        "model_size",
        "model_n_params",
        "threads",
        "n_threads",
        "n_ubatch",
        "n_prompt",
        "n_gen",
        "depth",
        "n_depth",
        "batch",
    ];
    assert!(counts.iter().all(|key| row[key].is_u64()), "{row}");
    assert!(["avg_ts", "stddev_ts", "median_ts"].iter().all(|key| row[key].is_f64()), "{row}");
    assert_eq!((row["threads"].as_u64(), row["isa"].as_str()), (Some(2), Some("scalar")));
    assert_eq!(row["samples_ts"].as_array().map(Vec::len), Some(2));
    assert!(row["avg_ts"].as_f64().unwrap() > 0.0);
    assert!(row.get("peer").is_none() && row.get("profile").is_none(), "only where asked for: {row}");
}

#[test]
fn a_made_model_runs_at_depth_with_several_sequences_and_threads() {
    for (quant, isa) in [("q4_k_m", "avx512vnni"), ("q8_0", "avx2")] {
        let line = format!("--shape tiny --quant {quant} --isa {isa} -p 8 -n 3 -d 0,200 -b 1,4 -t 1,2 -r 1 --ubatch 5");
        let rows = rows(&line);
        assert_eq!(rows.len(), 2 * 2 * 2 * 2, "threads, works, depths, batches");
        assert!(rows.iter().all(|row| row.avg_ts > 0.0 && row.model.starts_with("tiny ")), "{rows:?}");
        assert!(rows.iter().all(|row| row.gigabytes_per_second.is_some() == (row.n_gen > 0)));
        let deep = rows.iter().find(|row| row.depth == 200 && row.batch == 4 && row.n_gen == 3 && row.threads == 2);
        assert_eq!(deep.unwrap().case().label(), "tg3 @ d200 x4");
    }
}

/// The same for recurrent layers: every sequence has a state of its own.
#[test]
fn a_made_hybrid_runs() {
    let rows = rows("--shape tiny-hybrid --quant q8_0 -p 8 -n 3 -d 0,70 -b 1,3 -t 2 -r 1 --ubatch 5 --profile");
    assert_eq!(rows.len(), 2 * 2 * 2, "works, depths, batches");
    assert!(rows.iter().all(|row| row.avg_ts > 0.0 && row.model.starts_with("tiny-hybrid ")), "{rows:?}");
    let profile = serde_json::to_value(&rows[0]).unwrap()["profile"].clone();
    let noted = |op: &str| profile.as_array().unwrap().iter().any(|entry| entry["op"] == op);
    assert!(["delta_rule", "convolution", "attention", "sigmoid_mul"].into_iter().all(noted), "{profile:#}");
}

#[test]
fn a_profile_adds_up_to_the_step() {
    let rows = rows("--shape tiny -p 0 -n 2 -r 1 -t 1 --profile");
    let profile = serde_json::to_value(&rows[0]).unwrap()["profile"].clone();
    let entries = profile.as_array().unwrap();
    let share: f64 = entries.iter().map(|entry| entry["share"].as_f64().unwrap()).sum();
    assert!((share - 1.0).abs() < 0.01, "{share}: {profile:#}");
    let entry = |op: &str, weights: &str| -> Value {
        let found =
            entries.iter().find(|entry| entry["op"] == op && entry["weights"].as_str().unwrap().contains(weights));
        found.unwrap_or_else(|| panic!("no {op} {weights} in {profile:#}")).clone()
    };
    let down =
        entries.iter().filter(|entry| entry["weights"] == "ffn_down").map(|entry| entry["types"].as_str().unwrap());
    let mut down: Vec<_> = down.collect();
    down.sort_unstable();
    assert_eq!(down, ["Q4_K", "Q6_K"], "the last block gets more bits");
    assert_eq!(entry("matmul", "token_embd")["calls"], 1.0, "the tied head, once a step");
    assert_eq!(entry("attention", "")["calls"], 2.0);
    assert!(entry("matmul", "ffn_gate")["gigaoperations_per_second"].as_f64().unwrap() > 0.0);
}

#[test]
fn refusals_say_what_is_missing() {
    let text = refusal("--shape unknown");
    assert!(text.contains("architecture \"mamba9\"") && text.contains("does not run yet"), "{text}");
    let text = refusal("--shape llama-3.1-8b --quant f16 -d 100000000");
    assert!(text.contains("does not fit into memory") && text.contains("not even --shape llama-3.1-8b:1"), "{text}");
    let file = bundled("q8_0");
    let text = refusal(&format!("{} --peer=/nonexistent/python", file.display()));
    assert!(text.contains("/nonexistent/python does not import llama_cpp"), "{text}");
    assert!(refusal("/nonexistent.gguf").contains("/nonexistent.gguf"));
}
