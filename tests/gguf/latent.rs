//! Latent attention's metadata and tensors: what is read of them, what is refused.

use super::bundled;
use omni_inferd::gguf::{File, TensorInfo, Value, write::Builder};
use omni_inferd::model::report::Report;
use omni_inferd::model::{self, Gating, KeyValueUp, Mixer, Model};
use omni_inferd::quant::DType;

/// A committed model's header, to be changed.
struct Header {
    keys: Vec<(String, Value)>,
    tensors: Vec<TensorInfo>,
}

impl Header {
    fn of(path: &str) -> Header {
        let file = bundled::parse(path);
        Header { keys: file.metadata.entries, tensors: file.tensors }
    }

    fn set(&mut self, key: &str, value: Value) {
        let key = format!("deepseek2.{key}");
        self.keys.retain(|(name, _)| *name != key);
        self.keys.push((key, value));
    }

    fn number(&mut self, key: &str, value: u32) {
        self.set(key, Value::U32(value));
    }

    fn remove(&mut self, key: &str) {
        self.keys.retain(|(name, _)| *name != format!("deepseek2.{key}"));
    }

    fn tensor(&mut self, name: &str) -> &mut TensorInfo {
        self.tensors.iter_mut().find(|tensor| tensor.name == name).unwrap()
    }

    fn without(&mut self, name: &str) {
        self.tensors.retain(|tensor| tensor.name != name);
    }

    fn file(&self) -> File {
        let keys = self.keys.iter();
        let mut builder = keys.fold(Builder::new(), |builder, (key, value)| builder.key(key, value.clone()));
        let mut sizes = Vec::new();
        for tensor in &self.tensors {
            builder = builder.tensor(&tensor.name, &tensor.shape, tensor.dtype, Vec::new());
            sizes.push(tensor.dtype.row_bytes(tensor.shape.iter().product::<u64>() as usize).unwrap() as u64);
        }
        let header = builder.build_header(&sizes);
        let data: u64 = sizes.iter().map(|size| size.next_multiple_of(32)).sum();
        File::parse(&header, header.len() as u64 + data).unwrap()
    }

    fn bind(&self) -> Result<Model<TensorInfo>, String> {
        model::bind(&self.file()).map_err(|error| error.to_string())
    }
}

const V3: &str = "tests/data/hf-tiny/deepseek-v3.gguf.zst";

fn changed(mutate: impl FnOnce(&mut Header)) -> Result<Model<TensorInfo>, String> {
    let mut header = Header::of(V3);
    mutate(&mut header);
    header.bind()
}

#[test]
fn numbers_are_read_from_both_forms_of_files() {
    let cut = changed(|_| ()).unwrap();
    let d = cut.hparams.latent.unwrap();
    assert_eq!((d.q_rank, d.kv_rank, d.rope, d.nope, d.value), (40, 48, 16, 32, 16));
    assert_eq!((cut.hparams.kv_heads, cut.hparams.key_dim, cut.hparams.value_dim), (1, 64, 48));
    let magnitude = 1.0 + 0.1 * 4f32.ln();
    assert!((d.scale - magnitude * magnitude / 48f32.sqrt()).abs() < 1e-6, "{}", d.scale);
    assert_eq!(cut.hparams.kv_bytes_per_token(DType::F16), 2 * 64 * 2);
    let whole = Header::of("tests/data/hf-tiny/deepseek-v2.gguf.zst").bind().unwrap();
    let d = whole.hparams.latent.unwrap();
    assert_eq!((d.q_rank, d.kv_rank, d.rope, d.nope, d.value), (0, 48, 16, 32, 16));
    assert_eq!(whole.hparams.kv_bytes_per_token(DType::Q8_0), 2 * 64 * 34 / 32);
    let form = |model: &Model<TensorInfo>| {
        let Mixer::Latent(latent) = &model.layers[0].mixer else { panic!("it has latent attention") };
        matches!(latent.kv_up, KeyValueUp::Whole(_))
    };
    assert!(form(&whole) && !form(&cut));
    // Without YaRN, or without its multiplier, scores are not scaled besides.
    let plain = changed(|h| h.remove("rope.scaling.yarn_log_multiplier")).unwrap();
    assert_eq!(plain.hparams.latent.unwrap().scale, 1.0 / 48f32.sqrt());
}

#[test]
fn missing_keys_of_the_routing_follow_from_the_tensors() {
    let routing = |mutate: fn(&mut Header)| changed(mutate).unwrap().hparams.routing.unwrap();
    let unsaid = |h: &mut Header| {
        h.remove("expert_gating_func");
        h.remove("expert_weights_norm");
    };
    let found = routing(unsaid);
    assert_eq!((found.gating, found.normalise, found.groups, found.groups_used), (Gating::Sigmoid, true, 4, 2));
    let mut without = Header::of(V3);
    unsaid(&mut without);
    without.without("blk.1.exp_probs_b.bias");
    let found = without.bind().unwrap().hparams.routing.unwrap();
    assert_eq!((found.gating, found.normalise), (Gating::Softmax, false));
    let glm = Header::of("tests/data/hf-tiny/glm-4.7-flash.gguf.zst").bind().unwrap().hparams.routing.unwrap();
    assert_eq!((glm.gating, glm.normalise, glm.scale, glm.groups), (Gating::Sigmoid, true, 1.8, 1));
}

