//! Architectures with windows, sinks, fused matrices and numbers of their own: what is bound of the tiny models' headers, and
//! what is refused when those are changed.

use super::raw::read;
use omni_inferd::gguf::{Array, File, TensorInfo, Value};
use omni_inferd::model::report::Report;
use omni_inferd::model::{self, Activation, FeedForward, Mixer, Model, QueryGrowth, RopeScaling};

/// The file of a tiny model.
fn tiny(name: &str) -> File {
    let path = format!("{}/tests/data/hf-tiny/{name}.gguf.zst", env!("CARGO_MANIFEST_DIR"));
    read(&zstd::decode_all(std::fs::File::open(path).unwrap()).unwrap()).unwrap()
}

fn set(file: &mut File, key: &str, value: Value) {
    remove(file, key);
    file.metadata.entries.push((key.into(), value));
}

fn remove(file: &mut File, key: &str) {
    file.metadata.entries.retain(|(name, _)| name != key);
}

fn bound(file: &File) -> Model<TensorInfo> {
    model::bind(file).unwrap()
}

/// Why the tiny model is refused after a change.
fn refused(name: &str, change: impl FnOnce(&mut File)) -> String {
    let mut file = tiny(name);
    change(&mut file);
    model::bind(&file).expect_err("it is refused").to_string()
}

fn windows(model: &Model<TensorInfo>) -> Vec<bool> {
    (0..model.hparams.layers).map(|layer| model.hparams.window_of(layer).is_some()).collect()
}

#[test]
fn windows_follow_their_patterns() {
    let (yes, no) = (true, false);
    let gpt_oss = bound(&tiny("gpt-oss"));
    assert_eq!((gpt_oss.hparams.window, windows(&gpt_oss)), (Some(16), vec![yes, no, yes, no]));
    let mut gemma = tiny("gemma3");
    assert_eq!(windows(&bound(&gemma)), [yes, yes, yes, yes, yes, no, yes]);
    set(&mut gemma, "gemma3.attention.sliding_window_pattern", Value::U32(3));
    assert_eq!(windows(&bound(&gemma)), [yes, yes, no, yes, yes, no, yes]);
    let flags = vec![no, yes, yes, no, yes, yes, no];
    set(&mut gemma, "gemma3.attention.sliding_window_pattern", Value::Array(Array::Bool(flags.clone())));
    assert_eq!(windows(&bound(&gemma)), flags);
    assert_eq!(windows(&bound(&tiny("phi3"))), [yes, yes]);
    let mut phi = tiny("phi3");
    set(&mut phi, "phi3.attention.sliding_window", Value::U32(0));
    assert_eq!(bound(&phi).hparams.window, None, "Phi-4 says 0 for none");
    let few = refused("gemma3", |file| {
        set(file, "gemma3.attention.sliding_window_pattern", Value::Array(Array::Bool(vec![yes; 6])));
    });
    assert!(few.contains("array of bool of 6") && few.contains("each of 7 layers"), "{few}");
}

#[test]
fn fused_matrices_are_cut_where_they_lie() {
    let file = tiny("phi3");
    let model = bound(&file);
    assert!(model.ignored.is_empty(), "{:?}", model.ignored);
    for (layer, bound) in model.layers.iter().enumerate() {
        let Mixer::Attention(attention) = &bound.mixer else { panic!("it has attention") };
        let FeedForward::Dense(ffn) = &bound.ffn else { panic!("it is dense") };
        let fused = [
            ("attn_qkv", vec![(&attention.q, 64), (&attention.k, 32), (&attention.v, 32)]),
            ("ffn_up", vec![(&ffn.gate, 96), (&ffn.up, 96)]),
        ];
        for (name, parts) in fused {
            let name = format!("blk.{layer}.{name}.weight");
            let whole = file.tensors.iter().find(|tensor| tensor.name == name).unwrap();
            let mut offset = whole.offset;
            for (part, rows) in parts {
                let part = &part.weight;
                assert_eq!((&part.shape, part.offset, part.size), (&vec![64, rows], offset, rows * 64 * 4), "{part:?}");
                offset += part.size;
            }
            assert_eq!(offset, whole.offset + whole.size);
        }
    }
    assert_eq!(model.parameters(), file.tensors.iter().map(TensorInfo::elements).sum::<u64>());
    let misshapen = refused("phi3", |file| {
        let fused = file.tensors.iter_mut().find(|tensor| tensor.name == "blk.1.attn_qkv.weight").unwrap();
        fused.shape = vec![64, 64];
    });
    assert!(misshapen.contains("blk.1.attn_qkv.weight") && misshapen.contains("[64, 128]"), "{misshapen}");
}

