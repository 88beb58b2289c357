//! Products with weights: quantises the activations once per form, cuts all jobs' rows to units and deals them.

use super::acts::{Acts, Format, Parts, Scratch};
use super::deal::Piece;
use super::pool::Pool;
use super::table::{Kernels, Rows, Table};
use crate::ops::{MatMul, Tensor};
use crate::quant::packed::ROWS;
use std::borrow::Cow;
use std::ops::Range;

/// Rows of a unit: a panel, and a multiple of every kernel's rows side by side.
pub(super) const UNIT: usize = ROWS;
/// Bytes of weights a thread takes at a time when one token is computed: long runs for the prefetchers, many enough to
/// even out threads of different speed.
const CHUNK_BYTES: usize = 96 * 1024;
/// Bytes of activations that stay in L2 while several units pass over them.
const RESIDENT_BYTES: usize = 384 * 1024;
/// Units a thread takes at a time when many tokens are computed.
const CHUNK_UNITS: usize = 8;
/// Activations that are worth quantising in parallel.
const PARALLEL_ELEMENTS: usize = 32 * 1024;

/// Rows of a weight over some tokens, ready to run.
pub(super) struct Part<'a> {
    pub(super) weight: &'a Tensor,
    /// The first of its rows that belongs to this part; rows of a panel stay together.
    pub(super) first: usize,
    /// How many.
    pub(super) rows: usize,
    /// Rows of each matrix of the weight, of which a stack has several.
    pub(super) matrix: usize,
    /// For whole panels of a packed weight, and for all other rows.
    pub(super) kernels: Kernels,
    pub(super) acts: Acts<'a>,
    /// Which of the activations.
    pub(super) tokens: Range<usize>,
    /// One for each of the rows.
    pub(super) bias: Option<&'a [f32]>,
    /// `[tokens of acts, rows]`.
    pub(super) out: Parts<f32>,
    /// Its units among those of all parts.
    pub(super) units: Range<usize>,
}

/// See [`super::Cpu::matmul`].
pub(super) fn matmul(x: &[f32], jobs: &mut [MatMul<'_>], scratch: &mut Scratch, table: &Table, pool: &Pool) {
    let Some(cols) = jobs.first().map(|job| job.weight.cols) else { return };
    if cols == 0 || x.is_empty() {
        return;
    }
    let tokens = x.len() / cols;
    assert_eq!(x.len(), tokens * cols, "activations are not rows of {cols}");
    quantise(x, cols, jobs.iter().map(|job| job.weight), scratch, table, pool);
    let biases: Vec<Option<Cow<'_, [f32]>>> = jobs.iter().map(|job| job.bias.map(Tensor::to_f32)).collect();
    let mut units = 0;
    let mut parts = Vec::with_capacity(jobs.len());
    for (job, bias) in jobs.iter_mut().zip(&biases) {
        let weight = job.weight;
        assert_eq!(weight.cols, cols, "{}: the jobs of one call share their activations", weight.name);
        assert_eq!(job.out.len(), tokens * weight.rows, "{}: out is not [{tokens}, {}]", weight.name, weight.rows);
        assert!(bias.as_ref().is_none_or(|b| b.len() == weight.rows), "{}: bias is not [{}]", weight.name, weight.rows);
        let own = units..units + weight.rows.div_ceil(UNIT);
        units = own.end;
        parts.push(Part {
            weight,
            first: 0,
            rows: weight.rows,
            matrix: weight.rows,
            kernels: table.kernels(weight.dtype),
            acts: scratch.acts(x, cols, form(weight, table)),
            tokens: 0..tokens,
            bias: bias.as_deref(),
            out: Parts::new(job.out),
            units: own,
        });
    }
    run(&parts, pool);
}

/// Rounds the activations to every form that `weights` need.
pub(super) fn quantise<'a>(
    x: &[f32],
    cols: usize,
    weights: impl Iterator<Item = &'a Tensor> + Clone,
    scratch: &mut Scratch,
    table: &Table,
    pool: &Pool,
) {
    let each = |n: usize, body: &(dyn Fn(Range<usize>) + Sync)| {
        if n * cols < PARALLEL_ELEMENTS { body(0..n) } else { pool.run(n, 1, body) }
    };
    for wanted in [Format::Q8x32, Format::Q8x256] {
        if weights.clone().any(|weight| form(weight, table) == wanted) {
            scratch.quantise(x, cols, wanted, table.quantise, each);
        }
    }
    let mut weights = weights;
    if let Some(round) = table.round.filter(|_| weights.any(|weight| form(weight, table) == Format::Bf16)) {
        scratch.round(x, cols, round, each);
    }
}

