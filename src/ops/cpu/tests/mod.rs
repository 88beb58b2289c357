//! Every kernel of every tier this host runs against the reference, and the promises of the module's head.

mod acts;
mod attention;
mod delta;
mod experts;
mod matmul;
mod pool;
mod probe;
mod vector;

use super::isa::{ALL, Isa};
use super::{Cpu, Options};
use crate::ops::Tensor;
use crate::quant::{self, DType, quantize};
use std::sync::Arc;

/// A small generator (xorshift*), so that failures can be repeated.
pub(super) struct Rng(u64);

impl Rng {
    pub(super) fn new(seed: u64) -> Rng {
        Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Uniform in -1 .. 1.
    pub(super) fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub(super) fn vec(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.unit()).collect()
    }

    pub(super) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

/// F32 storage, aligned.
struct Floats(Vec<f32>);

impl AsRef<[u8]> for Floats {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: floats are plain bytes.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.0.len() * 4) }
    }
}

/// Sets a block's factors, or the factors of its scales, to the F16 numbers `bits`, about as many as the layout has.
pub(super) fn set_factors(dtype: DType, block: &mut [u8], bits: [u16; 2]) {
    let at: &[usize] = match dtype {
        DType::Q6_K => &[208],
        DType::Q3_K => &[108],
        DType::Q2_K => &[80, 82],
        DType::TQ1_0 => &[52],
        DType::TQ2_0 => &[64],
        DType::Q4_K | DType::Q5_K | DType::Q4_1 | DType::Q5_1 => &[0, 2],
        DType::IQ1_M => {
            let nibbles = block[48..].chunks_exact_mut(2).enumerate();
            return nibbles.for_each(|(i, word)| word[1] = word[1] & 15 | ((bits[0] >> (4 * i)) as u8) << 4);
        }
        // The exponents of F16 and of E8M0, E4M3.
        DType::MXFP4 => {
            block[0] = (bits[0] >> 10) as u8 + 112;
            return;
        }
        DType::NVFP4 => return block[..4].fill(((bits[0] >> 10) as u8 - 8) << 3),
        _ => &[0],
    };
    for (&at, half) in at.iter().zip(bits) {
        block[at..at + 2].copy_from_slice(&half.to_le_bytes());
    }
}

/// A tensor of `values` in `dtype`; of random blocks where there is no encoder.
pub(super) fn tensor(dtype: DType, rows: usize, cols: usize, values: &[f32]) -> Tensor {
    if dtype == DType::F32 {
        let bytes = values.len() * 4;
        return Tensor::new("test", dtype, rows, cols, Arc::new(Floats(values.to_vec())), 0..bytes).unwrap();
    }
    let mut bytes = vec![0; dtype.row_bytes(cols).unwrap() * rows];
    if dtype.has_encoder() {
        quantize(dtype, values, &mut bytes);
    } else {
        let mut rng = Rng::new(values.iter().fold(bytes.len() as u64, |seed, v| seed ^ u64::from(v.to_bits())));
        bytes.fill_with(|| rng.next() as u8);
        // 1/128: about values of that of the others.
        bytes.chunks_exact_mut(dtype.block_bytes()).for_each(|block| set_factors(dtype, block, [0x2000; 2]));
    }
    raw_tensor(dtype, rows, cols, bytes)
}

/// A tensor over raw blocks, which start at an odd address: kernels may assume no alignment.
pub(super) fn raw_tensor(dtype: DType, rows: usize, cols: usize, mut bytes: Vec<u8>) -> Tensor {
    let n = bytes.len();
    bytes.insert(0, 0);
    Tensor::new("test", dtype, rows, cols, Arc::new(bytes), 1..n + 1).unwrap()
}

/// The same weight packed, at an odd address.
pub(super) fn packed(weight: &Tensor) -> Tensor {
    let mut bytes = vec![0; weight.bytes().len()];
    quant::packed::pack(weight.dtype, weight.cols, weight.bytes(), &mut bytes);
    raw_tensor(weight.dtype, weight.rows, weight.cols, bytes).packed().unwrap()
}

/// A backend with `threads` whose tier is exactly `isa`.
pub(super) fn cpu(isa: Isa, threads: usize) -> Cpu {
    of_options(isa, Options { threads: Some(threads), ..Options::default() })
}

/// The same, for weights whose rows lie with the threads.
pub(super) fn apart(isa: Isa, threads: usize) -> Cpu {
    of_options(isa, Options { threads: Some(threads), apart: true, ..Options::default() })
}

fn of_options(isa: Isa, options: Options) -> Cpu {
    let next = ALL.iter().find(|other| **other > isa);
    let disable_isa = next.map(|isa| isa.name().to_owned()).into_iter().collect();
    let cpu = Cpu::new(&Options { disable_isa, ..options }).unwrap();
    assert_eq!(cpu.isa(), isa.name());
    cpu
}

/// The tiers this host runs.
pub(super) fn tiers() -> impl Iterator<Item = Isa> {
    ALL.into_iter().filter(|isa| isa.on_host())
}

#[test]
fn settings_are_checked() {
    let refused = |options: Options| Cpu::new(&options).err().map(|e| e.to_string()).unwrap_or_default();
    let isa = Options { disable_isa: vec!["sse9".into()], ..Options::default() };
    assert!(refused(isa).contains("sse9"));
    assert!(refused(Options { threads: Some(0), ..Options::default() }).contains("0 compute threads"));
    assert!(refused(Options { cpus: Some("0-".into()), ..Options::default() }).contains("0-"));
    assert!(refused(Options { cpus: Some("1023".into()), ..Options::default() }).contains("1023"));
    let all = ALL[1..].iter().map(|isa| isa.name().to_owned()).collect();
    assert_eq!(Cpu::new(&Options { disable_isa: all, ..Options::default() }).unwrap().isa(), "scalar");
}

#[test]
fn a_pinned_backend_computes() {
    std::thread::spawn(|| {
        let cpu = Cpu::new(&Options { pin: true, ..Options::default() }).unwrap();
        let mut x = vec![1.0; 100_000];
        cpu.add(&mut x, &vec![2.0; 100_000]);
        assert!(x.iter().all(|&x| x == 3.0));
    })
    .join()
    .unwrap();
}

#[test]
fn tensors_are_checked() {
    let storage = || Arc::new(vec![0u8; 100]);
    let refused = |dtype, rows, cols, range| {
        Tensor::new("w", dtype, rows, cols, storage(), range).err().map(|e| e.to_string()).unwrap_or_default()
    };
    assert!(refused(DType::Q8_0, 1, 33, 0..34).contains("blocks of 32"));
    assert!(refused(DType::Q8_0, 2, 32, 0..34).contains("needs 68 bytes"));
    assert!(refused(DType::Q8_0, 2, 32, 60..128).contains("of 100"));
    assert!(refused(DType::Q8_0, usize::MAX, usize::MAX / 32 * 32, 0..1).contains("blocks"));
    assert!(refused(DType::Q1_0, 1, 128, 0..18).contains("Q1_0"));
    assert!(refused(DType::Q8_K, 1, 256, 0..292).contains("Q8_K"));
    let float = tensor(DType::F16, 32, 4, &[1.0; 128]).packed().err().map(|e| e.to_string()).unwrap_or_default();
    assert!(float.contains("F16 is not packed"), "{float}");
    let vector = tensor(DType::F16, 1, 3, &[1.0, 2.0, 3.0]);
    assert!(vector.as_f32().is_err());
    assert_eq!(*vector.to_f32(), [1.0, 2.0, 3.0]);
}
