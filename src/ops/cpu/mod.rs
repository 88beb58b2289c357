//! The fast operations on x86-64: instruction sets chosen at run time, own pinned thread pool.
//!
//! `exec` calls them through [`Cpu`]. A result depends neither on the number of threads nor, for one token, on what else
//! is in the batch; and products with quantised weights have the same bits in every tier (see `scalar`).

mod acts;
mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod blocks;
mod codes;
mod deal;
mod delta;
mod experts;
#[cfg(target_arch = "x86_64")]
mod float;
mod heads;
mod isa;
mod matmul;
mod pack;
mod pool;
mod probe;
mod rows;
mod scalar;
mod table;
#[cfg(test)]
mod tests;
mod tiles;
mod vector;

pub use acts::{Scratch, ScratchSize};
pub use attention::{AttentionSize, expanded_states};
pub use pack::pack_panels;
pub use pool::Pool;

use super::profile::{Entry, Observer, Work};
use super::{
    Attention, Error, ExpertInput, ExpertMatMul, KvLayer, MatMul, RopeAngles, RopeTable, RouteRule, Routes, SeqSlice,
    Tensor,
};
use crate::quant::{DType, Layout};
use crate::sys::affinity;
use crate::sys::topology::Topology;
use acts::Parts;
use std::ops::Range;
use table::Table;

/// Fewer elements than this are not worth waking threads for.
const PARALLEL_ELEMENTS: usize = 16 * 1024;

/// How the CPU backend is set up.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Compute threads, the caller included; by default one per physical core this process may use. No more are started
    /// than it has CPUs and CPU time.
    pub threads: Option<usize>,
    /// CPUs to run on, as in `0-3,8`; by default those the process may use.
    pub cpus: Option<String>,
    /// Instruction sets not to use although the host has them: `avx2`, `avx512`, `avx512vnni`, `avx512bf16`.
    /// Disabling one disables those built on it.
    pub disable_isa: Vec<String>,
    /// Binds each thread to one CPU, the thread that calls [`Cpu::new`] included: it should be the one that computes.
    pub pin: bool,
    /// The rows of each matrix lie with the threads that use them ([`crate::sys::numa::Policy::Partition`]): deals them so.
    pub apart: bool,
}

impl Options {
    /// Compute threads that [`Cpu::new`] starts with these options.
    ///
    /// # Errors
    /// [`Error::Setting`], as [`Cpu::new`].
    pub fn compute_threads(&self) -> Result<usize, Error> {
        Ok(self.resolve()?.0)
    }

    /// Threads, and the CPUs they may run on.
    fn resolve(&self) -> Result<(usize, Vec<usize>), Error> {
        let mut topology = Topology::detect();
        if let Some(list) = &self.cpus {
            let cpus = affinity::parse_list(list).map_err(|e| Error::Setting(e.to_string()))?;
            let allowed: Vec<usize> = topology.cpus.iter().map(|c| c.id).collect();
            if let Some(cpu) = cpus.iter().find(|cpu| !allowed.contains(cpu)) {
                let allowed = affinity::format_list(&allowed);
                return Err(Error::Setting(format!("CPU {cpu} of `{list}` is not available; allowed are {allowed}")));
            }
            topology = topology.restricted(&cpus);
        }
        let threads = self.threads.unwrap_or_else(|| topology.compute_threads());
        if threads == 0 || threads > 4096 {
            return Err(Error::Setting(format!("{threads} compute threads; 1 to 4096 are possible")));
        }
        let places = topology.placement();
        // Threads beyond the CPUs, or beyond the time that the control group grants, would only wait for each other.
        let granted = topology.quota.map_or(usize::MAX, |quota| quota.ceil() as usize).min(places.len()).max(1);
        Ok((threads.min(granted), places))
    }
}

/// [`Cpu::layout`] before there is a [`Cpu`]: weights are loaded before the threads start that compute with them.
pub struct Layouts(Table);

impl Layouts {
    /// What a backend of these options will choose.
    ///
    /// # Errors
    /// [`Error::Setting`] for an unknown instruction set.
    pub fn new(options: &Options) -> Result<Layouts, Error> {
        Ok(Layouts(Table::new(isa::Isa::detect(&options.disable_isa)?)))
    }

    /// See [`Cpu::layout`].
    pub fn of(&self, dtype: DType, rows: usize, cols: usize) -> Layout {
        self.0.layout(dtype, rows, cols)
    }
}

/// Instruction sets of this host that the kernels make use of, by the names of `disable_isa`, best last; empty where only
/// the plain code runs.
pub fn instruction_sets() -> Vec<&'static str> {
    isa::ALL[1..].iter().filter(|isa| isa.on_host()).map(|isa| isa.name()).collect()
}

