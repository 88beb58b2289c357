//! Tokens per second of one core: `cargo bench --bench tokenizer [-- TEXT [GGUF…]]`.
//!
//! Without arguments it encodes the bundled held-out stories with the bundled model and the committed vocabularies. Each
//! row is the best of several passes over the same text on a warm tokenizer; `header` is parsing the file's, `load` making the
//! tokenizer of it.

use omni_inferd::gguf::File;
use omni_inferd::text::Tokenizer;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Instant;

const PASSES: usize = 15;

fn read(path: &Path) -> Vec<u8> {
    let file = std::fs::File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut bytes = Vec::new();
    let result = if path.extension().is_some_and(|extension| extension == "xz") {
        xz2::read::XzDecoder::new(file).read_to_end(&mut bytes)
    } else {
        (&file).read_to_end(&mut bytes)
    };
    result.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    bytes
}

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    // `cargo bench` itself passes `--bench`.
    let arguments: Vec<PathBuf> =
        std::env::args().skip(1).filter(|a| !a.starts_with("--")).map(PathBuf::from).collect();
    let text = arguments.first().cloned().unwrap_or_else(|| root.join("models/omni-stories-heldout.txt"));
    let vocab = |name: &str| root.join(format!("tests/data/vocab/ggml-vocab-{name}.gguf.xz"));
    let files = match arguments.get(1..) {
        Some(files) if !files.is_empty() => files.to_vec(),
        _ => vec![root.join("models/omni-stories-q8_0.gguf"), vocab("qwen2"), vocab("gpt-2"), vocab("phi-3")],
    };
    let text = String::from_utf8_lossy(&read(&text)).into_owned();
    let heads = ["tokens", "tokens/s", "MB/s", "header ms", "load ms"];
    println!("{:<36} {:>10} {:>12} {:>10} {:>9} {:>9}", "vocabulary", heads[0], heads[1], heads[2], heads[3], heads[4]);
    for path in files {
        let bytes = read(&path);
        let mut header = f64::INFINITY;
        let mut parse = || {
            let begin = Instant::now();
            let file = File::parse(&bytes, bytes.len() as u64).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            header = header.min(begin.elapsed().as_secs_f64());
            file.metadata
        };
        (1..PASSES).for_each(|_| drop(parse()));
        let metadata = parse();
        let begin = Instant::now();
        let tokenizer =
            Tokenizer::from_metadata(&metadata).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let load = begin.elapsed();
        let mut tokens = 0;
        let mut best = f64::INFINITY;
        for _ in 0..PASSES {
            let begin = Instant::now();
            tokens = std::hint::black_box(tokenizer.encode(std::hint::black_box(&text), false, true)).len();
            best = best.min(begin.elapsed().as_secs_f64());
        }
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let (rate, megabytes) = (tokens as f64 / best, text.len() as f64 / best / 1e6);
        let (header, load) = (header * 1e3, load.as_secs_f64() * 1e3);
        println!("{name:<36} {tokens:>10} {rate:>12.0} {megabytes:>10.1} {header:>9.1} {load:>9.1}");
    }
}
