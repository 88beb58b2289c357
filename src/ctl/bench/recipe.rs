//! Which type each tensor gets in a public quantisation recipe, and random blocks of each type: bits from a counter, so
//! that any range of a file can be made at any time, and factors that keep the weights centred and of a trained size.

use crate::quant::{DType, put_f16};

/// What decides a tensor's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// F32, ones.
    Norm,
    /// F32, zeros.
    Bias,
    /// F32, random: routers and what else no recipe touches.
    Single,
    /// An embedding that is not the head.
    Embedding,
    /// The head.
    Output,
    /// `attn_v`.
    Value,
    /// `ffn_down`.
    Down,
    /// MLA's `attn_k_b` and `attn_v_b`.
    Absorbed,
    /// Routed experts.
    Expert,
    /// Routed experts' `down`.
    ExpertDown,
    /// Every other matrix.
    Plain,
}

/// A recipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quant {
    name: &'static str,
    /// Most matrices; MXFP4 is for experts alone.
    base: DType,
    /// The head, and half of `attn_v` and `ffn_down` where `mixed`.
    more: DType,
    mixed: bool,
    /// `general.file_type`.
    pub file_type: u32,
}

#[rustfmt::skip]
const QUANTS: [Quant; 14] = [
    Quant { name: "q4_k_m", base: DType::Q4_K, more: DType::Q6_K, mixed: true, file_type: 15 },
    Quant { name: "q5_k_m", base: DType::Q5_K, more: DType::Q6_K, mixed: true, file_type: 17 },
    Quant { name: "q4_k_s", base: DType::Q4_K, more: DType::Q6_K, mixed: false, file_type: 14 },
    Quant { name: "q5_k_s", base: DType::Q5_K, more: DType::Q6_K, mixed: false, file_type: 16 },
    Quant { name: "q3_k_s", base: DType::Q3_K, more: DType::Q6_K, mixed: false, file_type: 11 },
    Quant { name: "q6_k", base: DType::Q6_K, more: DType::Q6_K, mixed: false, file_type: 18 },
    Quant { name: "q8_0", base: DType::Q8_0, more: DType::Q8_0, mixed: false, file_type: 7 },
    Quant { name: "q4_0", base: DType::Q4_0, more: DType::Q6_K, mixed: false, file_type: 2 },
    Quant { name: "q4_1", base: DType::Q4_1, more: DType::Q6_K, mixed: false, file_type: 3 },
    Quant { name: "q5_0", base: DType::Q5_0, more: DType::Q6_K, mixed: false, file_type: 8 },
    Quant { name: "q5_1", base: DType::Q5_1, more: DType::Q6_K, mixed: false, file_type: 9 },
    Quant { name: "f16", base: DType::F16, more: DType::F16, mixed: false, file_type: 1 },
    Quant { name: "bf16", base: DType::BF16, more: DType::BF16, mixed: false, file_type: 32 },
    Quant { name: "mxfp4", base: DType::MXFP4, more: DType::Q8_0, mixed: false, file_type: 38 },
];

impl std::str::FromStr for Quant {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = || QUANTS.map(|quant| quant.name).join(", ");
        let found = QUANTS.into_iter().find(|quant| quant.name.eq_ignore_ascii_case(text));
        found.ok_or_else(|| format!("no recipe has this name; there are {}", known()))
    }
}

impl std::fmt::Display for Quant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl Quant {
    /// The type of a tensor with rows of `cols` elements in block `layer` of `layers`.
    pub fn dtype(self, role: Role, layer: usize, layers: usize, cols: u64) -> DType {
        let more = self.mixed && gets_more(layer, layers);
        let wanted = match role {
            Role::Norm | Role::Bias | Role::Single => return DType::F32,
            Role::Output => self.more,
            Role::Expert | Role::ExpertDown if self.base == DType::MXFP4 => self.base,
            _ if self.base == DType::MXFP4 => self.more,
            Role::Value | Role::Down | Role::ExpertDown if more => self.more,
            Role::Absorbed if self.base != DType::F16 && self.base != DType::BF16 => DType::Q8_0,
            _ => self.base,
        };
        if cols.is_multiple_of(wanted.block_len() as u64) { wanted } else { narrow(wanted) }
    }
}

