//! Activations as the kernels of quantised weights read them: 8-bit integers with a scale per block.
//!
//! ```text
//! per 256 columns, per token (columns padded to 256, so that kernels of many tokens read on and on):
//!             q    [i8; 256]                 |q| ≤ 127, padding 0
//!             d    [f32; 256 / block]        x ≈ d·q; blocks of 32 (legacy types) or 256 (K-quants)
//!             sums [i16; 16]                 Σ q over 16 columns: weight offsets and minima cost one product
//!             ds   [f32; as d]               d · Σ q over the block (blocks of 32 only)
//! ```
//!
//! Every tier quantises to the same bits: elementary operations in one order.

use super::table::format;
use crate::quant::DType;
use std::ops::Range;

/// Columns of a token that lie together; rows of quantised activations are padded to whole ones.
pub(crate) const RUN: usize = 256;
/// Tokens that are quantised run by run: their runs lie together.
const TOGETHER: usize = 16;
/// Adding and subtracting it rounds an f32 below 2²² to the nearest integer, ties to even.
pub(crate) const ROUND: f32 = 12_582_912.0;
/// A block whose largest magnitude is below counts as zero: 127 divided by it must stay finite.
pub(crate) const TINY: f32 = 128.0 * f32::MIN_POSITIVE;

/// Which form a weight type multiplies with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// F32 as given.
    Float,
    /// 8 bit in blocks of 32.
    Q8x32,
    /// 8 bit in blocks of 256.
    Q8x256,
}

/// Buffers that outlive a step: quantised activations. Made for the largest products there will be, it allocates no more;
/// made empty, it grows to those it meets.
#[derive(Default)]
pub struct Scratch {
    x32: Buffer,
    x256: Buffer,
    /// Rows in another order.
    gathered: Gathered,
}

/// Activations whose rows were gathered, in each format.
#[derive(Default)]
struct Gathered {
    x: Vec<f32>,
    x32: Buffer,
    x256: Buffer,
}

/// The largest activations of each form among some products: what a [`Scratch`] for them holds.
#[derive(Clone, Copy, Debug, Default)]
pub struct ScratchSize {
    x32: BufferSize,
    x256: BufferSize,
    /// Rows in another order: as they are, and quantised.
    gathered: (usize, BufferSize, BufferSize),
}

/// Elements of one format's buffers.
#[derive(Clone, Copy, Debug, Default)]
struct BufferSize {
    q: usize,
    /// Of `d`, and of `ds`.
    d: usize,
    sums: usize,
}

impl ScratchSize {
    /// Makes room for products of `tokens` rows with a weight `[_, cols]` of `dtype`. Types without kernels need none.
    pub fn include(&mut self, dtype: DType, cols: usize, tokens: usize) {
        let (size, block) = match format(dtype) {
            None | Some(Format::Float) => return,
            Some(Format::Q8x32) => (&mut self.x32, 32),
            Some(Format::Q8x256) => (&mut self.x256, 256),
        };
        size.include(BufferSize::new(tokens, cols, block));
    }

    /// Makes room for `pairs` rows that are gathered for products with experts' matrices `[_, cols]` of `dtype`.
    pub fn include_gathered(&mut self, dtype: DType, cols: usize, pairs: usize) {
        let (x, x32, x256) = &mut self.gathered;
        match format(dtype) {
            None => {}
            Some(Format::Float) => *x = (*x).max(pairs.saturating_mul(cols)),
            Some(Format::Q8x32) => x32.include(BufferSize::new(pairs, cols, 32)),
            Some(Format::Q8x256) => x256.include(BufferSize::new(pairs, cols, 256)),
        }
    }

    /// Bytes of a [`Scratch`] of this size.
    pub fn bytes(&self) -> u64 {
        let (x, x32, x256) = &self.gathered;
        let quantised = [&self.x32, &self.x256, x32, x256].iter().fold(0u64, |sum, b| sum.saturating_add(b.bytes()));
        quantised.saturating_add((*x as u64).saturating_mul(size_of::<f32>() as u64))
    }
}

