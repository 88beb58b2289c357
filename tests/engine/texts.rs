//! Greedy texts of the bundled model, through the engine, against llama.cpp's.

use crate::support::{bundled, greedy, json, options, request, run, start, u32s};

/// For each prompt how many leading tokens agree with llama.cpp's 64.
fn agreement(kind: &str) -> Vec<(String, usize)> {
    let handle = start(&bundled(kind), &options()).handle;
    let golden = json("models/omni-stories.golden.json");
    let prompts = golden["prompts"].as_object().unwrap();
    prompts
        .iter()
        .map(|(text, case)| {
            let expected = u32s(&case[kind]);
            let found = run(&handle, request(&u32s(&case["ids"]), expected.len(), greedy())).tokens;
            assert_eq!(found.len(), expected.len());
            (text.clone(), found.iter().zip(&expected).take_while(|(f, e)| f == e).count())
        })
        .collect()
}

#[test]
fn float_texts_equal_llama_cpp_for_64_tokens() {
    for kind in ["f32", "f16"] {
        for (prompt, tokens) in agreement(kind) {
            assert_eq!(tokens, 64, "{kind}: {prompt:?}");
        }
    }
}

#[test]
fn quantised_texts_begin_like_llama_cpp() {
    for kind in ["q8_0", "q4_k_m"] {
        let agreement = agreement(kind);
        println!("{kind}: {agreement:?}");
        let least = agreement.iter().map(|a| a.1).min().unwrap();
        // Rounding of the activations differs, so near ties fall either way sooner or later.
        assert!(least >= 4, "{kind}: {agreement:?}");
    }
}
