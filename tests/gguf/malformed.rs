//! One small good file and every way it can be broken: the second group of the catalogue of malformed files.

use super::raw::{Mutate, array, load, read, sample, string, strings};
use omni_inferd::gguf::File;
use omni_inferd::model::report::Report;
use std::path::Path;
use std::process::Command;

/// Applies a mutation to the sample.
fn broken(mutate: Mutate) -> Vec<u8> {
    let mut raw = sample();
    mutate(&mut raw);
    raw.bytes()
}

/// Eight experts of which `used` are chosen, in `groups` groups of which `groups_used` may be chosen from.
fn experts(raw: &mut super::raw::Raw, used: u32, groups: u32, groups_used: u32) {
    let keys = [("count", 8), ("used_count", used), ("group_count", groups), ("group_used_count", groups_used)];
    for (key, value) in keys {
        raw.push(format!("llama.expert_{key}"), 4, value.to_le_bytes());
    }
}

/// The reader refuses `bytes`, and its message has `hint`.
fn refused_by_reader(case: &str, bytes: &[u8], hint: &str) {
    let error = read(bytes).expect_err(case).to_string();
    assert!(error.contains(hint), "{case}: {error}");
}

#[test]
fn the_sample_is_good() {
    let raw = sample();
    let model = load(&raw.bytes()).unwrap();
    assert_eq!((model.layers.len(), model.ignored.len()), (5, 0));
    let trailing = [raw.bytes(), vec![0xaa; 4096]].concat();
    load(&trailing).unwrap();
    // Padding after the last tensor is not needed.
    let mut cut = raw.bytes();
    let end = read(&cut).unwrap().tensors.last().map(|t| t.offset + t.size).unwrap();
    cut.truncate(end as usize);
    load(&cut).unwrap();
    cut.pop();
    refused_by_reader("trunc_data_minus_1", &cut, "\"blk.4.ffn_down.weight\" ends at byte");
}

#[test]
fn truncated_files() {
    let bytes = sample().bytes();
    let header = sample().header().len();
    refused_by_reader("empty_file", b"", "the file is empty");
    refused_by_reader("trunc_magic", b"GGU", "starts with \"GGU\"");
    refused_by_reader("trunc_after_version", &bytes[..8], "the tensor count at offset 8");
    refused_by_reader("trunc_in_counts", &bytes[..20], "the key count at offset 16");
    for end in 24..header {
        let error = read(&bytes[..end]).unwrap_err().to_string();
        assert!(error.contains("truncated or corrupt"), "{end}: {error}");
        // With the whole length known the same prefix asks for more instead, and for no more than there is.
        let wanted = File::parse(&bytes[..end], bytes.len() as u64).unwrap_err().fetch().unwrap();
        assert!(wanted > end as u64 && wanted <= header as u64, "{end}: {wanted}");
    }
    let data = header.next_multiple_of(32);
    refused_by_reader("trunc_at_data_start", &bytes[..data], "tensor \"token_embd.weight\" ends at byte");
    refused_by_reader("trunc_data_half", &bytes[..(data + bytes.len()) / 2], "it is incomplete");
}

