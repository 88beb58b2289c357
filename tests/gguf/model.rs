//! Binding beyond the catalogue: variants that must be taken, split sets, walking the bound model.

use super::raw::{Raw, array, load, read, sample, string};
use omni_inferd::gguf::{Array, Error, File, SplitName, TensorInfo, Value, write::Builder};
use omni_inferd::model::report::Report;
use omni_inferd::model::{self, Attention, Mixer, Model, RopeScaling};
use omni_inferd::quant::DType;

fn bound(mutate: impl FnOnce(&mut Raw)) -> Result<Model<TensorInfo>, String> {
    let mut raw = sample();
    mutate(&mut raw);
    load(&raw.bytes())
}

fn attention<T>(model: &Model<T>, layer: usize) -> &Attention<T> {
    let Mixer::Attention(attention) = &model.layers[layer].mixer else { panic!("it has attention") };
    attention
}

fn float(raw: &mut Raw, key: &str, value: f32) {
    raw.push(format!("llama.{key}"), 6, value.to_le_bytes());
}

#[test]
fn rope_scaling_is_read() {
    let scaling = |mutate: fn(&mut Raw)| bound(mutate).map(|model| model.hparams.rope.scaling);
    assert_eq!(scaling(|_| ()), Ok(RopeScaling::None));
    assert_eq!(scaling(|r| float(r, "rope.scale_linear", 4.0)), Ok(RopeScaling::Linear { factor: 4.0 }));
    assert_eq!(scaling(|r| float(r, "rope.scaling.factor", 0.0)), Ok(RopeScaling::None));
    let typed = |kind: &'static str| {
        move |r: &mut Raw| {
            r.push("llama.rope.scaling.type", 8, string(kind));
            float(r, "rope.scaling.factor", 8.0);
        }
    };
    let of = |kind| bound(typed(kind)).map(|model| model.hparams.rope.scaling);
    assert_eq!(of("none"), Ok(RopeScaling::None));
    assert_eq!(of("linear"), Ok(RopeScaling::Linear { factor: 8.0 }));
    assert!(of("longrope").unwrap_err().contains("none, linear and yarn are supported"));
    let yarn = bound(|r| {
        typed("yarn")(r);
        r.push("llama.rope.scaling.original_context_length", 4, 128u32.to_le_bytes());
        float(r, "rope.scaling.attn_factor", 0.5);
        float(r, "rope.scaling.yarn_beta_fast", 16.0);
    });
    let expected = RopeScaling::Yarn {
        factor: 8.0,
        original_context: 128,
        extrapolation: 1.0,
        attention: 0.5,
        beta_fast: 16.0,
        beta_slow: 1.0,
        whole_pairs: true,
    };
    assert_eq!(yarn.unwrap().hparams.rope.scaling, expected);
    assert!(scaling(|r| float(r, "rope.scaling.factor", -1.0)).unwrap_err().contains("rope.scaling.factor is -1"));
    assert!(scaling(|r| float(r, "rope.scaling.factor", f32::NAN)).is_err());
}

#[test]
fn optional_parts_are_taken() {
    let model = bound(|r| {
        r.push("llama.attention.sliding_window", 4, 128u32.to_le_bytes());
        r.add("output.weight", &[64, 512], 8, 2 * 34 * 512);
        r.add("rope_freqs.weight", &[4], 0, 16);
        r.add("blk.3.attn_q.bias", &[64], 0, 256);
        r.add("blk.0.unheard_of.weight", &[1], 0, 4);
    })
    .unwrap();
    assert_eq!(model.hparams.window, Some(128));
    assert_eq!(model.output.as_ref().unwrap().dtype, DType::Q8_0);
    assert_eq!(model.rope_factors.as_ref().unwrap().shape, [4]);
    let bias = |layer: usize| attention(&model, layer).q.bias.is_some();
    assert!(bias(3) && !bias(2));
    assert_eq!(model.ignored, ["blk.0.unheard_of.weight"]);
    let refused = bound(|r| r.add("blk.3.attn_q.bias", &[64], 1, 128)).unwrap_err();
    assert!(refused.contains("\"blk.3.attn_q.bias\" is of type F16: norms, biases"), "{refused}");
    let refused = bound(|r| r.add("output.weight", &[64, 512], 42, 18 * 512)).unwrap_err();
    assert!(refused.contains("\"output.weight\" is of type Q2_0: this build has no decoder"), "{refused}");
    let scaled = bound(|r| r.add("blk.3.attn_q.scale", &[1], 0, 4)).unwrap();
    let scale = |layer: usize| attention(&scaled, layer).q.scale.is_some();
    assert!(scale(3) && !scale(2) && scaled.ignored.is_empty());
    let refused = bound(|r| r.add("blk.3.attn_q.scale", &[2], 0, 8)).unwrap_err();
    assert!(refused.contains("\"blk.3.attn_q.scale\" has shape [2]"), "{refused}");
    // Where nothing would apply it, it is no warning's matter.
    let refused = bound(|r| r.add("token_embd.scale", &[1], 0, 4)).unwrap_err();
    assert!(
        refused.starts_with("tensor \"token_embd.scale\" is a factor for the whole of \"token_embd.weight\""),
        "{refused}"
    );
    assert!(
        refused.contains("which is of type Q4_0; it cannot be applied there: convert \"token_embd.weight\""),
        "{refused}"
    );
}

