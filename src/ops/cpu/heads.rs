//! What latent attention needs besides attention: products with a matrix for each head, parts of heads moved, normalised
//! and turned.

use super::Cpu;
use super::acts::{Parts, Scratch};
use super::attention;
use super::matmul::{Part, UNIT, deal, form, quantise};
use crate::ops::profile::Work;
use crate::ops::{ExpandedAttention, HeadMatMul, Heads, KV_BLOCK, KvLayer, RopeAngles, RopeTable, Tensor};
use std::ops::Range;

impl Cpu {
    /// `job` over `x` `[heads, tokens, cols]`; all heads are one parallel region.
    pub fn head_matmul(&self, x: &[f32], job: HeadMatMul<'_>, scratch: &mut Scratch) {
        let _watch = self.observer.watch(|| Work::head_matmul(&job));
        let HeadMatMul { weight, heads, rows, out } = job;
        let (cols, stride) = (weight.cols, weight.rows / heads);
        let tokens = x.len() / (heads * cols);
        assert_eq!(weight.rows, heads * stride, "{}: its rows are not those of {heads} matrices", weight.name);
        assert!(rows.end <= stride, "{}: rows {rows:?} of a matrix of {stride}", weight.name);
        assert_eq!(x.len(), heads * tokens * cols, "activations are not [{heads}, tokens, {cols}]");
        assert_eq!(out.len(), heads * tokens * rows.len(), "{}: out is not [{heads}, tokens, rows]", weight.name);
        quantise(x, cols, std::iter::once(weight), scratch, &self.table, &self.pool);
        let (acts, out) = (scratch.acts(x, cols, form(weight, &self.table)), Parts::new(out));
        let units = rows.len().div_ceil(UNIT);
        let part = |head: usize| Part {
            weight,
            first: head * stride + rows.start,
            rows: rows.len(),
            matrix: stride,
            kernels: self.table.kernels(weight.dtype),
            acts,
            tokens: head * tokens..(head + 1) * tokens,
            bias: None,
            out,
            units: head * units..(head + 1) * units,
        };
        deal((0..heads).map(|head| part(head).piece()), tokens, weight.row_bytes(), &self.pool, &|range| {
            for head in range.start / units..range.end.div_ceil(units) {
                let start = range.start.max(head * units) - head * units;
                part(head).run(start..range.end.min((head + 1) * units) - head * units);
            }
        });
    }

    /// Copies `width` elements of each head: `out[to] = x[from]`.
    pub fn copy_heads(&self, heads: usize, width: usize, (x, from): (&[f32], Heads), (out, to): (&mut [f32], Heads)) {
        let tokens = out.len() / to.len(1, heads);
        let _watch = self.observer.watch(|| Work::elementwise("copy_heads", tokens * heads * width, 1));
        assert_eq!(out.len(), tokens * heads * to.width, "out is not {heads} heads of {}", to.width);
        assert_eq!(x.len(), from.len(tokens, heads), "x is not as many heads of {}", from.width);
        assert!(from.first + width <= from.width && to.first + width <= to.width, "{width} of {from:?} to {to:?}");
        let out = Parts::new(out);
        self.each(tokens * heads, width, &|range| {
            for i in range {
                let (token, head) = (i / heads, i % heads);
                let x = &x[from.at(token, head, tokens, heads)..][..width];
                // SAFETY: heads do not overlap, and each belongs to one range.
                unsafe { out.part(to.at(token, head, tokens, heads), width) }.copy_from_slice(x);
            }
        });
    }

    /// Reads a sequence's cached latents and rotated keys back: `out` `[positions, key_dim]`, zeros behind the last.
    pub fn read_latents(&self, kv: &KvLayer<'_>, blocks: &[u32], positions: Range<usize>, out: &mut [f32]) {
        let _watch = self.observer.watch(|| Work::elementwise("read_latents", out.len(), 1));
        let (shape, bytes) = (&kv.shape, kv.shape.token_bytes());
        assert!(shape.latent && out.len().is_multiple_of(shape.key_dim), "out is not [_, {}]", shape.key_dim);
        assert!(out.len() >= positions.len() * shape.key_dim, "{positions:?} do not fit {} elements", out.len());
        let (rows, out) = (out.len() / shape.key_dim, Parts::new(out));
        self.each(rows, shape.key_dim, &|range| {
            for i in range {
                // SAFETY: each row belongs to one range.
                let out = unsafe { out.part(i * shape.key_dim, shape.key_dim) };
                if i >= positions.len() {
                    out.fill(0.0);
                    continue;
                }
                let position = positions.start + i;
                let slot = blocks[position / KV_BLOCK] as usize * KV_BLOCK + position % KV_BLOCK;
                // SAFETY: the function suits this host.
                unsafe { self.table.attention.decode(shape.key_type, &kv.keys[slot * bytes..][..bytes], out) };
            }
        });
    }

    /// See [`ExpandedAttention`].
    pub fn expanded_attention(&self, args: ExpandedAttention<'_>) {
        let _watch = self.observer.watch(|| Work::expanded_attention(&args));
        attention::expanded(args, &self.table.attention, &self.pool, &self.attention);
    }

    /// [`Cpu::rms_norm`] in place over the first `weight.cols` elements of each row of `width`.
    pub fn rms_norm_first(&self, x: &mut [f32], width: usize, weight: &Tensor, eps: f32) {
        let _watch = self.observer.watch(|| Work::elementwise("rms_norm", x.len(), 1));
        assert!(x.len().is_multiple_of(width) && weight.cols <= width, "{} elements, rows of {width}", x.len());
        let (gain, rows, x) = (weight.to_f32(), x.len() / width, Parts::new(x));
        self.each(rows, width, &|range| {
            for row in range {
                // SAFETY: each row belongs to one range; the function suits this host.
                unsafe { (self.table.vector.rms_norm_inplace)(x.part(row * width, weight.cols), &gain, eps) };
            }
        });
    }

    /// [`Cpu::rope`] for the last `table.dims` elements of each head.
    pub fn rope_last(&self, x: &mut [f32], heads: usize, head_dim: usize, angles: &RopeAngles, table: &RopeTable) {
        self.rope_from(x, heads, (head_dim, head_dim.saturating_sub(table.dims)), angles, table);
    }
}
