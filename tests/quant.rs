//! Block formats against ggml: decoding bit for bit, encoding byte for byte where the rule is fixed and within bounds
//! where the encoder searches. Golden files by `scripts/goldens/quant.py`.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use omni_inferd::quant::packed::{self, Cut};
use omni_inferd::quant::{self, DType, dequantize, kquants, legacy, quantize};
use proptest::prelude::*;
use std::path::Path;

const FORMATS: [DType; 27] = [
    DType::F32,
    DType::F16,
    DType::BF16,
    DType::Q4_0,
    DType::Q4_1,
    DType::Q5_0,
    DType::Q5_1,
    DType::Q8_0,
    DType::Q2_K,
    DType::Q3_K,
    DType::Q4_K,
    DType::Q5_K,
    DType::Q6_K,
    DType::Q8_K,
    DType::IQ1_S,
    DType::IQ1_M,
    DType::IQ2_XXS,
    DType::IQ2_XS,
    DType::IQ2_S,
    DType::IQ3_XXS,
    DType::IQ3_S,
    DType::IQ4_NL,
    DType::IQ4_XS,
    DType::TQ1_0,
    DType::TQ2_0,
    DType::MXFP4,
    DType::NVFP4,
];

/// Those that can be encoded.
fn encodable() -> impl Iterator<Item = DType> {
    FORMATS.into_iter().filter(|dtype| dtype.has_encoder())
}

/// A golden file's blocks count and the two parts after it, the first of `first` bytes per block.
fn golden(name: &str, first: usize) -> (Vec<u8>, Vec<u8>) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/quant/{name}.bin"));
    let bytes = std::fs::read(path).unwrap();
    let (count, rest) = bytes.split_first_chunk().unwrap();
    let (a, b) = rest.split_at(u32::from_le_bytes(*count) as usize * first);
    (a.to_vec(), b.to_vec())
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|raw| f32::from_le_bytes(*raw)).collect()
}

#[test]
fn decoding_is_bit_exact() {
    for dtype in FORMATS.into_iter().skip(1) {
        let (blocks, expected) = golden(&format!("decode-{dtype}"), dtype.block_bytes());
        let expected = floats(&expected);
        let mut decoded = vec![0.0; expected.len()];
        dequantize(dtype, &blocks, &mut decoded);
        for (i, (got, want)) in decoded.iter().zip(&expected).enumerate() {
            assert_eq!(got.to_bits(), want.to_bits(), "{dtype}, element {i}: {got:e} instead of {want:e}");
        }
    }
}

#[test]
fn rule_based_encoding_is_byte_exact() {
    let rules = [DType::Q4_0, DType::Q4_1, DType::Q5_0, DType::Q5_1, DType::Q8_0, DType::BF16, DType::F16];
    for dtype in rules.into_iter().chain([DType::TQ1_0, DType::TQ2_0, DType::MXFP4]) {
        let (values, expected) = golden(&format!("encode-{dtype}"), dtype.block_len() * 4);
        let mut encoded = vec![0; expected.len()];
        quantize(dtype, &floats(&values), &mut encoded);
        for (i, (got, want)) in encoded.iter().zip(&expected).enumerate() {
            assert_eq!(got, want, "{dtype}, block {}, byte {}", i / dtype.block_bytes(), i % dtype.block_bytes());
        }
    }
}

/// Normally distributed numbers from a small generator (sum of uniform ones).
fn normal(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..count).map(|_| (0..12).map(|_| uniform()).sum()).collect()
}

fn round_trip(dtype: DType, x: &[f32]) -> Vec<f32> {
    let mut blocks = vec![0; dtype.row_bytes(x.len()).unwrap()];
    quantize(dtype, x, &mut blocks);
    let mut y = vec![0.0; x.len()];
    dequantize(dtype, &blocks, &mut y);
    y
}

/// Root mean square error relative to the values' own.
fn relative_error(x: &[f32], y: &[f32]) -> f32 {
    let error: f32 = x.iter().zip(y).map(|(a, b)| (a - b).powi(2)).sum();
    (error / x.iter().map(|v| v * v).sum::<f32>()).sqrt()
}

