//! Latent attention: its two forms, its cache in every type, its buffers.

use crate::logits::{logits, max_difference, range};
use crate::support::{collect, eventually, executor, f32s, greedy, json, options, request, u32s, unpack};
use omni_inferd::engine::{EngineOptions, Opened, open};
use omni_inferd::exec::KvType;

/// With compressed queries and the matrix to keys and values cut; without and whole.
const MODELS: [&str; 2] = ["tests/data/tiny/deepseek2-v3.gguf.zst", "tests/data/hf-tiny/deepseek-v2.gguf.zst"];

fn prompt(len: u32) -> Vec<u32> {
    (0..len).map(|i| 3 + i * i % 151).collect()
}

/// A prompt beyond one split and one chunk of the cache's blocks, in both forms.
#[test]
fn long_prompts_agree_with_llama_cpp() {
    for (name, golden) in json("tests/data/tiny/long.json").as_object().unwrap() {
        let file = unpack(&format!("tests/data/tiny/{name}.zst"));
        let tokens = prompt(golden["length"].as_u64().unwrap() as u32);
        let mut exec = executor(&file.path, KvType::F32, tokens.len());
        let expected = f32s(&golden["logits_last"]);
        for chunk in [tokens.len(), 512, 100, 31] {
            let found = logits(&mut exec, &tokens, chunk).pop().unwrap();
            let off = max_difference(&found, &expected) / range(&expected);
            println!("{name} in chunks of {chunk}: off by {off:.1e} of the range");
            assert!(off <= 1e-4, "{name} in chunks of {chunk}: off by {off:.1e} of the range");
        }
    }
}

/// Chunks of 128 rows and more are expanded, shorter ones absorbed: each form has the same bits in any cut, and both
/// yield the same numbers, over several runs of the context.
#[test]
fn absorbed_and_expanded_attention_agree() {
    let tokens = prompt(1100);
    for path in MODELS {
        let file = unpack(path);
        let mut exec = executor(&file.path, KvType::F32, 1120);
        let expanded = logits(&mut exec, &tokens, 1100);
        assert!(logits(&mut exec, &tokens, 550) == expanded, "{path}: two chunks give other logits");
        assert!(logits(&mut exec, &tokens, 220) == expanded, "{path}: five chunks give other logits");
        let absorbed = logits(&mut exec, &tokens, 100);
        assert!(logits(&mut exec, &tokens, 127) == absorbed, "{path}: longer chunks give other logits");
        let off = expanded.iter().zip(&absorbed).map(|(a, b)| max_difference(a, b) / range(b)).fold(0.0, f32::max);
        println!("{path}: the forms are off by {off:.1e} of the range");
        assert!(expanded != absorbed, "{path}: there is one form only");
        assert!(off <= 1e-4, "{path}: the forms are off by {off:.1e} of the range");
    }
}

/// What each type of the cache costs, in both forms. The bounds are those of other models, three to four times as wide for
/// four bits: keys and values are made from what is rounded (3.9e-2 was measured for Q4_1). Models whose choice of experts
/// is decided: where it is not, rounding changes it.
#[test]
fn every_type_of_cache_holds_latents() {
    let tokens = prompt(200);
    for path in ["tests/data/hf-tiny/deepseek-v3.gguf.zst", MODELS[1]] {
        let file = unpack(path);
        let exact = logits(&mut executor(&file.path, KvType::F32, 224), &tokens, 50).concat();
        for (kv_type, bound) in [
            (KvType::F16, 1e-6),
            (KvType::Bf16, 5e-5),
            (KvType::Q8_0, 2e-4),
            (KvType::Q4_1, 8e-2),
            (KvType::Q4_0, 1e-1),
        ] {
            let mut exec = executor(&file.path, kv_type, 224);
            let absorbed = logits(&mut exec, &tokens, 50).concat();
            let expanded = logits(&mut exec, &tokens, 200).concat();
            let square = |x: f32| f64::from(x) * f64::from(x);
            let size: f64 = exact.iter().map(|&x| square(x)).sum();
            for (form, found) in [("absorbed", &absorbed), ("expanded", &expanded)] {
                let error = found.iter().zip(&exact).map(|(a, b)| square(a - b)).sum::<f64>() / size;
                println!("{path} {} {form}: NMSE {error:.2e}", kv_type.name());
                assert!(error <= bound, "{path} {} {form}: NMSE {error:.2e} over {bound:.0e}", kv_type.name());
            }
        }
    }
}

#[test]
fn planned_buffers_of_latent_attention_never_grow() {
    for (path, threads, prefill_chunk, kv_type) in [
        (MODELS[0], 2, 512, KvType::F16),
        (MODELS[0], 8, 48, KvType::Q8_0),
        (MODELS[1], 1, 200, KvType::Q4_0),
        (MODELS[1], 3, 127, KvType::F32),
    ] {
        let file = unpack(path);
        let options =
            EngineOptions { context: Some(1100), threads: Some(threads), prefill_chunk, kv_type, ..options() };
        let Opened { handle, facts, .. } = open(&file.path, &options, &mut |_| ()).unwrap();
        let long = prompt(1080);
        let requests =
            [request(&long, 5, greedy()), request(&long[7..300], 5, greedy()), request(&[5, 6], 9, greedy())];
        let streams: Vec<_> = requests.into_iter().map(|request| handle.submit(request).unwrap()).collect();
        for stream in streams {
            collect(stream).end.unwrap().unwrap();
        }
        eventually("all have ended", || handle.stats().running == 0);
        assert_eq!(handle.stats().scratch_bytes, facts.scratch_bytes, "{path}");
    }
}

/// A quantised model's two forms round other activations: they may differ by both their noises.
#[test]
fn forms_of_a_quantised_model_agree_within_its_noise() {
    let golden = &json("tests/data/tiny-quant/golden.json")["deepseek2-v3-Q4_K_M.gguf"];
    let file = unpack("tests/data/tiny-quant/deepseek2-v3-Q4_K_M.gguf.zst");
    let mut exec = executor(&file.path, KvType::F16, 224);
    let tokens: Vec<u32> = u32s(&golden["tokens"]).into_iter().cycle().take(200).collect();
    let (absorbed, expanded) = (logits(&mut exec, &tokens, 100).concat(), logits(&mut exec, &tokens, 200).concat());
    let square = |x: f32| f64::from(x) * f64::from(x);
    let error: f64 = absorbed.iter().zip(&expanded).map(|(a, b)| square(a - b)).sum();
    let error = error / absorbed.iter().map(|&x| square(x)).sum::<f64>();
    let noise = golden["nmse"].as_f64().unwrap();
    println!("between the forms: NMSE {error:.2e}; llama.cpp to the decoded model: {noise:.2e}");
    assert!(error <= 2.0 * noise, "NMSE {error:.2e} between the forms, the model's own is {noise:.2e}");
}
