//! Loading against a plain read of the same file; files that are short, missing or change.

use super::jobs::Placed;
use super::*;
use crate::gguf::write::Builder;
use crate::gguf::{File, Value};
use crate::quant::DType;
use std::fs;
use std::path::{Path, PathBuf};

fn bundled() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/omni-stories-f16.gguf")
}

/// Opens `path` so that it is read in one of three ways.
fn open(path: &Path, method: Method) -> Source {
    let mut source = Source::open(path).unwrap();
    source.ring = method == Method::Ring;
    if method == Method::Cached {
        source.parts.iter_mut().for_each(|part| part.direct = None);
    }
    source
}

const METHODS: [Method; 3] = [Method::Ring, Method::Direct, Method::Cached];

/// A file that the kernel does not read: `EINVAL`, as from file systems without direct reads.
fn unreadable() -> fs::File {
    fs::File::open("/proc/self/ns/user").unwrap()
}

fn assert_same_bytes(path: &Path, source: &Source) -> Method {
    let files: Vec<Vec<u8>> = source.parts.iter().map(|p| fs::read(&p.path).unwrap()).collect();
    let model = source.bind().unwrap();
    let mut seen = Vec::new();
    let loaded = source.load(model.clone(), &plain, &mut |p| seen.push(p)).unwrap();
    for (info, tensor) in model.tensors().into_iter().zip(loaded.tensors()) {
        let expected = &files[usize::from(info.file)][info.offset as usize..][..info.size as usize];
        assert!(tensor.bytes() == expected, "{} of {} differs", info.name, path.display());
        assert_eq!(tensor.bytes().as_ptr() as usize % jobs::ALIGNMENT, 0);
        assert_eq!((tensor.rows * tensor.cols) as u64, info.elements());
    }
    assert!(seen.windows(2).all(|w| w[0].bytes_done <= w[1].bytes_done));
    let last = seen.last().unwrap();
    assert_eq!((last.bytes_done, last.bytes_total), (model.weight_bytes(), model.weight_bytes()));
    last.method
}

fn plain(_: DType, _: usize, _: usize) -> Layout {
    Layout::Plain
}

#[test]
fn matrices_are_packed_on_the_way() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/omni-stories-q8_0.gguf");
    let packed = |dtype: DType, rows: usize, _: usize| match rows >= ROWS && dtype.block_len() > 1 {
        true => Layout::Packed,
        false => Layout::Plain,
    };
    let source = Source::open(&path).unwrap();
    let expected = source.load(source.bind().unwrap(), &plain, &mut |_| ()).unwrap();
    for method in METHODS {
        let source = open(&path, method);
        let model = source.load(source.bind().unwrap(), &packed, &mut |_| ()).unwrap();
        let mut matrices = 0;
        for (plain, tensor) in expected.tensors().into_iter().zip(model.tensors()) {
            matrices += usize::from(tensor.layout == Layout::Packed);
            let decode = |tensor: &Tensor, row: usize| {
                let mut out = vec![0.0; tensor.cols];
                tensor.decode_row(row, &mut out);
                out
            };
            for row in (0..tensor.rows).step_by(7).chain([tensor.rows - 1]) {
                assert_eq!(decode(plain, row), decode(tensor, row), "{method}: row {row} of {}", tensor.name);
            }
        }
        assert!(matrices >= 7 * model.layers.len(), "{method}: {matrices} packed matrices");
    }
}

/// The bundled model with its data on a border of cache lines, so that whole sectors are read straight to their place.
fn aligned(dir: &Path) -> PathBuf {
    let bytes = fs::read(bundled()).unwrap();
    let whole = File::parse(&bytes, bytes.len() as u64).unwrap();
    let padded = |padding: usize| {
        let builder = Builder::new().key("padding", Value::String("x".repeat(padding)));
        let keys = whole.metadata.entries.iter();
        let builder = keys.fold(builder, |builder, (key, value)| builder.key(key, value.clone()));
        let add = |builder: Builder, t: &TensorInfo| {
            builder.tensor(&t.name, &t.shape, t.dtype, bytes[t.offset as usize..][..t.size as usize].to_vec())
        };
        whole.tensors.iter().fold(builder, add).build()
    };
    let starts_a_line =
        |file: &Vec<u8>| File::parse(file, file.len() as u64).unwrap().tensors[0].offset.is_multiple_of(64);
    let path = dir.join("aligned.gguf");
    fs::write(&path, [0, 32].map(padded).iter().find(|file| starts_a_line(file)).unwrap()).unwrap();
    path
}

