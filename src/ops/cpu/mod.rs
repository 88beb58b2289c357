//! The fast operations on x86-64: instruction sets chosen at run time, own pinned thread pool.
//!
//! `exec` calls them through [`Cpu`]. Every result is independent of the number of threads, and a token's result of what
//! else is in the batch.

use super::{Attention, Error, KvLayer, MatMul, RopeAngles, RopeTable, SeqSlice, Tensor, reference};

/// How the CPU backend is set up.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Compute threads, the caller included; by default one per physical core this process may use.
    pub threads: Option<usize>,
    /// CPUs to run on, as in `0-3,8`; by default those the process may use.
    pub cpus: Option<String>,
    /// Instruction sets not to use although the host has them: `avx2`, `avx512`, `avx512vnni`.
    pub disable_isa: Vec<String>,
    /// Binds each thread to one CPU.
    pub pin: bool,
}

/// Buffers that outlive a step: quantised activations. Grows to the largest batch seen, then allocates no more.
#[derive(Default)]
pub struct Scratch {}

impl Scratch {
    /// Empty buffers.
    pub fn new() -> Scratch {
        Scratch::default()
    }
}

/// The CPU backend: a thread pool and the kernels chosen for this host.
pub struct Cpu {
    threads: usize,
}

impl Cpu {
    /// Starts the threads and chooses the kernels.
    ///
    /// # Errors
    /// [`Error::Setting`] for an unknown instruction set or a bad CPU list, [`Error::Thread`] when a thread cannot start.
    pub fn new(options: &Options) -> Result<Cpu, Error> {
        Ok(Cpu { threads: options.threads.unwrap_or(1) })
    }

    /// Compute threads, the caller included.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Kernels in use: `scalar`, `avx2`, `avx512` or `avx512vnni`.
    pub fn isa(&self) -> &'static str {
        "scalar"
    }

    /// `out[t] = table[ids[t]]`, `[tokens, cols]`. Ids must be below `table.rows`.
    pub fn embed(&self, table: &Tensor, ids: &[u32], out: &mut [f32]) {
        reference::embed(table, ids, out);
    }

    /// RMS norm of each row of `weight.cols` elements.
    pub fn rms_norm(&self, x: &[f32], weight: &Tensor, eps: f32, out: &mut [f32]) {
        reference::rms_norm(x, weight, eps, out);
    }

    /// RMS norm in place of each head of `weight.cols` elements.
    pub fn rms_norm_heads(&self, x: &mut [f32], weight: &Tensor, eps: f32) {
        reference::rms_norm_heads(x, weight, eps);
    }

    /// All `jobs` over the same activations `x` `[tokens, cols]`.
    pub fn matmul(&self, x: &[f32], jobs: &mut [MatMul<'_>], _scratch: &mut Scratch) {
        reference::matmul(x, jobs);
    }

    /// Turns the heads of `x` `[tokens, heads * head_dim]` by their tokens' angles.
    pub fn rope(&self, x: &mut [f32], heads: usize, head_dim: usize, angles: &RopeAngles, table: &RopeTable) {
        reference::rope(x, heads, head_dim, angles, table);
    }

    /// Writes the new tokens' keys and values to the cache.
    pub fn kv_write(&self, kv: &mut KvLayer<'_>, k: &[f32], v: &[f32], seqs: &[SeqSlice<'_>]) {
        reference::kv_write(kv, k, v, seqs);
    }

    /// Causal attention over the cache.
    pub fn attention(&self, args: Attention<'_>) {
        reference::attention(args);
    }

    /// `gate = silu(gate) · up`.
    pub fn silu_mul(&self, gate: &mut [f32], up: &[f32]) {
        reference::silu_mul(gate, up);
    }

    /// `x += y`.
    pub fn add(&self, x: &mut [f32], y: &[f32]) {
        reference::add(x, y);
    }
}

/// Views bytes as F32; what is not aligned is left over in the first and last part.
pub(crate) fn bytes_as_f32(bytes: &[u8]) -> (&[u8], &[f32], &[u8]) {
    // SAFETY: every bit pattern is a valid f32, and `align_to` yields an aligned middle part within `bytes`.
    unsafe { bytes.align_to::<f32>() }
}
