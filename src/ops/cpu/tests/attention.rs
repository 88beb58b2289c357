//! Attention and the cache: against the reference, across batches, threads and cuts of a prompt.

use super::{Rng, cpu, tiers};
use crate::ops::cpu::{AttentionSize, Cpu, expanded_states};
use crate::ops::{Attention, ExpandedAttention, KV_BLOCK, KvLayer, KvShape, SeqSlice, reference};
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

const TYPES: [DType; 6] = [DType::F32, DType::F16, DType::BF16, DType::Q8_0, DType::Q4_0, DType::Q4_1];

fn shape(kv_heads: usize, key_dim: usize, value_dim: usize, dtype: DType) -> KvShape {
    KvShape { kv_heads, key_dim, value_dim, key_type: dtype, value_type: dtype, latent: false }
}

/// Values are a part of the keys.
fn latent(key_dim: usize, value_dim: usize, dtype: DType) -> KvShape {
    KvShape { latent: true, ..shape(1, key_dim, value_dim, dtype) }
}

/// Blocks of sequence `s` of `n`, interleaved with the others'.
fn blocks(s: usize, n: usize, tokens: usize) -> Vec<u32> {
    (0..tokens.div_ceil(KV_BLOCK)).rev().map(|b| (b * n + s) as u32).collect()
}

struct Case {
    shape: KvShape,
    heads: usize,
    window: Option<usize>,
    sinks: bool,
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
        // Among those of the scores' size one that takes all the weight and one that takes none.
        let sink = |head| {
            if head % 5 == 3 {
                70.0
            } else if head % 5 == 4 {
                -1e30
            } else {
                (head as f32).sin() * 6.0
            }
        };
        let sinks: Option<Vec<f32>> = case.sinks.then(|| (0..case.heads).map(sink).collect());
        let (heads, window, sinks) = (case.heads, case.window, sinks.as_deref());
        f(Attention { q: &q, heads, kv, seqs: &seqs, scale, window, sinks, out: &mut out });
        out
    }
}

fn cases(dtype: DType) -> Vec<Case> {
    let case = |shape, heads, window, seqs: &[(usize, usize)]| Case {
        shape,
        heads,
        window,
        sinks: false,
        seqs: seqs.to_vec(),
    };
    let mut cases = vec![
        case(shape(1, 32, 32, dtype), 1, None, &[(1, 1)]),
        case(shape(2, 64, 64, dtype), 14, None, &[(33, 33), (100, 1)]),
        case(shape(1, 128, 128, dtype), 3, None, &[(1300, 2)]),
        case(shape(3, 32, 96, dtype), 3, Some(520), &[(1200, 12), (5, 5)]),
        case(shape(2, 64, 32, dtype), 18, Some(1), &[(65, 65)]),
        case(shape(1, 32, 32, dtype), 71, Some(33), &[(70, 40), (64, 1), (1, 1)]),
    ];
    // At, below and beyond the window, and of a block's size.
    let edges = [(32, 32), (31, 1), (33, 33), (33, 1), (64, 3)];
    cases.push(case(shape(1, 32, 32, dtype), 2, Some(32), &edges));
    // Sinks: a share that several splits must count once, with a window and without.
    let sinks = |case| Case { sinks: true, ..case };
    cases.push(sinks(case(shape(2, 64, 64, dtype), 16, None, &[(1300, 2), (40, 40)])));
    cases.push(sinks(case(shape(1, 64, 64, dtype), 8, Some(16), &[(70, 70), (16, 16), (1100, 1)])));
    cases.push(sinks(case(shape(2, 64, 64, dtype), 10, Some(600), &[(1250, 1)])));
    if dtype.block_len() == 1 {
        cases.push(case(shape(2, 20, 36, dtype), 4, Some(7), &[(70, 70), (40, 3), (31, 31)]));
        cases.push(case(shape(1, 8, 8, dtype), 40, Some(1), &[(65, 65)]));
    }
    cases.push(case(latent(576, 512, dtype), 16, None, &[(100, 1), (7, 7)]));
    cases.push(case(latent(96, 64, dtype), 20, None, &[(1200, 2), (40, 33), (5, 5)]));
    cases.push(case(latent(64, 48, dtype), 53, Some(45), &[(70, 40), (1, 1)]));
    // Keys and values of different types.
    let mixed = KvShape { key_type: DType::Q8_0, ..shape(2, 64, 64, dtype) };
    cases.push(case(mixed, 8, None, &[(90, 50)]));
    cases
}

/// How far a result may be from the reference, in units of the largest value: F32 sums; with quantised values each of 32
/// weights may be off by half of 1/32767 of the largest, a sixteenth of what rounding a value to Q8_0 costs.
fn allowed(shape: &KvShape) -> f32 {
    if shape.value_type.block_len() == 1 { 2e-5 } else { 32.0 * 0.5 / 32767.0 }
}

