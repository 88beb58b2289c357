//! All operations of a whole token: Qwen2.5-1.5B's shapes with random weights, decoding and prefill in tok/s, to be
//! compared with a peer on a file of the same shape and types.
//!
//! ```text
//! cargo bench --bench ops_model -- [--threads N] [--quant q8_0|q4_k_m] [--tokens N] [--rounds N]
//! ```

use omni_inferd::ops::cpu::{Cpu, Options, Scratch};
use omni_inferd::ops::{Attention, KvLayer, KvShape, MatMul, RopeAngles, RopePairing, RopeTable, SeqSlice, Tensor};
use omni_inferd::quant::DType;
use std::sync::Arc;
use std::time::{Duration, Instant};

const D: usize = 1536;
const FF: usize = 8960;
const LAYERS: usize = 28;
const HEADS: usize = 12;
const KV_HEADS: usize = 2;
const HEAD: usize = 128;
const VOCAB: usize = 151_936;
const KV: usize = KV_HEADS * HEAD;

/// One block's weights.
struct Layer {
    norm: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
    keys: Vec<u8>,
    values: Vec<u8>,
}

struct Model {
    layers: Vec<Layer>,
    head: Tensor,
    bytes: usize,
}

/// Activations of a step.
#[derive(Default)]
struct Buffers {
    x: Vec<f32>,
    normed: Vec<f32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    mixed: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    out: Vec<f32>,
    logits: Vec<f32>,
    angles: RopeAngles,
    scratch: Scratch,
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let value = |name: &str| args.iter().position(|a| a == name).and_then(|i| args.get(i + 1)).cloned();
    let number = |name: &str, default: usize| value(name).and_then(|v| v.parse().ok()).unwrap_or(default);
    let quant = value("--quant").unwrap_or_else(|| "q4_k_m".into());
    let threads = value("--threads").and_then(|v| v.parse().ok());
    let (tokens, rounds) = (number("--tokens", 128), number("--rounds", 16));
    let cpu = match Cpu::new(&Options { threads, ..Options::default() }) {
        Ok(cpu) => cpu,
        Err(error) => panic!("{error}"),
    };
    let mut model = model(&quant, tokens + rounds + 1);
    let mut buffers = Buffers::default();
    let began = Instant::now();
    step(&cpu, &mut model, &mut buffers, 0, tokens);
    let prefill = tokens as f64 / began.elapsed().as_secs_f64();
    let mut best = Duration::MAX;
    let began = Instant::now();
    for i in 0..rounds {
        let one = Instant::now();
        step(&cpu, &mut model, &mut buffers, tokens + i, 1);
        best = best.min(one.elapsed());
    }
    let mean = rounds as f64 / began.elapsed().as_secs_f64();
    let rate = model.bytes as f64 / best.as_nanos() as f64;
    println!(
        "{quant} {} threads {}: prefill {tokens} {prefill:.1} tok/s, decode mean {mean:.2} best {:.2} tok/s ({rate:.1} GB/s)",
        cpu.isa(),
        cpu.threads(),
        1.0 / best.as_secs_f64()
    );
}

/// llama.cpp's mix of types: half of the layers have Q6_K in `v` and `down`, and so has the head.
fn model(quant: &str, context: usize) -> Model {
    let (low, high) = if quant == "q8_0" { (DType::Q8_0, DType::Q8_0) } else { (DType::Q4_K, DType::Q6_K) };
    let shape = shape();
    let blocks = context.div_ceil(32);
    let mut bytes = 0;
    let mut weight = |dtype: DType, rows: usize, cols: usize| {
        let tensor = weights(dtype, rows, cols);
        bytes += tensor.bytes().len();
        tensor
    };
    let layers = (0..LAYERS)
        .map(|i| {
            let middle = LAYERS / 8..7 * LAYERS / 8;
            let more = if !middle.contains(&i) || (i - middle.start) % 3 == 2 { high } else { low };
            Layer {
                norm: weight(DType::F32, 1, D),
                q: weight(low, D, D),
                k: weight(low, KV, D),
                v: weight(more, KV, D),
                o: weight(low, D, D),
                gate: weight(low, FF, D),
                up: weight(low, FF, D),
                down: weight(more, D, FF),
                keys: vec![0; blocks * shape.key_block_bytes()],
                values: vec![0; blocks * shape.value_block_bytes()],
            }
        })
        .collect();
    let head = weight(high, VOCAB, D);
    Model { layers, head, bytes }
}

