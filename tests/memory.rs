//! The memory that a load takes at most, in a process where nothing else happens.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use omni_inferd::exec::{CpuOptions, Layouts};
use omni_inferd::gguf::{self, Value, write::Builder};
use omni_inferd::load::Source;
use omni_inferd::quant::DType;
use std::fs;
use std::path::Path;

/// Rows of the embedding and of the output: 128 MiB each, so that weights held twice would show.
const VOCAB: u64 = (128 << 20) / 272;

/// The bundled model with a vocabulary that makes it large.
fn write_large(path: &Path) {
    let bytes = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("models/omni-stories-q8_0.gguf")).unwrap();
    let file = gguf::File::parse(&bytes, bytes.len() as u64).unwrap();
    let keys = file.metadata.entries.iter().filter(|(key, _)| !key.starts_with("tokenizer."));
    let mut builder = keys.fold(Builder::new(), |builder, (key, value)| builder.key(key, value.clone()));
    builder = builder.key("tokenizer.ggml.model", Value::String("none".into()));
    builder = builder.set("qwen3.vocab_size", Value::U32(VOCAB as u32));
    let embedding = file.tensors.iter().find(|t| t.name == "token_embd.weight").unwrap();
    let row = DType::Q8_0.row_bytes(embedding.shape[0] as usize).unwrap();
    let large = || (0..VOCAB as usize * row).map(|i| (i % 251) as u8).collect();
    for t in file.tensors.iter().filter(|t| !["token_embd.weight", "output.weight"].contains(&&*t.name)) {
        let data = bytes[t.offset as usize..][..t.size as usize].to_vec();
        builder = builder.tensor(&t.name, &t.shape, t.dtype, data);
    }
    for name in ["token_embd.weight", "output.weight"] {
        builder = builder.tensor(name, &[embedding.shape[0], VOCAB], DType::Q8_0, large());
    }
    fs::write(path, builder.build()).unwrap();
}

/// A figure of `/proc/self/status`, in bytes.
fn status(key: &str) -> u64 {
    let text = fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find(|line| line.starts_with(key)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

#[test]
fn the_peak_is_the_weights_and_bounded_buffers() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("large.gguf");
    write_large(&path);
    let source = Source::open(&path).unwrap();
    let model = source.bind().unwrap();
    let bytes = model.weight_bytes();
    assert!(bytes > 256 << 20);
    let layouts = Layouts::new(&CpuOptions::default()).unwrap();

    // Forgets the highest figure so far, that of writing the file.
    fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = status("VmRSS:");
    let layout = |dtype, rows, cols| layouts.of(dtype, rows, cols);
    let loaded = source.load(model, &layout, &mut |_| ()).unwrap();
    let (after, peak) = (status("VmRSS:"), status("VmHWM:"));

    // Eight reads of 4 MiB in flight, as much for each of at most 16 threads that put bytes to their place, stacks.
    let cpus = std::thread::available_parallelism().unwrap().get().min(16) as u64;
    let buffers = (8 + cpus.max(4)) * (4 << 20) + (16 << 20);
    assert!(peak - before < bytes + buffers, "{} MiB above the weights", (peak - before - bytes) >> 20);
    assert!(after - before < bytes + (16 << 20), "{} MiB of buffers stay", (after - before - bytes) >> 20);
    // All of it is in memory, rather than waiting for its first use.
    assert!(after - before > bytes - (1 << 20), "{} of {bytes} bytes are resident", after - before);
    drop(loaded);
}