impl BufferSize {
    /// For `tokens` rows of `cols` elements.
    fn new(tokens: usize, cols: usize, block: usize) -> BufferSize {
        let runs = tokens.saturating_mul(cols.div_ceil(RUN));
        let q = runs.saturating_mul(RUN);
        BufferSize { q, d: q / block, sums: q / 16 }
    }

    /// Makes room for as much.
    fn include(&mut self, needed: BufferSize) {
        self.q = self.q.max(needed.q);
        self.d = self.d.max(needed.d);
        self.sums = self.sums.max(needed.sums);
    }

    fn bytes(&self) -> u64 {
        let elements = |n: usize, size: usize| (n as u64).saturating_mul(size as u64);
        let d = elements(self.d, 2 * size_of::<f32>());
        elements(self.q, size_of::<i8>()).saturating_add(d).saturating_add(elements(self.sums, size_of::<i16>()))
    }
}

/// One format's buffers.
#[derive(Default)]
struct Buffer {
    q: Vec<i8>,
    d: Vec<f32>,
    sums: Vec<i16>,
    ds: Vec<f32>,
}

/// The activations of a batch in one format.
#[derive(Clone, Copy)]
pub(crate) struct Acts<'a> {
    /// Rows.
    pub(crate) tokens: usize,
    /// Columns.
    pub(crate) cols: usize,
    /// Columns of a block as a power of two: no kernel divides.
    block_bits: u32,
    /// As given; `[tokens, cols]`.
    pub(crate) x: &'a [f32],
    /// 8-bit values.
    pub(crate) q: &'a [i8],
    /// Scales.
    pub(crate) d: &'a [f32],
    /// Sums over 16 columns.
    pub(crate) sums: &'a [i16],
    /// Scaled sums over blocks of 32.
    pub(crate) ds: &'a [f32],
}

impl<'a> Acts<'a> {
    /// The activations as they are.
    pub(crate) fn float(x: &'a [f32], cols: usize) -> Acts<'a> {
        Acts { tokens: x.len() / cols, cols, block_bits: 0, x, q: &[], d: &[], sums: &[], ds: &[] }
    }

    /// Where in `q` a token's column stands; 16 times where in `sums`.
    #[inline(always)]
    pub(crate) fn column(&self, token: usize, column: usize) -> usize {
        (column / RUN * self.tokens + token) * RUN + column % RUN
    }

    /// Where in `d` and `ds` a token's block stands.
    #[inline(always)]
    pub(crate) fn block(&self, token: usize, block: usize) -> usize {
        self.column(token, block << self.block_bits) >> self.block_bits
    }

    /// Scale of one block.
    #[inline(always)]
    pub(crate) fn scale(&self, token: usize, block: usize) -> f32 {
        self.d[self.block(token, block)]
    }
}

/// Quantises one run of a token's row; one instance per tier, all with the same result.
pub(crate) type QuantiseRow = unsafe fn(x: &[f32], block: usize, out: &mut QuantisedRow<'_>);

/// Where one run of a token's quantised activations goes.
pub(crate) struct QuantisedRow<'a> {
    pub(crate) q: &'a mut [i8],
    pub(crate) d: &'a mut [f32],
    pub(crate) sums: &'a mut [i16],
    pub(crate) ds: &'a mut [f32],
}

impl Buffer {
    fn new(size: &BufferSize) -> Buffer {
        // Zeroed pages of the system: they cost memory once they are used.
        Buffer { q: vec![0; size.q], d: vec![0.0; size.d], sums: vec![0; size.sums], ds: vec![0.0; size.d] }
    }

    /// Makes room for as much.
    fn grow(&mut self, size: &BufferSize) {
        grow(&mut self.q, size.q);
        grow(&mut self.d, size.d);
        grow(&mut self.sums, size.sums);
        grow(&mut self.ds, size.d);
    }

    fn acts<'a>(&'a self, x: &'a [f32], tokens: usize, cols: usize, block: usize) -> Acts<'a> {
        let block_bits = block.trailing_zeros();
        Acts { tokens, cols, block_bits, x, q: &self.q, d: &self.d, sums: &self.sums, ds: &self.ds }
    }

    fn reserved(&self) -> u64 {
        let Buffer { q, d, sums, ds } = self;
        (q.capacity() + size_of::<f32>() * (d.capacity() + ds.capacity()) + size_of::<i16>() * sums.capacity()) as u64
    }
}

impl Scratch {
    /// Empty buffers, which grow.
    pub fn new() -> Scratch {
        Scratch::default()
    }