/// llama.cpp's choice of blocks in which `attn_v` and `ffn_down` get more bits: the first and last eighth and each third
/// between.
fn gets_more(layer: usize, layers: usize) -> bool {
    let eighth = layers / 8;
    layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2
}

/// The type that takes over where rows are no multiple of 256.
fn narrow(wanted: DType) -> DType {
    match wanted {
        DType::Q3_K => DType::Q4_0,
        DType::Q4_K => DType::Q5_0,
        DType::Q5_K => DType::Q5_1,
        DType::Q6_K => DType::Q8_0,
        _ => DType::F16,
    }
}

/// Random data of one tensor.
#[derive(Clone, Debug)]
pub struct Noise {
    block_bytes: u64,
    /// Bits of a word that are random, and those that are set: an exponent for float types, nothing to do for others.
    random: u64,
    set: u64,
    /// Bytes that every block has at a place of its own: its factors.
    factors: Vec<(u64, u8)>,
}

impl Noise {
    /// For matrices of `dtype` with rows of `cols` elements, whose elements are of about 1/√cols.
    pub fn new(role: Role, dtype: DType, cols: u64) -> Noise {
        let size = 1.0 / (cols.max(1) as f32).sqrt();
        let half = |x: f32| {
            let mut bytes = [0; 2];
            put_f16(&mut bytes, 0, x);
            bytes
        };
        let exponent = i64::from(size.log2().floor() as i32);
        let repeat = |bits: u32, word: u64| (0..64 / bits).fold(0u64, |all, i| all | word << (i * bits));
        let (random, set) = match (role, dtype) {
            (Role::Norm, _) => (0, repeat(32, u64::from(1f32.to_bits()))),
            (Role::Bias, _) => (0, 0),
            (_, DType::F32) => (repeat(32, 0x807f_ffff), repeat(32, ((exponent + 127) as u64) << 23)),
            (_, DType::F16) => (repeat(16, 0x83ff), repeat(16, ((exponent + 15).max(1) as u64) << 10)),
            (_, DType::BF16) => (repeat(16, 0x807f), repeat(16, ((exponent + 127) as u64) << 7)),
            _ => (u64::MAX, 0),
        };
        // Spread of the integer part of an element, and what centres it where the format is not symmetrical.
        let factors = match dtype {
            DType::Q4_0 => vec![(0, half(size / 4.6))],
            DType::Q4_1 => vec![(0, half(size / 4.6)), (2, half(-7.5 * size / 4.6))],
            DType::Q5_0 => vec![(0, half(size / 9.2))],
            DType::Q5_1 => vec![(0, half(size / 9.2)), (2, half(-15.5 * size / 9.2))],
            DType::Q8_0 => vec![(0, half(size / 74.0))],
            DType::Q2_K => vec![(80, half(size / 11.0)), (82, half(1.5 * size / 11.0))],
            DType::Q3_K => vec![(108, half(size / 42.0))],
            DType::Q4_K => vec![(0, half(size / 170.0)), (2, half(7.5 * size / 170.0))],
            DType::Q5_K => vec![(0, half(size / 340.0)), (2, half(15.5 * size / 340.0))],
            DType::Q6_K => vec![(208, half(size / 1370.0))],
            _ => Vec::new(),
        };
        let mut factors: Vec<_> = factors.into_iter().flat_map(|(at, [a, b])| [(at, a), (at + 1, b)]).collect();
        if dtype == DType::MXFP4 {
            factors.push((0, (127.0 + (size / 2.93).log2().round()) as u8));
        }
        Noise { block_bytes: dtype.block_bytes() as u64, random, set, factors }
    }

