//! Where a step's time goes: an observer that the backend tells of each operation. Off, it costs one load of a flag per
//! operation; on, two looks at the clock. Called by the backends; read through [`super::cpu::Cpu::take_profile`].

use super::{
    Attention, ExpandedAttention, ExpertMatMul, HeadMatMul, KvLayer, MatMul, Routes, Tensor, elementwise_bytes,
    embed_bytes, kv_write_bytes,
};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What one call of an operation does: what it is, and what it must move and compute at least.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Work {
    /// The operation.
    pub op: &'static str,
    /// Its weights as the file calls them, block number and `.weight` left out; empty without weights.
    pub weights: String,
    /// Types of the weights or of the cache, each once; empty where all is F32.
    pub types: String,
    /// Bytes that must move.
    pub bytes: u64,
    /// Multiplications and additions; 0 where they do not matter.
    pub operations: u64,
}

/// All calls of one operation with the same weights and types.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Operation, weights and types; bytes and operations of all calls.
    pub work: Work,
    /// Number of calls.
    pub calls: u64,
    /// Time of all calls.
    pub time: Duration,
}

impl Entry {
    /// Bytes per nanosecond, which are GB/s.
    pub fn gigabytes_per_second(&self) -> f64 {
        self.work.bytes as f64 / self.time.as_nanos().max(1) as f64
    }

    /// Operations per nanosecond, which are GOP/s.
    pub fn gigaoperations_per_second(&self) -> f64 {
        self.work.operations as f64 / self.time.as_nanos().max(1) as f64
    }
}

impl Work {
    /// Of products over the same activations `x`.
    pub(crate) fn matmul(x: &[f32], jobs: &[MatMul<'_>]) -> Work {
        let tokens = jobs.first().map_or(0, |job| x.len() / job.weight.cols.max(1));
        Work {
            op: "matmul",
            weights: jobs.iter().map(|job| short_name(&job.weight.name)).collect::<Vec<_>>().join(" "),
            types: types(jobs.iter().map(|job| job.weight)),
            bytes: jobs.iter().map(|job| job.bytes_moved(tokens)).sum(),
            operations: jobs.iter().map(|job| job.operations(tokens)).sum(),
        }
    }

    /// Of products with experts.
    pub(crate) fn expert_matmul(jobs: &[ExpertMatMul<'_>], routes: &Routes) -> Work {
        Work {
            op: "expert_matmul",
            weights: jobs.iter().map(|job| short_name(&job.weight.name)).collect::<Vec<_>>().join(" "),
            types: types(jobs.iter().map(|job| job.weight)),
            bytes: jobs.iter().map(|job| job.bytes_moved(routes)).sum(),
            operations: jobs.iter().map(|job| job.operations(routes)).sum(),
        }
    }

    /// Of products with a matrix for each head.
    pub(crate) fn head_matmul(job: &HeadMatMul<'_>) -> Work {
        let (weights, types) = (short_name(&job.weight.name).into(), types([job.weight]));
        Work { op: "head_matmul", weights, types, bytes: job.bytes_moved(), operations: job.operations() }
    }

    /// Of an embedding look-up.
    pub(crate) fn embed(table: &Tensor, tokens: usize) -> Work {
        let bytes = embed_bytes(table, tokens);
        Work { op: "embed", weights: short_name(&table.name).into(), types: types([table]), bytes, operations: 0 }
    }

    /// Of attention.
    pub(crate) fn attention(args: &Attention<'_>) -> Work {
        let (weights, types) = (String::new(), args.kv.shape.key_type.name().into());
        Work { op: "attention", weights, types, bytes: args.bytes_moved(), operations: args.operations() }
    }

    /// Of attention over keys and values made from latents.
    pub(crate) fn expanded_attention(args: &ExpandedAttention<'_>) -> Work {
        let (bytes, operations) = (args.bytes_moved(), args.operations());
        Work { op: "attention", weights: String::new(), types: "expanded".into(), bytes, operations }
    }

    /// Of writing new keys and values.
    pub(crate) fn kv_write(kv: &KvLayer<'_>, tokens: usize) -> Work {
        let bytes = kv_write_bytes(&kv.shape, tokens);
        Work { op: "kv_write", weights: String::new(), types: kv.shape.key_type.name().into(), bytes, operations: 0 }
    }

    /// Of an element-wise operation over `n` activations.
    pub(crate) fn elementwise(op: &'static str, n: usize, operands: usize) -> Work {
        let bytes = elementwise_bytes(n, operands);
        Work { op, weights: String::new(), types: String::new(), bytes, operations: 0 }
    }
}

/// `blk.3.attn_q.weight` as `attn_q`.
fn short_name(name: &str) -> &str {
    let name = name.strip_suffix(".weight").unwrap_or(name);
    match name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
        Some((_, own)) => own,
        None => name,
    }
}

/// Each type once, in order of appearance.
fn types<'a>(weights: impl IntoIterator<Item = &'a Tensor>) -> String {
    let mut found: Vec<&str> = Vec::new();
    for weight in weights {
        if !found.contains(&weight.dtype.name()) {
            found.push(weight.dtype.name());
        }
    }
    found.join(" ")
}