    /// Buffers for all products that `size` includes.
    pub fn with_size(size: &ScratchSize) -> Scratch {
        let (x, x32, x256) = &size.gathered;
        let gathered = Gathered { x: vec![0.0; *x], x32: Buffer::new(x32), x256: Buffer::new(x256) };
        Scratch { x32: Buffer::new(&size.x32), x256: Buffer::new(&size.x256), gathered }
    }

    /// Bytes reserved.
    pub fn reserved(&self) -> u64 {
        let Gathered { x, x32, x256 } = &self.gathered;
        let x = (size_of::<f32>() * x.capacity()) as u64;
        self.x32.reserved() + self.x256.reserved() + x32.reserved() + x256.reserved() + x
    }

    /// Quantises `x` `[tokens, cols]` to `format`; `each` runs its argument over all tokens, in parallel or not.
    pub(crate) fn quantise(
        &mut self,
        x: &[f32],
        cols: usize,
        format: Format,
        row: QuantiseRow,
        each: impl FnOnce(usize, &(dyn Fn(Range<usize>) + Sync)),
    ) {
        let Some((buffer, block)) = self.buffer(format) else { return };
        let (tokens, per_run) = (x.len() / cols, RUN / block);
        buffer.grow(&BufferSize::new(tokens, cols, block));
        let (q, d) = (Parts::new(&mut buffer.q), Parts::new(&mut buffer.d));
        let (sums, ds) = (Parts::new(&mut buffer.sums), Parts::new(&mut buffer.ds));
        each(tokens, &|range| {
            for first in range.clone().step_by(TOGETHER) {
                for i in 0..cols.div_ceil(RUN) {
                    for t in first..range.end.min(first + TOGETHER) {
                        let (at, x) = (i * tokens + t, &x[t * cols..][i * RUN..cols.min((i + 1) * RUN)]);
                        // SAFETY: each token is in one range only, so its parts are borrowed once; `row` suits this host.
                        unsafe {
                            let mut out = QuantisedRow {
                                q: q.part(at * RUN, RUN),
                                d: d.part(at * per_run, per_run),
                                sums: sums.part(at * RUN / 16, RUN / 16),
                                ds: ds.part(at * per_run, per_run),
                            };
                            row(x, block, &mut out);
                        }
                    }
                }
            }
        });
    }

    /// What [`Scratch::quantise`] made of `x`.
    pub(crate) fn acts<'a>(&'a self, x: &'a [f32], cols: usize, format: Format) -> Acts<'a> {
        let (buffer, block): (_, usize) = match format {
            Format::Float => return Acts::float(x, cols),
            Format::Q8x32 => (&self.x32, 32),
            Format::Q8x256 => (&self.x256, 256),
        };
        buffer.acts(x, x.len() / cols, cols, block)
    }

    /// Gathers rows of `x`, or of what [`Scratch::quantise`] made of it: row `i` of the result is row `rows[i]`.
    pub(crate) fn gather(&mut self, x: &[f32], cols: usize, format: Format, rows: &[u32]) {
        let (from, to, block) = match format {
            Format::Float => {
                let to = &mut self.gathered.x;
                grow(to, rows.len() * cols);
                return copy_rows(x, to, cols, 0, rows);
            }
            Format::Q8x32 => (&self.x32, &mut self.gathered.x32, 32),
            Format::Q8x256 => (&self.x256, &mut self.gathered.x256, 256),
        };
        to.grow(&BufferSize::new(rows.len(), cols, block));
        let (tokens, per_run) = (x.len() / cols, RUN / block);
        for run in 0..cols.div_ceil(RUN) {
            let (first, at) = (run * tokens, run * rows.len());
            copy_rows(&from.q, &mut to.q[at * RUN..], RUN, first, rows);
            copy_rows(&from.d, &mut to.d[at * per_run..], per_run, first, rows);
            copy_rows(&from.sums, &mut to.sums[at * RUN / 16..], RUN / 16, first, rows);
            copy_rows(&from.ds, &mut to.ds[at * per_run..], per_run, first, rows);
        }
    }