#[test]
fn broken_headers_and_keys() {
    let cases: &[(&str, &str, Mutate)] = &[
        ("legacy_magic_ggjt", "older than GGUF", |r| r.magic = *b"tjgg"),
        ("version_1", "version 1 at offset 4", |r| r.version = 1),
        ("big_endian_header", "big-endian", |r| r.version = 3u32.swap_bytes()),
        ("n_kv_huge", "metadata of 1099511627776 keys", |r| r.key_count = Some(1 << 40)),
        ("n_kv_overflow", "is 18446744073709551615", |r| r.key_count = Some(u64::MAX)),
        ("n_tensors_huge", "a directory of 1099511627776 tensors", |r| r.tensor_count = Some(1 << 40)),
        ("n_kv_minus_one_short", "tensor", |r| r.key_count = Some(r.keys.len() as u64 - 1)),
        ("n_kv_plus_one", "tensor 0's name", |r| r.key_count = Some(r.keys.len() as u64 + 1)),
        ("key_len_2p63", "9223372036854775808 bytes, at most 65535", |r| r.keys[3].name_len = Some(1 << 63)),
        ("key_len_past_eof", "key 3 at offset", |r| r.keys[3].name_len = Some(500_000)),
        ("key_too_long_65536", "at most 65535", |r| r.push([b'k'; 65536], 4, [1, 0, 0, 0])),
        ("key_invalid_utf8", "not UTF-8", |r| r.push(b"\xff\xfe.x", 4, [1, 0, 0, 0])),
        ("str_len_past_eof", "the value of key \"general.name\"", |r| {
            r.set("general.name", 8, [&(1u64 << 32).to_le_bytes()[..], b"x"].concat())
        }),
        ("str_len_wraps", "is 18446744073709551615", |r| r.set("general.name", 8, [0xff; 8])),
        ("arr_len_2p61", "key \"x.arr\"", |r| r.push("x.arr", 9, array(10, 1 << 61, &[]))),
        ("arr_len_2p33_u8", "key \"x.arr\"", |r| r.push("x.arr", 9, array(0, 1 << 33, &[]))),
        ("arr_str_len_2p40", "key \"x.arr\"", |r| r.push("x.arr", 9, array(8, 1 << 40, &[]))),
        ("arr_nested", "arrays of arrays", |r| r.push("x.arr", 9, array(9, 1, &array(4, 1, &[7, 0, 0, 0])))),
        ("arr_unknown_elem_type", "99 is no array element type", |r| r.push("x.arr", 9, array(99, 1, &[0; 8]))),
        ("kv_unknown_type", "77 is no value type", |r| r.push("x.y", 77, [0; 8])),
        ("bool_value_2", "must be 0 or 1, found 2", |r| r.push("x.b", 7, [2])),
        ("bool_array_value_2", "must be 0 or 1, found 2", |r| r.push("x.b", 9, array(7, 2, &[1, 2]))),
        ("dup_key", "key \"general.name\" at offset", |r| r.push("general.name", 8, string("again"))),
        ("empty_key", "the name is empty", |r| r.push("", 4, [1, 0, 0, 0])),
        ("align_0", "\"general.alignment\" is 0", |r| r.push("general.alignment", 4, 0u32.to_le_bytes())),
        ("align_3", "\"general.alignment\" is 3", |r| r.push("general.alignment", 4, 3u32.to_le_bytes())),
        ("align_u64_type", "is u64, expected u32", |r| r.push("general.alignment", 10, 32u64.to_le_bytes())),
        ("align_2p31", "no multiple of the alignment", |r| r.push("general.alignment", 4, (1u32 << 31).to_le_bytes())),
    ];
    for (case, hint, mutate) in cases {
        refused_by_reader(case, &broken(*mutate), hint);
    }
    // Odd but legal.
    read(&broken(|r| r.push("a\0b", 4, [1, 0, 0, 0]))).unwrap();
}

#[test]
fn broken_tensor_directories() {
    let first = "tensor \"token_embd.weight\"";
    let moved = "tensor \"blk.0.attn_q.weight\": its offset";
    let cases: &[(&str, &str, Mutate)] = &[
        ("tensor_dup_name", "tensor \"output_norm.weight\" at offset", |r| {
            r.tensors[2].name = r.tensors[1].name.clone()
        }),
        ("tensor_name_64", "64 bytes, at most 63", |r| r.tensors[2].name = vec![b'n'; 64]),
        ("tensor_name_empty", "the name is empty", |r| r.tensors[2].name.clear()),
        ("tensor_ndims_5", "5, at most 4 are allowed", |r| r.tensors[0].dims = vec![64, 512, 1, 1, 1]),
        ("tensor_dim_neg", first, |r| r.tensors[0].dims = vec![64, u64::MAX]),
        ("tensor_dim_overflow", first, |r| r.tensors[0].dims = vec![1 << 32, 1 << 32]),
        ("tensor_dim_hidden_by_zero", first, |r| r.tensors[0].dims = vec![0, u64::MAX]),
        ("tensor_ne0_not_block_multiple", first, |r| r.tensors[0].dims = vec![33, 512]),
        ("tensor_unknown_type", "4096 is no known tensor type", |r| r.tensors[0].kind = 4096),
        ("tensor_removed_type_4", "4 (Q4_2) was withdrawn", |r| r.tensors[0].kind = 4),
        ("tensor_off_unaligned", moved, |r| r.tensors[3].offset += 1),
        ("tensor_off_overlap", "overlaps tensor \"blk.0.attn_norm.weight\"", |r| {
            r.tensors[3].offset = r.tensors[2].offset
        }),
        ("tensor_off_past_eof", moved, |r| r.tensors[3].offset = 1 << 40),
        ("tensor_off_wrap", moved, |r| r.tensors[3].offset = u64::MAX - 31),
        ("tensor_gap", "leaves a gap", |r| {
            r.tensors[3..].iter_mut().for_each(|tensor| tensor.offset += 32);
            let at = r.tensors[3].offset as usize - 32;
            r.data.splice(at..at, [0; 32]);
        }),
        ("tensor_token_embd_i32", "leaves a gap", |r| {
            // A wrong type with the old offsets: sizes no longer add up.
            r.tensors[1].kind = 24;
        }),
        ("tensor_token_embd_larger", "overlaps tensor \"token_embd.weight\"", |r| r.tensors[0].kind = 26),
    ];
    for (case, hint, mutate) in cases {
        refused_by_reader(case, &broken(*mutate), hint);
    }
    // A scalar is legal in a file, but no norm: its slot is smaller than the next tensor's offset says.
    refused_by_reader("tensor_ndims_0", &broken(|r| r.tensor_mut("output_norm.weight").dims.clear()), "leaves a gap");
}

