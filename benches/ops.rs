//! Speed of the operations: GB/s of decoding and GOP/s of prefill per weight type and tier, against this machine's limits
//! probed in the same minute with the same threads.
//!
//! ```text
//! cargo bench --bench ops -- [--threads N] [--rounds N] [--tokens N] [--tier NAME] [--type NAME] [--plain] [--attention]
//! ```
//! Each tier computes in the layout it asks for, packed or plain; `--plain` keeps GGUF's. Decoding walks over more weights than any cache holds; each matrix counts with its best time of several rounds, in
//! which the tiers take turns, and so does each slice of the bandwidth probe. Compare ratios, not machines. Records: `benches/records/`.

use omni_inferd::ops::cpu::{Cpu, Options, Scratch};
use omni_inferd::ops::{Attention, KvLayer, KvShape, MatMul, SeqSlice, Tensor};
use omni_inferd::quant::{DType, Layout};
use std::hint::black_box;
use std::sync::{Arc, Barrier, Mutex};
use std::time::{Duration, Instant};

/// Qwen2.5-1.5B: feed-forward up, `[rows, cols]`, and down.
const SHAPES: [(usize, usize); 2] = [(8960, 1536), (1536, 8960)];
/// Bytes of weights per type that a decoding round walks over: beyond any cache.
const FOOTPRINT: usize = 256 << 20;
/// Rows of the matrices that many tokens are multiplied with: few, so that a round fits between two interruptions.
const PREFILL_ROWS: usize = 512;
const TYPES: [DType; 26] = [
    DType::Q8_0,
    DType::Q4_0,
    DType::Q4_1,
    DType::Q5_0,
    DType::Q5_1,
    DType::Q2_K,
    DType::Q3_K,
    DType::Q4_K,
    DType::Q5_K,
    DType::Q6_K,
    DType::IQ1_S,
    DType::IQ1_M,
    DType::IQ2_XXS,
    DType::IQ2_XS,
    DType::IQ2_S,
    DType::IQ3_XXS,
    DType::IQ3_S,
    DType::IQ4_NL,
    DType::IQ4_XS,
    DType::TQ1_0,
    DType::TQ2_0,
    DType::MXFP4,
    DType::NVFP4,
    DType::F16,
    DType::BF16,
    DType::F32,
];

struct Settings {
    threads: Option<usize>,
    rounds: usize,
    tokens: usize,
    tier: Option<String>,
    dtype: Option<String>,
    plain: bool,
    attention: bool,
}

fn main() {
    let settings = settings();
    let tiers = tiers(&settings);
    let threads = tiers.first().map_or(1, Cpu::threads);
    let limit = bandwidth(threads, settings.rounds);
    let wanted = |dtype: DType| settings.dtype.as_ref().is_none_or(|name| name.eq_ignore_ascii_case(dtype.name()));
    println!("threads {threads}, read bandwidth {limit:.1} GB/s");
    if settings.attention {
        let types = [DType::F16, DType::BF16, DType::F32, DType::Q8_0, DType::Q4_1, DType::Q4_0];
        for dtype in types.into_iter().filter(|dtype| wanted(*dtype)) {
            attention(&tiers, dtype, settings.rounds, limit);
        }
        return;
    }
    println!("{:<33} {:>8} {:>8} {:>10}   ({} tokens)", "kernel", "GB/s", "of read", "GOP/s", settings.tokens);
    for dtype in TYPES.into_iter().filter(|dtype| wanted(*dtype)) {
        for layout in [Layout::Packed, Layout::Plain] {
            // The tier with BF16 is another for that type alone.
            let own = |cpu: &Cpu| dtype == DType::BF16 || cpu.isa() != "avx512bf16" || settings.tier.is_some();
            let in_layout =
                |cpu: &Cpu| if settings.plain { Layout::Plain } else { cpu.layout(dtype, 16, 256) } == layout;
            let wants = |cpu: &&Cpu| own(cpu) && in_layout(cpu);
            let tiers: Vec<&Cpu> = tiers.iter().filter(wants).collect();
            if !tiers.is_empty() {
                products(&tiers, dtype, layout, &settings, limit);
            }
        }
    }
}

fn settings() -> Settings {
    let args: Vec<String> = std::env::args().collect();
    let value = |name: &str| args.iter().position(|a| a == name).and_then(|i| args.get(i + 1)).cloned();
    let number = |name: &str| value(name).and_then(|v| v.parse::<usize>().ok());
    Settings {
        threads: number("--threads"),
        rounds: number("--rounds").unwrap_or(7),
        tokens: number("--tokens").unwrap_or(64),
        tier: value("--tier"),
        dtype: value("--type"),
        plain: args.iter().any(|a| a == "--plain"),
        attention: args.iter().any(|a| a == "--attention"),
    }
}

