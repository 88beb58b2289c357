//! Where the vocabularies lie and how they are read.

use omni_inferd::gguf::{File, Metadata};
use omni_inferd::text::Tokenizer;
use std::io::Read;
use std::path::{Path, PathBuf};

/// A folder of committed data.
pub fn committed(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(folder)
}

/// The larger collection beside the checkout, if it is there; says so when it is not.
pub fn shared(folder: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data").join(folder);
    if path.is_dir() {
        return Some(path);
    }
    println!("skipped: {} is not there", path.display());
    None
}

/// The metadata of an xz-compressed vocabulary file.
pub fn metadata(path: &Path) -> Metadata {
    let bytes = decompressed(path);
    File::parse(&bytes, bytes.len() as u64).unwrap_or_else(|error| panic!("{}: {error}", path.display())).metadata
}

/// The content of an xz-compressed file.
pub fn decompressed(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).unwrap();
    xz2::read::XzDecoder::new(file).read_to_end(&mut bytes).unwrap();
    bytes
}

/// The tokenizer of a vocabulary file.
pub fn tokenizer(path: &Path) -> Tokenizer {
    Tokenizer::from_metadata(&metadata(path)).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