#[test]
fn a_vocabulary_may_be_a_mere_number() {
    let without = |r: &mut Raw| {
        r.set("tokenizer.ggml.model", 8, string("none"));
        r.remove("tokenizer.ggml.tokens");
    };
    let bind = |raw: Raw| model::bind(&read(&raw.bytes()).unwrap());
    let mut raw = sample();
    without(&mut raw);
    assert!(bind(raw.clone()).unwrap_err().to_string().contains("llama.vocab_size\" is missing"));
    raw.push("llama.vocab_size", 4, 512u32.to_le_bytes());
    assert_eq!(bind(raw).unwrap().hparams.vocab, 512);
}

#[test]
fn mapping_visits_every_tensor_once_and_stops_at_an_error() {
    let model = bound(|r| r.add("blk.3.attn_q.bias", &[64], 0, 256)).unwrap();
    let mut paths = Vec::new();
    model.for_each(|path, tensor| paths.push((path, tensor.name.clone())));
    assert_eq!(paths.len(), 48);
    assert!(paths.contains(&("layers.attention.q.bias", "blk.3.attn_q.bias".into())));
    assert!(paths.contains(&("layers.ffn.down.weight", "blk.4.ffn_down.weight".into())));
    let names = model.clone().try_map(|_, tensor| Ok::<_, ()>(tensor.name)).unwrap();
    assert_eq!(names.tensors().len(), 48);
    assert_eq!(attention(&names, 1).output.weight, "blk.1.attn_output.weight");
    let mut calls = 0;
    let stopped = model.try_map(|path, _| {
        calls += 1;
        if path == "layers.ffn_norm" { Err(path) } else { Ok(()) }
    });
    assert_eq!((stopped.err(), calls), (Some("layers.ffn_norm"), 8));
}

/// A file of a set of `count` with two tensors.
fn part(no: u16, count: u16, tensors_count: i32) -> File {
    let mut file = Builder::new()
        .key("split.no", Value::U16(no))
        .key("split.count", Value::U16(count))
        .key("split.tensors.count", Value::I32(tensors_count));
    for i in 0..2 {
        file = file.tensor(format!("t.{no}.{i}"), &[8], DType::F32, vec![0; 32]);
    }
    read(&file.build()).unwrap()
}

#[test]
fn split_sets_merge() {
    let whole = File::merge((0..3).map(|no| part(no, 3, 6)).collect()).unwrap();
    assert_eq!((whole.files, whole.tensors.len()), (3, 6));
    assert_eq!(whole.tensors.iter().map(|t| t.file).collect::<Vec<_>>(), [0, 0, 1, 1, 2, 2]);
    let refused = |parts: Vec<File>| File::merge(parts).unwrap_err().to_string();
    assert!(refused(vec![]).contains("no file"));
    assert!(refused(vec![part(0, 3, 6), part(1, 3, 6)]).contains("the set has 3 files (split.count), 2 were given"));
    assert!(refused(vec![part(0, 2, 4), part(0, 2, 4)]).contains("file 2 of 2 says it is number 1"));
    assert!(refused(vec![part(0, 2, 4), part(1, 3, 4)]).contains("a set of 3, the first one to a set of 2"));
    assert!(refused(vec![part(0, 2, 5), part(1, 2, 5)]).contains("5 tensors are promised"));
    assert!(refused(vec![part(1, 2, 4), part(0, 2, 4)]).contains("file 1 of 2 says it is number 2"));
    let mut twin = part(1, 2, 4);
    twin.tensors[0].name = "t.0.0".into();
    assert!(matches!(File::merge(vec![part(0, 2, 4), twin]), Err(Error::Duplicate { .. })));
    let mut raw = sample();
    raw.push("split.count", 2, 2u16.to_le_bytes());
    let error = model::bind(&read(&raw.bytes()).unwrap()).unwrap_err().to_string();
    assert!(error.contains("split into 2 files"), "{error}");
}

