//! Files, goldens and running engines for the tests.

use omni_inferd::engine::{self, EngineOptions, Event, FinishReason, Handle, Opened, Request, Usage};
use omni_inferd::exec::{CpuOptions, Executor, KvType, Layouts, Options};
use omni_inferd::gguf;
use omni_inferd::load::Source;
use omni_inferd::quant::{DType, dequantize};
use omni_inferd::sample::{Logprobs, Params};
use serde_json::Value;
use std::path::{Path, PathBuf};
use tokio::sync::mpsc::Receiver;

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub fn bundled(kind: &str) -> PathBuf {
    root().join(format!("models/omni-stories-{kind}.gguf"))
}

pub fn json(path: &str) -> Value {
    serde_json::from_slice(&std::fs::read(root().join(path)).unwrap()).unwrap()
}

pub fn u32s(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

pub fn f32s(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
}

/// A file of `tests/data`, decompressed to a directory that lives as long as the result.
pub struct Unpacked {
    pub path: PathBuf,
    _dir: tempfile::TempDir,
}

impl Unpacked {
    pub fn new(bytes: &[u8]) -> Unpacked {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.gguf");
        std::fs::write(&path, bytes).unwrap();
        Unpacked { path, _dir: dir }
    }
}

pub fn unpack(path: &str) -> Unpacked {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("model.gguf");
    let packed = std::fs::File::open(root().join(path)).unwrap();
    zstd::stream::copy_decode(packed, std::fs::File::create(&out).unwrap()).unwrap();
    Unpacked { path: out, _dir: dir }
}

/// The same model with every tensor decoded exactly to F32.
pub fn dequantised(path: &Path) -> Unpacked {
    with_keys(path, &Value::Object(serde_json::Map::new()))
}

/// The same model decoded to F32, with further keys of its architecture, as the goldens' script writes them.
pub fn with_keys(path: &Path, keys: &Value) -> Unpacked {
    let bytes = std::fs::read(path).unwrap();
    let file = gguf::File::parse(&bytes, bytes.len() as u64).unwrap();
    let mut builder = gguf::write::Builder::new();
    for (key, value) in &file.metadata.entries {
        builder = builder.key(key, value.clone());
    }
    let architecture = file.metadata.get_str("general.architecture").unwrap().unwrap();
    for (key, value) in keys.as_object().unwrap() {
        let value = match value {
            Value::String(text) => gguf::Value::String(text.clone()),
            Value::Number(number) if number.is_u64() => gguf::Value::U32(number.as_u64().unwrap() as u32),
            other => gguf::Value::F32(other.as_f64().unwrap() as f32),
        };
        builder = builder.key(format!("{architecture}.{key}"), value);
    }
    for tensor in &file.tensors {
        let mut values = vec![0.0f32; tensor.elements() as usize];
        dequantize(tensor.dtype, &bytes[tensor.offset as usize..][..tensor.size as usize], &mut values);
        let data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        builder = builder.tensor(&tensor.name, &tensor.shape, DType::F32, data);
    }
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("model.gguf");
    std::fs::write(&out, builder.build()).unwrap();
    Unpacked { path: out, _dir: dir }
}

/// An executor over a file, with room for `tokens` tokens and logits of every row.
pub fn executor(path: &Path, kv_type: KvType, tokens: usize) -> Executor {
    let source = Source::open(path).unwrap();
    let options = Options {
        cpu: CpuOptions { threads: Some(2), ..CpuOptions::default() },
        kv_type,
        context: tokens,
        kv_blocks: tokens.div_ceil(32),
        state_slots: 4,
        max_rows: tokens,
        max_logit_rows: tokens,
    };
    let layouts = Layouts::new(&options.cpu).unwrap();
    let layout = |dtype, rows, cols| layouts.of(dtype, rows, cols);
    let model = source.load(source.bind().unwrap(), &layout, &mut |_| ()).unwrap();
    Executor::new(model, &options).unwrap()
}

pub fn options() -> EngineOptions {
    EngineOptions {
        context: Some(256),
        parallel: 4,
        queue: 64,
        threads: Some(2),
        pin: false,
        ..EngineOptions::default()
    }
}

pub fn start(path: &Path, options: &EngineOptions) -> Opened {
    engine::open(path, options, &mut |_| ()).unwrap()
}

pub fn start_bundled(options: &EngineOptions) -> Handle {
    start(&bundled("q8_0"), options).handle
}

pub fn greedy() -> Params {
    Params { temperature: 0.0, ..Params::default() }
}

pub fn request(prompt: &[u32], max_tokens: usize, sampling: Params) -> Request {
    Request { prompt: prompt.to_vec(), max_tokens, sampling, stop_tokens: vec![], prompt_logprobs: None, cache: true }
}

/// All that came out of a finished request.
#[derive(Debug, Default)]
pub struct Outcome {
    pub tokens: Vec<u32>,
    pub logprobs: Vec<Logprobs>,
    pub prompt_logprobs: Option<Vec<Option<Logprobs>>>,
    pub prefill: Vec<(usize, usize)>,
    pub end: Option<Result<(FinishReason, Usage), String>>,
}

impl Outcome {
    pub fn usage(&self) -> Usage {
        self.end.as_ref().unwrap().as_ref().unwrap().1
    }

    pub fn reason(&self) -> FinishReason {
        self.end.as_ref().unwrap().as_ref().unwrap().0
    }
}

/// Reads a request to its end.
pub fn collect(mut events: Receiver<Event>) -> Outcome {
    let mut outcome = Outcome::default();
    while let Some(event) = events.blocking_recv() {
        assert!(outcome.end.is_none(), "an event follows the end");
        match event {
            Event::Prefill { done, total } => outcome.prefill.push((done, total)),
            Event::PromptLogprobs(found) => outcome.prompt_logprobs = Some(found),
            Event::Token { id, logprobs, .. } => {
                outcome.tokens.push(id);
                outcome.logprobs.extend(logprobs);
            }
            Event::Done { reason, usage } => outcome.end = Some(Ok((reason, usage))),
            Event::Error(text) => outcome.end = Some(Err(text)),
        }
    }
    assert!(outcome.end.is_some(), "the channel closed without an end");
    outcome
}

pub fn run(handle: &Handle, request: Request) -> Outcome {
    collect(handle.submit(request).unwrap())
}

/// Waits until a condition holds; fails after ten seconds.
pub fn eventually(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..5000 {
        if condition() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    panic!("{what}: not within ten seconds");
}

/// A reproducible prompt of the bundled vocabulary.
pub fn prompt(seed: u64, len: usize) -> Vec<u32> {
    (0..len as u64).map(|i| (omni_inferd::sample::uniform(seed, i) * 2000.0) as u32).collect()
}
