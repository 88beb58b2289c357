//! Attention and the cache: against the reference, across batches, threads and cuts of a prompt.

use super::{Rng, cpu, tiers};
use crate::ops::cpu::{AttentionSize, Cpu};
use crate::ops::{Attention, KV_BLOCK, KvLayer, KvShape, SeqSlice, reference};
use crate::quant::DType;

/// A cache with room to spare and blocks in scattered order.
struct Cache {
    shape: KvShape,
    keys: Vec<u8>,
    values: Vec<u8>,
}

impl Cache {
    fn new(shape: KvShape, blocks: usize) -> Cache {
        // Bytes that are NaN in both types: what was not written must not be read.
        let (keys, values) =
            (vec![0xff; blocks * shape.key_block_bytes()], vec![0xff; blocks * shape.value_block_bytes()]);
        Cache { shape, keys, values }
    }

    fn layer(&mut self) -> KvLayer<'_> {
        KvLayer { shape: self.shape, keys: &mut self.keys, values: &mut self.values }
    }
}

fn shape(kv_heads: usize, key_dim: usize, value_dim: usize, dtype: DType) -> KvShape {
    KvShape { kv_heads, key_dim, value_dim, dtype }
}

/// Blocks of sequence `s` of `n`, interleaved with the others'.
fn blocks(s: usize, n: usize, tokens: usize) -> Vec<u32> {
    (0..tokens.div_ceil(KV_BLOCK)).rev().map(|b| (b * n + s) as u32).collect()
}

struct Case {
    shape: KvShape,
    heads: usize,
    window: Option<usize>,
    /// Tokens of each sequence, and how many of them are new.
    seqs: Vec<(usize, usize)>,
}

struct Data {
    cache: Cache,
    q: Vec<Vec<f32>>,
    blocks: Vec<Vec<u32>>,
}

/// Random keys and values of all sequences in a cache, and random queries for all their tokens.
fn fill(case: &Case, rng: &mut Rng) -> Data {
    let n = case.seqs.len();
    let most = case.seqs.iter().map(|s| s.0).max().unwrap();
    let mut cache = Cache::new(case.shape, n * most.div_ceil(KV_BLOCK));
    let table: Vec<Vec<u32>> = case.seqs.iter().enumerate().map(|(s, &(len, _))| blocks(s, n, len)).collect();
    let mut q = Vec::new();
    for (&(len, _), blocks) in case.seqs.iter().zip(&table) {
        let k = rng.vec(len * case.shape.kv_heads * case.shape.key_dim);
        let v = rng.vec(len * case.shape.kv_heads * case.shape.value_dim);
        reference::kv_write(&mut cache.layer(), &k, &v, &[SeqSlice { first_row: 0, rows: len, start: 0, blocks }]);
        q.push(rng.vec(len * case.heads * case.shape.key_dim).iter().map(|q| 4.0 * q).collect());
    }
    Data { cache, q, blocks: table }
}

impl Data {
    /// The new tokens of all sequences as one batch.
    fn run(&mut self, case: &Case, f: impl Fn(Attention<'_>)) -> Vec<f32> {
        let width = case.heads * case.shape.key_dim;
        let (mut q, mut seqs, mut row) = (Vec::new(), Vec::new(), 0);
        for ((&(len, new), queries), blocks) in case.seqs.iter().zip(&self.q).zip(&self.blocks) {
            q.extend_from_slice(&queries[(len - new) * width..]);
            seqs.push(SeqSlice { first_row: row, rows: new, start: len - new, blocks });
            row += new;
        }
        let mut out = vec![f32::NAN; row * case.heads * case.shape.value_dim];
        let kv = &self.cache.layer();
        let scale = 1.0 / (case.shape.key_dim as f32).sqrt();
        f(Attention { q: &q, heads: case.heads, kv, seqs: &seqs, scale, window: case.window, out: &mut out });
        out
    }
}

fn cases() -> Vec<Case> {
    let case = |shape, heads, window, seqs: &[(usize, usize)]| Case { shape, heads, window, seqs: seqs.to_vec() };
    vec![
        case(shape(1, 16, 16, DType::F32), 1, None, &[(1, 1)]),
        case(shape(2, 64, 64, DType::F16), 12, None, &[(33, 33), (100, 1)]),
        case(shape(2, 20, 36, DType::F32), 4, Some(7), &[(70, 70), (40, 3), (31, 31)]),
        case(shape(1, 128, 128, DType::F16), 3, None, &[(1300, 2)]),
        case(shape(3, 32, 80, DType::F16), 3, Some(600), &[(1200, 40), (5, 5)]),
        case(shape(1, 8, 8, DType::F32), 40, Some(1), &[(65, 65)]),
    ]
}

#[test]
fn every_tier_equals_the_reference() {
    let mut rng = Rng::new(11);
    for (c, case) in cases().iter().enumerate() {
        let mut data = fill(case, &mut rng);
        let want = data.run(case, reference::attention);
        let mut first: Option<Vec<f32>> = None;
        for isa in tiers() {
            for threads in [1, 2, 8] {
                let cpu = cpu(isa, threads);
                let got = data.run(case, |args| cpu.attention(args));
                for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                    assert!((got - want).abs() < 2e-5, "case {c} {isa:?} {threads} threads [{i}]: {got} for {want}");
                }
                let first = first.get_or_insert_with(|| got.clone());
                assert!(*first == got, "case {c} {isa:?} {threads} threads: other bits");
            }
        }
    }
}

