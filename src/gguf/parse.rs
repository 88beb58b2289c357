//! Bytes to [`File`]: the only place that knows the order of fields in a GGUF header.

use super::reader::Reader;
use super::{Array, Error, File, GrowError, Metadata, Strings, TensorInfo, Value};
use crate::quant::DType;
use std::collections::HashSet;

/// No header is larger than this: a large vocabulary with its merges takes about 20 MB.
pub const MAX_HEADER_BYTES: u64 = 256 << 20;

/// `general.alignment` where a file has none.
const DEFAULT_ALIGNMENT: u32 = 32;
/// Longest key (GGUF specification).
const MAX_KEY_BYTES: u64 = 65_535;
/// Longest tensor name: ggml's 64 bytes with a NUL at the end.
const MAX_NAME_BYTES: u64 = 63;
/// Most dimensions of a tensor.
const MAX_DIMS: u32 = 4;
/// ggml counts elements and bytes in signed 64-bit numbers.
const MAX_SIGNED: u64 = i64::MAX as u64;
/// Least bytes of a key (length, one byte, type, one byte of value) and of a directory entry (length, one byte, count of
/// dimensions, type, offset).
const MIN_KEY_BYTES: u64 = 8 + 1 + 4 + 1;
const MIN_ENTRY_BYTES: u64 = 8 + 1 + 4 + 4 + 8;

impl File {
    /// Parses the header from a `prefix` of a file of `file_len` bytes (`u64::MAX` where that is unknown).
    ///
    /// [`Error::NeedMore`] asks for a longer prefix, see [`Error::fetch`] and [`parse_growing`]; any other error is the
    /// file's fault. Whether the tensors' data is all there is [`File::check_data`]'s question.
    pub fn parse(prefix: &[u8], file_len: u64) -> Result<File, Error> {
        let mut r = Reader::new(prefix, file_len);
        let version = header_version(&mut r)?;
        let tensor_count = r.u64(|| "the tensor count".into())?;
        let key_count = r.u64(|| "the key count".into())?;
        r.expect(key_count, MIN_KEY_BYTES, || format!("metadata of {key_count} keys"))?;
        r.expect(tensor_count, MIN_ENTRY_BYTES, || format!("a directory of {tensor_count} tensors"))?;
        let metadata = read_metadata(&mut r, key_count)?;
        let alignment = alignment(&metadata)?;
        let mut tensors = read_directory(&mut r, tensor_count)?;
        let header_bytes = r.offset();
        place(&mut tensors, header_bytes, u64::from(alignment))?;
        Ok(File { version, alignment, metadata, tensors, header_bytes, files: 1 })
    }

    /// Refuses a file whose tensors reach beyond its `file_len` bytes. Padding after the last tensor may be missing.
    /// For a single file, before [`File::merge`].
    pub fn check_data(&self, file_len: u64) -> Result<(), Error> {
        match self.tensors.iter().find(|tensor| tensor.offset + tensor.size > file_len) {
            Some(t) => Err(Error::OutOfFile { tensor: t.name.clone(), end: t.offset + t.size, file_len }),
            None => Ok(()),
        }
    }
}

/// Parses a file's header reading no more of it than needed: `fetch(buffer, len)` is called, again as long as needed, to
/// extend `buffer` to at least `len` bytes from the start of the file. It gets at most [`MAX_HEADER_BYTES`] to fetch, or
/// `first` bytes if that is more; a fetch that adds nothing ends in the error that asked for it.
pub fn parse_growing<E>(
    file_len: u64,
    first: u64,
    mut fetch: impl FnMut(&mut Vec<u8>, u64) -> Result<(), E>,
) -> Result<File, GrowError<E>> {
    let mut prefix = Vec::new();
    let mut want = first.min(file_len);
    loop {
        let before = prefix.len() as u64;
        fetch(&mut prefix, want).map_err(GrowError::Fetch)?;
        match File::parse(&prefix, file_len) {
            Ok(file) => return Ok(file),
            Err(error) => match error.fetch() {
                // Doubling keeps the bytes parsed twice fewer than those read.
                Some(needed) if prefix.len() as u64 > before => {
                    want = needed.max(prefix.len() as u64 * 2).min(file_len).min(MAX_HEADER_BYTES);
                }
                _ => return Err(error.into()),
            },
        }
    }
}