    /// Writes the tensor's bytes from `offset` on; `seed` differs from tensor to tensor.
    pub fn fill(&self, seed: u64, offset: u64, out: &mut [u8]) {
        let word = |index: u64| (mix(seed.wrapping_add(index)) & self.random | self.set).to_le_bytes();
        let lead = (8 - offset % 8) as usize % 8;
        let (head, body) = out.split_at_mut(lead.min(out.len()));
        let first = word(offset / 8);
        head.iter_mut().zip(&first[8 - lead..]).for_each(|(to, from)| *to = *from);
        let start = offset.div_ceil(8);
        for (index, to) in (start..).zip(body.chunks_mut(8)) {
            to.copy_from_slice(&word(index)[..to.len()]);
        }
        let end = offset + out.len() as u64;
        for &(at, byte) in &self.factors {
            let mut place = offset / self.block_bytes * self.block_bytes + at;
            while place < end {
                if place >= offset {
                    out[(place - offset) as usize] = byte;
                }
                place += self.block_bytes;
            }
        }
    }
}

/// A word that looks random for each number (splitmix64's finaliser).
#[inline]
fn mix(n: u64) -> u64 {
    let z = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::dequantize;

    #[test]
    fn weights_are_centred_and_of_a_trained_size() {
        for quant in QUANTS {
            for role in [Role::Plain, Role::Output, Role::Expert] {
                let (dtype, cols) = (quant.dtype(role, 4, 8, 1024), 1024);
                let mut bytes = vec![0; dtype.row_bytes(cols * 64).unwrap()];
                Noise::new(role, dtype, cols as u64).fill(7, 0, &mut bytes);
                let mut values = vec![0.0; cols * 64];
                dequantize(dtype, &bytes, &mut values);
                let n = values.len() as f32;
                let mean = values.iter().sum::<f32>() / n;
                let size = (values.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / n).sqrt() * (cols as f32).sqrt();
                assert!((0.4..2.5).contains(&size), "{quant} {dtype}: deviation {size} times 1/√cols");
                assert!(mean.abs() * (cols as f32).sqrt() < 0.25, "{quant} {dtype}: mean {mean}");
            }
        }
    }

    #[test]
    fn any_range_is_the_same_as_the_whole() {
        for dtype in [DType::Q4_K, DType::Q6_K, DType::Q8_0, DType::F16, DType::MXFP4] {
            let noise = Noise::new(Role::Plain, dtype, 256);
            let mut whole = vec![0; 5000];
            noise.fill(3, 0, &mut whole);
            for (start, end) in [(0, 5000), (1, 2), (7, 9), (3, 3), (208, 212), (999, 4321)] {
                let mut part = vec![0; end - start];
                noise.fill(3, start as u64, &mut part);
                assert_eq!(part, whole[start..end], "{dtype} {start}..{end}");
            }
        }
    }

    #[test]
    fn the_mix_is_llama_cpps() {
        let quant: Quant = "Q4_K_M".parse().unwrap();
        let more = (0..28).filter(|&layer| quant.dtype(Role::Down, layer, 28, 8960) == DType::Q6_K).count();
        assert_eq!(more, 14, "half of the 28 blocks");
        let types = [Role::Output, Role::Embedding, Role::Plain, Role::Norm].map(|role| quant.dtype(role, 5, 28, 1536));
        assert_eq!(types, [DType::Q6_K, DType::Q4_K, DType::Q4_K, DType::F32]);
        assert_eq!(quant.dtype(Role::Plain, 0, 24, 896), DType::Q5_0, "896 is no multiple of 256");
        assert_eq!(quant.dtype(Role::Output, 0, 24, 896), DType::Q8_0);
        assert!("q9".parse::<Quant>().unwrap_err().contains("q4_k_m"));
    }
}