/// A backend per tier of this host.
fn tiers(settings: &Settings) -> Vec<Cpu> {
    let all = ["avx2", "avx512", "avx512vnni", "avx512bf16"];
    let mut found: Vec<Cpu> = Vec::new();
    for disabled in (0..=all.len()).rev() {
        let disable_isa = all.get(disabled).map(|name| (*name).to_owned()).into_iter().collect();
        let options = Options { threads: settings.threads, disable_isa, ..Options::default() };
        match Cpu::new(&options) {
            Ok(cpu) if found.iter().all(|f| f.isa() != cpu.isa()) => found.push(cpu),
            Ok(_) => {}
            Err(error) => panic!("{error}"),
        }
    }
    found.retain(|cpu| settings.tier.as_ref().map_or(cpu.isa() != "scalar", |tier| tier == cpu.isa()));
    found
}

/// Read bandwidth of `threads` threads, GB/s: slices of 8 MiB a thread, each at its best.
fn bandwidth(threads: usize, rounds: usize) -> f64 {
    let data: Vec<u64> = vec![1; FOOTPRINT / 8];
    let slices: Vec<&[u64]> = data.chunks(threads << 20).collect();
    let barrier = Barrier::new(threads);
    let times = Mutex::new(vec![Duration::MAX; slices.len()]);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (slices, barrier, times) = (&slices, &barrier, &times);
            scope.spawn(move || {
                for (i, slice) in (0..rounds).flat_map(|_| slices.iter().enumerate()) {
                    barrier.wait();
                    let began = Instant::now();
                    let mut sums = [0u64; 32];
                    for chunk in slice[thread << 20..(thread + 1) << 20].chunks_exact(32) {
                        sums.iter_mut().zip(chunk).for_each(|(sum, x)| *sum ^= *x);
                    }
                    black_box(sums);
                    barrier.wait();
                    if let (0, Ok(mut times)) = (thread, times.lock()) {
                        times[i] = times[i].min(began.elapsed());
                    }
                }
            });
        }
    });
    let total: Duration = times.lock().map(|times| times.iter().sum()).unwrap_or_default();
    FOOTPRINT as f64 / total.as_nanos() as f64
}

fn best(rounds: usize, mut f: impl FnMut()) -> Duration {
    (0..rounds)
        .map(|_| {
            let began = Instant::now();
            f();
            began.elapsed()
        })
        .min()
        .unwrap_or_default()
}

/// Random blocks; factors small so that sums stay finite.
fn weights(dtype: DType, layout: Layout, rows: usize, cols: usize) -> Tensor {
    let n = dtype.row_bytes(cols).map_or(0, |row| row * rows);
    // The IQ types' codebooks are to be met with any index: only the factor, which is at the start of most, is small.
    let small = if dtype.has_encoder() { usize::MAX } else { 2 };
    let mut state = 1u64;
    let mut bytes: Vec<u8> = (0..n)
        .map(|i| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8 & if i % dtype.block_bytes() < small { 0x3b } else { 0xff }
        })
        .collect();
    let offset = bytes.as_ptr().align_offset(64);
    bytes.splice(0..0, std::iter::repeat_n(0, offset));
    let tensor = Tensor::new("bench", dtype, rows, cols, Arc::new(bytes), offset..offset + n);
    // Random bytes are as good in any order, but for the factors, which stay small in both.
    match if layout == Layout::Packed { tensor.and_then(Tensor::packed) } else { tensor } {
        Ok(tensor) => tensor,
        Err(error) => panic!("{error}"),
    }
}

