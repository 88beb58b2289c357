//! `omnictl inspect` against files and against a small server that counts what it sends.

use super::bundled::{path, read};
use omni_inferd::ctl::inspect::{Error, Inspection, inspect};
use omni_inferd::gguf::{Array, Value, write::Builder};
use omni_inferd::quant::DType;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

/// How the server behaves.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    Ranges,
    /// Sends everything, whatever is asked.
    NoRanges,
    /// Sends everything in chunks, so that nobody knows the length.
    Chunked,
    /// Answers any range with the first bytes.
    WrongRange,
    Status(u16),
}

/// A server on the loopback that serves `files` at `/NAME`, and at `/moved/NAME` a redirect there.
struct Server {
    address: String,
    sent: Arc<AtomicU64>,
    requests: Arc<AtomicU64>,
}

impl Server {
    fn start(manner: Manner, files: Vec<(&str, Vec<u8>)>) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (sent, requests) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let files: Arc<Vec<(String, Vec<u8>)>> =
            Arc::new(files.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect());
        let counters = (sent.clone(), requests.clone());
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (files, (sent, requests)) = (files.clone(), counters.clone());
                thread::spawn(move || {
                    // The client hangs up in the middle of an answer on purpose.
                    let _ = serve(stream.unwrap(), manner, &files, &sent, &requests);
                });
            }
        });
        Server { address, sent, requests }
    }

    fn sent(&self) -> u64 {
        self.sent.load(Ordering::SeqCst)
    }

    fn requests(&self) -> u64 {
        self.requests.load(Ordering::SeqCst)
    }
}