    /// What [`Scratch::gather`] made of `tokens` rows.
    pub(crate) fn gathered(&self, tokens: usize, cols: usize, format: Format) -> Acts<'_> {
        match format {
            Format::Float => Acts::float(&self.gathered.x[..tokens * cols], cols),
            Format::Q8x32 => self.gathered.x32.acts(&[], tokens, cols, 32),
            Format::Q8x256 => self.gathered.x256.acts(&[], tokens, cols, 256),
        }
    }

    /// The buffer of a quantised format and its block length.
    fn buffer(&mut self, format: Format) -> Option<(&mut Buffer, usize)> {
        match format {
            Format::Float => None,
            Format::Q8x32 => Some((&mut self.x32, 32)),
            Format::Q8x256 => Some((&mut self.x256, 256)),
        }
    }
}

/// Copies rows of `width` elements, counted from row `first` on.
fn copy_rows<T: Copy>(from: &[T], to: &mut [T], width: usize, first: usize, rows: &[u32]) {
    for (to, &row) in to.chunks_exact_mut(width).zip(rows) {
        to.copy_from_slice(&from[(first + row as usize) * width..][..width]);
    }
}

/// Makes room for `n` elements; what is already there stays allocated.
fn grow<T: Copy + Default>(buffer: &mut Vec<T>, n: usize) {
    if buffer.len() < n {
        buffer.resize(n, T::default());
    }
}

/// A slice that several threads write disjoint parts of.
#[derive(Clone, Copy)]
pub(crate) struct Parts<T> {
    start: *mut T,
    len: usize,
}

// SAFETY: a part is reached only through `part`, whose caller keeps parts disjoint.
unsafe impl<T: Send> Sync for Parts<T> {}

impl<T> Parts<T> {
    /// Splits `slice`, which must outlive the result: it is used within one region only.
    pub(crate) fn new(slice: &mut [T]) -> Parts<T> {
        Parts { start: slice.as_mut_ptr(), len: slice.len() }
    }

    /// Elements `at .. at + len`.
    ///
    /// # Safety
    /// The slice still lives and no other part that overlaps does.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn part(&self, at: usize, len: usize) -> &mut [T] {
        assert!(at + len <= self.len, "part {at}+{len} of {}", self.len);
        // SAFETY: within the slice, and disjoint from other parts by the caller's word.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), len) }
    }

    /// The address of element `at`.
    pub(crate) fn address(&self, at: usize) -> *mut T {
        assert!(at <= self.len, "element {at} of {}", self.len);
        self.start.wrapping_add(at)
    }
}

/// The body of every [`QuantiseRow`]. A block with an infinity or a NaN becomes zeros with the scale NaN, so that
/// it shows in the result.
#[inline(always)]
pub(crate) fn quantise_row(x: &[f32], block: usize, out: &mut QuantisedRow<'_>) {
    out.q[x.len()..].fill(0);
    out.d[x.len().div_ceil(block)..].fill(0.0);
    out.ds[x.len().div_ceil(block)..].fill(0.0);
    out.sums[x.len().div_ceil(16)..].fill(0);
    let blocks = x.chunks(block).zip(out.q.chunks_mut(block)).zip(out.sums.chunks_mut(block / 16));
    for (b, ((x, q), sums)) in blocks.enumerate() {
        let magnitude = |v: f32| v.to_bits() & 0x7fff_ffff;
        let largest = f32::from_bits(x.iter().fold(0, |m, &v| m.max(magnitude(v))));
        if !largest.is_finite() || largest < TINY {
            q.fill(0);
            sums.fill(0);
            out.d[b] = if largest.is_finite() { 0.0 } else { f32::NAN };
            out.ds[b] = out.d[b];
            continue;
        }
        let scale = 127.0 / largest;
        for (q, &x) in q.iter_mut().zip(x) {
            *q = ((x * scale + ROUND).to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32) as i8;
        }
        let mut total = 0;
        for (sum, q) in sums.iter_mut().zip(q.chunks(16)) {
            *sum = q.iter().map(|&q| i16::from(q)).sum();
            total += i32::from(*sum);
        }
        out.d[b] = largest / 127.0;
        out.ds[b] = out.d[b] * total as f32;
    }
}
