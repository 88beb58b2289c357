//! Logits of tiny random models against llama.cpp and Hugging Face transformers, under every way to cut the prompt.

use crate::support::{executor, f32s, json, root, u32s, unpack};
use omni_inferd::exec::{Batch, Executor, KvType, SeqSlice, Solo, Wanted};
use serde_json::Value;

/// Logits of all positions, fed in chunks of `chunk`.
fn logits(exec: &mut Executor, tokens: &[u32], chunk: usize) -> Vec<Vec<f32>> {
    let vocab = exec.hparams().vocab;
    let mut solo = Solo::new(exec);
    let mut rows = Vec::new();
    for part in tokens.chunks(chunk) {
        rows.extend(solo.feed(part, Wanted::All).chunks_exact(vocab).map(<[f32]>::to_vec));
    }
    rows
}

fn range(values: &[f32]) -> f32 {
    let (low, high) = values.iter().fold((f32::MAX, f32::MIN), |(l, h), v| (l.min(*v), h.max(*v)));
    high - low
}

fn max_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).fold(0.0, |max, (a, b)| max.max((a - b).abs()))
}

/// Normalised mean squared error against a reference.
fn nmse(found: &[f32], reference: &[f32]) -> f64 {
    let error: f64 = found.iter().zip(reference).map(|(f, r)| f64::from(f - r).powi(2)).sum();
    error / reference.iter().map(|r| f64::from(*r).powi(2)).sum::<f64>()
}

fn argmax(row: &[f32]) -> u32 {
    row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0 as u32
}

fn greedy(exec: &mut Executor, prompt: &[u32], n: usize) -> Vec<u32> {
    let mut solo = Solo::new(exec);
    let mut tokens = vec![argmax(solo.feed(prompt, Wanted::Last))];
    while tokens.len() < n {
        tokens.push(argmax(solo.feed(&tokens[tokens.len() - 1..], Wanted::Last)));
    }
    tokens
}

/// Without a cache the executor is the same at any chunking, bit for bit.
fn assert_same_at_any_chunk(exec: &mut Executor, tokens: &[u32], name: &str) -> Vec<Vec<f32>> {
    let whole = logits(exec, tokens, tokens.len());
    for chunk in [1, 7, 32] {
        assert_eq!(logits(exec, tokens, chunk), whole, "{name}: chunks of {chunk} give other logits");
    }
    whole
}

fn assert_f32_golden(name: &str, golden: &Value) {
    let file = unpack(&format!("tests/data/tiny/{name}.zst"));
    let tokens = u32s(&golden["tokens"]);
    let mut exec = executor(&file.path, KvType::F32, 96);
    let rows = assert_same_at_any_chunk(&mut exec, &tokens, name);
    for (row, key) in [(0, "logits_pos0"), (tokens.len() - 1, "logits_last")] {
        let expected = f32s(&golden[key]);
        let difference = max_difference(&rows[row], &expected);
        assert!(difference <= 1e-3 * range(&expected), "{name} {key}: off by {difference}");
    }
    // Where the two best are nearer than rounding, either may win.
    let min_gap = golden["min_gap"].as_f64().unwrap();
    let expected = u32s(&golden["argmax_per_pos"]);
    for (row, expected) in rows.iter().zip(&expected) {
        let found = argmax(row);
        assert!(found == *expected || row[found as usize] - row[*expected as usize] < 2e-3, "{name}: {expected}");
    }
    if min_gap > 1e-3 {
        assert_eq!(greedy(&mut exec, &tokens, 24), u32s(&golden["greedy24"]), "{name}");
    }
    if golden["text_min_gap"].as_f64().unwrap() > 1e-3 {
        let prompt = u32s(&golden["text_prompt_ids"]);
        assert_eq!(greedy(&mut exec, &prompt, 24), u32s(&golden["text_greedy24"]), "{name}");
    }
}

#[test]
fn f32_models_of_each_architecture_agree_with_llama_cpp() {
    let goldens = json("tests/data/tiny/golden.json");
    for (name, golden) in goldens.as_object().unwrap() {
        assert_f32_golden(name, golden);
    }
}