#[test]
fn every_byte_arrives_whichever_way_it_is_read() {
    let dir = tempfile::tempdir().unwrap();
    for path in [bundled(), aligned(dir.path())] {
        for method in METHODS {
            assert_eq!(assert_same_bytes(&path, &open(&path, method)), method);
        }
    }
}

#[test]
fn a_file_system_without_direct_reads_is_read_through_the_page_cache() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    for path in [bundled(), aligned(dir.path())] {
        for method in [Method::Ring, Method::Direct] {
            let mut source = open(&path, method);
            source.parts[0].direct = Some(unreadable());
            assert_same_bytes(&path, &source);
        }
    }
    let path = dir.path().join("model.gguf");
    fs::copy(bundled(), &path).unwrap();
    assert_same_bytes(&path, &Source::open(&path).unwrap());
}

#[test]
fn reads_cover_each_byte_once() {
    let dir = tempfile::tempdir().unwrap();
    let model = Source::open(&aligned(dir.path())).unwrap().bind().unwrap();
    for panels in [false, true] {
        // Rows of 16 side by side, as packed matrices have them; the bundled model's rows are no multiple of a sector.
        let panel = |info: &TensorInfo| Some(16 * (info.size / shape(info).0 as u64) as usize).filter(|_| panels);
        let (placed, bytes) = jobs::lay_out(&model, panel);
        let mut arena = Mapping::new(bytes).unwrap();
        let base = arena.as_mut_slice().as_ptr() as u64;
        let jobs = jobs::cut(&placed, arena.as_mut_slice());
        assert!(jobs.len() > 1, "the model spans several chunks");
        assert!(jobs.windows(2).all(|pair| pair[0].range.end <= pair[1].range.start));
        let straight = jobs.iter().filter(|job| matches!(job.place, jobs::Place::Straight(_))).count();
        assert_eq!(straight > 0, !panels);
        let mut next: Vec<u64> = placed.iter().map(|p| p.info.offset).collect();
        for job in &jobs {
            let sectors = job.sectors();
            assert!(sectors.end - sectors.start <= jobs::CHUNK as u64);
            for piece in job.place.pieces() {
                let Placed { info, range, panel, .. } = &placed[piece.tensor];
                assert_eq!(piece.offset, next[piece.tensor], "{} out of order", info.name);
                next[piece.tensor] += piece.target.len() as u64;
                let (done, at) = (piece.offset - info.offset, piece.target.as_ptr() as u64 - base);
                assert_eq!(at, range.start as u64 + done, "{} lands elsewhere", info.name);
                assert!(panel.is_none_or(|panel| done % panel as u64 == 0), "{} is cut within a panel", info.name);
                if let jobs::Place::Straight(_) = job.place {
                    assert_eq!((sectors.clone(), at % jobs::SECTOR), (job.range.clone(), 0), "{}", info.name);
                }
            }
        }
        assert!(placed.iter().zip(next).all(|(p, end)| end == p.info.offset + p.info.size));
        let read: u64 = jobs.iter().map(|job| job.sectors().end - job.sectors().start).sum();
        assert!(read < model.weight_bytes() + 2 * jobs::SECTOR * jobs.len() as u64, "{read} bytes are read");
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
        for method in METHODS {
            assert_same_bytes(path, &open(path, method));
        }
    }
    // One part on a file system of another kind.
    let mut mixed = Source::open(&first).unwrap();
    mixed.parts[1].direct = Some(unreadable());
    assert_same_bytes(&first, &mixed);
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
    for method in METHODS {
        let source = open(&path, method);
        let model = source.bind().unwrap();
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(3_000_001).unwrap();
        let error = source.load(model, &plain, &mut |_| ()).unwrap_err();
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
    let error = source.load(model, &plain, &mut { rewrite }).unwrap_err();
    assert!(matches!(error, Error::Changed { .. }), "{error}");
}

#[test]
fn what_cannot_be_read_is_named() {
    for method in METHODS {
        let mut source = open(&bundled(), method);
        let model = source.bind().unwrap();
        let part = &mut source.parts[0];
        let write_only = || fs::OpenOptions::new().write(true).open("/dev/null").unwrap();
        (part.file, part.direct) = (write_only(), (method != Method::Cached).then(write_only));
        let text = source.load(model, &plain, &mut |_| ()).unwrap_err().to_string();
        let facts = ["omni-stories-f16.gguf at offset ", "(tensor ", "Bad file descriptor"];
        assert!(facts.iter().all(|fact| text.contains(fact)), "{method}: {text}");
    }
}

#[test]
fn the_arena_is_as_large_as_the_weights() {
    let model = Source::open(&bundled()).unwrap().bind().unwrap();
    // A row too wide for any buffer to hold a panel of: left as it is, so that buffers stay bounded.
    let wide = jobs::lay_out(&model, |_| Some(jobs::CHUNK)).0;
    assert!(wide.iter().all(|tensor| tensor.panel.is_none()));
    for (panel, slack) in [(None, jobs::SECTOR as usize + jobs::ALIGNMENT), (Some(16), jobs::ALIGNMENT)] {
        let (placed, bytes) = jobs::lay_out(&model, |_| panel);
        assert!(bytes as u64 >= model.weight_bytes());
        assert!(bytes as u64 <= model.weight_bytes() + (placed.len() * slack) as u64);
    }
    assert_eq!(model.embedding.dtype, DType::F16);
}

/// Two threads on each of two nodes, dense matrices and a stack of experts: the rows that a product deals to a thread lie
/// on the thread's node, by the one rule that both go by.
#[test]
fn rows_lie_with_the_threads_that_are_dealt_them() {
    let nodes = [0, 0, 1, 1];
    let policy = Policy::Partition(nodes.to_vec());
    let (cols, row_bytes) = (4096usize, 4096 / 256 * 144usize);
    let mut end = 64;
    let mut place = |name: &str, shape: &[u64]| {
        let bytes = shape[1..].iter().product::<u64>() as usize * row_bytes;
        let range = end..end + bytes;
        end = range.end.next_multiple_of(64);
        let info = TensorInfo {
            name: name.into(),
            shape: shape.to_vec(),
            dtype: DType::Q4_K,
            offset: 0,
            size: bytes as u64,
            file: 0,
        };
        Placed { info, range, panel: Some(ROWS * row_bytes), straight: false }
    };
    let cols = cols as u64;
    // The second has rows beyond its whole panels, the last is too small to be cut.
    let placed = [
        place("q", &[cols, 8192]),
        place("head", &[cols, 9001]),
        place("gate", &[cols, 4096, 3]),
        place("k", &[cols, 512]),
    ];
    let parts = parts(&placed, end, &policy);
    assert!(parts.windows(2).all(|pair| pair[0].0.end <= pair[1].0.start), "they do not overlap");
    for place in &placed[..3] {
        let rows = place.info.shape[1] as usize;
        let matrices = place.info.shape.get(2).copied().unwrap_or(1) as usize;
        for (matrix, (thread, node)) in (0..matrices).flat_map(|m| nodes.iter().enumerate().map(move |t| (m, t))) {
            let panels = crate::sys::numa::share(rows.div_ceil(ROWS), nodes.len(), thread);
            let byte = |panel: usize| place.range.start + (matrix * rows + rows.min(panel * ROWS)) * row_bytes;
            let own = byte(panels.start)..byte(panels.end);
            let on = parts.iter().find(|(part, _)| part.start <= own.start && own.end <= part.end);
            assert_eq!(on.map(|(_, node)| node), Some(node), "{}, matrix {matrix}, thread {thread}", place.info.name);
        }
    }
    assert!(parts.iter().all(|(part, _)| part.end <= placed[3].range.start), "what is small stays whole");
}
