//! Products with weights: quantises the activations once per form, cuts all jobs' rows to units and deals them.

use super::acts::{Acts, Format, Parts, Scratch};
use super::pool::Pool;
use super::table::{Kernels, Rows, Table, format};
use crate::ops::{MatMul, Tensor};
use crate::quant::packed::ROWS;
use std::borrow::Cow;
use std::ops::Range;

/// Rows of a unit: a panel, and a multiple of every kernel's rows side by side.
const UNIT: usize = ROWS;
/// Bytes of weights a thread takes at a time when one token is computed: long runs for the prefetchers, many enough to
/// even out threads of different speed.
const CHUNK_BYTES: usize = 96 * 1024;
/// Bytes of activations that stay in L2 while several units pass over them.
const RESIDENT_BYTES: usize = 384 * 1024;
/// Units a thread takes at a time when many tokens are computed.
const CHUNK_UNITS: usize = 8;
/// Activations that are worth quantising in parallel.
const PARALLEL_ELEMENTS: usize = 32 * 1024;

/// One job, ready to run.
struct Part<'a> {
    weight: &'a Tensor,
    /// For whole panels of a packed weight, and for all other rows.
    kernels: Kernels,
    acts: Acts<'a>,
    bias: Option<Cow<'a, [f32]>>,
    out: Parts<f32>,
    /// Its units among those of all jobs.
    units: Range<usize>,
}

/// See [`super::Cpu::matmul`].
pub(super) fn matmul(x: &[f32], jobs: &mut [MatMul<'_>], scratch: &mut Scratch, table: &Table, pool: &Pool) {
    let Some(cols) = jobs.first().map(|job| job.weight.cols) else { return };
    if cols == 0 || x.is_empty() {
        return;
    }
    let tokens = x.len() / cols;
    assert_eq!(x.len(), tokens * cols, "activations are not rows of {cols}");
    let formats: Vec<Format> = jobs.iter().map(|job| form(job.weight)).collect();
    for wanted in [Format::Q8x32, Format::Q8x256] {
        if formats.contains(&wanted) {
            scratch.quantise(x, cols, wanted, table.quantise, |n, body| {
                if n * cols < PARALLEL_ELEMENTS { body(0..n) } else { pool.run(n, 1, body) }
            });
        }
    }
    let mut units = 0;
    let mut parts = Vec::with_capacity(jobs.len());
    for (job, &format) in jobs.iter_mut().zip(&formats) {
        let weight = job.weight;
        assert_eq!(weight.cols, cols, "{}: the jobs of one call share their activations", weight.name);
        assert_eq!(job.out.len(), tokens * weight.rows, "{}: out is not [{tokens}, {}]", weight.name, weight.rows);
        let bias = job.bias.map(Tensor::to_f32);
        assert!(bias.as_ref().is_none_or(|b| b.len() == weight.rows), "{}: bias is not [{}]", weight.name, weight.rows);
        let own = units..units + weight.rows.div_ceil(UNIT);
        units = own.end;
        let (kernels, acts) = (table.kernels(weight.dtype), scratch.acts(x, cols, format));
        parts.push(Part { weight, kernels, acts, bias, out: Parts::new(job.out), units: own });
    }
    let widest = parts.iter().map(|part| part.weight.row_bytes()).max().unwrap_or(1);
    let grain = if tokens == 1 { (CHUNK_BYTES / (UNIT * widest.max(1))).max(1) } else { CHUNK_UNITS };
    // Few units: rather shorter runs than idle threads.
    let grain = grain.min(units.div_ceil(4 * pool.threads())).max(1);
    pool.run(units, grain, &|range| {
        for part in &parts {
            let (start, end) = (range.start.max(part.units.start), range.end.min(part.units.end));
            if start < end {
                part.run(start - part.units.start..end - part.units.start);
            }
        }
    });
}

/// The activations' form for a weight.
fn form(weight: &Tensor) -> Format {
    match format(weight.dtype) {
        Some(format) => format,
        None => panic!("{}: no kernel for {}", weight.name, weight.dtype),
    }
}

impl Part<'_> {
    /// Computes some units for all tokens. Only a matrix's last unit is not whole, and that one is never packed.
    fn run(&self, units: Range<usize>) {
        let weight = self.weight;
        let (first, end) = (units.start * UNIT, weight.rows.min(units.end * UNIT));
        let whole = if weight.cut(first).is_some() { end / UNIT * UNIT } else { first };
        self.rows(first..whole, true);
        self.rows(whole..end, false);
        let Some(bias) = &self.bias else { return };
        for t in 0..self.acts.tokens {
            // SAFETY: this thread alone writes these rows.
            let out = unsafe { self.out.part(t * weight.rows + first, end - first) };
            out.iter_mut().zip(&bias[first..end]).for_each(|(out, &bias)| *out += bias);
        }
    }

    /// Computes rows of one layout for all tokens.
    fn rows(&self, range: Range<usize>, packed: bool) {
        if range.is_empty() {
            return;
        }
        let (weight, row_bytes) = (self.weight, self.weight.row_bytes());
        // Kernels of panels keep to the caches themselves.
        let chunk = if packed { usize::MAX } else { (RESIDENT_BYTES / self.acts.cols.max(1)).clamp(16, 512) / 8 * 8 };
        for start in (0..self.acts.tokens).step_by(chunk) {
            let rows = Rows {
                weights: &weight.bytes()[range.start * row_bytes..range.end * row_bytes],
                row_bytes,
                rows: range.len(),
                cut: weight.cut(range.start),
                acts: &self.acts,
                tokens: start..self.acts.tokens.min(start.saturating_add(chunk)),
                out: self.out.address(range.start),
                stride: weight.rows,
            };
            let kernel = if packed { self.kernels.packed } else { self.kernels.plain };
            // SAFETY: the kernel suits this host (its table was made for it), the weights hold these rows, and this
            // thread alone writes them; `out` is `[tokens, rows]`.
            unsafe { kernel(&rows) };
        }
    }
}