#[test]
fn round_trips_lose_as_little_as_the_bits_allow() {
    let x = normal(256 * 64, 7);
    for (dtype, bound) in [
        (DType::F32, 0.0),
        (DType::F16, 3e-4),
        (DType::BF16, 2.5e-3),
        (DType::Q8_0, 6e-3),
        (DType::Q8_K, 9e-3),
        (DType::Q6_K, 0.02),
        (DType::Q5_K, 0.04),
        (DType::Q5_1, 0.05),
        (DType::Q5_0, 0.05),
        (DType::Q4_K, 0.08),
        (DType::Q4_1, 0.09),
        (DType::Q4_0, 0.1),
        (DType::Q3_K, 0.16),
        (DType::Q2_K, 0.32),
        (DType::IQ4_NL, 0.08),
        (DType::IQ4_XS, 0.08),
        (DType::MXFP4, 0.13),
        (DType::NVFP4, 0.11),
        (DType::TQ1_0, 0.9),
        (DType::TQ2_0, 0.9),
    ] {
        let error = relative_error(&x, &round_trip(dtype, &x));
        println!("{dtype}: relative error {error:.5}");
        assert!(error <= bound, "{dtype}: {error} > {bound}");
    }
}

#[test]
fn awkward_blocks_encode_sanely() {
    let constant = vec![0.25; 256];
    let zeros = vec![0.0; 256];
    let tiny: Vec<f32> = normal(256, 3).iter().map(|v| v * 1e-42).collect();
    let mut outlier = normal(256, 4);
    outlier[100] = 1e4;
    for dtype in encodable() {
        assert!(round_trip(dtype, &zeros).iter().all(|&v| v == 0.0), "{dtype}");
        let error = relative_error(&constant, &round_trip(dtype, &constant));
        assert!(error < 0.07, "{dtype} constant: {error}");
        assert!(round_trip(dtype, &tiny).iter().all(|v| v.abs() < 1e-6), "{dtype}");
        let error = relative_error(&outlier, &round_trip(dtype, &outlier));
        let bound = match dtype {
            // The scale is a power of two: the outlier itself is rounded to four bits.
            DType::MXFP4 => 0.25,
            // The largest number is 448 · 6.
            DType::NVFP4 => 0.74,
            // There is no 0: what is small becomes 1/127 of the outlier.
            DType::IQ4_NL | DType::IQ4_XS => 0.05,
            _ => 0.02,
        };
        assert!(error < bound, "{dtype} outlier: {error}");
        // No promise about the result, but no panic.
        round_trip(dtype, &vec![f32::NAN; 256]);
        round_trip(dtype, &vec![f32::INFINITY; 256]);
        round_trip(dtype, &[vec![f32::MAX; 128], vec![f32::MIN; 128]].concat());
    }
}

#[test]
fn types_know_their_numbers() {
    for dtype in DType::ALL {
        assert_eq!(DType::try_from(dtype.id()), Ok(dtype));
        assert_eq!(dtype.row_bytes(dtype.block_len() * 3), Some(dtype.block_bytes() * 3));
        assert_eq!(dtype.row_bytes(dtype.block_len() + 1).is_some(), dtype.block_len() == 1);
        assert_eq!(dtype.row_bytes(0), Some(0));
        assert_eq!(FORMATS.contains(&dtype), dtype.is_supported());
        assert!(dtype.is_supported() || !dtype.has_encoder());
        assert!(DType::removed(dtype.id()).is_none());
    }
    assert_eq!(DType::I64.row_bytes(usize::MAX), None);
    let unknown: Vec<u32> = (0..43).filter(|&id| DType::try_from(id).is_err()).collect();
    assert_eq!(unknown, [4, 5, 31, 32, 33, 36, 37, 38]);
    assert!(unknown.iter().all(|&id| DType::removed(id).is_some()));
    assert_eq!(DType::try_from(43), Err(43));
    // Elements and bytes per block of types beyond the classic ones, as ggml's own library gives them.
    let geometry = [
        ("Q8_1", 32, 36),
        ("IQ2_XXS", 256, 66),
        ("IQ2_XS", 256, 74),
        ("IQ3_XXS", 256, 98),
        ("IQ1_S", 256, 50),
        ("IQ4_NL", 32, 18),
        ("IQ3_S", 256, 110),
        ("IQ2_S", 256, 82),
        ("IQ4_XS", 256, 136),
        ("I8", 1, 1),
        ("I16", 1, 2),
        ("I32", 1, 4),
        ("I64", 1, 8),
        ("F64", 1, 8),
        ("IQ1_M", 256, 56),
        ("TQ1_0", 256, 54),
        ("TQ2_0", 256, 66),
        ("MXFP4", 32, 17),
        ("NVFP4", 64, 36),
        ("Q1_0", 128, 18),
        ("Q2_0", 64, 18),
    ];
    for (name, len, bytes) in geometry {
        let dtype = DType::ALL.into_iter().find(|dtype| dtype.name() == name);
        assert_eq!(dtype.map(|dtype| (dtype.block_len(), dtype.block_bytes())), Some((len, bytes)), "{name}");
    }
}

