//! Activations as the kernels of quantised weights read them: 8-bit integers with a scale per block.
//!
//! ```text
//! per token:  q    [i8; cols padded to 64]            |q| ≤ 127, padding 0
//!             d    [f32; blocks, padded]              x ≈ d·q; blocks of 32 (legacy types) or 256 (K-quants)
//!             sums [i16; 2 per 32 columns, padded]    Σ q over 16 columns: weight offsets and minima cost one product
//!             ds   [f32; as d]                        d · Σ q over the block (blocks of 32 only)
//! ```
//!
//! Every tier quantises to the same bits: plain code in elementary operations that the compiler vectorises.

use std::ops::Range;

/// Columns that every row of quantised activations is padded to.
const PAD: usize = 64;
/// Adding and subtracting it rounds an f32 below 2²² to the nearest integer, ties to even.
const ROUND: f32 = 12_582_912.0;
/// A block whose largest magnitude is below counts as zero: 127 divided by it must stay finite.
const TINY: f32 = 128.0 * f32::MIN_POSITIVE;

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

/// Buffers that outlive a step: quantised activations. Grows to the largest batch seen, then allocates no more.
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
    /// Columns.
    pub(crate) cols: usize,
    /// Columns padded: distance of rows in `q`.
    pub(crate) stride: usize,
    /// Blocks per token, padded: distance of rows in `d` and `ds`.
    pub(crate) blocks: usize,
    /// As given; `[tokens, cols]`.
    pub(crate) x: &'a [f32],
    /// 8-bit values.
    pub(crate) q: &'a [i8],
    /// Scales.
    pub(crate) d: &'a [f32],
    /// Sums over 16 columns; rows are `stride / 16` apart.
    pub(crate) sums: &'a [i16],
    /// Scaled sums over blocks of 32.
    pub(crate) ds: &'a [f32],
}

impl<'a> Acts<'a> {
    /// The activations as they are.
    pub(crate) fn float(x: &'a [f32], cols: usize) -> Acts<'a> {
        Acts { cols, stride: cols, blocks: 0, x, q: &[], d: &[], sums: &[], ds: &[] }
    }

    /// Scale of one block.
    pub(crate) fn scale(&self, token: usize, block: usize) -> f32 {
        self.d[token * self.blocks + block]
    }
}

/// Quantises one token's row; one instance per tier, all with the same result.
pub(crate) type QuantiseRow = unsafe fn(x: &[f32], block: usize, out: &mut QuantisedRow<'_>);

/// Where one token's quantised activations go.
pub(crate) struct QuantisedRow<'a> {
    q: &'a mut [i8],
    d: &'a mut [f32],
    sums: &'a mut [i16],
    ds: &'a mut [f32],
}

impl Scratch {
    /// Empty buffers.
    pub fn new() -> Scratch {
        Scratch::default()
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
        let Shape { tokens, stride, blocks } = Shape::new(x, cols, block);
        buffer.reserve(tokens, stride, blocks);
        let (q, d) = (Parts::new(&mut buffer.q), Parts::new(&mut buffer.d));
        let (sums, ds) = (Parts::new(&mut buffer.sums), Parts::new(&mut buffer.ds));
        each(tokens, &|range| {
            for t in range {
                // SAFETY: each token is in one range only, so its parts are borrowed once; `row` suits this host.
                unsafe {
                    let mut out = QuantisedRow {
                        q: q.part(t * stride, stride),
                        d: d.part(t * blocks, blocks),
                        sums: sums.part(t * stride / 16, stride / 16),
                        ds: ds.part(t * blocks, blocks),
                    };
                    row(&x[t * cols..][..cols], block, &mut out);
                }
            }
        });
    }

    /// What [`Scratch::quantise`] made of `x`.
    pub(crate) fn acts<'a>(&'a self, x: &'a [f32], cols: usize, format: Format) -> Acts<'a> {
        let (buffer, block) = match format {
            Format::Float => return Acts::float(x, cols),
            Format::Q8x32 => (&self.x32, 32),
            Format::Q8x256 => (&self.x256, 256),
        };
        buffer.acts(x, cols, block)
    }

    /// Gathers rows of `x`, or of what [`Scratch::quantise`] made of it: row `i` of the result is row `rows[i]`.
    pub(crate) fn gather(&mut self, x: &[f32], cols: usize, format: Format, rows: &[u32]) {
        let (from, to, block) = match format {
            Format::Float => {
                let to = &mut self.gathered.x;
                grow(to, rows.len() * cols);
                return copy_rows(x, to, cols, rows);
            }
            Format::Q8x32 => (&self.x32, &mut self.gathered.x32, 32),
            Format::Q8x256 => (&self.x256, &mut self.gathered.x256, 256),
        };
        let Shape { stride, blocks, .. } = Shape::new(x, cols, block);
        to.reserve(rows.len(), stride, blocks);
        copy_rows(&from.q, &mut to.q, stride, rows);
        copy_rows(&from.d, &mut to.d, blocks, rows);
        copy_rows(&from.sums, &mut to.sums, stride / 16, rows);
        copy_rows(&from.ds, &mut to.ds, blocks, rows);
    }

    /// What [`Scratch::gather`] made of `tokens` rows.
    pub(crate) fn gathered(&self, tokens: usize, cols: usize, format: Format) -> Acts<'_> {
        let (buffer, block) = match format {
            Format::Float => return Acts::float(&self.gathered.x[..tokens * cols], cols),
            Format::Q8x32 => (&self.gathered.x32, 32),
            Format::Q8x256 => (&self.gathered.x256, 256),
        };
        buffer.acts(&[], cols, block)
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

impl Buffer {
    /// Makes room.
    fn reserve(&mut self, tokens: usize, stride: usize, blocks: usize) {
        grow(&mut self.q, tokens * stride);
        grow(&mut self.d, tokens * blocks);
        grow(&mut self.sums, tokens * stride / 16);
        grow(&mut self.ds, tokens * blocks);
    }

    fn acts<'a>(&'a self, x: &'a [f32], cols: usize, block: usize) -> Acts<'a> {
        let stride = cols.next_multiple_of(PAD);
        let blocks = stride.div_ceil(block);
        Acts { cols, stride, blocks, x, q: &self.q, d: &self.d, sums: &self.sums, ds: &self.ds }
    }
}

/// Copies rows of `width` elements.
fn copy_rows<T: Copy>(from: &[T], to: &mut [T], width: usize, rows: &[u32]) {
    for (to, &row) in to.chunks_exact_mut(width).zip(rows) {
        to.copy_from_slice(&from[row as usize * width..][..width]);
    }
}

/// Sizes of quantised activations.
struct Shape {
    tokens: usize,
    stride: usize,
    blocks: usize,
}

impl Shape {
    fn new(x: &[f32], cols: usize, block: usize) -> Shape {
        let stride = cols.next_multiple_of(PAD);
        Shape { tokens: x.len() / cols, stride, blocks: stride.div_ceil(block) }
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