fn serve(
    stream: TcpStream,
    manner: Manner,
    files: &[(String, Vec<u8>)],
    sent: &AtomicU64,
    requests: &AtomicU64,
) -> std::io::Result<()> {
    let mut out = stream.try_clone()?;
    let mut lines = BufReader::new(stream).lines();
    while let Some(request) = lines.next().transpose()? {
        requests.fetch_add(1, Ordering::SeqCst);
        let target = request.split(' ').nth(1).unwrap_or_default().to_owned();
        let mut range = None;
        for line in lines.by_ref() {
            let line = line?.to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("range: bytes=") {
                let (first, last) = value.split_once('-').unwrap();
                range = Some((first.parse::<usize>().unwrap(), last.parse::<usize>().unwrap()));
            }
        }
        let name = target.split('?').next().unwrap_or_default().trim_start_matches('/');
        if let Some(name) = name.strip_prefix("moved/") {
            write!(out, "HTTP/1.1 302 Found\r\nlocation: /{name}\r\ncontent-length: 0\r\n\r\n")?;
            continue;
        }
        let file = files.iter().find(|(own, _)| own == name);
        let (Some((_, bytes)), false) = (file, matches!(manner, Manner::Status(_))) else {
            let status = if let Manner::Status(status) = manner { status } else { 404 };
            write!(out, "HTTP/1.1 {status} No\r\ncontent-length: 0\r\n\r\n")?;
            continue;
        };
        let body = match (manner, range) {
            (Manner::Ranges | Manner::WrongRange, Some((first, last))) => {
                let end = bytes.len().min(last + 1);
                let told = if manner == Manner::WrongRange { 0 } else { first };
                let part = &bytes[first..end];
                let total = bytes.len();
                write!(out, "HTTP/1.1 206 Partial\r\ncontent-range: bytes {told}-{}/{total}\r\n", end - 1)?;
                write!(out, "content-length: {}\r\n\r\n", part.len())?;
                part
            }
            (Manner::Chunked, _) => {
                write!(out, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n", bytes.len())?;
                bytes
            }
            _ => {
                write!(out, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", bytes.len())?;
                bytes
            }
        };
        for chunk in body.chunks(1 << 16) {
            out.write_all(chunk)?;
            sent.fetch_add(chunk.len() as u64, Ordering::SeqCst);
        }
    }
    Ok(())
}

/// A model whose header takes about 3 MB and whose data takes 64.
fn large() -> Vec<u8> {
    let tokens = (0..150_000u32).map(|i| format!("token{i}")).collect();
    let file = Builder::new()
        .key("general.architecture", Value::String("llama".into()))
        .key("tokenizer.ggml.model", Value::String("gpt2".into()))
        .key("tokenizer.ggml.tokens", Value::Array(Array::String(tokens)))
        .tensor("token_embd.weight", &[1 << 20, 16], DType::F32, vec![0; 64 << 20]);
    file.build()
}

/// The parts of a report that do not depend on how it was fetched.
fn content(inspection: &Inspection) -> String {
    serde_json::to_string(&inspection.report).unwrap()
}

#[test]
fn a_local_file() {
    let name = "models/omni-stories-q4_k_m.gguf";
    let seen = inspect(path(name).to_str().unwrap()).unwrap();
    assert!(seen.report.supported, "{:?}", seen.report.reasons);
    assert_eq!(seen.file_bytes, Some(read(name).len() as u64));
    assert_eq!(seen.report.bytes.weights, 1_824_256);
    assert_eq!((seen.report.parameters.total, seen.report.tokenizer.tokens), (2_885_568, Some(2048)));
    let json = serde_json::to_value(&seen).unwrap();
    for key in [
        "target",
        "file_bytes",
        "name",
        "architecture",
        "supported",
        "reasons",
        "warnings",
        "parameters",
        "experts",
        "layers",
        "context",
        "tensor_count",
        "tensor_types",
        "tokenizer",
        "bytes",
        "sources",
        "files",
        "header_bytes",
    ] {
        assert!(json.get(key).is_some(), "{key}");
    }
    assert_eq!(json["tensor_types"][0]["type"], "Q4_K");
}

#[test]
fn an_address_by_ranges() {
    let bytes = large();
    let dir = tempfile::tempdir().unwrap();
    let local = dir.path().join("m.gguf");
    std::fs::write(&local, &bytes).unwrap();
    let local = inspect(local.to_str().unwrap()).unwrap();
    assert!(local.header_bytes > 2 << 20 && local.read_bytes < 8 << 20);
    let server = Server::start(Manner::Ranges, vec![("m.gguf", bytes.clone())]);
    for target in ["m.gguf", "m.gguf?download=true", "moved/m.gguf"] {
        let before = server.sent();
        let seen = inspect(&format!("{}/{target}", server.address)).unwrap();
        assert_eq!(content(&seen), content(&local));
        assert_eq!(seen.file_bytes, Some(bytes.len() as u64));
        assert_eq!(seen.read_bytes, local.read_bytes);
        assert_eq!(server.sent() - before, seen.read_bytes, "no more is sent than used");
    }
    assert!(server.requests() <= 12, "{} requests", server.requests());
}

#[test]
fn an_address_without_ranges() {
    for (manner, length) in [(Manner::NoRanges, true), (Manner::Chunked, false)] {
        let bytes = large();
        let server = Server::start(manner, vec![("m.gguf", bytes.clone())]);
        let seen = inspect(&format!("{}/m.gguf", server.address)).unwrap();
        assert_eq!(seen.file_bytes, length.then_some(bytes.len() as u64));
        assert_eq!(seen.report.tokenizer.tokens, Some(150_000));
        assert_eq!(server.requests(), 1);
        // What the socket's buffers swallow comes on top of what was read.
        assert!(server.sent() < 32 << 20, "{} bytes of {} sent", server.sent(), bytes.len());
    }
}

#[test]
fn servers_that_refuse_or_lie() {
    let server = Server::start(Manner::WrongRange, vec![("m.gguf", large())]);
    let error = inspect(&format!("{}/m.gguf", server.address)).unwrap_err();
    assert!(matches!(error, Error::Range { .. }), "{error}");
    let error = inspect(&format!("{}/other.gguf", server.address)).unwrap_err();
    assert!(matches!(error, Error::Status { status: 404, .. }), "{error}");
    let server = Server::start(Manner::Status(401), vec![]);
    let error = inspect(&format!("{}/m.gguf", server.address)).unwrap_err().to_string();
    assert!(error.contains("401") && error.contains("login"), "{error}");
    let page = b"<!DOCTYPE html><title>Not a model</title>".to_vec();
    let server = Server::start(Manner::NoRanges, vec![("m.gguf", page)]);
    let error = inspect(&format!("{}/m.gguf", server.address)).unwrap_err().to_string();
    assert!(error.contains("web page"), "{error}");
    let error = inspect("http://127.0.0.1:1/m.gguf").unwrap_err();
    assert!(matches!(error, Error::Fetch { .. }), "{error}");
}

#[test]
fn files_that_are_none() {
    let missing = inspect("/nonexistent.gguf").unwrap_err();
    assert!(matches!(missing, Error::Read { .. }), "{missing}");
    assert!(matches!(inspect("/"), Err(Error::Read { .. })));
    let manifest = inspect(path("Cargo.toml").to_str().unwrap()).unwrap_err().to_string();
    assert!(manifest.contains("not a GGUF file"), "{manifest}");
    // The header is whole, the data is not: a report that says so.
    let dir = tempfile::tempdir().unwrap();
    let cut = dir.path().join("cut.gguf");
    std::fs::write(&cut, &read("models/omni-stories-q8_0.gguf")[..2_000_000]).unwrap();
    let seen = inspect(cut.to_str().unwrap()).unwrap();
    assert!(!seen.report.supported && seen.report.reasons[0].contains("incomplete"), "{:?}", seen.report.reasons);
}

/// The three files of a split set.
fn split_set() -> Vec<(String, Vec<u8>)> {
    let part = |no: u16| {
        let mut file = Builder::new();
        if no == 0 {
            file = file.key("general.architecture", Value::String("mystery".into()));
        }
        file = file
            .key("split.no", Value::U16(no))
            .key("split.count", Value::U16(3))
            .key("split.tensors.count", Value::I32(3))
            .tensor(format!("t.{no}"), &[256], DType::Q6_K, vec![0; 210]);
        (format!("big-{:05}-of-00003.gguf", no + 1), file.build())
    };
    (0..3).map(part).collect()
}

#[test]
fn split_sets_are_read_whole() {
    let set = split_set();
    let dir = tempfile::tempdir().unwrap();
    let at = |i: usize| dir.path().join(&set[i].0);
    set.iter().for_each(|(name, bytes)| std::fs::write(dir.path().join(name), bytes).unwrap());
    // Any file of the set will do.
    for i in 0..3 {
        let seen = inspect(at(i).to_str().unwrap()).unwrap();
        assert_eq!((seen.report.files, seen.report.tensor_count, seen.report.bytes.weights), (3, 3, 630));
        assert_eq!(seen.file_bytes, Some(set.iter().map(|(_, bytes)| bytes.len() as u64).sum()));
        assert_eq!(seen.report.architecture.as_deref(), Some("mystery"));
    }
    let server =
        Server::start(Manner::Ranges, set.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect());
    let seen = inspect(&format!("{}/{}?x=1", server.address, set[1].0)).unwrap();
    assert_eq!((seen.report.files, seen.report.tensor_count), (3, 3));
    // One file missing, or renamed: the rest is still told.
    std::fs::remove_file(at(2)).unwrap();
    let seen = inspect(at(0).to_str().unwrap()).unwrap();
    assert!(seen.report.reasons.iter().any(|reason| reason.contains("not complete")), "{:?}", seen.report.reasons);
    let renamed = dir.path().join("big.gguf");
    std::fs::rename(at(0), &renamed).unwrap();
    let seen = inspect(renamed.to_str().unwrap()).unwrap();
    assert!(seen.report.reasons.iter().any(|reason| reason.contains("-NNNNN-of-NNNNN")), "{:?}", seen.report.reasons);
}
