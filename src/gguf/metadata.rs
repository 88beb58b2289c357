//! Typed access to metadata. A key of the wrong type is an error that names the key, never a silent default.

use super::{Array, Error, Metadata, Strings, Value};

/// What a metadata value can be read as.
pub trait FromValue<'a>: Sized {
    /// The type as errors call it.
    const EXPECTED: &'static str;
    /// The value, if it is of a fitting type and range.
    fn from_value(value: &'a Value) -> Option<Self>;
}

impl Metadata {
    /// The value of `key` as it is.
    pub fn find(&self, key: &str) -> Option<&Value> {
        self.entries.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    /// The value of `key`, `None` where the file has no such key.
    pub fn get<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<Option<T>, Error> {
        let Some(value) = self.find(key) else { return Ok(None) };
        T::from_value(value).map(Some).ok_or_else(|| Error::WrongType {
            key: key.into(),
            expected: T::EXPECTED,
            found: value.describe(),
        })
    }

    /// The value of `key`, which must be there.
    pub fn require<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<T, Error> {
        self.get(key)?.ok_or_else(|| Error::MissingKey { key: key.into() })
    }

    /// Any integer that fits.
    pub fn get_u32(&self, key: &str) -> Result<Option<u32>, Error> {
        self.get(key)
    }

    /// Any integer that fits.
    pub fn get_usize(&self, key: &str) -> Result<Option<usize>, Error> {
        self.get(key)
    }

    /// F32, or F64 narrowed.
    pub fn get_f32(&self, key: &str) -> Result<Option<f32>, Error> {
        self.get(key)
    }

    /// A string.
    pub fn get_str(&self, key: &str) -> Result<Option<&str>, Error> {
        self.get(key)
    }

    /// A bool.
    pub fn get_bool(&self, key: &str) -> Result<Option<bool>, Error> {
        self.get(key)
    }

    /// An array of strings, as bytes.
    pub fn get_strings(&self, key: &str) -> Result<Option<&Strings>, Error> {
        self.get(key)
    }

    /// An array of F32.
    pub fn get_f32s(&self, key: &str) -> Result<Option<&[f32]>, Error> {
        self.get(key)
    }

    /// An array of I32.
    pub fn get_i32s(&self, key: &str) -> Result<Option<&[i32]>, Error> {
        self.get(key)
    }
}

impl Value {
    /// The type's name in the specification's words.
    pub fn kind(&self) -> &'static str {
        match self {
            Value::U8(_) => "u8",
            Value::I8(_) => "i8",
            Value::U16(_) => "u16",
            Value::I16(_) => "i16",
            Value::U32(_) => "u32",
            Value::I32(_) => "i32",
            Value::U64(_) => "u64",
            Value::I64(_) => "i64",
            Value::F32(_) => "f32",
            Value::F64(_) => "f64",
            Value::Bool(_) => "bool",
            Value::String(_) => "string",
            Value::Array(array) => array.kind(),
        }
    }

    /// Type and, for integers, value: enough to see why a value was refused.
    fn describe(&self) -> String {
        match (self, self.as_integer()) {
            (_, Some(integer)) => format!("{} {integer}", self.kind()),
            (Value::Array(array), _) => format!("{} of {}", array.kind(), array.len()),
            _ => self.kind().into(),
        }
    }

    /// The value of any integer type.
    pub fn as_integer(&self) -> Option<i128> {
        Some(match *self {
            Value::U8(v) => v.into(),
            Value::I8(v) => v.into(),
            Value::U16(v) => v.into(),
            Value::I16(v) => v.into(),
            Value::U32(v) => v.into(),
            Value::I32(v) => v.into(),
            Value::U64(v) => v.into(),
            Value::I64(v) => v.into(),
            _ => return None,
        })
    }
}

