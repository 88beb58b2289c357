//! Loading against a plain read of the same file; files that are short, missing or change.

use super::*;
use crate::gguf::write::Builder;
use crate::gguf::{File, Value};
use crate::quant::DType;
use std::fs;
use std::path::{Path, PathBuf};

fn bundled() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/omni-stories-f16.gguf")
}

fn assert_same_bytes(path: &Path, source: &Source) {
    let files: Vec<Vec<u8>> = source.parts.iter().map(|p| fs::read(&p.path).unwrap()).collect();
    let model = source.bind().unwrap();
    let mut seen = Vec::new();
    let loaded = source.load(model.clone(), &mut |p| seen.push(p)).unwrap();
    for (info, tensor) in model.tensors().into_iter().zip(loaded.tensors()) {
        let expected = &files[usize::from(info.file)][info.offset as usize..][..info.size as usize];
        assert!(tensor.bytes() == expected, "{} of {} differs", info.name, path.display());
        assert_eq!(tensor.bytes().as_ptr() as usize % ALIGNMENT, 0);
        assert_eq!((tensor.rows * tensor.cols) as u64, info.elements());
    }
    assert!(seen.windows(2).all(|w| w[0].bytes_done <= w[1].bytes_done));
    let last = seen.last().unwrap();
    assert_eq!((last.bytes_done, last.bytes_total), (model.weight_bytes(), model.weight_bytes()));
}

#[test]
fn every_byte_arrives_with_and_without_the_page_cache() {
    let mut source = Source::open(&bundled()).unwrap();
    assert_same_bytes(&bundled(), &source);
    source.parts[0].direct = None;
    assert_same_bytes(&bundled(), &source);
}

#[test]
fn reads_cover_each_byte_once() {
    let source = Source::open(&bundled()).unwrap();
    let (placed, bytes) = lay_out(&source.bind().unwrap());
    let mut arena = Mapping::new(bytes).unwrap();
    let tensors: Vec<_> = placed.iter().map(|(t, r)| (t, r.clone())).collect();
    let spans = read::spans(&tensors, arena.as_mut_slice());
    assert!(spans.len() > 1, "the model spans several chunks");
    for pair in spans.windows(2) {
        assert!(pair[0].end <= pair[1].start);
        assert_eq!(pair[1].start % 4096, 0, "a sector is read twice");
    }
}

/// The bundled model as a split set of two files.
fn split_in_two(dir: &Path) -> [PathBuf; 2] {
    let bytes = fs::read(bundled()).unwrap();
    let whole = File::parse(&bytes, bytes.len() as u64).unwrap();
    let half = whole.tensors.len() / 2;
    [(0u16, &whole.tensors[..half]), (1, &whole.tensors[half..])].map(|(no, tensors)| {
        let mut builder = Builder::new();
        if no == 0 {
            for (key, value) in &whole.metadata.entries {
                builder = builder.key(key, value.clone());
            }
        }
        builder = builder
            .key("split.no", Value::U16(no))
            .key("split.count", Value::U16(2))
            .key("split.tensors.count", Value::I32(whole.tensors.len() as i32));
        for t in tensors {
            let data = bytes[t.offset as usize..][..t.size as usize].to_vec();
            builder = builder.tensor(&t.name, &t.shape, t.dtype, data);
        }
        let path = dir.join(format!("model-{:05}-of-00002.gguf", no + 1));
        fs::write(&path, builder.build()).unwrap();
        path
    })
}

#[test]
fn split_sets_load_from_any_of_their_files() {
    let dir = tempfile::tempdir().unwrap();
    let [first, second] = split_in_two(dir.path());
    for path in [&first, &second] {
        assert_same_bytes(path, &Source::open(path).unwrap());
    }
    fs::remove_file(second).unwrap();
    let error = Source::open(&first).unwrap_err();
    assert!(matches!(error, Error::MissingPart { number: 2, count: 2, .. }), "{error}");
    assert!(error.to_string().contains("part 2 of 2"), "{error}");
}

#[test]
fn a_truncated_file_is_refused_before_reading() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("short.gguf");
    let bytes = fs::read(bundled()).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 5000]).unwrap();
    let error = Source::open(&path).unwrap().bind().unwrap_err();
    assert!(matches!(error, Error::Gguf { source: crate::gguf::Error::OutOfFile { .. }, .. }), "{error}");
    fs::write(&path, &bytes[..3000]).unwrap();
    assert!(matches!(Source::open(&path), Err(Error::Gguf { .. })));
    assert!(matches!(Source::open(&dir.path().join("none.gguf")), Err(Error::Open { .. })));
    assert!(matches!(Source::open(dir.path()), Err(Error::Open { .. })));
    let fifo = dir.path().join("fifo.gguf");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(matches!(Source::open(&fifo), Err(Error::Open { .. })), "opened without waiting for a writer");
}

#[test]
fn a_file_that_shrinks_or_changes_while_it_is_read_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    fs::copy(bundled(), &path).unwrap();
    for direct in [true, false] {
        let mut source = Source::open(&path).unwrap();
        if !direct {
            source.parts[0].direct = None;
        }
        let model = source.bind().unwrap();
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(3_000_001).unwrap();
        let error = source.load(model, &mut |_| ()).unwrap_err();
        assert!(matches!(error, Error::Short { end: 3_000_001, .. }), "{error}");
        fs::copy(bundled(), &path).unwrap();
    }
    let source = Source::open(&path).unwrap();
    let model = source.bind().unwrap();
    let rewrite = |p: Progress| {
        if p.bytes_done == p.bytes_total {
            fs::OpenOptions::new().append(true).open(&path).unwrap().set_len(1 << 23).unwrap();
        }
    };
    let error = source.load(model, &mut { rewrite }).unwrap_err();
    assert!(matches!(error, Error::Changed { .. }), "{error}");
}

#[test]
fn the_arena_is_as_large_as_the_weights() {
    let model = Source::open(&bundled()).unwrap().bind().unwrap();
    let (placed, bytes) = lay_out(&model);
    assert!(bytes as u64 >= model.weight_bytes());
    assert!(bytes as u64 <= model.weight_bytes() + (placed.len() * ALIGNMENT) as u64);
    assert_eq!(model.embedding.dtype, DType::F16);
}
