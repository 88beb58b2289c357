//! Products with experts' matrices and the sum of their outputs, pair by pair.

use super::decode_row;
use crate::ops::{ExpertInput, ExpertMatMul, RouteRule, Routes};

/// Who goes where, by the router's `scores` `[rows, experts]`, which are used up.
pub fn route(scores: &mut [f32], bias: Option<&[f32]>, rule: &RouteRule, routes: &mut Routes) {
    routes.reset(rule, scores.len() / rule.experts);
    let chosen = routes.chosen.chunks_exact_mut(rule.used).zip(routes.weights.chunks_exact_mut(rule.used));
    for (scores, (chosen, weights)) in scores.chunks_exact_mut(rule.experts).zip(chosen) {
        rule.choose(scores, bias, chosen, weights);
    }
    routes.group(rule.experts);
}

/// Every job's `out[p, r] = Σ_c weight[e, first + r, c] · x[·, c] + bias[e, first + r]` for each pair `p` of expert `e`.
pub fn expert_matmul(x: ExpertInput<'_>, routes: &Routes, jobs: &mut [ExpertMatMul<'_>]) {
    for job in jobs {
        let (cols, bias) = (job.weight.cols, job.bias.map(|b| b.to_f32()));
        for (expert, pairs) in routes.active() {
            for r in 0..job.rows {
                let row = expert * job.stride + job.first + r;
                let weight = decode_row(job.weight, row);
                for pair in pairs.clone() {
                    let x = match x {
                        ExpertInput::Rows(x) => &x[routes.rows[pair] as usize * cols..][..cols],
                        ExpertInput::Pairs(x) => &x[pair * cols..][..cols],
                    };
                    let sum: f64 = weight.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x)).sum();
                    job.out[pair * job.rows + r] = (sum + bias.as_ref().map_or(0.0, |b| f64::from(b[row]))) as f32;
                }
            }
        }
    }
}

/// `out[row] = Σ weight · x[pair]` over the row's pairs; `x` `[pairs, cols]`, `out` `[rows, cols]`.
pub fn combine(x: &[f32], routes: &Routes, out: &mut [f32]) {
    let cols = out.len() / routes.batch().max(1);
    for (row, out) in out.chunks_exact_mut(cols).enumerate() {
        for (c, out) in out.iter_mut().enumerate() {
            *out = routes.of_row(row).map(|(pair, w)| f64::from(w) * f64::from(x[pair * cols + c])).sum::<f64>() as f32;
        }
    }
}
