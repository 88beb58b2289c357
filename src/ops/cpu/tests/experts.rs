//! Products with experts: against the reference and against the same products expert by expert.

use super::{Rng, apart, cpu, packed, tensor, tiers};
use crate::ops::cpu::Scratch;
use crate::ops::{ExpertInput, ExpertMatMul, Gating, MatMul, RouteRule, Routes, Tensor, reference};
use crate::quant::DType;

const EXPERTS: usize = 6;

fn rule(used: usize) -> RouteRule {
    let gating = Gating::Softmax;
    RouteRule { experts: EXPERTS, used, gating, normalise: true, scale: 1.0, groups: 1, groups_used: 1 }
}

/// Routes of `rows` rows with random scores; expert 2 is never chosen.
fn routes(rng: &mut Rng, rows: usize, used: usize) -> Routes {
    let mut scores = rng.vec(rows * EXPERTS);
    scores.iter_mut().skip(2).step_by(EXPERTS).for_each(|score| *score = -100.0);
    let mut routes = Routes::with_capacity(&rule(used), rows);
    cpu(tiers().next().unwrap(), 1).route(&mut scores, None, &rule(used), &mut routes);
    assert!(routes.active().all(|(expert, _)| expert != 2));
    routes
}

/// All rows of every matrix, in one job or in two halves.
fn run(weight: &Tensor, bias: &Tensor, x: ExpertInput<'_>, routes: &Routes, halves: bool, call: Call<'_>) -> Vec<f32> {
    let stride = weight.rows / EXPERTS;
    let sizes = if halves { vec![16, stride - 16] } else { vec![stride] };
    let mut outs: Vec<Vec<f32>> = sizes.iter().map(|rows| vec![f32::NAN; routes.len() * rows]).collect();
    let mut jobs: Vec<ExpertMatMul<'_>> = Vec::new();
    let mut first = 0;
    for (out, &rows) in outs.iter_mut().zip(&sizes) {
        jobs.push(ExpertMatMul { weight, bias: Some(bias), stride, first, rows, out });
        first += rows;
    }
    call(x, routes, &mut jobs);
    let row = |pair: usize| outs.iter().zip(&sizes).flat_map(move |(out, n)| out[pair * n..][..*n].iter().copied());
    (0..routes.len()).flat_map(row).collect()
}

type Call<'a> = &'a dyn Fn(ExpertInput<'_>, &Routes, &mut [ExpertMatMul<'_>]);

#[test]
fn every_tier_equals_the_reference_and_single_products() {
    let mut rng = Rng::new(77);
    for (dtype, cols, stride) in [
        (DType::Q4_K, 512, 48),
        (DType::Q8_0, 96, 32),
        (DType::F32, 40, 33),
        (DType::F16, 64, 48),
        (DType::Q6_K, 256, 32),
    ] {
        let plain = tensor(dtype, EXPERTS * stride, cols, &rng.vec(EXPERTS * stride * cols));
        let bias = tensor(DType::F32, 1, EXPERTS * stride, &rng.vec(EXPERTS * stride));
        for (rows, used) in [(1, 3), (1, 1), (5, 2), (40, 3), (3, 1)] {
            let routes = routes(&mut rng, rows, used);
            let x = rng.vec(rows * cols);
            let want = run(&plain, &bias, ExpertInput::Rows(&x), &routes, false, &|x, r, jobs| {
                reference::expert_matmul(x, r, jobs);
            });
            let mut weights = vec![plain.clone()];
            weights.extend((dtype.block_len() > 1).then(|| packed(&plain)));
            for (isa, cpu) in tiers().flat_map(|isa| [(isa, cpu(isa, 2)), (isa, apart(isa, 2))]) {
                let alone = alone(&cpu, &plain, &bias, &x, &routes);
                let pairs: Vec<f32> =
                    routes.rows.iter().flat_map(|&r| x[r as usize * cols..][..cols].to_vec()).collect();
                for (weight, halves) in weights.iter().flat_map(|w| [(w, false), (w, stride > 16)]) {
                    let scratch = std::cell::RefCell::new(Scratch::new());
                    let call: Call<'_> = &|x, r, jobs| cpu.expert_matmul(x, r, jobs, &mut scratch.borrow_mut());
                    let got = run(weight, &bias, ExpertInput::Rows(&x), &routes, halves, call);
                    assert!(got == alone, "{dtype} {isa:?} {rows} rows: other bits than one product an expert");
                    let got = run(weight, &bias, ExpertInput::Pairs(&pairs), &routes, halves, call);
                    assert!(got == alone, "{dtype} {isa:?} {rows} rows, given as pairs: other bits");
                    let off = got.iter().zip(&want).map(|(g, w)| (g - w).abs()).fold(0.0, f32::max);
                    assert!(off < 0.02 * cols as f32, "{dtype} {isa:?} {rows} rows: off by {off}");
                }
            }
        }
    }
}

/// One ordinary product for each row and expert.
fn alone(cpu: &super::Cpu, weight: &Tensor, bias: &Tensor, x: &[f32], routes: &Routes) -> Vec<f32> {
    let (stride, cols) = (weight.rows / EXPERTS, weight.cols);
    let mut out = vec![0.0; routes.len() * stride];
    let all_biases = bias.to_f32();
    for (expert, pairs) in routes.active() {
        let values: Vec<f32> = (0..stride).flat_map(|r| reference::decode_row(weight, expert * stride + r)).collect();
        let bytes = weight.bytes()[expert * stride * weight.row_bytes()..][..stride * weight.row_bytes()].to_vec();
        let matrix = match weight.dtype {
            DType::F32 => tensor(DType::F32, stride, cols, &values),
            dtype => super::raw_tensor(dtype, stride, cols, bytes),
        };
        let bias = tensor(DType::F32, 1, stride, &all_biases[expert * stride..][..stride]);
        for pair in pairs {
            let out = &mut out[pair * stride..][..stride];
            let x = &x[routes.rows[pair] as usize * cols..][..cols];
            cpu.matmul(x, &mut [MatMul { weight: &matrix, bias: Some(&bias), out }], &mut Scratch::new());
        }
    }
    out
}

#[test]
fn combining_equals_the_reference() {
    let mut rng = Rng::new(78);
    let routes = routes(&mut rng, 9, 3);
    let x = rng.vec(routes.len() * 130);
    let (mut got, mut want) = (vec![f32::NAN; 9 * 130], vec![0.0; 9 * 130]);
    cpu(tiers().last().unwrap(), 2).combine(&x, &routes, &mut got);
    reference::combine(&x, &routes, &mut want);
    assert!(got.iter().zip(&want).all(|(g, w)| (g - w).abs() < 1e-5));
}