/// Keys that make no model: refused after parsing, with the key in the message.
#[test]
fn broken_models() {
    const EPS: &str = "llama.attention.layer_norm_rms_epsilon";
    let cases: &[(&str, &str, Mutate)] = &[
        ("no_architecture", "\"general.architecture\" is missing", |r| r.remove("general.architecture")),
        ("unknown_architecture", ", llama, ", |r| r.set("general.architecture", 8, string("frobnicate"))),
        ("architecture_wrong_type", "is u32 7, expected string", |r| r.set_u32("general.architecture", 7)),
        ("missing_block_count", "\"llama.block_count\" is missing", |r| r.remove("llama.block_count")),
        ("missing_embedding_length", "embedding_length\" is missing", |r| r.remove("llama.embedding_length")),
        ("missing_head_count", "head_count\" is missing", |r| r.remove("llama.attention.head_count")),
        ("missing_eps", "rms_epsilon\" is missing", |r| r.remove(EPS)),
        ("missing_ff_len", "feed_forward_length\" is missing", |r| r.remove("llama.feed_forward_length")),
        ("missing_context_length", "context_length\" is missing", |r| r.remove("llama.context_length")),
        ("block_count_0", "llama.block_count is 0", |r| r.set_u32("llama.block_count", 0)),
        ("block_count_6", "\"blk.5.attn_norm.weight\" is missing", |r| r.set_u32("llama.block_count", 6)),
        ("block_count_u32max", "the file has only 47 tensors", |r| r.set_u32("llama.block_count", u32::MAX)),
        ("head_count_0", "llama.attention.head_count is 0", |r| r.set_u32("llama.attention.head_count", 0)),
        ("head_count_7", "llama.attention.head_count", |r| r.set_u32("llama.attention.head_count", 7)),
        ("head_count_kv_3", "it must divide the 8 heads", |r| r.set_u32("llama.attention.head_count_kv", 3)),
        ("head_count_kv_0", "head_count_kv is 0", |r| r.set_u32("llama.attention.head_count_kv", 0)),
        ("embedding_length_128", "asks for [128, 512]", |r| r.set_u32("llama.embedding_length", 128)),
        ("embedding_length_0", "embedding_length is 0", |r| r.set_u32("llama.embedding_length", 0)),
        ("rope_dim_odd", "dimension_count is 7", |r| r.set_u32("llama.rope.dimension_count", 7)),
        ("rope_dim_64", "dimension_count is 64", |r| r.set_u32("llama.rope.dimension_count", 64)),
        ("ff_len_string", "is string, expected", |r| r.set("llama.feed_forward_length", 8, string("172"))),
        ("ff_len_wrong", "asks for [64, 171]", |r| r.set_u32("llama.feed_forward_length", 171)),
        ("ctx_0", "context_length is 0", |r| r.set_u32("llama.context_length", 0)),
        ("eps_negative", "rms_epsilon is -1", |r| r.set(EPS, 6, (-1f32).to_le_bytes())),
        ("eps_nan", "rms_epsilon is NaN", |r| r.set(EPS, 6, f32::NAN.to_le_bytes())),
        ("rope_base_inf", "freq_base is inf", |r| r.set("llama.rope.freq_base", 6, f32::INFINITY.to_le_bytes())),
        ("experts", "expert_used_count\" is missing", |r| r.push("llama.expert_count", 4, 8u32.to_le_bytes())),
        ("yarn_shrinks", "rope.scaling.factor is 0.5", |r| {
            r.push("llama.rope.scaling.type", 8, string("yarn"));
            r.push("llama.rope.scaling.factor", 6, 0.5f32.to_le_bytes());
        }),
        ("expert_groups", "it must divide the 8 experts", |r| experts(r, 2, 3, 1)),
        ("expert_groups_too_few", "it must leave the 4 experts", |r| experts(r, 4, 4, 1)),
        ("missing_tensor_output_norm", "\"output_norm.weight\" is missing", |r| {
            r.tensor_mut("output_norm.weight").name = b"output_normX.weight".into()
        }),
        ("missing_tensor_ffn_down", "\"blk.2.ffn_down.weight\" is missing", |r| {
            r.tensor_mut("blk.2.ffn_down.weight").name = b"blk.2.ffn_downX.weight".into()
        }),
        ("tensor_transposed", "has shape [64, 172], the metadata asks for [172, 64]", |r| {
            r.tensor_mut("blk.0.ffn_down.weight").dims = vec![64, 172]
        }),
        ("tokens_missing", "tokens\" is missing", |r| r.remove("tokenizer.ggml.tokens")),
        ("tokens_empty", "tokens is empty", |r| r.set("tokenizer.ggml.tokens", 9, strings::<&str>(&[]))),
        ("tokens_511", "asks for [64, 511]", |r| {
            r.set("tokenizer.ggml.tokens", 9, strings(&super::raw::sample_tokens()[..511]))
        }),
        ("tokens_wrong_elem_type", "is array of i32", |r| r.set("tokenizer.ggml.tokens", 9, array(5, 512, &[0; 2048]))),
        ("tokenizer_model_unknown", "frob", |r| r.set("tokenizer.ggml.model", 8, string("frob"))),
        ("split_count_3", "the set has 3 files", |r| {
            r.push("split.count", 2, 3u16.to_le_bytes());
            r.push("split.no", 2, 0u16.to_le_bytes());
        }),
    ];
    for (case, hint, mutate) in cases {
        let bytes = broken(*mutate);
        let file = read(&bytes).unwrap_or_else(|error| panic!("{case}: the reader refuses it: {error}"));
        let error = load(&bytes).expect_err(case);
        assert!(error.contains(hint), "{case}: {error}");
        Report::new(&file);
    }
}

