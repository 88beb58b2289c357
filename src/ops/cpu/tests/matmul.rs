//! Products: against the reference, across tiers, numbers of threads and batches.

use super::{Rng, apart, cpu, packed, raw_tensor, set_factors, tensor, tiers};
use crate::ops::cpu::acts::Format;
use crate::ops::cpu::isa::Isa;
use crate::ops::cpu::table::{Table, format};
use crate::ops::cpu::{Cpu, Scratch, pack_panels};
use crate::ops::{MatMul, Tensor, reference};
use crate::quant::{self, DType};

const QUANTISED: [DType; 23] = [
    DType::Q8_0,
    DType::Q4_0,
    DType::Q4_1,
    DType::Q5_0,
    DType::Q5_1,
    DType::Q2_K,
    DType::Q3_K,
    DType::Q4_K,
    DType::Q5_K,
    DType::Q6_K,
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
const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

fn all_types() -> impl Iterator<Item = DType> {
    QUANTISED.into_iter().chain(FLOATS)
}

fn run(cpu: &Cpu, weight: &Tensor, x: &[f32]) -> Vec<f32> {
    let mut out = vec![f32::NAN; x.len() / weight.cols * weight.rows];
    let mut jobs = [MatMul { weight, bias: None, out: &mut out }];
    cpu.matmul(x, &mut jobs, &mut Scratch::new());
    out
}

/// Activations as weights see them, by the definition of the form.
fn rounded(x: &[f32], cols: usize, form: Format) -> Vec<f32> {
    let block = match form {
        Format::Float => return x.to_vec(),
        Format::Bf16 => return x.iter().map(|&x| half::bf16::from_f32(x).to_f32()).collect(),
        Format::Q8x32 => 32,
        Format::Q8x256 => 256,
    };
    let round = |x: &[f32]| -> Vec<f32> {
        let largest = x.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        let (scale, d) = (127.0 / largest, largest / 127.0);
        // What is below counts as zero.
        let tiny = largest < 128.0 * f32::MIN_POSITIVE;
        x.iter().map(|x| if tiny { 0.0 } else { (x * scale).round_ties_even() * d }).collect()
    };
    x.chunks(cols).flat_map(|row| row.chunks(block).flat_map(round)).collect()
}

/// The reference over rounded activations, and what the sums of magnitudes allow as error.
fn expected(weight: &Tensor, x: &[f32], form: Format) -> (Vec<f32>, Vec<f32>) {
    let x = rounded(x, weight.cols, form);
    let mut out = vec![0.0; x.len() / weight.cols * weight.rows];
    reference::matmul(&x, &mut [MatMul { weight, bias: None, out: &mut out }]);
    let mut allowed = out.clone();
    for r in 0..weight.rows {
        let w = reference::decode_row(weight, r);
        for (t, x) in x.chunks(weight.cols).enumerate() {
            let sum: f64 = w.iter().zip(x).map(|(&w, &x)| f64::from((w * x).abs())).sum();
            // Minima and scales cancel within a weight: allow their magnitude too.
            let largest = w.iter().fold(0.0f32, |m, w| m.max(w.abs()));
            let spread: f64 = x.iter().map(|&x| f64::from((largest * x).abs())).sum();
            allowed[t * weight.rows + r] = (2e-5 * sum + 1e-5 * spread + 1e-30) as f32;
        }
    }
    (out, allowed)
}

fn check(weight: &Tensor, x: &[f32], what: &str) {
    let dtype = weight.dtype;
    let common = format(dtype).unwrap();
    let (mut want, mut allowed) = expected(weight, x, common);
    let packed = (dtype.block_len() > 1).then(|| packed(weight));
    let mut first: Option<Vec<f32>> = None;
    for isa in tiers() {
        // The tier that rounds activations to BF16 is the last.
        let own = Table::new(isa).format(dtype).unwrap();
        if own != common {
            (want, allowed) = expected(weight, x, own);
            first = None;
        }
        let got = run(&cpu(isa, 1), weight, x);
        for (i, ((got, want), allowed)) in got.iter().zip(&want).zip(&allowed).enumerate() {
            assert!((got - want).abs() <= *allowed, "{what} {dtype} {isa:?} [{i}]: {got} for {want} ± {allowed}");
        }
        let first = first.get_or_insert_with(|| got.clone());
        assert!(*first == got, "{what} {dtype} {isa:?}: other bits than the scalar tier");
        if let Some(packed) = &packed {
            assert!(*first == run(&cpu(isa, 1), packed, x), "{what} {dtype} {isa:?}: other bits when packed");
        }
    }
}

#[test]
fn every_type_and_tier_equals_the_reference() {
    let mut rng = Rng::new(1);
    for dtype in all_types() {
        for (rows, cols, tokens) in [(1, 256, 1), (7, 512, 2), (17, 768, 3), (33, 256, 9), (16, 1024, 17)] {
            let weight = tensor(dtype, rows, cols, &rng.vec(rows * cols));
            check(&weight, &rng.vec(tokens * cols), "random");
        }
    }
}

#[test]
fn rows_of_an_odd_number_of_blocks() {
    let mut rng = Rng::new(2);
    for dtype in QUANTISED.into_iter().filter(|d| d.block_len() < 256) {
        for blocks in [1, 3, 5, 9, 27] {
            let cols = blocks * dtype.block_len();
            let weight = tensor(dtype, 25, cols, &rng.vec(25 * cols));
            for tokens in 1..=17 {
                check(&weight, &rng.vec(tokens * cols), "odd");
            }
        }
    }
    for dtype in FLOATS {
        for (rows, cols) in [(6, 1), (6, 5), (19, 16), (1, 33), (17, 100), (5, 1700), (18, 3333)] {
            let weight = tensor(dtype, rows, cols, &rng.vec(rows * cols));
            for tokens in [1, 2, 3, 5, 6, 7, 50, 101] {
                check(&weight, &rng.vec(tokens * cols), "odd");
            }
        }
    }
}

#[test]
fn adversarial_values() {
    let mut rng = Rng::new(3);
    let (rows, cols, tokens) = (18, 512, 5);
    let spike = |i: usize| if i.is_multiple_of(97) { 1000.0 } else { 1e-3 };
    let patterns: [(&str, Vec<f32>); 6] = [
        ("zeros", vec![0.0; rows * cols]),
        ("equal", vec![0.37; rows * cols]),
        ("alternating", (0..rows * cols).map(|i| if i % 2 == 0 { 1.0 } else { -1.0 }).collect()),
        ("tiny", rng.vec(rows * cols).iter().map(|v| v * 1e-3).collect()),
        ("spikes", (0..rows * cols).map(spike).collect()),
        ("negative", vec![-1.0; rows * cols]),
    ];
    let acts: [(&str, Vec<f32>); 5] = [
        ("zeros", vec![0.0; tokens * cols]),
        ("ones", vec![1.0; tokens * cols]),
        ("denormal", vec![1e-40; tokens * cols]),
        ("huge", rng.vec(tokens * cols).iter().map(|v| v * 1e20).collect()),
        ("random", rng.vec(tokens * cols)),
    ];
    for dtype in all_types() {
        for (pattern, values) in &patterns {
            let weight = tensor(dtype, rows, cols, values);
            for (name, x) in &acts {
                check(&weight, x, &format!("{pattern} x {name}"));
            }
        }
    }
}

/// Blocks of the largest integers each field can hold, with the largest activations: i16 and i32 sums must hold them.
#[test]
fn accumulators_hold_the_worst_case() {
    let cols = 512;
    for dtype in QUANTISED {
        for fill in [0x00u8, 0x80, 0x7f, 0xff, 0x88, 0x0f, 0xf0] {
            let size = dtype.block_bytes();
            let mut bytes = vec![fill; 17 * dtype.row_bytes(cols).unwrap()];
            for block in bytes.chunks_mut(size) {
                // Factors of 1 and 0.5 where the layout has them.
                set_factors(dtype, block, [0x3c00, 0x3800]);
            }
            let weight = raw_tensor(dtype, 17, cols, bytes);
            for x in [1.0f32, -1.0] {
                check(&weight, &vec![x; 6 * cols], &format!("fill {fill:#x} x {x}"));
            }
        }
    }
}

#[test]
fn random_bytes_agree_across_tiers_and_do_not_crash() {
    let mut rng = Rng::new(4);
    let cols = 512;
    for dtype in all_types() {
        let bytes: Vec<u8> = (0..35 * dtype.row_bytes(cols).unwrap()).map(|_| rng.next() as u8).collect();
        let weight = if dtype == DType::F32 {
            let values: Vec<f32> = bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
            tensor(dtype, 35, cols, &values)
        } else {
            raw_tensor(dtype, 35, cols, bytes)
        };
        for tokens in [1, 6] {
            let mut x = rng.vec(tokens * cols);
            x[3] = f32::NAN;
            x[300] = f32::INFINITY;
            for isa in tiers() {
                let plain = run(&cpu(isa, 2), &weight, &x);
                if dtype.block_len() > 1 {
                    let packed = run(&cpu(isa, 2), &packed(&weight), &x);
                    let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
                    assert!(plain.iter().zip(&packed).all(same), "{dtype} {isa:?}: other bits when packed");
                }
            }
        }
    }
}

#[test]
fn non_finite_activations_show_in_the_result() {
    let mut rng = Rng::new(5);
    for dtype in all_types() {
        let weight = tensor(dtype, 3, 256, &rng.vec(3 * 256));
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = rng.vec(5 * 256);
            x[256 + 77] = bad;
            for isa in tiers() {
                let out = run(&cpu(isa, 1), &weight, &x);
                assert!(out[3..6].iter().all(|v| !v.is_finite()), "{dtype} {isa:?} {bad}");
                assert!(out[..3].iter().chain(&out[6..]).all(|v| v.is_finite()), "{dtype} {isa:?} {bad}");
            }
        }
    }
}