fn header_version(r: &mut Reader) -> Result<u32, Error> {
    let magic = match r.take(4, || "the magic".into()) {
        Ok(magic) => magic,
        Err(need @ Error::NeedMore { .. }) => return Err(need),
        // Shorter than four bytes: say what it starts with.
        Err(_) => r.take(r.at_hand() as u64, || "the magic".into())?,
    };
    if magic != b"GGUF" {
        return Err(Error::Magic { found: magic.escape_ascii().to_string() });
    }
    match r.u32(|| "the version".into())? {
        version @ 2..=3 => Ok(version),
        found => Err(Error::Version { found }),
    }
}

fn read_metadata(r: &mut Reader, count: u64) -> Result<Metadata, Error> {
    let capacity = count.min(r.at_hand() as u64 / MIN_KEY_BYTES) as usize;
    let mut entries = Vec::with_capacity(capacity);
    let mut seen = HashSet::with_capacity(capacity);
    for index in 0..count {
        let offset = r.offset();
        let key = read_name(r, MAX_KEY_BYTES, || format!("key {index}"))?;
        if !seen.insert(key) {
            return Err(Error::Duplicate { what: "key", name: key.into(), offset });
        }
        let at = r.offset();
        let kind = r.u32(|| format!("the type of key {key:?}"))?;
        let value = match kind {
            9 => Value::Array(read_array(r, key)?),
            kind => read_value(r, kind, key, at)?,
        };
        entries.push((key.to_owned(), value));
    }
    Ok(Metadata { entries })
}

/// A key or tensor name: UTF-8 of 1 to `max` bytes.
fn read_name<'a>(r: &mut Reader<'a>, max: u64, field: impl Fn() -> String) -> Result<&'a str, Error> {
    let offset = r.offset();
    let invalid = |problem: String| Error::Invalid { field: field(), offset, problem };
    let len = r.u64(|| format!("the length of {}", field()))?;
    if len == 0 {
        return Err(invalid("the name is empty".into()));
    }
    if len > max {
        return Err(invalid(format!("the name has {len} bytes, at most {max} are allowed")));
    }
    std::str::from_utf8(r.take(len, &field)?).map_err(|error| invalid(format!("the name is not UTF-8: {error}")))
}

fn read_value(r: &mut Reader, kind: u32, key: &str, at: u64) -> Result<Value, Error> {
    let field = || format!("the value of key {key:?}");
    macro_rules! number {
        ($variant:ident, $type:ty) => {{
            let bytes = r.take(size_of::<$type>() as u64, field)?;
            let mut raw = [0; size_of::<$type>()];
            raw.copy_from_slice(bytes);
            Value::$variant(<$type>::from_le_bytes(raw))
        }};
    }
    Ok(match kind {
        0 => number!(U8, u8),
        1 => number!(I8, i8),
        2 => number!(U16, u16),
        3 => number!(I16, i16),
        4 => number!(U32, u32),
        5 => number!(I32, i32),
        6 => number!(F32, f32),
        7 => {
            let offset = r.offset();
            Value::Bool(boolean(r.take(1, field)?[0], key, offset)?)
        }
        8 => Value::String(String::from_utf8_lossy(r.string(field)?).into_owned()),
        10 => number!(U64, u64),
        11 => number!(I64, i64),
        12 => number!(F64, f64),
        other => return Err(unknown_kind(key, at, other, "value")),
    })
}

fn boolean(byte: u8, key: &str, offset: u64) -> Result<bool, Error> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(Error::Invalid {
            field: format!("the value of key {key:?}"),
            offset,
            problem: format!("a bool must be 0 or 1, found {other}"),
        }),
    }
}