fn shape() -> KvShape {
    KvShape { kv_heads: KV_HEADS, key_dim: HEAD, value_dim: HEAD, key_type: DType::F16, value_type: DType::F16 }
}

/// Random blocks with small factors.
fn weights(dtype: DType, rows: usize, cols: usize) -> Tensor {
    let n = dtype.row_bytes(cols).map_or(0, |row| row * rows);
    let mut state = rows as u64;
    let mut word = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 32) as u32 & 0x2a3b_2a3b
    };
    let words: Vec<u32> = (0..n.div_ceil(4)).map(|_| word()).collect();
    let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    match Tensor::new("bench", dtype, rows, cols, Arc::new(bytes), 0..n) {
        Ok(tensor) => tensor,
        Err(error) => panic!("{error}"),
    }
}

/// The forward pass of `n` tokens from position `start` on, logits of the last.
fn step(cpu: &Cpu, model: &mut Model, b: &mut Buffers, start: usize, n: usize) {
    let inv_freq = (0..HEAD / 2).map(|i| 1e6f64.powf(-2.0 * i as f64 / HEAD as f64) as f32).collect();
    let table = RopeTable { pairing: RopePairing::Halves, dims: HEAD, inv_freq, magnitude: 1.0 };
    let positions: Vec<u32> = (start..start + n).map(|p| p as u32).collect();
    table.angles(&positions, &mut b.angles);
    let blocks: Vec<u32> = (0..(start + n).div_ceil(32) as u32).collect();
    let seqs = [SeqSlice { first_row: 0, rows: n, start, blocks: &blocks }];
    b.x.clear();
    b.x.extend((0..n * D).map(|i| (i % 17) as f32 * 0.1 - 0.8));
    for (buffer, width) in [
        (&mut b.normed, D),
        (&mut b.q, D),
        (&mut b.k, KV),
        (&mut b.v, KV),
        (&mut b.mixed, D),
        (&mut b.gate, FF),
        (&mut b.up, FF),
        (&mut b.out, D),
    ] {
        buffer.resize(n * width, 0.0);
    }
    b.logits.resize(VOCAB, 0.0);
    fn job<'a>(weight: &'a Tensor, out: &'a mut [f32]) -> MatMul<'a> {
        MatMul { weight, bias: None, out }
    }
    for layer in &mut model.layers {
        cpu.rms_norm(&b.x, &layer.norm, 1e-6, &mut b.normed);
        let mut jobs = [job(&layer.q, &mut b.q), job(&layer.k, &mut b.k), job(&layer.v, &mut b.v)];
        cpu.matmul(&b.normed, &mut jobs, &mut b.scratch);
        cpu.rope(&mut b.q, HEADS, HEAD, &b.angles, &table);
        cpu.rope(&mut b.k, KV_HEADS, HEAD, &b.angles, &table);
        let mut kv = KvLayer { shape: shape(), keys: &mut layer.keys, values: &mut layer.values };
        cpu.kv_write(&mut kv, &b.k, &b.v, &seqs);
        let (q, out) = (&b.q, &mut b.mixed);
        cpu.attention(Attention { q, heads: HEADS, kv: &kv, seqs: &seqs, scale: 0.088, window: None, out });
        cpu.matmul(&b.mixed, &mut [job(&layer.o, &mut b.out)], &mut b.scratch);
        cpu.add(&mut b.x, &b.out);
        cpu.rms_norm(&b.x, &layer.norm, 1e-6, &mut b.normed);
        let mut jobs = [job(&layer.gate, &mut b.gate), job(&layer.up, &mut b.up)];
        cpu.matmul(&b.normed, &mut jobs, &mut b.scratch);
        cpu.silu_mul(&mut b.gate, &b.up);
        cpu.matmul(&b.gate, &mut [job(&layer.down, &mut b.out)], &mut b.scratch);
        cpu.add(&mut b.x, &b.out);
    }
    cpu.matmul(&b.x[(n - 1) * D..], &mut [job(&model.head, &mut b.logits)], &mut b.scratch);
}