#[test]
fn split_names() {
    let name = SplitName::parse("/models/big-00002-of-00009.gguf").unwrap();
    assert_eq!((name.index, name.count), (1, 9));
    assert_eq!(name.sibling(8), "/models/big-00009-of-00009.gguf");
    assert_eq!(name.siblings().count(), 9);
    for other in ["a.gguf", "a-2-of-9.gguf", "a-00000-of-00009.gguf", "a-00010-of-00009.gguf", "a-00001-of-00002.bin"] {
        assert_eq!(SplitName::parse(other), None, "{other}");
    }
}

/// A mixture-of-experts model of an architecture nobody knows: everything but the verdict is still told.
#[test]
fn reports_tell_what_they_can() {
    let file = Builder::new()
        .key("general.architecture", Value::String("novel".into()))
        .key("novel.block_count", Value::U32(4))
        .key("novel.context_length", Value::U32(1000))
        .key("novel.expert_count", Value::U32(8))
        .key("novel.expert_used_count", Value::U32(2))
        .key("novel.attention.head_count", Value::U32(4))
        .key("novel.attention.head_count_kv", Value::Array(Array::I32(vec![2, 0, 2, 0])))
        .key("novel.attention.key_length", Value::U32(16))
        .key("novel.attention.value_length", Value::U32(8))
        .tensor("blk.0.ffn_up_exps.weight", &[64, 2, 8], DType::Q2_0, vec![0; 18 * 16])
        .tensor("output_norm.weight", &[32], DType::F32, vec![0; 128]);
    let report = Report::new(&read(&file.build()).unwrap());
    assert!(!report.supported && report.reasons[0].contains("\"novel\""), "{:?}", report.reasons);
    assert!(report.reasons[1].contains("Q2_0"));
    assert_eq!((report.parameters.total, report.parameters.active), (1024 + 32, 256 + 32));
    assert_eq!(report.bytes.weights, 18 * 16 + 128);
    assert_eq!(report.bytes.kv_per_token, Some((2 + 2) * (16 + 8) * 2));
    assert_eq!(report.bytes.load, Some(192_000 + 18 * 16 + 128));
    assert_eq!(report.sources["experts.used"], "novel.expert_used_count");
    assert_eq!((report.tensor_types[0].dtype, report.tensor_types[0].supported), ("Q2_0", false));
    let vocabulary = Builder::new().key("general.architecture", Value::String("llama".into()));
    let report = Report::new(&read(&vocabulary.build()).unwrap());
    assert!(report.reasons[0].contains("no tensors"));
    // Numbers beyond reason saturate or vanish.
    let absurd = Builder::new()
        .key("general.architecture", Value::String("x".into()))
        .key("x.block_count", Value::U64(u64::MAX))
        .key("x.context_length", Value::U64(u64::MAX))
        .key("x.attention.head_count", Value::U64(u64::MAX))
        .key("x.embedding_length", Value::U64(u64::MAX))
        .key("x.attention.head_count_kv", Value::Array(Array::U64(vec![u64::MAX; 3])));
    assert_eq!(Report::new(&read(&absurd.build()).unwrap()).bytes.kv_per_token, None);
}

#[test]
fn array_types_are_checked_by_the_getters() {
    let mut raw = Raw::empty();
    raw.push("ids", 9, array(5, 2, &[1, 0, 0, 0, 2, 0, 0, 0]));
    raw.push("on", 7, [1]);
    raw.push("big", 10, (1u64 << 40).to_le_bytes());
    let metadata = read(&raw.bytes()).unwrap().metadata;
    assert_eq!(metadata.get_i32s("ids"), Ok(Some(&[1, 2][..])));
    assert_eq!(metadata.get_bool("on"), Ok(Some(true)));
    assert_eq!(metadata.get_usize("big"), Ok(Some(1 << 40)));
    let wrong = |error: Error| error.to_string();
    assert_eq!(metadata.get_u32("big").map_err(wrong), Err("key \"big\" is u64 1099511627776, expected u32".into()));
    assert_eq!(
        metadata.get_f32s("ids").map_err(wrong),
        Err("key \"ids\" is array of i32 of 2, expected array of f32".into())
    );
}