fn assert_every_tier(case: &Case, data: &mut Data, magnitude: f32, what: &str) {
    let want = data.run(case, reference::attention);
    let mut first: Option<Vec<f32>> = None;
    for isa in tiers() {
        for threads in [1, 5] {
            let cpu = cpu(isa, threads);
            let got = data.run(case, |args| cpu.attention(args));
            for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                let allowed = allowed(&case.shape) * magnitude;
                assert!((got - want).abs() <= allowed, "{what} {isa:?} {threads} threads [{i}]: {got} for {want}");
            }
            let first = first.get_or_insert_with(|| got.clone());
            assert!(*first == got, "{what} {isa:?} {threads} threads: other bits");
        }
    }
}

#[test]
fn every_tier_equals_the_reference() {
    for dtype in TYPES {
        let mut rng = Rng::new(11);
        for (c, case) in cases(dtype).iter().enumerate() {
            assert_every_tier(case, &mut fill(case, &mut rng), 1.0, &format!("{dtype} case {c}"));
        }
    }
}

/// All keys alike, huge and tiny numbers, one token that takes all the weight, zeros.
#[test]
fn adversarial_numbers_equal_the_reference() {
    for dtype in TYPES {
        let case = Case {
            shape: shape(2, 64, 64, dtype),
            heads: 10,
            window: None,
            sinks: false,
            seqs: vec![(75, 70), (33, 1)],
        };
        let mut rng = Rng::new(15);
        let random = fill(&case, &mut rng);
        for (what, key, value, magnitude) in [
            ("equal keys", (|_| 0.5) as fn(usize) -> f32, (|i| (i % 7) as f32 - 3.0) as fn(usize) -> f32, 4.0),
            ("huge values", |i| (i % 3) as f32 * 0.1, |i| ((i % 11) as f32 - 5.0) * 1e4, 5e4),
            ("tiny values", |i| (i % 5) as f32 * 0.1, |i| ((i % 11) as f32 - 5.0) * 1e-3, 5e-3),
            ("one winner", |i| if i / 128 == 20 { 8.0 } else { -8.0 }, |i| (i / 128) as f32, 80.0),
            ("zeros", |_| 0.0, |_| 0.0, 1e-30),
            ("uneven scales", |i| (i % 13) as f32 * 0.1, |i| if i / 128 % 9 == 4 { 100.0 } else { 1e-3 }, 100.0),
        ] {
            let mut data =
                Data { cache: Cache::new(case.shape, 6), q: random.q.clone(), blocks: random.blocks.clone() };
            for (&(len, _), blocks) in case.seqs.iter().zip(&data.blocks) {
                let numbers = |f: fn(usize) -> f32| (0..len * 128).map(f).collect::<Vec<_>>();
                let seq = SeqSlice { first_row: 0, rows: len, start: 0, blocks };
                reference::kv_write(&mut data.cache.layer(), &numbers(key), &numbers(value), &[seq]);
            }
            assert_every_tier(&case, &mut data, magnitude, &format!("{dtype} {what}"));
        }
    }
}

/// Buffers of any fixed size give the same bits and stay as they are: with too little room for partial results an item
/// is computed by one thread.
#[test]
fn reserved_buffers_do_not_grow() {
    let mut rng = Rng::new(15);
    let tier = tiers().last().unwrap();
    for case in [DType::F16, DType::Q4_1].into_iter().flat_map(cases) {
        let mut data = fill(&case, &mut rng);
        let want = data.run(&case, |args| cpu(tier, 1).attention(args));
        for kv_tokens in [0, 1 << 16] {
            let mut cpu = cpu(tier, 8);
            let size = AttentionSize { heads: case.heads, shape: case.shape, kv_tokens, expanded_key: 0 };
            cpu.reserve_attention(&size);
            assert!(data.run(&case, |args| cpu.attention(args)) == want, "{kv_tokens} tokens reserved: other bits");
            assert_eq!(cpu.reserved(), size.bytes(cpu.threads()));
        }
    }
}

