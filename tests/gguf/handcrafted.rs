//! The first group of the catalogue: files as a generator of broken headers makes them, each wrong in one field.

use super::raw::{Mutate, Raw, array, key, read, string};
use omni_inferd::gguf::{Array, Error, File, Value};

fn parse(raw: &Raw) -> Result<File, Error> {
    let bytes = raw.bytes();
    File::parse(&bytes, bytes.len() as u64)
}

/// One key of every type, scalar and array.
fn keys() -> Raw {
    let mut raw = Raw::empty();
    let sizes = [1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8];
    for (kind, size) in sizes.into_iter().enumerate().filter(|(kind, _)| *kind != 9) {
        let one = if kind == 8 { string("value") } else { vec![1; size] };
        raw.push(format!("key.{kind}"), kind as u32, &one);
        raw.push(format!("array.{kind}"), 9, array(kind as u32, 3, &one.repeat(3)));
    }
    raw
}

/// A file of a few F32 and F16 tensors whose sizes are no multiples of 32, without data.
fn tensors(alignment: usize) -> Raw {
    let mut raw = Raw { alignment, ..keys() };
    if alignment != 32 {
        raw.push("general.alignment", 4, (alignment as u32).to_le_bytes());
    }
    for (i, dims) in [&[3u64][..], &[5, 7], &[2, 3, 4], &[1, 2, 3, 5], &[]].into_iter().enumerate() {
        let kind = i as u32 % 2;
        let size = dims.iter().product::<u64>() as usize * if kind == 0 { 4 } else { 2 };
        raw.add(&format!("tensor.{i}"), dims, kind, size);
    }
    raw
}

#[test]
fn headers() {
    for version in [2, 3] {
        assert_eq!(parse(&Raw { version, ..keys() }).unwrap().version, version);
    }
    let cases: [(&str, Mutate); 8] = [
        ("not a GGUF", |r| r.magic = *b"FUGG"),
        ("version 0", |r| r.version = 0),
        ("version 1", |r| r.version = 1),
        ("version 4", |r| r.version = 4),
        ("tensors", |r| r.tensor_count = Some(u64::MAX)),
        ("keys", |r| r.key_count = Some(u64::MAX)),
        ("tensor", |r| r.tensor_count = Some(1)),
        ("key", |r| r.key_count = Some(1)),
    ];
    for (hint, mutate) in cases {
        let mut raw = Raw::empty();
        mutate(&mut raw);
        let error = parse(&raw).unwrap_err().to_string();
        assert!(error.contains(hint), "{hint}: {error}");
    }
}

#[test]
fn metadata() {
    let file = parse(&keys()).unwrap();
    assert_eq!(file.metadata.entries.len(), 24);
    assert_eq!(file.metadata.get_str("key.8"), Ok(Some("value")));
    // Every byte is 1, whatever the type.
    let ones = u64::from_le_bytes([1; 8]);
    let (f32s, f64s) = (f32::from_bits(ones as u32), f64::from_bits(ones));
    let scalars = [
        Value::U8(1),
        Value::I8(1),
        Value::U16(ones as u16),
        Value::I16(ones as i16),
        Value::U32(ones as u32),
        Value::I32(ones as i32),
        Value::F32(f32s),
        Value::Bool(true),
        Value::String("value".into()),
        Value::U64(ones),
        Value::I64(ones as i64),
        Value::F64(f64s),
    ];
    let arrays = [
        Array::U8(vec![1; 3]),
        Array::I8(vec![1; 3]),
        Array::U16(vec![ones as u16; 3]),
        Array::I16(vec![ones as i16; 3]),
        Array::U32(vec![ones as u32; 3]),
        Array::I32(vec![ones as i32; 3]),
        Array::F32(vec![f32s; 3]),
        Array::Bool(vec![true; 3]),
        Array::String(["value"; 3].into_iter().collect()),
        Array::U64(vec![ones; 3]),
        Array::I64(vec![ones as i64; 3]),
        Array::F64(vec![f64s; 3]),
    ];
    let expected = scalars.into_iter().zip(arrays.map(Value::Array)).flat_map(|(one, three)| [one, three]);
    assert!(file.metadata.entries.iter().map(|(_, value)| value.clone()).eq(expected));
    assert_eq!(file.metadata.get_u32("key.2"), Ok(Some(0x0101)));
    assert!(file.metadata.get_f32("key.4").is_err() && file.metadata.get_f32("none").unwrap().is_none());
    let cases: [Mutate; 6] = [
        |r| r.keys[1].name_len = Some(u64::MAX),
        |r| r.keys[1].name.clear(),
        |r| r.keys[1].kind = 13,
        |r| r.keys[1].name = r.keys[0].name.clone(),
        |r| r.keys.push(key("general.alignment", 4, 13u32.to_le_bytes())),
        |r| r.keys.push(key("general.alignment", 5, 32i32.to_le_bytes())),
    ];
    for (i, mutate) in cases.into_iter().enumerate() {
        let mut raw = keys();
        mutate(&mut raw);
        parse(&raw).expect_err(&format!("case {i}"));
    }
}

