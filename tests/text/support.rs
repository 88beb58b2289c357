//! Where the vocabularies lie and how they are read.

use omni_inferd::gguf::{Array, Metadata, Value};
use omni_inferd::text::Tokenizer;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Committed vocabularies.
pub fn committed() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/vocab")
}

/// The larger collection beside the checkout, if it is there; says so when it is not.
pub fn shared(folder: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data").join(folder);
    let path =
        if path.is_dir() { path } else { Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data").join(folder) };
    if path.is_dir() {
        return Some(path);
    }
    println!("skipped: {} is not there", path.display());
    None
}

/// The metadata of an xz-compressed vocabulary file.
pub fn metadata(path: &Path) -> Metadata {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).unwrap();
    xz2::read::XzDecoder::new(file).read_to_end(&mut bytes).unwrap();
    Reader { b: &bytes, p: 4 }.meta()
}

struct Reader<'a> {
    b: &'a [u8],
    p: usize,
}
impl Reader<'_> {
    fn n(&mut self, k: usize) -> u64 {
        let mut v = [0; 8];
        v[..k].copy_from_slice(&self.b[self.p..self.p + k]);
        self.p += k;
        u64::from_le_bytes(v)
    }
    fn s(&mut self) -> Vec<u8> {
        let n = self.n(8) as usize;
        self.p += n;
        self.b[self.p - n..self.p].to_vec()
    }
    fn val(&mut self, t: u64) -> Value {
        match t {
            4 => Value::U32(self.n(4) as u32),
            5 => Value::I32(self.n(4) as i32),
            6 => Value::F32(f32::from_bits(self.n(4) as u32)),
            7 => Value::Bool(self.n(1) != 0),
            8 => Value::String(String::from_utf8(self.s()).unwrap()),
            10 => Value::U64(self.n(8)),
            9 => {
                let t = self.n(4);
                let n = self.n(8);
                Value::Array(match t {
                    8 => Array::String((0..n).map(|_| self.s()).collect()),
                    6 => Array::F32((0..n).map(|_| f32::from_bits(self.n(4) as u32)).collect()),
                    5 => Array::I32((0..n).map(|_| self.n(4) as i32).collect()),
                    4 => Array::U32((0..n).map(|_| self.n(4) as u32).collect()),
                    other => panic!("{other}"),
                })
            }
            other => panic!("{other}"),
        }
    }
    fn meta(&mut self) -> Metadata {
        self.n(4);
        self.n(8);
        let n = self.n(8);
        let entries = (0..n)
            .map(|_| {
                let k = String::from_utf8(self.s()).unwrap();
                let t = self.n(4);
                (k, self.val(t))
            })
            .collect();
        Metadata { entries }
    }
}

/// The tokenizer of a vocabulary file.
pub fn tokenizer(path: &Path) -> Tokenizer {
    Tokenizer::from_metadata(&metadata(path)).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