#[test]
fn numbers_of_their_own_are_read() {
    let mut file = tiny("gpt-oss");
    let gpt_oss = bound(&file).hparams;
    assert_eq!(gpt_oss.activation, Activation::Clamped);
    // OpenAI's own by their original context, others as the format has it.
    assert!(matches!(gpt_oss.rope.scaling, RopeScaling::Yarn { whole_pairs: false, original_context: 4096, .. }));
    set(&mut file, "gpt-oss.rope.scaling.original_context_length", Value::U32(128));
    assert!(matches!(bound(&file).hparams.rope.scaling, RopeScaling::Yarn { whole_pairs: true, .. }));
    let gemma = bound(&tiny("gemma3")).hparams;
    assert_eq!((gemma.embedding_scale, gemma.logit_cap, gemma.activation), (8.0, Some(3.0), Activation::Gelu));
    assert_eq!((gemma.rope.base, gemma.window_rope.unwrap().base), (1e6, 1e4));
    assert_eq!(gemma.attention_scale, 1.0 / 32f32.sqrt());
    let ministral = bound(&tiny("mistral3")).hparams;
    assert_eq!(ministral.query_growth, Some(QueryGrowth { scale: 0.1, every: 16 }));
    // Both forms of the magnitude cancel.
    let RopeScaling::Yarn { attention, factor, .. } = ministral.rope.scaling else { panic!() };
    assert!((attention * (0.1 * factor.ln() + 1.0) - 1.0).abs() < 1e-6, "{attention}");
    let phi = bound(&tiny("phi3"));
    assert!(matches!(phi.hparams.rope.scaling, RopeScaling::LongRope { original_context: 32, .. }));
    assert!(phi.rope_factors.is_some() && phi.rope_factors_long.is_some());
}

/// Gemma 3 27B is known by its layers; its files do not say that its scores are scaled in another way.
#[test]
fn the_largest_gemma_has_its_own_scale() {
    let mut file = tiny("gemma3");
    for layer in 7..62 {
        let prefix = "blk.0.";
        let first: Vec<TensorInfo> = file.tensors.iter().filter(|t| t.name.starts_with(prefix)).cloned().collect();
        let renamed = |t: TensorInfo| TensorInfo { name: t.name.replace(prefix, &format!("blk.{layer}.")), ..t };
        file.tensors.extend(first.into_iter().map(renamed));
    }
    set(&mut file, "gemma3.block_count", Value::U32(62));
    assert_eq!(bound(&file).hparams.attention_scale, 1.0 / 16f32.sqrt());
    set(&mut file, "gemma3.attention.scale", Value::F32(0.25));
    assert_eq!(bound(&file).hparams.attention_scale, 0.25);
}

#[test]
fn what_would_give_other_results_is_refused() {
    let without = |name: &'static str, tensor: &'static str| {
        refused(name, |file| file.tensors.retain(|found| found.name != tensor))
    };
    for (name, tensor) in [
        ("gpt-oss", "blk.2.attn_sinks.weight"),
        ("gpt-oss", "blk.1.attn_output.bias"),
        ("gpt-oss", "blk.0.post_attention_norm.weight"),
        ("gemma3", "blk.3.post_ffw_norm.weight"),
        ("gemma3", "blk.3.attn_q_norm.weight"),
        ("phi3", "blk.0.ffn_up.weight"),
    ] {
        let text = without(name, tensor);
        assert_eq!(text, format!("tensor {tensor:?} is missing"));
    }
    let capped = refused("gemma3", |file| set(file, "gemma3.attn_logit_softcapping", Value::F32(50.0)));
    assert!(capped.contains("attn_logit_softcapping is 50") && capped.contains("not supported"), "{capped}");
    let negative = refused("gemma3", |file| set(file, "gemma3.final_logit_softcapping", Value::F32(-1.0)));
    assert!(negative.contains("above 0"), "{negative}");
    let aimless = refused("mistral3", |file| {
        remove(file, "mistral3.rope.scaling.original_context_length");
    });
    assert!(aimless.contains("original_context_length"), "{aimless}");
    let long = refused("gpt-oss", |file| {
        let sinks = file.tensors.iter_mut().find(|tensor| tensor.name == "blk.0.attn_sinks.weight").unwrap();
        sinks.shape = vec![5];
    });
    assert!(long.contains("attn_sinks.weight") && long.contains("[4]"), "{long}");
    let dense = refused("gpt-oss", |file| set(file, "gpt-oss.expert_count", Value::U32(0)));
    assert!(dense.contains("needs experts"), "{dense}");
    let routed = refused("phi3", |file| set(file, "phi3.expert_count", Value::U32(4)));
    assert!(routed.contains("no experts"), "{routed}");
}