impl Array {
    /// The type's name.
    pub fn kind(&self) -> &'static str {
        match self {
            Array::U8(_) => "array of u8",
            Array::I8(_) => "array of i8",
            Array::U16(_) => "array of u16",
            Array::I16(_) => "array of i16",
            Array::U32(_) => "array of u32",
            Array::I32(_) => "array of i32",
            Array::U64(_) => "array of u64",
            Array::I64(_) => "array of i64",
            Array::F32(_) => "array of f32",
            Array::F64(_) => "array of f64",
            Array::Bool(_) => "array of bool",
            Array::String(_) => "array of string",
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Array::U8(v) => v.len(),
            Array::I8(v) => v.len(),
            Array::U16(v) => v.len(),
            Array::I16(v) => v.len(),
            Array::U32(v) => v.len(),
            Array::I32(v) => v.len(),
            Array::U64(v) => v.len(),
            Array::I64(v) => v.len(),
            Array::F32(v) => v.len(),
            Array::F64(v) => v.len(),
            Array::Bool(v) => v.len(),
            Array::String(v) => v.len(),
        }
    }

    /// True without elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements of any integer type.
    pub fn integers(&self) -> Option<Vec<i128>> {
        fn widen<T: Copy + Into<i128>>(values: &[T]) -> Option<Vec<i128>> {
            Some(values.iter().map(|&value| value.into()).collect())
        }
        match self {
            Array::U8(v) => widen(v),
            Array::I8(v) => widen(v),
            Array::U16(v) => widen(v),
            Array::I16(v) => widen(v),
            Array::U32(v) => widen(v),
            Array::I32(v) => widen(v),
            Array::U64(v) => widen(v),
            Array::I64(v) => widen(v),
            _ => None,
        }
    }
}

macro_rules! from_integer {
    ($($type:ty => $expected:literal),*) => {$(
        impl FromValue<'_> for $type {
            const EXPECTED: &'static str = $expected;
            fn from_value(value: &Value) -> Option<Self> {
                value.as_integer().and_then(|integer| integer.try_into().ok())
            }
        }
    )*};
}
from_integer!(u16 => "u16", u32 => "u32", u64 => "u64", i32 => "i32", usize => "an unsigned integer");

impl FromValue<'_> for f32 {
    const EXPECTED: &'static str = "f32";
    fn from_value(value: &Value) -> Option<Self> {
        match *value {
            Value::F32(v) => Some(v),
            Value::F64(v) => Some(v as f32),
            _ => None,
        }
    }
}

impl FromValue<'_> for bool {
    const EXPECTED: &'static str = "bool";
    fn from_value(value: &Value) -> Option<Self> {
        match *value {
            Value::Bool(v) => Some(v),
            _ => None,
        }
    }
}

impl<'a> FromValue<'a> for &'a str {
    const EXPECTED: &'static str = "string";
    fn from_value(value: &'a Value) -> Option<Self> {
        match value {
            Value::String(v) => Some(v),
            _ => None,
        }
    }
}

impl<'a> FromValue<'a> for &'a Array {
    const EXPECTED: &'static str = "array";
    fn from_value(value: &'a Value) -> Option<Self> {
        match value {
            Value::Array(v) => Some(v),
            _ => None,
        }
    }
}

impl<'a> FromValue<'a> for &'a Strings {
    const EXPECTED: &'static str = "array of string";
    fn from_value(value: &'a Value) -> Option<Self> {
        match value {
            Value::Array(Array::String(v)) => Some(v),
            _ => None,
        }
    }
}

macro_rules! from_array {
    ($($type:ty, $variant:ident => $expected:literal),*) => {$(
        impl<'a> FromValue<'a> for &'a [$type] {
            const EXPECTED: &'static str = $expected;
            fn from_value(value: &'a Value) -> Option<Self> {
                match value {
                    Value::Array(Array::$variant(v)) => Some(v),
                    _ => None,
                }
            }
        }
    )*};
}
from_array!(
    f32, F32 => "array of f32",
    i32, I32 => "array of i32",
    u32, U32 => "array of u32",
    bool, Bool => "array of bool"
);