/// The CPU backend: a thread pool and the kernels chosen for this host. One operation runs at a time.
pub struct Cpu {
    pool: Pool,
    table: Table,
    attention: attention::Buffers,
    observer: Observer,
}

impl Cpu {
    /// Starts the threads and chooses the kernels.
    ///
    /// # Errors
    /// [`Error::Setting`] for an unknown instruction set, a bad CPU list or no thread, [`Error::Thread`] when a thread
    /// cannot start.
    pub fn new(options: &Options) -> Result<Cpu, Error> {
        let isa = isa::Isa::detect(&options.disable_isa)?;
        let (threads, places) = options.resolve()?;
        let pinned = if options.pin { places.as_slice() } else { &[] };
        Ok(Cpu {
            pool: Pool::new(threads, pinned, true)?.dealing_apart(options.apart),
            table: Table::new(isa),
            attention: attention::Buffers::default(),
            observer: Observer::default(),
        })
    }

    /// Compute threads, the caller included.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// Reserves attention's buffers, so that no call within `size` allocates. Without it they grow as they are needed.
    pub fn reserve_attention(&mut self, size: &AttentionSize) {
        self.attention = attention::Buffers::new(size, self.threads());
    }

    /// Bytes of attention's buffers.
    pub fn reserved(&self) -> u64 {
        self.attention.reserved()
    }