#[test]
fn reports_are_exact() {
    for (name, layers) in [("gpt-oss", 4), ("gemma3", 7), ("phi3", 2), ("mistral3", 2)] {
        let file = tiny(name);
        let report = Report::new(&file);
        assert!(report.supported && report.warnings.is_empty(), "{name}: {:?} {:?}", report.reasons, report.warnings);
        let head = if name == "phi3" { 16 } else { 32 };
        assert_eq!(report.bytes.kv_per_token, Some(layers * 2 * 2 * head * 2), "{name}");
        assert_eq!(report.parameters.total, bound(&file).parameters(), "{name}");
    }
    // Three of eight experts, their biases included: 2·48·64 + 48·64 weights and 2·48 + 64 biases each, in four layers.
    let report = Report::new(&tiny("gpt-oss"));
    let experts = 4 * 8 * (3 * 48 * 64 + 2 * 48 + 64);
    assert_eq!(report.parameters.total - report.parameters.active, experts / 8 * 5);
}

/// Refused by its name, before anything else is looked at, with what it is nearest to: in reports and when it is loaded.
#[test]
fn newer_architectures_are_refused_with_their_nearest_relative() {
    for (name, nearest) in [
        ("deepseek32", "deepseek2, from which it differs: an indexer chooses"),
        ("deepseek3_2", "deepseek2, from which it differs: an indexer chooses"),
        ("glm-dsa", "deepseek2, from which it differs: an indexer chooses"),
        ("Experimental", ""),
        ("qwen3vl", "qwen3, from which it differs: it sees images"),
        ("gpt-oss2", "gpt-oss;"),
    ] {
        let mut file = tiny("glm-4.7-flash");
        set(&mut file, "general.architecture", Value::String(name.into()));
        let text = model::bind(&file).unwrap_err().to_string();
        assert!(text.contains(&format!("architecture {name:?}")) && text.contains("not supported"), "{text}");
        assert!(text.contains("supported are deepseek2, "), "{text}");
        match nearest {
            "" => assert!(!text.contains("nearest"), "{text}"),
            nearest => assert!(text.contains(&format!("the nearest known one is {nearest}")), "{text}"),
        }
        let report = Report::new(&file);
        assert!(!report.supported && report.reasons == [text], "{:?}", report.reasons);
        assert_eq!(report.architecture.as_deref(), Some(name));
    }
}

/// What `inspect` says of each architecture, against numbers that were counted elsewhere: weights in transformers' modules,
/// cache and state by the configuration.
#[test]
fn reports_agree_with_what_was_counted_in_transformers() {
    let path = format!("{}/tests/data/hf-tiny/sizes.json", env!("CARGO_MANIFEST_DIR"));
    let sizes: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let mut architectures = Vec::new();
    for (name, counted) in sizes.as_object().unwrap() {
        let (file, counted) = (tiny(name), |key: &str| counted[key].as_u64());
        let report = Report::new(&file);
        assert!(report.supported && report.warnings.is_empty(), "{name}: {:?}", report.reasons);
        // Factors of rotation are no weights of the module.
        let factors = file.tensors.iter().filter(|tensor| tensor.name.starts_with("rope_f"));
        let factors: u64 = factors.map(|tensor| tensor.elements()).sum();
        assert_eq!(Some(report.parameters.total - factors), counted("parameters"), "{name}");
        assert_eq!(Some(report.parameters.active - factors), counted("active"), "{name}");
        assert_eq!(report.experts.map(|experts| experts.count), counted("experts"), "{name}");
        assert_eq!(report.experts.map(|experts| experts.used), counted("experts_used"), "{name}");
        assert_eq!(report.bytes.kv_per_token, counted("kv_bytes_per_token"), "{name}");
        assert_eq!(report.bytes.state_per_sequence, counted("state_bytes"), "{name}");
        assert_eq!(report.bytes.weights, 4 * report.parameters.total, "{name}: all of it is F32");
        architectures.push(report.architecture.unwrap());
    }
    for architecture in model::Architecture::ALL {
        assert!(architectures.iter().any(|found| found == architecture.name()), "no {}", architecture.name());
    }
}