/// A token's result is the same alone, in any batch and with any number of threads, bit for bit.
#[test]
fn batches_and_threads_do_not_change_a_bit() {
    let mut rng = Rng::new(6);
    let (rows, cols, tokens) = (75, 768, 37);
    let plain: Vec<Tensor> = all_types().map(|dtype| tensor(dtype, rows, cols, &rng.vec(rows * cols))).collect();
    let packed: Vec<Tensor> = plain.iter().filter(|w| w.dtype.block_len() > 1).map(packed).collect();
    for weight in plain.iter().chain(&packed) {
        let (dtype, x) = (weight.dtype, rng.vec(tokens * cols));
        for isa in tiers() {
            let alone = cpu(isa, 1);
            let whole = run(&alone, weight, &x);
            for threads in [2, 3, 8] {
                assert!(run(&cpu(isa, threads), weight, &x) == whole, "{dtype} {isa:?} {threads} threads");
            }
            for t in 0..tokens {
                let one = run(&alone, weight, &x[t * cols..][..cols]);
                assert!(one == whole[t * rows..][..rows], "{dtype} {isa:?} token {t}");
            }
            for n in [2, 3, 5, 8, 13] {
                let part = run(&alone, weight, &x[cols..][..n * cols]);
                assert!(part == whole[rows..][..n * rows], "{dtype} {isa:?} {n} tokens");
            }
        }
    }
}