    /// Kernels in use: `scalar`, `avx2`, `avx512`, `avx512vnni` or `avx512bf16`.
    pub fn isa(&self) -> &'static str {
        self.table.isa.name()
    }

    /// Begins or stops to note what each operation takes.
    pub fn profile(&self, on: bool) {
        self.observer.switch(on);
    }

    /// What was noted since the last call, the longest first.
    pub fn take_profile(&self) -> Vec<Entry> {
        self.observer.take()
    }

    /// How a matrix `[rows, cols]` of `dtype` is best laid out for this backend's kernels: packed where the tier's
    /// kernels for panels of the type are the faster ones and there is a whole panel, else as it is.
    pub fn layout(&self, dtype: DType, rows: usize, cols: usize) -> Layout {
        self.table.layout(dtype, rows, cols)
    }

    /// `out[t] = scale · table[ids[t]]`, `[tokens, cols]`. Ids must be below `table.rows`.
    pub fn embed(&self, table: &Tensor, ids: &[u32], scale: f32, out: &mut [f32]) {
        let _watch = self.observer.watch(|| Work::embed(table, ids.len()));
        let cols = table.cols;
        assert_eq!(out.len(), ids.len() * cols, "out is not [tokens, {cols}]");
        let out = Parts::new(out);
        self.each(ids.len(), cols, &|range| {
            for t in range {
                // SAFETY: each token's row belongs to one range.
                let row = unsafe { out.part(t * cols, cols) };
                table.decode_row(ids[t] as usize, row);
                if scale != 1.0 {
                    row.iter_mut().for_each(|x| *x *= scale);
                }
            }
        });
    }

    /// `out = x / √(mean(x²) + eps) · weight` for each row of `weight.cols` elements.
    pub fn rms_norm(&self, x: &[f32], weight: &Tensor, eps: f32, out: &mut [f32]) {
        let _watch = self.observer.watch(|| Work::elementwise("rms_norm", x.len(), 1));
        let cols = weight.cols;
        assert_eq!(x.len(), out.len(), "x and out differ in length");
        assert!(x.len().is_multiple_of(cols), "{} elements are not rows of {cols}", x.len());
        let (gain, out) = (weight.to_f32(), Parts::new(out));
        self.each(x.len() / cols, cols, &|range| {
            for t in range {
                // SAFETY: each row belongs to one range; the function suits this host.
                unsafe { (self.table.vector.rms_norm)(&x[t * cols..][..cols], &gain, eps, out.part(t * cols, cols)) };
            }
        });
    }

    /// [`Cpu::rms_norm`] in place over heads of `weight.cols` elements (Qwen3's q and k norms).
    pub fn rms_norm_heads(&self, x: &mut [f32], weight: &Tensor, eps: f32) {
        let _watch = self.observer.watch(|| Work::elementwise("rms_norm_heads", x.len(), 1));
        let cols = weight.cols;
        assert!(x.len().is_multiple_of(cols), "{} elements are not heads of {cols}", x.len());
        let (gain, heads, x) = (weight.to_f32(), x.len() / cols, Parts::new(x));
        self.each(heads, cols, &|range| {
            for head in range {
                // SAFETY: each head belongs to one range; the function suits this host.
                unsafe { (self.table.vector.rms_norm_inplace)(x.part(head * cols, cols), &gain, eps) };
            }
        });
    }

    /// All `jobs` over the same activations `x` `[tokens, cols]`: `out[t, r] = Σ_c weight[r, c] · x[t, c] + bias[r]`. For
    /// quantised weights the activations are rounded to 8 bit, once per form needed; all jobs' rows are one parallel
    /// region.
    pub fn matmul(&self, x: &[f32], jobs: &mut [MatMul<'_>], scratch: &mut Scratch) {
        let _watch = self.observer.watch(|| Work::matmul(x, jobs));
        matmul::matmul(x, jobs, scratch, &self.table, &self.pool);
    }

    /// Chooses each row's experts by its `scores` `[rows, experts]`, which are used up. `bias` `[experts]` is added for the
    /// choice alone.
    pub fn route(&self, scores: &mut [f32], bias: Option<&Tensor>, rule: &RouteRule, routes: &mut Routes) {
        let _watch = self.observer.watch(|| Work::elementwise("route", scores.len(), 1));
        let rows = scores.len() / rule.experts;
        assert_eq!(scores.len(), rows * rule.experts, "scores are not [rows, {}]", rule.experts);
        let bias = bias.map(Tensor::to_f32);
        assert!(bias.as_ref().is_none_or(|b| b.len() == rule.experts), "the bias is not [{}]", rule.experts);
        routes.reset(rule, rows);
        let (scores, chosen) = (Parts::new(scores), Parts::new(&mut routes.chosen));
        let weights = Parts::new(&mut routes.weights);
        self.each(rows, 16 * rule.experts, &|range| {
            for row in range {
                // SAFETY: each row belongs to one range.
                let (scores, chosen, weights) = unsafe {
                    let at = row * rule.used;
                    (
                        scores.part(row * rule.experts, rule.experts),
                        chosen.part(at, rule.used),
                        weights.part(at, rule.used),
                    )
                };
                rule.choose(scores, bias.as_deref(), chosen, weights);
            }
        });
        routes.group(rule.experts);
    }

    /// All `jobs` over the same activations, each pair's row with its expert's matrix. All active experts of all jobs are
    /// one parallel region.
    pub fn expert_matmul(
        &self,
        x: ExpertInput<'_>,
        routes: &Routes,
        jobs: &mut [ExpertMatMul<'_>],
        scratch: &mut Scratch,
    ) {
        let _watch = self.observer.watch(|| Work::expert_matmul(jobs, routes));
        experts::expert_matmul(x, routes, jobs, scratch, &self.table, &self.pool);
    }

    /// `out[row] = Σ weight · x[pair]` over the row's pairs, best first; `x` `[pairs, cols]`, `out` `[rows, cols]`.
    pub fn combine(&self, x: &[f32], routes: &Routes, out: &mut [f32]) {
        let _watch = self.observer.watch(|| Work::elementwise("combine", x.len(), 1));
        let rows = routes.batch();
        let cols = out.len() / rows.max(1);
        assert!(out.len() == rows * cols && x.len() == routes.len() * cols, "x is not [pairs, {cols}]");
        let out = Parts::new(out);
        self.each(rows, cols, &|range| {
            for row in range {
                // SAFETY: each row belongs to one range.
                let out = unsafe { out.part(row * cols, cols) };
                out.fill(0.0);
                for (pair, weight) in routes.of_row(row) {
                    out.iter_mut().zip(&x[pair * cols..][..cols]).for_each(|(out, x)| *out += weight * x);
                }
            }
        });
    }

    /// Turns the first `table.dims` elements of each head of `x` `[tokens, heads * head_dim]` by its token's angles.
    pub fn rope(&self, x: &mut [f32], heads: usize, head_dim: usize, angles: &RopeAngles, table: &RopeTable) {
        self.rope_from(x, heads, (head_dim, 0), angles, table);
    }

    /// [`Cpu::rope`] from element `first` of each head on.
    fn rope_from(
        &self,
        x: &mut [f32],
        heads: usize,
        (head_dim, first): (usize, usize),
        angles: &RopeAngles,
        table: &RopeTable,
    ) {
        let _watch = self.observer.watch(|| Work::elementwise("rope", x.len(), 1));
        let (half, width) = (table.dims / 2, heads * head_dim);
        let tokens = x.len() / width;
        assert_eq!(x.len(), tokens * width, "x is not [tokens, {heads} * {head_dim}]");
        assert!(first + table.dims <= head_dim, "{} rotated dimensions of {head_dim}", table.dims);
        assert!(angles.sin.len() >= tokens * half && angles.cos.len() >= tokens * half, "angles of too few tokens");
        let x = Parts::new(x);
        self.each(tokens, width, &|range| {
            for t in range {
                let (sin, cos) = (&angles.sin[t * half..][..half], &angles.cos[t * half..][..half]);
                // SAFETY: each token's row belongs to one range; the function suits this host.
                let heads = unsafe { x.part(t * width, width) }.chunks_exact_mut(head_dim);
                // SAFETY: as above.
                heads.for_each(|head| unsafe { (self.table.vector.rope)(&mut head[first..], sin, cos, table.pairing) });
            }
        });
    }

    /// Writes keys `[tokens, kv_heads * key_dim]` and values `[tokens, kv_heads * value_dim]` of the new tokens to their
    /// slots, rounded to the cache's type. A latent cache takes no values.
    pub fn kv_write(&self, kv: &mut KvLayer<'_>, k: &[f32], v: &[f32], seqs: &[SeqSlice<'_>]) {
        let tokens = k.len() / (kv.shape.kv_heads * kv.shape.key_dim).max(1);
        let _watch = self.observer.watch(|| Work::kv_write(kv, tokens));
        attention::kv_write(self, kv, k, v, seqs);
    }

    /// `out = softmax(scale · q·Kᵀ) · V` over the positions each token sees, query head `h` with cache head
    /// `h / (heads / kv_heads)`.
    pub fn attention(&self, args: Attention<'_>) {
        let _watch = self.observer.watch(|| Work::attention(&args));
        attention::attention(args, &self.table.attention, &self.pool, &self.attention);
    }

    /// `gate = gate · sigmoid(gate) · up`.
    pub fn silu_mul(&self, gate: &mut [f32], up: &[f32]) {
        let _watch = self.observer.watch(|| Work::elementwise("silu_mul", gate.len(), 2));
        assert_eq!(gate.len(), up.len(), "gate and up differ in length");
        self.elementwise(gate, up, self.table.vector.silu_mul);
    }

    /// `gate = gelu(gate) · up`, with the approximation by tanh.
    pub fn gelu_mul(&self, gate: &mut [f32], up: &[f32]) {
        let _watch = self.observer.watch(|| Work::elementwise("gelu_mul", gate.len(), 2));
        assert_eq!(gate.len(), up.len(), "gate and up differ in length");
        self.elementwise(gate, up, self.table.vector.gelu_mul);
    }

    /// `gate = g · sigmoid(1.702 g) · (u + 1)` with `g = min(gate, 7)` and `u = up` within ±7 (gpt-oss).
    pub fn clamped_silu_mul(&self, gate: &mut [f32], up: &[f32]) {
        let _watch = self.observer.watch(|| Work::elementwise("clamped_silu_mul", gate.len(), 2));
        assert_eq!(gate.len(), up.len(), "gate and up differ in length");
        self.elementwise(gate, up, self.table.vector.clamped_silu_mul);
    }

    /// `x += y`.
    pub fn add(&self, x: &mut [f32], y: &[f32]) {
        let _watch = self.observer.watch(|| Work::elementwise("add", x.len(), 2));
        assert_eq!(x.len(), y.len(), "x and y differ in length");
        self.elementwise(x, y, self.table.vector.add);
    }

    /// Runs `function` over runs of both slices.
    fn elementwise(&self, x: &mut [f32], y: &[f32], function: unsafe fn(&mut [f32], &[f32])) {
        const RUN: usize = 1024;
        let (n, x) = (x.len(), Parts::new(x));
        self.each(n.div_ceil(RUN), RUN, &|range| {
            let (start, end) = (range.start * RUN, n.min(range.end * RUN));
            // SAFETY: each run belongs to one range; the function suits this host.
            unsafe { function(x.part(start, end - start), &y[start..end]) };
        });
    }

    /// Runs `body` over `0..n` rows of `width` elements, in parallel where that pays.
    fn each(&self, n: usize, width: usize, body: &(dyn Fn(Range<usize>) + Sync)) {
        if n * width < PARALLEL_ELEMENTS {
            if n > 0 {
                body(0..n);
            }
        } else {
            self.pool.run(n, (PARALLEL_ELEMENTS / 4 / width.max(1)).max(1), body);
        }
    }
}

/// The bytes of F32 elements.
pub(crate) fn f32_as_bytes(elements: &[f32]) -> &[u8] {
    // SAFETY: an f32 is four bytes without padding, and bytes need no alignment.
    unsafe { std::slice::from_raw_parts(elements.as_ptr().cast(), size_of_val(elements)) }
}

/// Views bytes as F32; what is not aligned is left over in the first and last part.
pub(crate) fn bytes_as_f32(bytes: &[u8]) -> (&[u8], &[f32], &[u8]) {
    // SAFETY: every bit pattern is a valid f32, and `align_to` yields an aligned middle part within `bytes`.
    unsafe { bytes.align_to::<f32>() }
}
