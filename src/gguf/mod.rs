//! GGUF files as data: header, metadata and tensor directory, split files included. Pure over bytes: no I/O here.
//!
//! Format: GGUF specification, versions 2 and 3, little-endian.
//!
//! ```text
//! "GGUF" | version u32 | tensor count u64 | key count u64
//! key count    × { key: string | type u32 | value }                                       string: length u64, bytes
//! tensor count × { name: string | dimensions u32 | dimension u64 × | type u32 | offset u64 }
//! padding to general.alignment | tensor data, each tensor padded to the alignment
//! ```
//! [`File::parse`] takes whatever prefix of the file is at hand; [`parse_growing`] fetches more as needed, so that callers
//! read no tensor data to learn what a file holds. Files are hostile until parsed: every count, length, offset and
//! overlap is checked, and nothing is allocated that the bytes at hand do not justify. Called by `load` and `omnictl`.

mod error;
mod metadata;
mod parse;
mod reader;
mod split;
mod strings;
pub mod write;

pub use error::{Error, GrowError};
pub use metadata::FromValue;
pub use parse::{MAX_HEADER_BYTES, parse_growing};
pub use split::SplitName;
pub use strings::Strings;

use crate::quant::DType;

/// One metadata value.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    U64(u64),
    I64(i64),
    F32(f32),
    F64(f64),
    Bool(bool),
    /// Invalid UTF-8 in the file becomes U+FFFD.
    String(String),
    Array(Array),
}

/// A metadata array, kept typed and flat so that a 150k-entry vocabulary costs no boxed value per entry.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F32(Vec<f32>),
    F64(Vec<f64>),
    Bool(Vec<bool>),
    /// Raw bytes: vocabularies may hold invalid UTF-8.
    String(Strings),
}

/// A tensor's entry in the directory.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    /// Name, e.g. `blk.0.attn_q.weight`.
    pub name: String,
    /// Dimensions as stored: `shape[0]` runs fastest (columns), at most 4.
    pub shape: Vec<u64>,
    /// Element type.
    pub dtype: DType,
    /// Bytes from the start of its file (absolute, data section included).
    pub offset: u64,
    /// Bytes of data.
    pub size: u64,
    /// Which file of a split set holds it, from 0.
    pub file: u16,
}

impl TensorInfo {
    /// Number of elements; a scalar has one. Checked to fit while parsing.
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }
}

/// Metadata in file order with typed getters.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata {
    /// Key and value in file order.
    pub entries: Vec<(String, Value)>,
}

/// A parsed GGUF: one file, or a whole split set merged.
#[derive(Clone, Debug, PartialEq)]
pub struct File {
    /// 2 or 3.
    pub version: u32,
    /// `general.alignment`, 32 when absent.
    pub alignment: u32,
    /// All keys (of the first file in a split set).
    pub metadata: Metadata,
    /// All tensors, in file order.
    pub tensors: Vec<TensorInfo>,
    /// Bytes of header, metadata and directory; tensor data starts at the next multiple of the alignment.
    pub header_bytes: u64,
    /// Files this was merged from: 1 unless [`File::merge`] made it.
    pub files: u16,
}