fn unknown_kind(key: &str, offset: u64, kind: u32, what: &str) -> Error {
    Error::Invalid {
        field: format!("the type of key {key:?}"),
        offset,
        problem: match kind {
            9 => "arrays of arrays are not supported".into(),
            kind => format!("{kind} is no {what} type (0 to 12 are)"),
        },
    }
}

fn read_array(r: &mut Reader, key: &str) -> Result<Array, Error> {
    let at = r.offset();
    let kind = r.u32(|| format!("the element type of key {key:?}"))?;
    let count = r.u64(|| format!("the length of key {key:?}"))?;
    let field = || format!("the array of key {key:?}");
    macro_rules! numbers {
        ($variant:ident, $type:ty) => {{
            const SIZE: usize = size_of::<$type>();
            r.expect(count, SIZE as u64, field)?;
            let bytes = r.take(count * SIZE as u64, field)?;
            Array::$variant(bytes.as_chunks::<SIZE>().0.iter().map(|raw| <$type>::from_le_bytes(*raw)).collect())
        }};
    }
    Ok(match kind {
        0 => numbers!(U8, u8),
        1 => numbers!(I8, i8),
        2 => numbers!(U16, u16),
        3 => numbers!(I16, i16),
        4 => numbers!(U32, u32),
        5 => numbers!(I32, i32),
        6 => numbers!(F32, f32),
        7 => {
            let offset = r.offset();
            let bytes = r.take(count, field)?.iter();
            let bools: Result<_, _> =
                bytes.enumerate().map(|(i, &byte)| boolean(byte, key, offset + i as u64)).collect();
            Array::Bool(bools?)
        }
        8 => {
            r.expect(count, 8, field)?;
            let element = |index: u64| move || format!("element {index} of key {key:?}");
            // Walk ahead before anything is copied: a prefix that ends inside costs no allocation.
            let (mut ahead, mut bytes) = (r.clone(), 0);
            for index in 0..count {
                bytes += ahead.string(element(index))?.len();
            }
            let mut strings = Strings::with_capacity(count as usize, bytes);
            for index in 0..count {
                strings.push(r.string(element(index))?);
            }
            Array::String(strings)
        }
        10 => numbers!(U64, u64),
        11 => numbers!(I64, i64),
        12 => numbers!(F64, f64),
        other => return Err(unknown_kind(key, at, other, "array element")),
    })
}

/// `general.alignment`, a power of two.
fn alignment(metadata: &Metadata) -> Result<u32, Error> {
    const KEY: &str = "general.alignment";
    match metadata.find(KEY) {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(Value::U32(alignment)) if alignment.is_power_of_two() => Ok(*alignment),
        Some(Value::U32(other)) => {
            Err(Error::WrongType { key: KEY.into(), expected: "a power of two", found: other.to_string() })
        }
        Some(other) => Err(Error::WrongType { key: KEY.into(), expected: "u32", found: other.kind().into() }),
    }
}

fn read_directory(r: &mut Reader, count: u64) -> Result<Vec<TensorInfo>, Error> {
    let capacity = count.min(r.at_hand() as u64 / MIN_ENTRY_BYTES) as usize;
    let mut tensors = Vec::with_capacity(capacity);
    let mut seen = HashSet::with_capacity(capacity);
    for index in 0..count {
        let offset = r.offset();
        let name = read_name(r, MAX_NAME_BYTES, || format!("tensor {index}'s name"))?;
        if !seen.insert(name) {
            return Err(Error::Duplicate { what: "tensor", name: name.into(), offset });
        }
        tensors.push(read_entry(r, name)?);
    }
    Ok(tensors)
}

