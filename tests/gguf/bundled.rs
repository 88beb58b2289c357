//! The committed models parse and bind to what is known of them.

use omni_inferd::gguf::{self, File};
use omni_inferd::model::{self, Architecture, Mixer, RopeKind, RopeScaling};
use omni_inferd::quant::DType;
use std::fs;
use std::path::{Path, PathBuf};

/// A path from the repository's root.
pub fn path(relative: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(relative)
}

/// A committed model's bytes, decompressed where it is packed.
pub fn read(relative: &str) -> Vec<u8> {
    let bytes = fs::read(path(relative)).unwrap();
    match relative.rsplit_once('.') {
        Some((_, "zst")) => zstd::decode_all(&bytes[..]).unwrap(),
        _ => bytes,
    }
}

fn parse(relative: &str) -> File {
    let bytes = read(relative);
    let file = File::parse(&bytes, bytes.len() as u64).unwrap();
    file.check_data(bytes.len() as u64).unwrap();
    file
}

#[test]
fn the_demo_model_binds() {
    for (name, dtype) in [("f32", DType::F32), ("f16", DType::F16), ("q8_0", DType::Q8_0), ("q4_k_m", DType::Q4_K)] {
        let file = parse(&format!("models/omni-stories-{name}.gguf"));
        let model = model::bind(&file).unwrap();
        let h = &model.hparams;
        assert_eq!(h.architecture, Architecture::Qwen3);
        assert_eq!((h.name.as_str(), h.layers, h.d_model, h.d_ff), ("omni-stories", 3, 256, 768));
        assert_eq!((h.heads, h.kv_heads, h.key_dim, h.value_dim), (8, 4, 32, 32));
        assert_eq!((h.vocab, h.context, h.window), (2048, 1024, None));
        assert_eq!(
            (h.rope.kind, h.rope.dims, h.rope.base, h.rope.scaling),
            (RopeKind::Neox, 32, 1e4, RopeScaling::None)
        );
        assert!(model.output.is_none() && model.ignored.is_empty());
        let Mixer::Attention(attention) = &model.layers[0].mixer else { panic!("it has attention") };
        assert_eq!(attention.q.weight.dtype, dtype);
        assert_eq!(model.tensors().len(), file.tensors.len());
        assert_eq!(model.weight_bytes(), file.tensors.iter().map(|t| t.size).sum::<u64>());
        assert_eq!(h.kv_bytes_per_token(DType::F16), 3 * 4 * 64 * 2);
    }
}

#[test]
fn every_committed_model_binds() {
    let mut count = 0;
    for folder in ["tests/data/tiny", "tests/data/tiny-quant", "tests/data/hf-tiny"] {
        for entry in fs::read_dir(path(folder)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if name.contains(".gguf") {
                let model = model::bind(&parse(&format!("{folder}/{name}"))).unwrap_or_else(|e| panic!("{name}: {e}"));
                assert!(model.ignored.is_empty(), "{name}: {:?}", model.ignored);
                count += 1;
            }
        }
    }
    assert!(count >= 10);
}

#[test]
fn growing_reads_the_header_only() {
    let bytes = read("models/omni-stories-q8_0.gguf");
    let mut calls = 0;
    let file = gguf::parse_growing(bytes.len() as u64, 1000, |have, want| {
        calls += 1;
        have.extend_from_slice(&bytes[have.len()..want as usize]);
        if have.len() > 400_000 { Err("read too far") } else { Ok(()) }
    })
    .unwrap();
    assert_eq!(file, File::parse(&bytes, bytes.len() as u64).unwrap());
    assert!(calls < 12, "{calls} reads");
}

#[test]
fn the_fuzz_seeds_bind() {
    for name in ["llama", "qwen2", "qwen3"] {
        model::bind(&parse(&format!("fuzz/seeds/gguf/{name}.gguf"))).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
}