#[test]
fn qwen2_agrees_with_hugging_face() {
    let dir = root().join("tests/data/hf-tiny");
    let ids = std::fs::read(dir.join("ids.i32")).unwrap();
    let ids: Vec<u32> = ids.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect();
    let npy = std::fs::read(dir.join("qwen2.ref_logits.npy")).unwrap();
    let header = 10 + usize::from(u16::from_le_bytes([npy[8], npy[9]]));
    let expected: Vec<f32> = npy[header..].chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    let mut exec = executor(&dir.join("qwen2.gguf"), KvType::F32, 32);
    let found = assert_same_at_any_chunk(&mut exec, &ids, "hf qwen2").concat();
    let difference = max_difference(&found, &expected);
    assert!(difference <= 1e-3 * range(&expected), "off by {difference}");
}

#[test]
fn quantised_models_are_no_worse_than_llama_cpp() {
    let goldens = json("tests/data/tiny-quant/golden.json");
    let mut faults = Vec::new();
    let mut ratios = Vec::new();
    for (name, golden) in goldens.as_object().unwrap() {
        let file = unpack(&format!("tests/data/tiny-quant/{name}.zst"));
        let tokens = u32s(&golden["llamacpp"]["tokens"]);
        let exact = f32s(&golden["dequantized_f32"]["logits_last"]);
        let peer = nmse(&f32s(&golden["llamacpp"]["logits_last"]), &exact);
        let mut exec = executor(&file.path, KvType::F32, 64);
        let rows = assert_same_at_any_chunk(&mut exec, &tokens, name);
        let own = nmse(&rows[tokens.len() - 1], &exact);
        println!("{name}: NMSE {own:.2e}, llama.cpp {peer:.2e}");
        // Without the float types, where rounding to 8 bit does not dominate.
        if peer > 1e-4 {
            ratios.push(own / peer);
        }
        // One row of 512 logits is a small sample of the rounding noise: the factor is its spread, not a licence.
        if own > 1.5 * peer {
            faults.push(format!("{name}: {own:.3e} against {peer:.3e}"));
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
    let mean = (ratios.iter().map(|r: &f64| r.ln()).sum::<f64>() / ratios.len() as f64).exp();
    println!("geometric mean of the ratios: {mean:.3}");
    assert!(mean <= 1.02, "worse than llama.cpp on the whole: {mean}");
}

#[test]
fn a_batch_of_mixed_sequences_equals_each_alone() {
    let file = unpack("tests/data/tiny/qwen3.gguf.zst");
    let golden = json("tests/data/tiny/golden.json");
    let tokens = u32s(&golden["qwen3.gguf"]["tokens"]);
    let mut exec = executor(&file.path, KvType::F16, 256);
    let vocab = exec.hparams().vocab;
    let alone: Vec<_> = [48, 20, 1].map(|n| logits(&mut exec, &tokens[48 - n..], 48)).into();

    // The first sequence in two chunks, so that its second meets the starts of the others; its blocks lie apart.
    let blocks: [&[u32]; 3] = [&[5, 2], &[0], &[7]];
    let mut first = vec![0; 0];
    let seq = |first_row, rows, start, nth: usize| SeqSlice { first_row, rows, start, blocks: blocks[nth] };
    let seqs = [seq(0, 33, 0, 0)];
    let rows: Vec<usize> = (0..33).collect();
    let batch = Batch { tokens: &tokens[..33], seqs: &seqs, logit_rows: &rows };
    first.extend(exec.forward(&batch, &mut || ()).iter().map(|l| l.to_bits()));
    let seqs = [seq(0, 1, 0, 2), seq(1, 15, 33, 0), seq(16, 20, 0, 1)];
    let mixed = [&tokens[47..], &tokens[33..], &tokens[28..]].concat();
    let mut layers = 0;
    let batch = Batch { tokens: &mixed, seqs: &seqs, logit_rows: &[0, 15, 35] };
    let last = exec.forward(&batch, &mut || layers += 1);
    assert_eq!(last[..vocab], alone[2][0]);
    assert_eq!(last[vocab..2 * vocab], alone[0][47]);
    assert_eq!(last[2 * vocab..], alone[1][19]);
    let bits: Vec<u32> = alone[0][..33].concat().iter().map(|l| l.to_bits()).collect();
    assert_eq!(first, bits);
    assert_eq!(layers, exec.hparams().layers);
}