#[test]
fn q8_blocks_carry_their_sums() {
    let x = normal(256, 11);
    let x: &[f32; 256] = x.as_slice().try_into().unwrap();
    let mut block = [0; kquants::q8_k::BYTES];
    kquants::q8_k::encode(x, &mut block);
    for (g, quants) in kquants::q8_k::qs(&block).as_chunks::<16>().0.iter().enumerate() {
        assert_eq!(i32::from(kquants::q8_k::bsum(&block, g)), quants.iter().map(|&q| i32::from(q as i8)).sum::<i32>());
    }
    let (mut block, mut y) = ([0; 36], [0.0; 32]);
    legacy::q8_1_encode(x.first_chunk().unwrap(), &mut block);
    legacy::q8_1_decode(&block, &mut y);
    let sum: i32 = block[4..].iter().map(|&q| i32::from(q as i8)).sum();
    let expected = sum as f32 * legacy::scale(&block);
    assert!((legacy::offset(&block) - expected).abs() <= expected.abs() * 2e-3);
    assert!(relative_error(&x[..32], &y) < 1e-2);
}

/// The diagram of the layout, byte by byte, for types with a rest in front, at the end and none, and with their dwords in
/// order and not.
#[test]
fn packed_bytes_stand_where_the_layout_says() {
    // Vector that holds a dword, as the table of the module says.
    let q3_k = |dword: usize| match dword {
        0..8 => 3 + 2 * dword,
        8..16 => 4 + 2 * (dword - 8),
        16..24 => 3 + dword,
        _ => dword - 24,
    };
    let q5_k = |dword: usize| match dword {
        4..12 => 4 + 2 * (dword - 4),
        12..20 => 5 + 2 * (dword - 12),
        _ => dword,
    };
    let q6_k = |dword: usize| match dword {
        0..8 => 4 + 2 * dword,
        8..16 => 12 + dword,
        16..24 => 28 + 2 * (dword - 16),
        24..32 => 20 + dword,
        32..40 => 5 + 2 * (dword - 32),
        40..48 => 29 + 2 * (dword - 40),
        _ => dword - 48,
    };
    let q2_k = |dword: usize| (dword + 1) % 21;
    let as_it_is = |dword: usize| dword;
    type Place<'a> = &'a dyn Fn(usize) -> usize;
    let cases: [(DType, usize, Place<'_>); 6] = [
        (DType::Q4_0, 0, &as_it_is),
        (DType::Q4_K, 144, &as_it_is),
        (DType::Q2_K, 84, &q2_k),
        (DType::Q3_K, 108, &q3_k),
        (DType::Q5_K, 176, &q5_k),
        (DType::Q6_K, 208, &q6_k),
    ];
    for (dtype, rest_at, vector) in cases {
        let size = dtype.block_bytes();
        // Byte `i` of block `b` of row `r` is a number of these three.
        let byte = |r: usize, b: usize, i: usize| (r * 37 + b * 101 + i * 3) as u8;
        let plain: Vec<u8> = (0..16 * 2 * size).map(|at| byte(at / (2 * size), at / size % 2, at % size)).collect();
        let mut bytes = vec![0; plain.len()];
        packed::pack(dtype, 2 * dtype.block_len(), &plain, &mut bytes);
        for (r, b, i) in (0..16 * 2 * size).map(|at| (at / (2 * size), at / size % 2, at % size)) {
            let at = match i.checked_sub(rest_at) {
                Some(i) if i < size % 4 => size / 4 * 64 + 2 * r + i,
                _ => {
                    let i = if rest_at == 0 { i - 2 } else { i };
                    64 * vector(i / 4) + 4 * r + i % 4
                }
            };
            assert_eq!(bytes[16 * size * b + at], byte(r, b, i), "{dtype} row {r} block {b} byte {i}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn scale_unpacking_agrees(scales: [u8; 12]) {
        let (s, m) = kquants::q4_k::unpack_scales(&scales);
        for g in 0..8 {
            prop_assert_eq!(kquants::q4_k::scale_min(&scales, g), (s[g], m[g]));
        }
    }

    /// Packing moves every byte to the place the layout names and loses none, for every type with blocks.
    #[test]
    fn packing_keeps_every_byte(rows in 0usize..50, blocks in 1usize..5, seed: u64) {
        for dtype in DType::ALL {
            let Some(cut) = Cut::of(dtype) else { continue };
            prop_assert_eq!((cut.bytes, 4 * cut.dwords.len() + cut.rest), (dtype.block_bytes(), dtype.block_bytes()));
            prop_assert!(cut.bytes <= packed::LARGEST_BLOCK);
            let row = blocks * cut.bytes;
            let plain: Vec<u8> = (0..rows * row).map(|i| (seed.wrapping_mul(i as u64 + 1) >> 32) as u8).collect();
            let mut bytes = vec![0; plain.len()];
            packed::pack(dtype, blocks * cut.len, &plain, &mut bytes);
            let whole = rows / packed::ROWS * packed::ROWS;
            prop_assert_eq!(&bytes[whole * row..], &plain[whole * row..]);
            let mut unpacked = vec![0; row];
            for r in 0..whole {
                let panel = &bytes[r / packed::ROWS * packed::ROWS * row..][..packed::ROWS * row];
                cut.unpack_row(panel, r % packed::ROWS, &mut unpacked);
                prop_assert_eq!(&unpacked, &plain[r * row..][..row], "{} row {}", dtype, r);
            }
        }
    }

    /// Where F16 scales have their full precision, no element is off by more than a step of its block.
    #[test]
    fn errors_stay_within_a_step(seed: u64, exponent in -2i32..4) {
        let scale = 10f32.powi(exponent);
        let x: Vec<f32> = normal(256, seed).iter().map(|v| v * scale).collect();
        let top = x.iter().fold(0.0, |top: f32, v| top.max(v.abs()));
        let classic = [(DType::Q8_0, 127.0), (DType::Q4_0, 8.0), (DType::Q5_1, 15.0), (DType::Q4_K, 6.0), (DType::Q6_K, 24.0)];
        // The coarsest step of IQ4 is 24 of 113; MXFP4 clips 8 to 6.
        let later = [(DType::IQ4_NL, 6.0), (DType::IQ4_XS, 6.0), (DType::TQ1_0, 1.9), (DType::TQ2_0, 1.9), (DType::MXFP4, 3.9)];
        for (dtype, steps) in classic.into_iter().chain(later) {
            for (a, b) in x.iter().zip(round_trip(dtype, &x)) {
                prop_assert!((a - b).abs() <= top / steps * 1.01 + 1e-7, "{}: {} became {}, largest {}", dtype, a, b, top);
            }
        }
    }
}

#[test]
fn every_f16_number_is_widened_exactly() {
    for bits in 0..=u16::MAX {
        let (got, want) = (quant::float::widen_f16(bits), half::f16::from_bits(bits).to_f32());
        assert!(got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(), "{bits:#06x}: {got} for {want}");
    }
}
