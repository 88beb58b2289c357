//! Builds GGUF bytes: for tests, benchmarks with random weights, and tools. Not on the way of serving.
//!
//! ```
//! use omni_inferd::{gguf::{File, Value, write::Builder}, quant::DType};
//! let bytes = Builder::new()
//!     .key("general.architecture", Value::String("llama".into()))
//!     .tensor("output_norm.weight", &[4], DType::F32, vec![0; 16])
//!     .build();
//! assert_eq!(File::parse(&bytes, bytes.len() as u64)?.tensors[0].shape, [4]);
//! # Ok::<(), omni_inferd::gguf::Error>(())
//! ```

use super::{Array, Value};
use crate::quant::DType;

/// A file in the making. Nothing is checked beyond what [`Builder::tensor`] says: it can write files that must be refused.
#[derive(Clone, Debug, Default)]
pub struct Builder {
    version: Option<u32>,
    keys: Vec<(Vec<u8>, Value)>,
    tensors: Vec<Tensor>,
}

#[derive(Clone, Debug)]
struct Tensor {
    name: Vec<u8>,
    shape: Vec<u64>,
    dtype: DType,
    data: Vec<u8>,
}

impl Builder {
    /// An empty file of version 3.
    pub fn new() -> Self {
        Self::default()
    }

    /// Another version number.
    pub fn version(mut self, version: u32) -> Self {
        self.version = Some(version);
        self
    }

    /// Adds a key after those that are there.
    pub fn key(mut self, key: impl AsRef<[u8]>, value: Value) -> Self {
        self.keys.push((key.as_ref().to_vec(), value));
        self
    }

    /// Replaces the value of a key, or adds it.
    pub fn set(mut self, key: &str, value: Value) -> Self {
        match self.keys.iter_mut().find(|(name, _)| name == key.as_bytes()) {
            Some(entry) => entry.1 = value,
            None => return self.key(key, value),
        }
        self
    }

    /// Removes a key.
    pub fn without(mut self, key: &str) -> Self {
        self.keys.retain(|(name, _)| name != key.as_bytes());
        self
    }

    /// Adds a tensor with its data, whose length is the caller's business. `shape[0]` runs fastest.
    pub fn tensor(mut self, name: impl AsRef<[u8]>, shape: &[u64], dtype: DType, data: Vec<u8>) -> Self {
        self.tensors.push(Tensor { name: name.as_ref().to_vec(), shape: shape.to_vec(), dtype, data });
        self
    }

    /// The file's bytes: header, then each tensor's data padded to `general.alignment`.
    pub fn build(&self) -> Vec<u8> {
        let (mut out, data_sizes) = (Vec::new(), self.tensors.iter().map(|tensor| tensor.data.len() as u64));
        self.write_header(&mut out, data_sizes);
        let alignment = self.alignment();
        for tensor in &self.tensors {
            pad(&mut out, alignment);
            out.extend_from_slice(&tensor.data);
        }
        pad(&mut out, alignment);
        out
    }

    /// The header alone, for tensors whose data is written by the caller: `sizes` are their bytes, in order. Padded, so
    /// that the first tensor's data follows directly.
    pub fn build_header(&self, sizes: &[u64]) -> Vec<u8> {
        let mut out = Vec::new();
        self.write_header(&mut out, sizes.iter().copied());
        pad(&mut out, self.alignment());
        out
    }

    /// `general.alignment` as set, 32 otherwise.
    pub fn alignment(&self) -> u64 {
        let set = self.keys.iter().find(|(key, _)| key == b"general.alignment");
        match set {
            Some((_, Value::U32(alignment))) => u64::from(*alignment).max(1),
            _ => 32,
        }
    }

    fn write_header(&self, out: &mut Vec<u8>, sizes: impl Iterator<Item = u64>) {
        out.extend_from_slice(b"GGUF");
        out.extend_from_slice(&self.version.unwrap_or(3).to_le_bytes());
        out.extend_from_slice(&(self.tensors.len() as u64).to_le_bytes());
        out.extend_from_slice(&(self.keys.len() as u64).to_le_bytes());
        for (key, value) in &self.keys {
            string(out, key);
            write_value(out, value);
        }
        let (alignment, mut offset) = (self.alignment(), 0u64);
        for (tensor, size) in self.tensors.iter().zip(sizes) {
            string(out, &tensor.name);
            out.extend_from_slice(&(tensor.shape.len() as u32).to_le_bytes());
            tensor.shape.iter().for_each(|dim| out.extend_from_slice(&dim.to_le_bytes()));
            out.extend_from_slice(&tensor.dtype.id().to_le_bytes());
            out.extend_from_slice(&offset.to_le_bytes());
            offset += size.next_multiple_of(alignment);
        }
    }
}

fn pad(out: &mut Vec<u8>, alignment: u64) {
    out.resize((out.len() as u64).next_multiple_of(alignment) as usize, 0);
}

fn string(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    out.extend_from_slice(bytes);
}

/// A value's type and bytes.
fn write_value(out: &mut Vec<u8>, value: &Value) {
    macro_rules! number {
        ($kind:literal, $value:expr) => {{
            out.extend_from_slice(&u32::to_le_bytes($kind));
            out.extend_from_slice(&$value.to_le_bytes());
        }};
    }
    match value {
        Value::U8(v) => number!(0, v),
        Value::I8(v) => number!(1, v),
        Value::U16(v) => number!(2, v),
        Value::I16(v) => number!(3, v),
        Value::U32(v) => number!(4, v),
        Value::I32(v) => number!(5, v),
        Value::F32(v) => number!(6, v),
        Value::Bool(v) => number!(7, u8::from(*v)),
        Value::String(v) => {
            out.extend_from_slice(&8u32.to_le_bytes());
            string(out, v.as_bytes());
        }
        Value::Array(array) => {
            out.extend_from_slice(&9u32.to_le_bytes());
            write_array(out, array);
        }
        Value::U64(v) => number!(10, v),
        Value::I64(v) => number!(11, v),
        Value::F64(v) => number!(12, v),
    }
}

/// An array's element type, length and elements.
fn write_array(out: &mut Vec<u8>, array: &Array) {
    let mut head = |kind: u32| {
        out.extend_from_slice(&kind.to_le_bytes());
        out.extend_from_slice(&(array.len() as u64).to_le_bytes());
    };
    macro_rules! numbers {
        ($kind:literal, $values:expr) => {{
            head($kind);
            $values.iter().for_each(|v| out.extend_from_slice(&v.to_le_bytes()));
        }};
    }
    match array {
        Array::U8(v) => numbers!(0, v),
        Array::I8(v) => numbers!(1, v),
        Array::U16(v) => numbers!(2, v),
        Array::I16(v) => numbers!(3, v),
        Array::U32(v) => numbers!(4, v),
        Array::I32(v) => numbers!(5, v),
        Array::F32(v) => numbers!(6, v),
        Array::Bool(v) => {
            head(7);
            out.extend(v.iter().map(|&v| u8::from(v)));
        }
        Array::String(v) => {
            head(8);
            v.iter().for_each(|bytes| string(out, bytes));
        }
        Array::U64(v) => numbers!(10, v),
        Array::I64(v) => numbers!(11, v),
        Array::F64(v) => numbers!(12, v),
    }
}