/// Deals the units of all parts, which follow each other, as one region.
pub(super) fn run(parts: &[Part<'_>], pool: &Pool) {
    let widest = parts.iter().map(|part| part.weight.row_bytes()).max().unwrap_or(1);
    let tokens = parts.iter().map(|part| part.tokens.len()).max().unwrap_or(0);
    deal(parts.iter().map(Part::piece), tokens, widest, pool, &|range| {
        let first = parts.partition_point(|part| part.units.end <= range.start);
        for part in parts[first..].iter().take_while(|part| part.units.start < range.end) {
            let (start, end) = (range.start.max(part.units.start), range.end.min(part.units.end));
            part.run(start - part.units.start..end - part.units.start);
        }
    });
}

/// Deals units of rows of `row_bytes`, each for `tokens` tokens, in runs of a fitting length: those of each piece apart
/// where weights lie with their threads, else all as one.
pub(super) fn deal(
    mut pieces: impl DoubleEndedIterator<Item = Piece>,
    tokens: usize,
    row_bytes: usize,
    pool: &Pool,
    body: &(dyn Fn(Range<usize>) + Sync),
) {
    // Only products with weights that lie with their threads need to know all pieces.
    let apart: Vec<Piece> = if pool.deals_apart() { pieces.by_ref().collect() } else { Vec::new() };
    let units = apart.last().cloned().or_else(|| pieces.next_back()).map_or(0, |piece| piece.items.end);
    let grain = if tokens == 1 { (CHUNK_BYTES / (UNIT * row_bytes.max(1))).max(1) } else { CHUNK_UNITS };
    // Few units: rather shorter runs than idle threads.
    let grain = grain.min(units.div_ceil(4 * pool.threads())).max(1);
    if pool.deals_apart() { pool.run_pieces(&apart, grain, body) } else { pool.run(units, grain, body) }
}

/// The activations' form for a weight.
pub(super) fn form(weight: &Tensor, table: &Table) -> Format {
    match table.format(weight.dtype) {
        Some(format) => format,
        None => panic!("{}: no kernel for {}", weight.name, weight.dtype),
    }
}

impl Part<'_> {
    /// Its units, and which of its matrix they are.
    pub(super) fn piece(&self) -> Piece {
        let of = self.matrix.div_ceil(UNIT);
        Piece { items: self.units.clone(), first: self.first % self.matrix.max(1) / UNIT, of }
    }

    /// Computes some units for all tokens. Only a part's last unit may not be whole, and that one is never packed.
    pub(super) fn run(&self, units: Range<usize>) {
        let (start, end) = (units.start * UNIT, self.rows.min(units.end * UNIT));
        let whole = if self.weight.cut(self.first + start).is_some() { end / UNIT * UNIT } else { start };
        self.run_rows(start..whole, true);
        self.run_rows(whole..end, false);
        // A part is of one matrix.
        let factor = self.weight.factor(self.first);
        if factor == 1.0 && self.bias.is_none() {
            return;
        }
        for t in self.tokens.clone() {
            // SAFETY: this thread alone writes these rows.
            let out = unsafe { self.out.part(t * self.rows + start, end - start) };
            if factor != 1.0 {
                out.iter_mut().for_each(|out| *out *= factor);
            }
            if let Some(bias) = self.bias {
                out.iter_mut().zip(&bias[start..end]).for_each(|(out, &bias)| *out += bias);
            }
        }
    }

    /// Computes rows of one layout for all tokens.
    fn run_rows(&self, range: Range<usize>, packed: bool) {
        if range.is_empty() {
            return;
        }
        let (weight, row_bytes, first) = (self.weight, self.weight.row_bytes(), self.first + range.start);
        // Kernels of panels and of floats keep to the caches themselves.
        let chunk = if packed || self.acts.q.is_empty() {
            usize::MAX
        } else {
            (RESIDENT_BYTES / self.acts.cols.max(1)).clamp(16, 512) / 8 * 8
        };
        for start in self.tokens.clone().step_by(chunk) {
            let rows = Rows {
                weights: &weight.bytes()[first * row_bytes..][..range.len() * row_bytes],
                row_bytes,
                rows: range.len(),
                cut: weight.cut(first),
                acts: &self.acts,
                tokens: start..self.tokens.end.min(start.saturating_add(chunk)),
                out: self.out.address(range.start),
                stride: self.rows,
            };
            let kernel = if packed { self.kernels.packed } else { self.kernels.plain };
            // SAFETY: the kernel suits this host (its table was made for it), the weights hold these rows, and this
            // thread alone writes them; `out` is `[tokens, rows]`.
            unsafe { kernel(&rows) };
        }
    }
}