/// More tokens, panels and columns than kernels of many tokens take at a time: each token's result is the one it has alone.
#[test]
fn tiles_chunks_and_runs_join_without_a_seam() {
    let mut rng = Rng::new(16);
    let (rows, cols, tokens) = (154, 2304, 190);
    let x = rng.vec(tokens * cols);
    for dtype in QUANTISED {
        let weight = packed(&tensor(dtype, rows, cols, &rng.vec(rows * cols)));
        for isa in tiers().filter(|isa| *isa != Isa::Scalar) {
            let cpu = cpu(isa, 2);
            let whole = run(&cpu, &weight, &x);
            for t in [0, 5, 94, 95, 96, 173, 174, 189] {
                let one = run(&cpu, &weight, &x[t * cols..][..cols]);
                assert!(one == whole[t * rows..][..rows], "{dtype} {isa:?} token {t}");
            }
        }
    }
}

#[test]
fn jobs_share_activations_and_add_their_bias() {
    let mut rng = Rng::new(7);
    let (cols, tokens) = (512, 4);
    let x = rng.vec(tokens * cols);
    let weights: Vec<Tensor> = [(DType::Q4_K, 40), (DType::Q6_K, 7), (DType::Q8_0, 130), (DType::F16, 1)]
        .map(|(dtype, rows)| tensor(dtype, rows, cols, &rng.vec(rows * cols)))
        .into();
    let biases: Vec<Tensor> = weights.iter().map(|w| tensor(DType::F32, 1, w.rows, &rng.vec(w.rows))).collect();
    for cpu in tiers().flat_map(|isa| [cpu(isa, 3), apart(isa, 3)]) {
        let mut outs: Vec<Vec<f32>> = weights.iter().map(|w| vec![0.0; tokens * w.rows]).collect();
        let mut jobs: Vec<MatMul<'_>> = (weights.iter().zip(&biases).zip(&mut outs))
            .map(|((weight, bias), out)| MatMul { weight, bias: Some(bias), out })
            .collect();
        cpu.matmul(&x, &mut jobs, &mut Scratch::new());
        for ((weight, bias), out) in weights.iter().zip(&biases).zip(&outs) {
            let alone = run(&cpu, weight, &x);
            let bias = bias.as_f32().unwrap();
            for (i, (out, alone)) in out.iter().zip(&alone).enumerate() {
                assert_eq!(*out, alone + bias[i % weight.rows]);
            }
        }
    }
}