/// One directory entry after its name. Its offset is still relative to the data section.
fn read_entry(r: &mut Reader, name: &str) -> Result<TensorInfo, Error> {
    let at = r.offset();
    let dims = r.u32(|| format!("the number of dimensions of tensor {name:?}"))?;
    if dims > MAX_DIMS {
        return Err(Error::Invalid {
            field: format!("the number of dimensions of tensor {name:?}"),
            offset: at,
            problem: format!("{dims}, at most {MAX_DIMS} are allowed"),
        });
    }
    let mut shape = Vec::with_capacity(dims as usize);
    for dim in 0..dims {
        shape.push(r.u64(|| format!("dimension {dim} of tensor {name:?}"))?);
    }
    let at = r.offset();
    let id = r.u32(|| format!("the type of tensor {name:?}"))?;
    let dtype = DType::try_from(id).map_err(|id| Error::Invalid {
        field: format!("the type of tensor {name:?}"),
        offset: at,
        problem: match DType::removed(id) {
            Some(was) => format!("{id} ({was}) was withdrawn from the format: quantise the model again"),
            None => format!("{id} is no known tensor type"),
        },
    })?;
    let offset = r.u64(|| format!("the offset of tensor {name:?}"))?;
    let size = data_bytes(&shape, dtype).map_err(|problem| tensor_error(name, problem))?;
    Ok(TensorInfo { name: name.into(), shape, dtype, offset, size, file: 0 })
}

/// Bytes of a tensor's data, its element count checked to fit.
fn data_bytes(shape: &[u64], dtype: DType) -> Result<u64, String> {
    let overflow = || format!("its shape {shape:?} overflows");
    let elements = shape.iter().try_fold(1u64, |product, &dim| {
        // Each dimension by itself too: a zero elsewhere must not hide an absurd one.
        product.checked_mul(dim).filter(|&n| n <= MAX_SIGNED && dim <= MAX_SIGNED).ok_or_else(overflow)
    })?;
    let cols = shape.first().copied().unwrap_or(1);
    let row = usize::try_from(cols).ok().and_then(|cols| dtype.row_bytes(cols)).ok_or_else(|| {
        format!("rows of {cols} elements are no multiple of {dtype}'s block of {}", dtype.block_len())
    })?;
    let rows = elements.checked_div(cols).unwrap_or(0);
    rows.checked_mul(row as u64).filter(|&n| n <= MAX_SIGNED).ok_or_else(overflow)
}

/// Checks that the tensors lie one after the other, each padded to the alignment, as every writer lays them out: that
/// excludes overlaps and gaps at once. Makes their offsets absolute.
fn place(tensors: &mut [TensorInfo], header_bytes: u64, alignment: u64) -> Result<(), Error> {
    let too_far = |name: &str| tensor_error(name, "it ends beyond any file".into());
    let Some(data) = header_bytes.checked_next_multiple_of(alignment) else {
        return Err(tensor_error("(all)", "the data section starts beyond any file".into()));
    };
    let mut expected = 0u64;
    let mut previous = "";
    for tensor in tensors {
        if tensor.offset != expected {
            return Err(tensor_error(&tensor.name, misplaced(tensor.offset, expected, alignment, previous)));
        }
        let padded = tensor.size.checked_next_multiple_of(alignment);
        expected = padded.and_then(|size| size.checked_add(expected)).ok_or_else(|| too_far(&tensor.name))?;
        tensor.offset = tensor.offset.checked_add(data).ok_or_else(|| too_far(&tensor.name))?;
        // The padded end bounds offset and size alike, so their sum cannot wrap either.
        expected.checked_add(data).filter(|&end| end <= MAX_SIGNED).ok_or_else(|| too_far(&tensor.name))?;
        previous = &tensor.name;
    }
    Ok(())
}

fn misplaced(offset: u64, expected: u64, alignment: u64, previous: &str) -> String {
    if !offset.is_multiple_of(alignment) {
        format!("its offset {offset} is no multiple of the alignment {alignment}")
    } else if offset < expected {
        format!("its offset {offset} overlaps tensor {previous:?}, which ends at {expected} (padded)")
    } else {
        format!("its offset {offset} leaves a gap, {expected} is expected")
    }
}

fn tensor_error(name: &str, problem: String) -> Error {
    Error::Tensor { tensor: name.into(), problem }
}
