//! The `tokenizer.*` keys as this module wants them: typed, with errors that name the key.

use super::Error;
use crate::gguf::{Array, Metadata, Strings, Value};

/// An optional string.
pub(super) fn string<'m>(metadata: &'m Metadata, key: &'static str) -> Result<Option<&'m str>, Error> {
    match metadata.find(key) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(Error::WrongType { key, expected: "a string" }),
    }
}

/// An optional flag; numbers count as C counts them, as some converters write them so.
pub(super) fn flag(metadata: &Metadata, key: &'static str, default: bool) -> bool {
    match metadata.find(key) {
        Some(Value::Bool(flag)) => *flag,
        Some(value) => value.as_integer().map_or(default, |number| number != 0),
        None => default,
    }
}

/// An optional token id below `count`. One outside of the vocabulary (converters write -1 for "none") counts as absent.
pub(super) fn token_id(metadata: &Metadata, key: &'static str, count: usize) -> Option<u32> {
    let id = u32::try_from(metadata.find(key)?.as_integer()?).ok()?;
    ((id as usize) < count).then_some(id)
}

/// An optional array of strings, as bytes.
pub(super) fn strings<'m>(metadata: &'m Metadata, key: &'static str) -> Result<Option<&'m Strings>, Error> {
    match metadata.find(key) {
        None => Ok(None),
        Some(Value::Array(Array::String(list))) => Ok(Some(list)),
        Some(_) => Err(Error::WrongType { key, expected: "an array of strings" }),
    }
}

/// An optional array of floating-point numbers.
pub(super) fn floats(metadata: &Metadata, key: &'static str) -> Result<Option<Vec<f32>>, Error> {
    match metadata.find(key) {
        None => Ok(None),
        Some(Value::Array(Array::F32(list))) => Ok(Some(list.clone())),
        Some(Value::Array(Array::F64(list))) => Ok(Some(list.iter().map(|&number| number as f32).collect())),
        Some(_) => Err(Error::WrongType { key, expected: "an array of f32" }),
    }
}

/// An optional array of small integers, whatever their width; numbers that do not fit become -1.
pub(super) fn integers(metadata: &Metadata, key: &'static str) -> Result<Option<Vec<i32>>, Error> {
    let narrow = |number: i64| i32::try_from(number).unwrap_or(-1);
    let list = match metadata.find(key) {
        None => return Ok(None),
        Some(Value::Array(Array::I32(list))) => list.clone(),
        Some(Value::Array(Array::U32(list))) => list.iter().map(|&number| narrow(number.into())).collect(),
        Some(Value::Array(Array::I8(list))) => list.iter().map(|&number| number.into()).collect(),
        Some(Value::Array(Array::U8(list))) => list.iter().map(|&number| number.into()).collect(),
        Some(Value::Array(Array::I64(list))) => list.iter().map(|&number| narrow(number)).collect(),
        Some(_) => return Err(Error::WrongType { key, expected: "an array of i32" }),
    };
    Ok(Some(list))
}