/// Buffers of any fixed size give the same bits and stay as they are: with too little room for partial results an item
/// is computed by one thread.
#[test]
fn reserved_buffers_do_not_grow() {
    let mut rng = Rng::new(15);
    let tier = tiers().last().unwrap();
    for case in cases() {
        let mut data = fill(&case, &mut rng);
        let KvShape { kv_heads, key_dim, value_dim, .. } = case.shape;
        let want = data.run(&case, |args| cpu(tier, 1).attention(args));
        for kv_tokens in [0, 1 << 16] {
            let mut cpu = cpu(tier, 8);
            let size = AttentionSize { heads: case.heads, kv_heads, key_dim, value_dim, kv_tokens };
            cpu.reserve_attention(&size);
            assert!(data.run(&case, |args| cpu.attention(args)) == want, "{kv_tokens} tokens reserved: other bits");
            assert_eq!(cpu.reserved(), size.bytes(8));
        }
    }
}

/// A token's result is the same in a prompt at once, in any cut of it, and beside other sequences.
#[test]
fn cuts_and_neighbours_do_not_change_a_bit() {
    let mut rng = Rng::new(12);
    for window in [None, Some(45)] {
        let whole = Case { shape: shape(2, 64, 64, DType::F16), heads: 6, window, seqs: vec![(700, 700), (90, 90)] };
        let mut data = fill(&whole, &mut rng);
        let cpu = cpu(tiers().last().unwrap(), 3);
        let want = data.run(&whole, |args| cpu.attention(args));
        let width = whole.heads * whole.shape.value_dim;
        for new in [1, 2, 17, 190] {
            for len in [700, 513, 512, 511, 250] {
                let case = Case {
                    seqs: vec![(len, new), (90, 1)],
                    ..Case { shape: whole.shape, heads: 6, window, seqs: vec![] }
                };
                let mut part = Data {
                    cache: Cache {
                        shape: data.cache.shape,
                        keys: data.cache.keys.clone(),
                        values: data.cache.values.clone(),
                    },
                    q: vec![data.q[0][..len * 6 * 64].to_vec(), data.q[1].clone()],
                    blocks: data.blocks.clone(),
                };
                let got = part.run(&case, |args| cpu.attention(args));
                assert!(got[..new * width] == want[(len - new) * width..len * width], "{new} of {len}");
                assert!(got[new * width..] == want[(700 + 89) * width..], "neighbour of {new} of {len}");
            }
        }
    }
}

#[test]
fn keys_and_values_are_written_where_the_reference_writes_them() {
    let mut rng = Rng::new(13);
    for dtype in [DType::F32, DType::F16] {
        for isa in tiers() {
            let shape = shape(3, 20, 36, dtype);
            let (mut a, mut b) = (Cache::new(shape, 12), Cache::new(shape, 12));
            let (one, two) = ([7u32, 2, 9], [0u32, 5]);
            let seqs = [
                SeqSlice { first_row: 2, rows: 40, start: 30, blocks: &one },
                SeqSlice { first_row: 0, rows: 2, start: 31, blocks: &two },
            ];
            let (k, v) = (rng.vec(42 * 3 * 20), rng.vec(42 * 3 * 36));
            reference::kv_write(&mut a.layer(), &k, &v, &seqs);
            cpu(isa, 2).kv_write(&mut b.layer(), &k, &v, &seqs);
            assert!(a.keys == b.keys && a.values == b.values, "{dtype} {isa:?}");
        }
    }
}

#[test]
fn non_finite_queries_do_not_crash() {
    let mut rng = Rng::new(14);
    let case = Case { shape: shape(1, 16, 16, DType::F16), heads: 2, window: None, seqs: vec![(600, 3)] };
    let mut data = fill(&case, &mut rng);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX] {
        data.q[0][597 * 32..][..16].fill(bad);
        for isa in tiers() {
            let cpu: Cpu = cpu(isa, 2);
            let out = data.run(&case, |args| cpu.attention(args));
            assert!(out[16..].iter().all(|v| v.is_finite()), "{bad} {isa:?}");
        }
    }
}