#[test]
fn directories() {
    for alignment in [1, 8, 32, 4096] {
        let file = parse(&tensors(alignment)).unwrap();
        assert_eq!(file.alignment as usize, alignment);
        assert!(file.tensors.iter().all(|t| t.offset.is_multiple_of(alignment as u64)));
    }
    let mut zero = tensors(32);
    zero.add("empty", &[7, 0], 0, 0);
    zero.add("after", &[8], 0, 32);
    assert_eq!(parse(&zero).unwrap().tensors[5].size, 0);

    let cases: [Mutate; 12] = [
        |r| r.tensors[1].name = vec![b'x'; 64],
        |r| r.tensors[1].name_len = Some(u64::MAX),
        |r| r.tensors[1].dims = vec![1; 5],
        |r| r.tensors[1].dims[0] = u64::MAX,
        |r| r.tensors[1].dims = vec![1 << 31; 4],
        |r| r.tensors[1].dims = vec![1 << 62, 1],
        // Sizes whose padding, or whose sum, would wrap round 2⁶⁴.
        |r| r.tensors.last_mut().unwrap().dims = vec![(u64::MAX - 15) / 4],
        |r| r.tensors.last_mut().unwrap().dims = vec![i64::MAX as u64 / 4],
        |r| r.tensors[1].kind = 43,
        |r| r.tensors[1].offset = u64::MAX,
        |r| r.tensors[1].name = r.tensors[0].name.clone(),
        |r| r.push("general.alignment", 4, 1u32.to_le_bytes()),
    ];
    for (i, mutate) in cases.into_iter().enumerate() {
        let mut raw = tensors(32);
        mutate(&mut raw);
        parse(&raw).expect_err(&format!("case {i}"));
    }
    // Laid out with alignment 1, but the file says nothing of it.
    let mut inconsistent = tensors(1);
    inconsistent.remove("general.alignment");
    inconsistent.alignment = 32;
    parse(&inconsistent).unwrap_err();
}

#[test]
fn data() {
    for alignment in [1, 32] {
        let mut raw = tensors(alignment);
        raw.add("last", &[8], 0, 32);
        read(&raw.bytes()).unwrap();
        raw.data.pop();
        let error = read(&raw.bytes()).unwrap_err();
        assert!(matches!(&error, Error::OutOfFile { tensor, .. } if tensor == "last"), "{error}");
    }
    // Two tensors of almost 2⁶³ bytes each: their sum fits nowhere.
    let mut raw = Raw::empty();
    for i in 0..2u64 {
        raw.add(&format!("huge.{i}"), &[0x7fff_ffff_ffff_ffc0], 24, 0);
        raw.tensors.last_mut().unwrap().offset = i * 0x7fff_ffff_ffff_ffc0;
    }
    let error = parse(&raw).unwrap_err();
    assert!(error.to_string().contains("ends beyond any file"), "{error}");
}