/// Scratch that has served a larger batch serves a smaller one: nothing stale is read.
#[test]
fn scratch_is_reused() {
    let mut rng = Rng::new(8);
    let large = tensor(DType::Q4_0, 20, 1024, &rng.vec(20 * 1024));
    let small = tensor(DType::Q4_0, 20, 96, &rng.vec(20 * 96));
    for isa in tiers() {
        let (cpu, mut scratch) = (cpu(isa, 2), Scratch::new());
        let mut out = vec![0.0; 9 * 20];
        cpu.matmul(&rng.vec(9 * 1024), &mut [MatMul { weight: &large, bias: None, out: &mut out }], &mut scratch);
        let x = rng.vec(3 * 96);
        let mut out = vec![0.0; 3 * 20];
        cpu.matmul(&x, &mut [MatMul { weight: &small, bias: None, out: &mut out }], &mut scratch);
        assert_eq!(out, run(&cpu, &small, &x));
    }
}

/// The fast way of packing is the specified one, for every type and at any address.
#[test]
fn panels_are_packed_as_specified() {
    let mut rng = Rng::new(10);
    for dtype in DType::ALL.into_iter().filter(|dtype| dtype.block_len() > 1) {
        for (rows, blocks) in [(16, 1), (48, 3), (16, 7)] {
            let cols = blocks * dtype.block_len();
            let bytes: Vec<u8> = (0..1 + rows * dtype.row_bytes(cols).unwrap()).map(|_| rng.next() as u8).collect();
            let (mut fast, mut slow) = (vec![0; bytes.len()], vec![0; bytes.len()]);
            pack_panels(dtype, cols, &bytes[1..], &mut fast[1..]);
            quant::packed::pack(dtype, cols, &bytes[1..], &mut slow[1..]);
            assert!(fast == slow, "{dtype} {rows} x {cols}");
        }
    }
}

/// Every row of a packed matrix decodes as the plain one's, and so do lookups of embeddings.
#[test]
fn packed_rows_decode_alike() {
    let mut rng = Rng::new(9);
    for dtype in QUANTISED {
        let weight = tensor(dtype, 37, 512, &rng.vec(37 * 512));
        let packed = packed(&weight);
        assert!(*weight.to_f32() == *packed.to_f32(), "{dtype}");
        let ids = [36, 0, 31, 15, 16, 32];
        let (mut plain, mut out) = (vec![0.0; ids.len() * 512], vec![0.0; ids.len() * 512]);
        reference::embed(&weight, &ids, 1.0, &mut plain);
        cpu(Isa::Scalar, 2).embed(&packed, &ids, 1.0, &mut out);
        assert!(plain == out, "{dtype}");
    }
}

#[test]
fn no_job_and_no_token_are_nothing() {
    let cpu = cpu(Isa::Scalar, 2);
    cpu.matmul(&[1.0], &mut [], &mut Scratch::new());
    let weight = tensor(DType::F32, 2, 2, &[1.0; 4]);
    cpu.matmul(&[], &mut [MatMul { weight: &weight, bias: None, out: &mut [] }], &mut Scratch::new());
}

/// BF16 weights meet activations in BF16 where the CPU multiplies them, and F32 in all other tiers; F16 keeps its bits.
#[test]
fn activations_are_rounded_to_bf16_in_one_tier_alone() {
    for isa in tiers() {
        let rounds = isa == Isa::Avx512Bf16;
        let x = [1.0 + 1.0 / 512.0];
        for (dtype, rounds) in [(DType::BF16, rounds), (DType::F16, false), (DType::F32, false)] {
            let out = run(&cpu(isa, 1), &tensor(dtype, 1, 1, &[1.0]), &x);
            assert_eq!(out, if rounds { [1.0] } else { x }, "{dtype} {isa:?}");
        }
        let fine = 1.0 + 1.0 / 1024.0;
        assert_eq!(run(&cpu(isa, 1), &tensor(DType::F16, 1, 1, &[fine]), &[1.0]), [fine], "{isa:?}");
    }
}
