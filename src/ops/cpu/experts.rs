//! Products with the experts' matrices, all active ones in one parallel region, and the way there and back.
//!
//! With few tokens each expert's rows are dealt over all threads, so that every thread streams long runs; with many, a
//! unit of rows passes over all tokens of its expert, as in any product.

use super::acts::{Format, Parts, Scratch};
use super::matmul::{Part, UNIT, form, quantise, run};
use super::pool::Pool;
use super::table::Table;
use crate::ops::{ExpertInput, ExpertMatMul, Routes, Tensor};

/// See [`super::Cpu::expert_matmul`].
pub(super) fn expert_matmul(
    x: ExpertInput<'_>,
    routes: &Routes,
    jobs: &mut [ExpertMatMul<'_>],
    scratch: &mut Scratch,
    table: &Table,
    pool: &Pool,
) {
    let gathers = matches!(x, ExpertInput::Rows(_));
    let Some(cols) = jobs.first().map(|job| job.weight.cols) else { return };
    if cols == 0 || routes.is_empty() {
        return;
    }
    let pairs = routes.len();
    let (x, expected) = match x {
        ExpertInput::Rows(x) => (x, routes.batch()),
        ExpertInput::Pairs(x) => (x, pairs),
    };
    assert_eq!(x.len(), expected * cols, "activations are not {expected} rows of {cols}");
    quantise(x, cols, jobs.iter().map(|job| job.weight), scratch, table, pool);
    if gathers {
        for wanted in [Format::Float, Format::Bf16, Format::Q8x32, Format::Q8x256] {
            if jobs.iter().any(|job| form(job.weight, table) == wanted) {
                scratch.gather(x, cols, wanted, &routes.rows);
            }
        }
    }
    let mut shared = Vec::with_capacity(jobs.len());
    for job in jobs {
        let (weight, format) = (job.weight, form(job.weight, table));
        assert_eq!(weight.cols, cols, "{}: the jobs of one call share their activations", weight.name);
        assert_eq!(job.out.len(), pairs * job.rows, "{}: out is not [{pairs}, {}]", weight.name, job.rows);
        assert!(job.first + job.rows <= job.stride, "{}: rows beyond the matrix's {}", weight.name, job.stride);
        let acts = if gathers { scratch.gathered(pairs, cols, format) } else { scratch.acts(x, cols, format) };
        shared.push((job.first, job.rows, job.stride, weight, job.bias.map(Tensor::to_f32), acts, Parts::new(job.out)));
    }
    let mut parts = Vec::new();
    let mut units = 0;
    for (expert, tokens) in routes.active() {
        for (first, rows, stride, weight, bias, acts, out) in &shared {
            let first = expert * stride + first;
            let own = units..units + rows.div_ceil(UNIT);
            units = own.end;
            parts.push(Part {
                weight,
                first,
                rows: *rows,
                matrix: *stride,
                kernels: table.kernels(weight.dtype),
                acts: *acts,
                tokens: tokens.clone(),
                bias: bias.as_ref().map(|bias| &bias[first..][..*rows]),
                out: *out,
                units: own,
            });
        }
    }
    run(&parts, pool);
}