/// Odd files that must not crash, whatever is made of them.
#[test]
fn odd_models() {
    let cases: &[(&str, Mutate)] = &[
        ("block_count_4", |r| r.set_u32("llama.block_count", 4)),
        ("ctx_u32max", |r| r.set_u32("llama.context_length", u32::MAX)),
        ("types_out_of_range", |r| r.key_mut("tokenizer.ggml.token_type").value[12 + 4 * 300] = 99),
        ("bos_out_of_range", |r| r.set_u32("tokenizer.ggml.bos_token_id", 100_000)),
        ("tokenizer_model_missing", |r| r.remove("tokenizer.ggml.model")),
        ("scores_short", |r| r.set("tokenizer.ggml.scores", 9, array(6, 10, &[0; 40]))),
        ("chat_template_bad_jinja", |r| r.push("tokenizer.chat_template", 8, string("{% if %}"))),
    ];
    for (case, mutate) in cases {
        println!("{case}: {:?}", load(&broken(*mutate)).map(|model| model.ignored));
    }
    let extra = load(&broken(|r| r.set_u32("llama.block_count", 4))).unwrap();
    assert_eq!(extra.ignored.len(), 9, "{:?}", extra.ignored);
}

/// The catalogue's own generator, where it is at hand: every file must do what the generator says.
#[test]
fn the_generated_catalogue() {
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared");
    let script = shared.join("tools/mkmalformed.py");
    let python = Command::new("python3").arg("--version").output().is_ok();
    if !script.exists() || !python {
        println!("skipped: ../shared/tools/mkmalformed.py or python3 is not there");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let models = shared.canonicalize().unwrap().join("data/models");
    std::os::unix::fs::symlink(models, dir.path().join("models")).unwrap();
    let made = Command::new("python3").arg(script.canonicalize().unwrap()).current_dir(&dir).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let out = dir.path().join("gguf-malformed/mutated");
    let cases: Vec<serde_json::Value> =
        serde_json::from_slice(&std::fs::read(out.join("cases.json")).unwrap()).unwrap();
    assert!(cases.len() >= 100);
    for case in cases {
        let (name, expect) = (case["file"].as_str().unwrap(), case["expect"].as_str().unwrap());
        let bytes = std::fs::read(out.join(name)).unwrap();
        let (reader, whole) = (read(&bytes).map(drop), load(&bytes).map(drop));
        match expect {
            "ok" => assert_eq!(whole, Ok(()), "{name}"),
            "reject_parse" => assert!(reader.is_err(), "{name} is taken by the reader"),
            "reject_load" => assert!(whole.is_err(), "{name} is taken"),
            _ => {}
        }
        println!("{name}: {expect}: {whole:?}");
    }
}
