//! Any valid file comes back as it was written; no bytes whatever make the reader panic or allocate beyond reason.

use super::alloc::peak;
use super::raw::sample;
use omni_inferd::gguf::{Array, File, Value, write::Builder};
use omni_inferd::model::{self, report::Report};
use omni_inferd::quant::DType;
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<u8>().prop_map(Value::U8),
        any::<i8>().prop_map(Value::I8),
        any::<u16>().prop_map(Value::U16),
        any::<i16>().prop_map(Value::I16),
        any::<u32>().prop_map(Value::U32),
        any::<i32>().prop_map(Value::I32),
        any::<u64>().prop_map(Value::U64),
        any::<i64>().prop_map(Value::I64),
        (-1e9f32..1e9).prop_map(Value::F32),
        (-1e9f64..1e9).prop_map(Value::F64),
        any::<bool>().prop_map(Value::Bool),
        "\\PC{0,20}".prop_map(Value::String),
        prop_oneof![
            vec(any::<u8>(), 0..9).prop_map(Array::U8),
            vec(any::<i16>(), 0..9).prop_map(Array::I16),
            vec(any::<i32>(), 0..9).prop_map(Array::I32),
            vec(any::<u64>(), 0..9).prop_map(Array::U64),
            vec(-1e9f32..1e9, 0..9).prop_map(Array::F32),
            vec(-1e9f64..1e9, 0..9).prop_map(Array::F64),
            vec(any::<bool>(), 0..9).prop_map(Array::Bool),
            vec(vec(any::<u8>(), 0..12), 0..9).prop_map(|list| Array::String(list.into_iter().collect())),
        ]
        .prop_map(Value::Array),
    ]
}

type Keys = std::collections::BTreeMap<String, Value>;
type Tensors = std::collections::BTreeMap<String, (usize, Vec<u64>)>;

/// Keys, tensors by type and blocks (rows are whole blocks), alignment as a power of two, version.
fn parts() -> impl Strategy<Value = (Keys, Tensors, u32, u32)> {
    let keys = btree_map("[a-z]{1,4}(\\.[a-z_]{1,8}){0,2}", value(), 0..8);
    let tensors = btree_map("[a-z]{1,4}\\.[0-9]{1,3}", (0..DType::ALL.len(), vec(0u64..5, 1..=4)), 0..8);
    (keys, tensors, 0u32..8, 2u32..=3)
}

/// Name, shape and type of each tensor.
type Directory = Vec<(String, Vec<u64>, DType)>;

fn build((keys, tensors, alignment, version): &(Keys, Tensors, u32, u32)) -> (Vec<u8>, Directory) {
    let mut file = Builder::new().version(*version).key("general.alignment", Value::U32(1 << alignment));
    for (key, value) in keys {
        file = file.key(key, value.clone());
    }
    let mut expected = Vec::new();
    for (name, (kind, dims)) in tensors {
        let dtype = DType::ALL[*kind];
        let mut shape = dims.clone();
        shape[0] *= dtype.block_len() as u64;
        let size = dtype.row_bytes(shape.iter().product::<u64>() as usize).unwrap();
        file = file.tensor(name, &shape, dtype, vec![7; size]);
        expected.push((name.clone(), shape, dtype));
    }
    (file.build(), expected)
}

/// Everything that looks at a file's bytes before its tensors are read.
fn exercise(bytes: &[u8]) {
    for file_len in [bytes.len() as u64, u64::MAX] {
        let (parsed, held) = peak(|| File::parse(bytes, file_len));
        let most = 16 * bytes.len() + 4096;
        assert!(held <= most, "{} bytes made the reader hold {held}", bytes.len());
        if let Ok(file) = parsed {
            let _ = file.check_data(bytes.len() as u64);
            let _ = model::bind(&file);
            let report = Report::new(&file);
            serde_json::to_string(&report).unwrap();
            let _ = File::merge(vec![file.clone(), file]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn valid_files_round_trip(parts in parts()) {
        let (bytes, expected) = build(&parts);
        let file = File::parse(&bytes, bytes.len() as u64).unwrap();
        file.check_data(bytes.len() as u64).unwrap();
        prop_assert_eq!(file.version, parts.3);
        let keys: Keys = file.metadata.entries.iter().skip(1).cloned().collect();
        prop_assert_eq!(keys, parts.0);
        prop_assert_eq!(file.tensors.len(), expected.len());
        for (tensor, (name, shape, dtype)) in file.tensors.iter().zip(&expected) {
            prop_assert_eq!((&tensor.name, &tensor.shape, tensor.dtype), (name, shape, *dtype));
            let data = &bytes[tensor.offset as usize..][..tensor.size as usize];
            prop_assert!(data.iter().all(|&byte| byte == 7));
        }
        exercise(&bytes);
    }

    #[test]
    fn any_prefix_asks_for_more(parts in parts(), cut: prop::sample::Index) {
        let (bytes, _) = build(&parts);
        let whole = File::parse(&bytes, bytes.len() as u64).unwrap();
        let at = cut.index(whole.header_bytes as usize);
        let wanted = File::parse(&bytes[..at], bytes.len() as u64).unwrap_err().fetch();
        prop_assert!(wanted.is_some_and(|wanted| wanted > at as u64 && wanted <= whole.header_bytes));
        prop_assert_eq!(File::parse(&bytes[..whole.header_bytes as usize], bytes.len() as u64), Ok(whole));
    }

    #[test]
    fn mutated_files_never_panic(parts in parts(), edits in vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let (mut bytes, _) = build(&parts);
        edits.iter().for_each(|(at, byte)| { let at = at.index(bytes.len()); bytes[at] = *byte; });
        exercise(&bytes);
    }

    #[test]
    fn mutated_models_never_panic(edits in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6), seed: u64) {
        let raw = sample();
        let mut bytes = raw.header();
        // Half of the edits go to the numbers before the vocabulary, half to the directory behind it.
        let regions = [24..900.min(bytes.len()), bytes.len() - 2500..bytes.len()];
        for (i, (at, byte)) in edits.iter().enumerate() {
            let region = regions[(seed >> i) as usize & 1].clone();
            bytes[region.start + at.index(region.len())] = *byte;
        }
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes.extend(&raw.data);
        exercise(&bytes);
    }

    #[test]
    fn noise_never_panics(noise in vec(any::<u8>(), 0..300)) {
        exercise(&[b"GGUF\x03\0\0\0".to_vec(), noise].concat());
    }
}

/// A few bytes that claim counts of 2⁴⁰ and more: refused, or asked for more, without memory for them.
#[test]
fn huge_counts_cost_nothing() {
    let header = |tensors: u64, keys: u64, rest: &[u8]| {
        [b"GGUF\x03\0\0\0", &tensors.to_le_bytes()[..], &keys.to_le_bytes(), rest].concat()
    };
    let array = |kind: u32, count: u64| {
        [&1u64.to_le_bytes()[..], b"k", &9u32.to_le_bytes(), &kind.to_le_bytes(), &count.to_le_bytes()].concat()
    };
    for count in [1 << 20, 1 << 40, 1 << 59, u64::MAX] {
        exercise(&header(count, 0, &[]));
        exercise(&header(0, count, &[]));
        for kind in 0..13 {
            exercise(&header(0, 1, &array(kind, count)));
        }
    }
}