/// A token's result is the same in a prompt at once, in any cut of it, and beside other sequences.
#[test]
fn cuts_and_neighbours_do_not_change_a_bit() {
    let mut rng = Rng::new(12);
    for (dtype, window) in [(DType::F16, None), (DType::F16, Some(45)), (DType::Q8_0, None), (DType::Q4_1, Some(45))] {
        let sinks = dtype == DType::F16;
        let whole = Case { shape: shape(2, 64, 64, dtype), heads: 6, window, sinks, seqs: vec![(700, 700), (90, 90)] };
        let mut data = fill(&whole, &mut rng);
        let cpu = cpu(tiers().last().unwrap(), 3);
        let want = data.run(&whole, |args| cpu.attention(args));
        let width = whole.heads * whole.shape.value_dim;
        for new in [1, 2, 17, 190] {
            for len in [700, 513, 512, 511, 250] {
                let case = Case {
                    seqs: vec![(len, new), (90, 1)],
                    ..Case { shape: whole.shape, heads: 6, window, sinks, seqs: vec![] }
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
    for dtype in TYPES {
        for isa in tiers() {
            let shape = if dtype.block_len() == 1 { shape(3, 20, 36, dtype) } else { shape(3, 32, 64, dtype) };
            for shape in [shape, latent(96, 64, dtype)] {
                let (mut a, mut b) = (Cache::new(shape, 12), Cache::new(shape, 12));
                let (one, two) = ([7u32, 2, 9], [0u32, 5]);
                let seqs = [
                    SeqSlice { first_row: 2, rows: 40, start: 30, blocks: &one },
                    SeqSlice { first_row: 0, rows: 2, start: 31, blocks: &two },
                ];
                let heads = 42 * shape.kv_heads;
                let (mut k, v) = (rng.vec(heads * shape.key_dim), rng.vec(heads * shape.written_value()));
                k[7] = f32::INFINITY;
                reference::kv_write(&mut a.layer(), &k, &v, &seqs);
                cpu(isa, 2).kv_write(&mut b.layer(), &k, &v, &seqs);
                assert!(a.keys == b.keys && a.values == b.values, "{dtype} {isa:?}");
            }
        }
    }
}

#[test]
fn non_finite_queries_do_not_crash() {
    let mut rng = Rng::new(14);
    let width = 32;
    for dtype in TYPES {
        let case =
            Case { shape: shape(1, width, width, dtype), heads: 2, window: None, sinks: false, seqs: vec![(600, 3)] };
        let mut data = fill(&case, &mut rng);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX] {
            data.q[0][597 * 2 * width..][..width].fill(bad);
            for isa in tiers() {
                let cpu: Cpu = cpu(isa, 2);
                let out = data.run(&case, |args| cpu.attention(args));
                assert!(out[width..].iter().all(|v| v.is_finite()), "{dtype} {bad} {isa:?}");
                assert!(bad == f32::MAX || out[..width].iter().all(|v| v.is_nan()), "{dtype} {bad} {isa:?}: hidden");
            }
        }
    }
}

/// Over keys and values of its own each head attends as it would over a cache of theirs, however the context is cut.
#[test]
fn expanded_attention_equals_the_reference_in_runs_of_any_length() {
    let mut rng = Rng::new(16);
    let (heads, key_dim, value_dim) = (3, 48, 32);
    for (len, new) in [(1, 1), (70, 70), (700, 130), (515, 4)] {
        let case = Case {
            shape: shape(heads, key_dim, value_dim, DType::F32),
            heads,
            window: None,
            sinks: false,
            seqs: vec![(len, new)],
        };
        let mut data = fill(&case, &mut rng);
        let want = data.run(&case, reference::attention);
        let padded = len.next_multiple_of(KV_BLOCK);
        // Head by head, as the reference has them token by token; zeros behind the last.
        let by_head = |dim: usize, at: &dyn Fn(usize, usize, usize) -> f32| -> Vec<f32> {
            let rows = (0..heads).flat_map(|h| (0..padded).map(move |t| (h, t)));
            rows.flat_map(|(h, t)| (0..dim).map(move |d| (h, t, d)))
                .map(|(h, t, d)| if t < len { at(h, t, d) } else { 0.0 })
                .collect()
        };
        let (cache, blocks) = (&data.cache, &data.blocks[0]);
        let stored = |bytes: &[u8], at: usize| f32::from_le_bytes(bytes[4 * at..][..4].try_into().unwrap());
        let place = |t: usize, h: usize| (blocks[t / KV_BLOCK] as usize * heads + h) * KV_BLOCK;
        let key = |h, t, d| stored(&cache.keys, place(t, h) * key_dim + d * KV_BLOCK + t % KV_BLOCK);
        let value = |h, t, d| stored(&cache.values, (place(t, h) + t % KV_BLOCK) * value_dim + d);
        let (keys, values) = (by_head(key_dim, &key), by_head(value_dim, &value));
        let q = data.q[0][(len - new) * heads * key_dim..].to_vec();
        let mut first: Option<Vec<f32>> = None;
        for (isa, threads, run) in tiers().flat_map(|isa| [(isa, 1, 512), (isa, 4, 32), (isa, 3, 96)]) {
            let (cpu, mut out) = (cpu(isa, threads), vec![f32::NAN; new * heads * value_dim]);
            let mut states = vec![f32::NAN; expanded_states(new, heads, value_dim)];
            for first in (0..padded).step_by(run) {
                let n = run.min(padded - first);
                let part = |all: &[f32], dim: usize| -> Vec<f32> {
                    all.chunks_exact(padded * dim).flat_map(|head| head[first * dim..][..n * dim].to_vec()).collect()
                };
                cpu.expanded_attention(ExpandedAttention {
                    q: &q,
                    heads,
                    key_dim,
                    value_dim,
                    keys: &part(&keys, key_dim),
                    values: &part(&values, value_dim),
                    start: len - new,
                    first,
                    scale: 1.0 / (key_dim as f32).sqrt(),
                    states: &mut states,
                    out: (first + n == padded).then_some(&mut out),
                });
            }
            let off = out.iter().zip(&want).fold(0.0f32, |max, (out, want)| max.max((out - want).abs()));
            assert!(off <= 2e-5, "{new} of {len}, {isa:?}, runs of {run}: off by {off}");
            assert!(
                *first.get_or_insert_with(|| out.clone()) == out,
                "{new} of {len}, {isa:?}, runs of {run}: other bits"
            );
        }
    }
}