/// Decoding over many matrices, then part of a matrix times many tokens.
fn products(tiers: &[&Cpu], dtype: DType, layout: Layout, settings: &Settings, limit: f64) {
    let mut prefill = vec![0.0f64; tiers.len()];
    let mut bytes = 0;
    let sets: Vec<Vec<Tensor>> = SHAPES
        .iter()
        .map(|&(rows, cols)| {
            let one = weights(dtype, layout, rows, cols);
            let copies = (FOOTPRINT / 2 / one.bytes().len()).max(1);
            bytes += copies * one.bytes().len();
            (0..copies).map(|i| if i == 0 { one.clone() } else { weights(dtype, layout, rows, cols) }).collect()
        })
        .collect();
    let mut scratch = Scratch::new();
    let matrices: Vec<&Tensor> = sets.iter().flatten().collect();
    let mut decode = vec![vec![Duration::MAX; matrices.len()]; tiers.len()];
    for _ in 0..settings.rounds {
        for (cpu, times) in tiers.iter().zip(&mut decode) {
            for (weight, time) in matrices.iter().zip(times) {
                let (x, mut out) = (vec![0.5; weight.cols], vec![0.0; weight.rows]);
                let mut jobs = [MatMul { weight, bias: None, out: &mut out }];
                *time = best(1, || cpu.matmul(&x, &mut jobs, &mut scratch)).min(*time);
                black_box(out);
            }
        }
    }
    for (_, cols) in SHAPES {
        let weight = &weights(dtype, layout, PREFILL_ROWS, cols);
        let x: Vec<f32> = (0..cols * settings.tokens).map(|i| (i % 251) as f32 - 125.0).collect();
        let mut out = vec![0.0; PREFILL_ROWS * settings.tokens];
        for _ in 0..4 * settings.rounds {
            for (cpu, rate) in tiers.iter().zip(&mut prefill) {
                let mut jobs = [MatMul { weight, bias: None, out: &mut out }];
                let operations = jobs[0].operations(settings.tokens);
                let took = best(1, || cpu.matmul(&x, &mut jobs, &mut scratch));
                *rate = rate.max(operations as f64 / took.as_nanos() as f64);
            }
        }
    }
    for (i, cpu) in tiers.iter().enumerate() {
        let rate = bytes as f64 / decode[i].iter().sum::<Duration>().as_nanos() as f64;
        let acts = match dtype.block_len() {
            1 if cpu.isa() == "avx512bf16" && dtype == DType::BF16 => "bf16",
            1 => "f32",
            32 | 64 => "q8",
            _ => "q8k",
        };
        let plain = if layout == Layout::Plain && dtype.block_len() > 1 { "_plain" } else { "" };
        let name = format!("gem{{v,m}}_{}_{acts}_{}{plain}", dtype.name().to_lowercase().replace('_', ""), cpu.isa());
        println!("{name:<33} {rate:>8.1} {:>7.0}% {:>10.0}", 100.0 * rate / limit, prefill[i]);
    }
}

/// Qwen2.5-1.5B's attention: one token at a long context, and a prompt.
fn attention(tiers: &[Cpu], dtype: DType, rounds: usize, limit: f64) {
    let shape =
        KvShape { kv_heads: 2, key_dim: 128, value_dim: 128, key_type: dtype, value_type: dtype, latent: false };
    for (context, rows) in [(4096, 1), (32_768, 1), (512, 512), (4096, 512)] {
        let blocks: Vec<u32> = (0..(context / 32) as u32).collect();
        // Several layers' caches in turn, so that decoding finds its keys and values in no cache.
        let layers = if rows == 1 { (FOOTPRINT / (context * shape.token_bytes())).max(1) } else { 1 };
        let (key_bytes, value_bytes) =
            (blocks.len() * shape.key_block_bytes(), blocks.len() * shape.value_block_bytes());
        let (mut keys, mut values) = (vec![0x11u8; layers * key_bytes], vec![0x11u8; layers * value_bytes]);
        let q: Vec<f32> = (0..rows * 12 * 128).map(|i| (i % 31) as f32 * 0.01).collect();
        let mut out = vec![0.0; q.len()];
        let seqs = [SeqSlice { first_row: 0, rows, start: context - rows, blocks: &blocks }];
        let mut took = vec![Duration::MAX; tiers.len()];
        let mut bytes = 0;
        for _ in 0..rounds {
            for (cpu, took) in tiers.iter().zip(&mut took) {
                let began = Instant::now();
                for (keys, values) in keys.chunks_exact_mut(key_bytes).zip(values.chunks_exact_mut(value_bytes)) {
                    let kv = KvLayer { shape, keys, values };
                    let (q, seqs, out) = (&q, &seqs, &mut out);
                    let args = Attention { q, heads: 12, kv: &kv, seqs, scale: 0.1, window: None, sinks: None, out };
                    bytes = args.bytes_moved();
                    cpu.attention(args);
                }
                *took = (*took).min(began.elapsed() / layers as u32);
            }
        }
        let seen = (rows * (context - rows) + rows * (rows + 1) / 2) as f64;
        for (cpu, took) in tiers.iter().zip(took) {
            let rate = 4.0 * seen * 12.0 * 128.0 / took.as_nanos() as f64;
            let moved = bytes as f64 / took.as_nanos() as f64;
            let name = format!("attention_{}_f32_{}", dtype.name().to_lowercase().replace('_', ""), cpu.isa());
            println!(
                "{name:<28} {rows:>4} tokens at {context:>6}: {took:>10.1?} {moved:>6.1} GB/s {:>4.0}% {rate:>6.0} GFLOP/s",
                100.0 * moved / limit
            );
        }
    }
}