#[test]
fn what_makes_no_model_is_refused() {
    type Case = (&'static str, fn(&mut Header));
    let cases: [Case; 16] = [
        ("attention.kv_lora_rank is 0: it must be at least 1", |h| h.number("attention.kv_lora_rank", 0)),
        ("attention.kv_lora_rank\" is missing", |h| h.remove("attention.kv_lora_rank")),
        ("attention.kv_lora_rank is 40: it must be a multiple of 16", |h| h.number("attention.kv_lora_rank", 40)),
        ("attn_kv_a_mqa.weight\" has shape [64, 64]", |h| h.number("attention.kv_lora_rank", 64)),
        ("rope.dimension_count is 8: it must be a multiple of 16", |h| h.number("rope.dimension_count", 8)),
        ("key_length_mla is 16: it must be more than the 16 rotated", |h| h.number("attention.key_length_mla", 16)),
        ("value_length_mla is 24: it must be a multiple", |h| h.number("attention.value_length_mla", 24)),
        ("value_length_mla is 0", |h| h.number("attention.value_length_mla", 0)),
        ("attn_q_b.weight\" has shape", |h| h.number("attention.key_length_mla", 4_294_967_280)),
        ("attn_q_a.weight\" has shape", |h| h.number("attention.q_lora_rank", 48)),
        ("\"blk.0.attn_q.weight\" is missing", |h| h.number("attention.q_lora_rank", 0)),
        ("\"blk.1.attn_v_b.weight\" is missing", |h| h.without("blk.1.attn_v_b.weight")),
        ("\"blk.0.attn_kv_a_norm.weight\" is missing", |h| h.without("blk.0.attn_kv_a_norm.weight")),
        // Not transposed, as a key's matrix stands in the whole one.
        ("\"blk.0.attn_k_b.weight\" has shape [48, 32, 4]", |h| {
            h.tensor("blk.0.attn_k_b.weight").shape = vec![48, 32, 4];
        }),
        ("yarn_log_multiplier is NaN", |h| h.set("rope.scaling.yarn_log_multiplier", Value::F32(f32::NAN))),
        ("nextn_predict_layers is 2", |h| h.number("nextn_predict_layers", 2)),
    ];
    for (part, mutate) in cases {
        let error = changed(mutate).unwrap_err();
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[test]
fn reports_count_what_a_token_uses() {
    let report = Report::new(&bundled::parse("tests/data/tiny/deepseek2-v3.gguf.zst"));
    assert!(report.supported, "{:?}", report.reasons);
    let experts = report.experts.unwrap();
    assert_eq!((experts.count, experts.used, experts.shared), (8, 3, 1));
    assert_eq!(report.bytes.kv_per_token, Some(3 * 160 * 2));
    let (d, attention) = (256u64, 256 + 256 * 96 + 96 + 96 * 384 + 256 * 160 + 128 + 2 * 4 * 64 * 128 + 256 * 256);
    let routed = 2 * 8 * 3 * d * d;
    let rest = 2 * 512 * d + d + 3 * (attention + d) + 3 * 512 * d + 2 * (8 * d + 8 + 3 * d * d);
    assert_eq!((report.parameters.total, report.parameters.active), (rest + routed, rest + routed * 3 / 8));
}

/// A layer for predicting further tokens is left out with a note, by its key or by its tensors' names.
#[test]
fn layers_for_further_tokens_are_skipped_with_a_note() {
    let whole = Report::new(&Header::of(V3).file());
    let by_key = |h: &mut Header| h.number("nextn_predict_layers", 1);
    let by_name = |h: &mut Header| h.tensor("blk.1.attn_norm.weight").name = "blk.1.nextn.eh_proj.weight".into();
    for mutate in [by_key, by_name] {
        let mut header = Header::of(V3);
        mutate(&mut header);
        let mtp = Report::new(&header.file());
        let tensors = header.tensors.iter().filter(|tensor| tensor.name.starts_with("blk.1."));
        let (count, elements) = tensors.fold((0, 0), |(n, sum), tensor| (n + 1, sum + tensor.elements()));
        let note = format!("skipped: {count} tensors of {} bytes are not loaded", 4 * elements);
        assert!(mtp.supported && mtp.warnings.len() == 1, "{:?}", mtp.warnings);
        assert!(mtp.warnings[0].starts_with("block 1 is for predicting further tokens (MTP, nextn)"));
        assert!(mtp.warnings[0].ends_with(&note), "{:?}, not {note}", mtp.warnings);
        assert_eq!(mtp.bytes.kv_per_token.map(|bytes| 2 * bytes), whole.bytes.kv_per_token);
        assert_eq!(mtp.parameters.total, whole.parameters.total);
        let sum = |report: &Report| report.bytes.load.unwrap() - report.bytes.kv_at_context.unwrap();
        assert_eq!((sum(&mtp), mtp.bytes.weights), (whole.bytes.weights - 4 * elements, whole.bytes.weights));
        assert!(mtp.parameters.active < whole.parameters.active / 2 + 2 * 160 * 64, "{:?}", mtp.parameters);
    }
    // Outside of the blocks that the file counts, they take nothing from these.
    let mut beyond = Header::of(V3);
    beyond.number("nextn_predict_layers", 1);
    let norm =
        TensorInfo { name: "blk.2.nextn.enorm.weight".into(), ..beyond.tensor("blk.1.attn_norm.weight").clone() };
    beyond.tensors.push(norm);
    let report = Report::new(&beyond.file());
    assert!(report.warnings[0].starts_with("block 2 is for") && report.warnings[0].contains("skipped: 1 tensors"));
    assert_eq!(report.parameters.active, whole.parameters.active);
    let all = changed(|h| h.tensor("blk.0.attn_norm.weight").name = "blk.0.nextn.enorm.weight".into()).unwrap_err();
    assert!(all.contains("nextn_predict_layers is 2: there are only 2 blocks"), "{all}");
}