/// Operation, weights and types: what calls are added up by.
type Key = (&'static str, String, String);

/// Collects calls while it is switched on.
#[derive(Debug, Default)]
pub(crate) struct Observer {
    on: AtomicBool,
    entries: Mutex<HashMap<Key, Entry>>,
}

/// A call under observation; it ends when this is dropped.
pub(crate) struct Watch<'a> {
    observer: &'a Observer,
    work: Option<Work>,
    began: Instant,
}

impl Observer {
    /// Begins or stops to collect.
    pub(crate) fn switch(&self, on: bool) {
        self.on.store(on, Ordering::Relaxed);
    }

    /// What was collected, the longest first; the observer is empty afterwards.
    pub(crate) fn take(&self) -> Vec<Entry> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<Entry> = entries.drain().map(|(_, entry)| entry).collect();
        all.sort_by(|a, b| b.time.cmp(&a.time).then_with(|| a.work.op.cmp(b.work.op)));
        all
    }

    /// Begins to watch a call; `None` while switched off.
    #[inline]
    pub(crate) fn watch(&self, work: impl FnOnce() -> Work) -> Option<Watch<'_>> {
        if !self.on.load(Ordering::Relaxed) {
            return None;
        }
        let work = Some(work());
        Some(Watch { observer: self, work, began: Instant::now() })
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        let time = self.began.elapsed();
        let Some(work) = self.work.take() else { return };
        let mut entries = self.observer.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (work.op, work.weights.clone(), work.types.clone());
        let sum = entries.entry(key).or_insert_with(|| Entry {
            work: Work { bytes: 0, operations: 0, ..work.clone() },
            calls: 0,
            time: Duration::ZERO,
        });
        sum.calls += 1;
        sum.time += time;
        sum.work.bytes += work.bytes;
        sum.work.operations += work.operations;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_of_the_same_weights_are_added_up() {
        let observer = Observer::default();
        assert!(observer.watch(|| unreachable!("not asked while switched off")).is_none());
        observer.switch(true);
        for _ in 0..3 {
            drop(observer.watch(|| Work::elementwise("add", 10, 2)));
        }
        drop(observer.watch(|| Work { op: "matmul", operations: 7, ..Work::elementwise("", 1, 1) }));
        let mut entries = observer.take();
        entries.sort_by_key(|entry| entry.work.op);
        let seen: Vec<_> = entries.iter().map(|e| (e.work.op, e.calls, e.work.bytes, e.work.operations)).collect();
        assert_eq!(seen, [("add", 3, 360, 0), ("matmul", 1, 8, 7)]);
        assert!(observer.take().is_empty());
    }

    #[test]
    fn names_lose_their_block() {
        let short = ["blk.12.attn_q.weight", "output.weight", "blk.3.ffn_down.weight"].map(short_name);
        assert_eq!(short, ["attn_q", "output", "ffn_down"]);
    }
}
