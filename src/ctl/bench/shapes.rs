//! The true shapes of public models as data, a row each, and the tensors that a GGUF of them has. Weights are made by
//! `synth`; whether this build can run an architecture is `model`'s to say.

use super::Error;
use super::recipe::Role;
use crate::gguf::{Array, Value};
use crate::model::Architecture;

/// A model's shape, from its public configuration.
#[derive(Clone, Debug)]
pub struct Shape {
    /// As `--shape` names it.
    pub name: &'static str,
    /// `general.architecture`.
    pub arch: &'static str,
    /// Parameters that its authors publish, in billions.
    pub billions: f64,
    /// Transformer blocks.
    pub layers: usize,
    d_model: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    d_ff: usize,
    vocab: usize,
    context: u32,
    rope_base: f32,
    rms_eps: f32,
    extras: &'static [Extra],
}

/// What a shape has beyond the common block.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Extra {
    /// The head is the embedding.
    Tied,
    /// q, k and v have biases.
    QkvBias,
    /// q and k heads are normalised.
    QkNorm,
    /// Llama 3's frequency factors.
    RopeFactors,
    /// Experts in all blocks but the first `dense`; `shared` of them always active, `gate_bias` as DeepSeek-V3's.
    Experts { count: usize, used: usize, d_ff: usize, shared: usize, dense: usize, gate_bias: bool },
    /// Multi-head latent attention (DeepSeek-V2): ranks of the compressed q (0: none) and kv, widths of a head's parts.
    Mla { q_rank: usize, kv_rank: usize, rope: usize, nope: usize, value: usize },
    /// Attention sinks, biases everywhere, a window in every other block, YaRN (gpt-oss).
    SinksAndBiases,
    /// Gated delta net in all blocks but each fourth, gated attention there (Qwen3-Next).
    DeltaNet { key_heads: usize, value_heads: usize, dim: usize, kernel: usize },
}

use Extra::{DeltaNet, Experts, Mla, QkNorm, QkvBias, RopeFactors, SinksAndBiases, Tied};

macro_rules! shapes {
    ($($name:literal $arch:literal $billions:literal: $layers:literal x $d_model:literal,
        heads $heads:literal / $kv_heads:literal x $head_dim:literal, ff $d_ff:literal, vocab $vocab:literal,
        context $context:literal, rope $rope:literal, eps $eps:literal, $extras:expr;)*) => {
        &[$(Shape {
            name: $name, arch: $arch, billions: $billions, layers: $layers, d_model: $d_model, heads: $heads,
            kv_heads: $kv_heads, head_dim: $head_dim, d_ff: $d_ff, vocab: $vocab, context: $context, rope_base: $rope,
            rms_eps: $eps, extras: $extras,
        }),*]
    };
}

/// Every shape that has a name. Another one is another row.
#[rustfmt::skip]
pub static SHAPES: &[Shape] = shapes! {
    "qwen2.5-0.5b"     "qwen2"     0.494:  24 x  896, heads  14 /  2 x  64, ff  4864, vocab 151936, context  32768, rope 1e6, eps 1e-6, &[Tied, QkvBias];
    "qwen2.5-1.5b"     "qwen2"     1.544:  28 x 1536, heads  12 /  2 x 128, ff  8960, vocab 151936, context  32768, rope 1e6, eps 1e-6, &[Tied, QkvBias];
    "qwen2.5-7b"       "qwen2"     7.616:  28 x 3584, heads  28 /  4 x 128, ff 18944, vocab 152064, context  32768, rope 1e6, eps 1e-6, &[QkvBias];
    "qwen2.5-32b"      "qwen2"     32.764: 64 x 5120, heads  40 /  8 x 128, ff 27648, vocab 152064, context  32768, rope 1e6, eps 1e-6, &[QkvBias];
    "qwen3-0.6b"       "qwen3"     0.596:  28 x 1024, heads  16 /  8 x 128, ff  3072, vocab 151936, context  40960, rope 1e6, eps 1e-6, &[Tied, QkNorm];
    "qwen3-4b"         "qwen3"     4.022:  36 x 2560, heads  32 /  8 x 128, ff  9728, vocab 151936, context  40960, rope 1e6, eps 1e-6, &[Tied, QkNorm];
    "llama-3.1-8b"     "llama"     8.030:  32 x 4096, heads  32 /  8 x 128, ff 14336, vocab 128256, context 131072, rope 5e5, eps 1e-5, &[RopeFactors];
    "qwen3-30b-a3b"    "qwen3moe"  30.532: 48 x 2048, heads  32 /  4 x 128, ff  6144, vocab 151936, context  40960, rope 1e6, eps 1e-6, &[QkNorm, Experts { count: 128, used: 8, d_ff: 768, shared: 0, dense: 0, gate_bias: false }];
    "deepseek-v2-lite" "deepseek2" 15.706: 27 x 2048, heads  16 /  1 x 192, ff 10944, vocab 102400, context 163840, rope 1e4, eps 1e-6, &[Mla { q_rank: 0, kv_rank: 512, rope: 64, nope: 128, value: 128 }, Experts { count: 64, used: 6, d_ff: 1408, shared: 2, dense: 1, gate_bias: false }];
    "deepseek-r1"      "deepseek2" 671.026: 61 x 7168, heads 128 / 1 x 192, ff 18432, vocab 129280, context 163840, rope 1e4, eps 1e-6, &[Mla { q_rank: 1536, kv_rank: 512, rope: 64, nope: 128, value: 128 }, Experts { count: 256, used: 8, d_ff: 2048, shared: 1, dense: 3, gate_bias: true }];
    "glm-4.7-flash"    "deepseek2" 29.943: 47 x 2048, heads  20 /  1 x 256, ff 10240, vocab 154880, context 202752, rope 1e6, eps 1e-5, &[Mla { q_rank: 768, kv_rank: 512, rope: 64, nope: 192, value: 256 }, Experts { count: 64, used: 4, d_ff: 1536, shared: 1, dense: 1, gate_bias: true }];
    "gpt-oss-20b"      "gpt-oss"   20.915: 24 x 2880, heads  64 /  8 x  64, ff  2880, vocab 201088, context 131072, rope 1.5e5, eps 1e-5, &[SinksAndBiases, Experts { count: 32, used: 4, d_ff: 2880, shared: 0, dense: 0, gate_bias: false }];
    "gpt-oss-120b"     "gpt-oss"   116.829: 36 x 2880, heads 64 /  8 x  64, ff  2880, vocab 201088, context 131072, rope 1.5e5, eps 1e-5, &[SinksAndBiases, Experts { count: 128, used: 4, d_ff: 2880, shared: 0, dense: 0, gate_bias: false }];
    "qwen3-next"       "qwen3next" 79.674: 48 x 2048, heads  16 /  2 x 256, ff  5120, vocab 151936, context 262144, rope 1e7, eps 1e-6, &[QkNorm, DeltaNet { key_heads: 16, value_heads: 32, dim: 128, kernel: 4 }, Experts { count: 512, used: 10, d_ff: 512, shared: 1, dense: 0, gate_bias: false }];
    "qwen3.5-9b"       "qwen35"    8.954:  32 x 4096, heads  16 /  4 x 256, ff 12288, vocab 248320, context 262144, rope 1e7, eps 1e-6, &[QkNorm, DeltaNet { key_heads: 16, value_heads: 32, dim: 128, kernel: 4 }];
    "qwen3.5-35b-a3b"  "qwen35moe" 34.661: 40 x 2048, heads  16 /  2 x 256, ff   512, vocab 248320, context 262144, rope 1e7, eps 1e-6, &[QkNorm, DeltaNet { key_heads: 16, value_heads: 32, dim: 128, kernel: 4 }, Experts { count: 256, used: 8, d_ff: 512, shared: 1, dense: 0, gate_bias: false }];
    "qwen3.5-122b-a10b" "qwen35moe" 122.11: 48 x 3072, heads 32 /  2 x 256, ff  1024, vocab 248320, context 262144, rope 1e7, eps 1e-6, &[QkNorm, DeltaNet { key_heads: 16, value_heads: 64, dim: 128, kernel: 4 }, Experts { count: 256, used: 8, d_ff: 1024, shared: 1, dense: 0, gate_bias: false }];
};

/// For tests: every kind of tensor, no size.
static TINY: &[Shape] = shapes! {
    "tiny" "qwen3" 0.0: 2 x 256, heads 4 / 2 x 64, ff 512, vocab 512, context 512, rope 1e4, eps 1e-6, &[Tied, QkNorm];
    "unknown" "mamba9" 0.0: 2 x 256, heads 4 / 2 x 64, ff 512, vocab 512, context 512, rope 1e4, eps 1e-6, &[];
    "tiny-hybrid" "qwen3next" 0.0: 4 x 256, heads 4 / 2 x 64, ff 512, vocab 512, context 512, rope 1e4, eps 1e-6, &[QkNorm, DeltaNet { key_heads: 2, value_heads: 4, dim: 64, kernel: 4 }, Experts { count: 8, used: 2, d_ff: 256, shared: 1, dense: 0, gate_bias: false }];
};

/// A shape with the number of blocks to make.
#[derive(Clone, Debug)]
pub struct Scaled {
    /// The shape.
    pub shape: &'static Shape,
    /// Blocks, from 1 to those of the shape.
    pub layers: usize,
}

/// A tensor to be.
#[derive(Clone, Debug, PartialEq)]
pub struct Blueprint {
    /// Name in the file.
    pub name: String,
    /// Columns first.
    pub dims: Vec<u64>,
    /// What decides its type.
    pub role: Role,
    /// Its block, 0 outside of blocks.
    pub layer: usize,
}

impl std::str::FromStr for Scaled {
    type Err = String;

    /// `NAME` or `NAME:LAYERS`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (name, layers) = text.split_once(':').map_or((text, None), |(name, layers)| (name, Some(layers)));
        let all = || SHAPES.iter().chain(TINY);
        let shape = all().find(|shape| shape.name.eq_ignore_ascii_case(name)).ok_or_else(|| {
            let known: Vec<_> = SHAPES.iter().map(|shape| shape.name).collect();
            format!("no shape has this name; there are {}", known.join(", "))
        })?;
        let layers = match layers.map(str::parse::<usize>) {
            None => shape.layers,
            Some(Ok(layers)) if (1..=shape.layers).contains(&layers) => layers,
            Some(_) => return Err(format!("layers of {name} must be a number from 1 to {}", shape.layers)),
        };
        Ok(Scaled { shape, layers })
    }
}

impl Scaled {
    /// Name, and the number of layers where it is not that of the shape.
    pub fn label(&self) -> String {
        match self.layers == self.shape.layers {
            true => self.shape.name.into(),
            false => format!("{}:{}", self.shape.name, self.layers),
        }
    }

    /// That this build can run it.
    ///
    /// # Errors
    /// [`Error::NoArchitecture`] otherwise.
    pub fn check(&self) -> Result<(), Error> {
        match Architecture::from_name(self.shape.arch) {
            Some(_) => Ok(()),
            None => Err(Error::NoArchitecture { shape: self.shape.name, arch: self.shape.arch }),
        }
    }

    /// The metadata that `model` reads, without a vocabulary.
    pub fn metadata(&self, quant: &str) -> Vec<(String, Value)> {
        let Shape { arch, context, rope_base, rms_eps, vocab, d_model, d_ff, heads, kv_heads, head_dim, .. } =
            *self.shape;
        let number = |n: usize| Value::U32(n as u32);
        // Of latent attention: of what is cached.
        let (key_length, value_length) = match self.latent() {
            Some(Mla { kv_rank, rope, .. }) => (kv_rank + rope, kv_rank),
            _ => (head_dim, head_dim),
        };
        let own = |key: &str, value: Value| (format!("{arch}.{key}"), value);
        let mut keys = vec![
            ("general.architecture".to_owned(), Value::String(arch.into())),
            ("general.name".to_owned(), Value::String(format!("{} {quant}, random", self.label()))),
            own("block_count", number(self.layers)),
            own("context_length", Value::U32(context)),
            own("embedding_length", number(d_model)),
            own("feed_forward_length", number(d_ff)),
            own("attention.head_count", number(heads)),
            own("attention.head_count_kv", number(kv_heads)),
            own("attention.key_length", number(key_length)),
            own("attention.value_length", number(value_length)),
            own("attention.layer_norm_rms_epsilon", Value::F32(rms_eps)),
            own("rope.freq_base", Value::F32(rope_base)),
            own("vocab_size", number(vocab)),
            ("tokenizer.ggml.model".to_owned(), Value::String("none".into())),
        ];
        if let Some(Experts { count, used, d_ff, .. }) = self.experts() {
            keys.push(own("expert_count", number(count)));
            keys.push(own("expert_used_count", number(used)));
            keys.push(own("expert_feed_forward_length", number(d_ff)));
        }
        if self.shape.extras.contains(&SinksAndBiases) {
            keys.push(own("attention.sliding_window", number(128)));
            keys.push(own("rope.scaling.type", Value::String("yarn".into())));
            keys.push(own("rope.scaling.factor", Value::F32(32.0)));
            keys.push(own("rope.scaling.original_context_length", number(4096)));
        }
        keys.extend(self.latent_metadata().into_iter().map(|(key, value)| own(key, value)));
        keys.extend(self.delta_metadata().into_iter().map(|(key, value)| own(key, value)));
        keys
    }

    /// What layers with a recurrent state have besides.
    fn delta_metadata(&self) -> Vec<(&'static str, Value)> {
        let number = |n: usize| Value::U32(n as u32);
        let Some(DeltaNet { key_heads, value_heads, dim, kernel }) = self.delta_net() else { return Vec::new() };
        let mut keys = vec![
            ("rope.dimension_count", number(self.shape.head_dim / 4)),
            ("full_attention_interval", number(4)),
            ("ssm.conv_kernel", number(kernel)),
            ("ssm.state_size", number(dim)),
            ("ssm.group_count", number(key_heads)),
            ("ssm.time_step_rank", number(value_heads)),
            ("ssm.inner_size", number(value_heads * dim)),
        ];
        if self.shape.arch != "qwen3next" {
            // Of text all sections count alike; other engines want to know them.
            keys.push(("rope.dimension_sections", Value::Array(Array::I32(vec![11, 11, 10, 0]))));
        }
        if let Some(Experts { d_ff, shared, .. }) = self.experts() {
            keys.push(("expert_shared_feed_forward_length", number(shared * d_ff)));
        }
        keys
    }

    /// What latent attention and DeepSeek's experts have besides.
    fn latent_metadata(&self) -> Vec<(&'static str, Value)> {
        let number = |n: usize| Value::U32(n as u32);
        let Some(Mla { q_rank, kv_rank, rope, nope, value }) = self.latent() else { return Vec::new() };
        let mut keys = vec![
            ("attention.q_lora_rank", number(q_rank)),
            ("attention.kv_lora_rank", number(kv_rank)),
            ("attention.key_length_mla", number(nope + rope)),
            ("attention.value_length_mla", number(value)),
            ("rope.dimension_count", number(rope)),
        ];
        if let Some(Experts { shared, dense, gate_bias, .. }) = self.experts() {
            keys.push(("leading_dense_block_count", number(dense)));
            keys.push(("expert_shared_count", number(shared)));
            keys.push(("expert_gating_func", number(if gate_bias { 2 } else { 1 })));
            keys.push(("expert_weights_norm", Value::Bool(gate_bias)));
            keys.push(("expert_weights_scale", Value::F32(if gate_bias { 2.5 } else { 1.0 })));
        }
        keys
    }

    /// All tensors, in the order in which files have them.
    pub fn tensors(&self) -> Vec<Blueprint> {
        let s = self.shape;
        let tied = s.extras.contains(&Tied);
        let mut list = List::default();
        list.matrix("token_embd", s.vocab, s.d_model, if tied { Role::Output } else { Role::Embedding });
        list.vector("output_norm.weight", s.d_model);
        if !tied {
            list.matrix("output", s.vocab, s.d_model, Role::Output);
        }
        if s.extras.contains(&RopeFactors) {
            list.vector("rope_freqs.weight", s.head_dim / 2);
        }
        for layer in 0..self.layers {
            (list.layer, list.prefix) = (layer, format!("blk.{layer}."));
            list.vector("attn_norm.weight", s.d_model);
            self.attention(&mut list);
            let after = s.extras.contains(&SinksAndBiases) || self.delta_net().is_some();
            let norm = if after { "post_attention_norm" } else { "ffn_norm" };
            list.vector(&format!("{norm}.weight"), s.d_model);
            self.feed_forward(&mut list);
        }
        list.tensors
    }

    fn attention(&self, list: &mut List) {
        let s = self.shape;
        let special = s.extras.iter().find(|extra| matches!(extra, Mla { .. } | DeltaNet { .. }));
        match special {
            Some(&Mla { q_rank, kv_rank, rope, nope, value }) => {
                let q = s.heads * (nope + rope);
                if q_rank > 0 {
                    list.matrix("attn_q_a", q_rank, s.d_model, Role::Plain);
                    list.vector("attn_q_a_norm.weight", q_rank);
                    list.matrix("attn_q_b", q, q_rank, Role::Plain);
                } else {
                    list.matrix("attn_q", q, s.d_model, Role::Plain);
                }
                list.matrix("attn_kv_a_mqa", kv_rank + rope, s.d_model, Role::Plain);
                list.vector("attn_kv_a_norm.weight", kv_rank);
                list.stack("attn_k_b", s.heads, kv_rank, nope, Role::Absorbed);
                list.stack("attn_v_b", s.heads, value, kv_rank, Role::Absorbed);
                list.matrix("attn_output", s.d_model, s.heads * value, Role::Plain);
            }
            Some(&DeltaNet { key_heads, value_heads, dim, kernel }) if list.layer % 4 != 3 => {
                let (keys, values) = (key_heads * dim, value_heads * dim);
                list.matrix("attn_qkv", 2 * keys + values, s.d_model, Role::Plain);
                list.matrix("attn_gate", values, s.d_model, Role::Plain);
                if s.arch == "qwen3next" {
                    list.matrix("ssm_ba", 2 * value_heads, s.d_model, Role::Plain);
                } else {
                    list.matrix("ssm_beta", value_heads, s.d_model, Role::Plain);
                    list.matrix("ssm_alpha", value_heads, s.d_model, Role::Plain);
                }
                list.vector("ssm_dt.bias", value_heads);
                // Zeros, as for a bias: nothing decays, and nothing grows.
                list.add("ssm_a", &[value_heads], Role::Bias);
                list.matrix("ssm_conv1d", 2 * keys + values, kernel, Role::Single);
                list.vector("ssm_norm.weight", dim);
                list.matrix("ssm_out", s.d_model, values, Role::Plain);
            }
            // Gated attention has the gate beside q.
            Some(_) => self.heads(list, 2),
            None => self.heads(list, 1),
        }
    }

    /// Grouped-query attention; `parts` as many rows of q as heads have.
    fn heads(&self, list: &mut List, parts: usize) {
        let s = self.shape;
        let (q, kv, all) = (s.heads * s.head_dim, s.kv_heads * s.head_dim, s.extras.contains(&SinksAndBiases));
        let rows = [("attn_q", parts * q, Role::Plain), ("attn_k", kv, Role::Plain), ("attn_v", kv, Role::Value)];
        for (name, rows, role) in rows {
            list.matrix(name, rows, s.d_model, role);
            if all || s.extras.contains(&QkvBias) {
                list.vector(&format!("{name}.bias"), rows);
            }
        }
        list.matrix("attn_output", s.d_model, q, Role::Plain);
        if all {
            list.vector("attn_output.bias", s.d_model);
            list.vector("attn_sinks.weight", s.heads);
        }
        if s.extras.contains(&QkNorm) {
            list.vector("attn_q_norm.weight", s.head_dim);
            list.vector("attn_k_norm.weight", s.head_dim);
        }
    }

    fn feed_forward(&self, list: &mut List) {
        let s = self.shape;
        match self.experts() {
            Some(Experts { count, d_ff, shared, dense, gate_bias, .. }) if list.layer >= dense => {
                let biased = s.extras.contains(&SinksAndBiases);
                list.matrix("ffn_gate_inp", count, s.d_model, Role::Single);
                if gate_bias {
                    list.vector("exp_probs_b.bias", count);
                }
                let parts = [
                    ("ffn_gate_exps", d_ff, s.d_model, Role::Expert),
                    ("ffn_up_exps", d_ff, s.d_model, Role::Expert),
                    ("ffn_down_exps", s.d_model, d_ff, Role::ExpertDown),
                ];
                for (name, rows, cols, role) in parts {
                    list.stack(name, count, rows, cols, role);
                    if biased {
                        list.add(&format!("{name}.bias"), &[rows, count], Role::Single);
                    }
                }
                if biased {
                    list.vector("ffn_gate_inp.bias", count);
                }
                if shared > 0 {
                    self.swiglu(list, "_shexp", shared * d_ff);
                    if self.delta_net().is_some() {
                        list.vector("ffn_gate_inp_shexp.weight", s.d_model);
                    }
                }
            }
            _ => self.swiglu(list, "", s.d_ff),
        }
    }

    fn swiglu(&self, list: &mut List, suffix: &str, d_ff: usize) {
        list.matrix(&format!("ffn_gate{suffix}"), d_ff, self.shape.d_model, Role::Plain);
        list.matrix(&format!("ffn_up{suffix}"), d_ff, self.shape.d_model, Role::Plain);
        list.matrix(&format!("ffn_down{suffix}"), self.shape.d_model, d_ff, Role::Down);
    }

    fn latent(&self) -> Option<Extra> {
        self.shape.extras.iter().copied().find(|extra| matches!(extra, Mla { .. }))
    }

    fn delta_net(&self) -> Option<Extra> {
        self.shape.extras.iter().copied().find(|extra| matches!(extra, DeltaNet { .. }))
    }

    fn experts(&self) -> Option<Extra> {
        self.shape.extras.iter().copied().find(|extra| matches!(extra, Experts { .. }))
    }
}

/// Tensors being listed.
#[derive(Default)]
struct List {
    tensors: Vec<Blueprint>,
    layer: usize,
    prefix: String,
}

impl List {
    fn add(&mut self, name: &str, dims: &[usize], role: Role) {
        let dims = dims.iter().map(|&dim| dim as u64).collect();
        self.tensors.push(Blueprint { name: format!("{}{name}", self.prefix), dims, role, layer: self.layer });
    }

    fn vector(&mut self, name: &str, len: usize) {
        let role = if name.ends_with(".bias") { Role::Bias } else { Role::Norm };
        self.add(name, &[len], role);
    }

    fn matrix(&mut self, name: &str, rows: usize, cols: usize, role: Role) {
        self.add(&format!("{name}.weight"), &[cols, rows], role);
    }

    fn stack(&mut self, name: &str, count: usize, rows: usize, cols: usize, role: Role) {
        self.add(&format!("{name}.weight"), &[cols, rows, count], role);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_those_that_are_published() {
        for shape in SHAPES {
            let sized = Scaled { shape, layers: shape.layers };
            let elements: u64 = sized.tensors().iter().map(|t| t.dims.iter().product::<u64>()).sum();
            let billions = elements as f64 / 1e9;
            let off = (billions / shape.billions - 1.0).abs();
            assert!(off < 0.002, "{}: {billions:.3} billion parameters, published are {}", shape.name, shape.billions);
        }
    }

    #[test]
    fn names_are_read_with_layers() {
        let sized: Scaled = "Qwen2.5-7B:3".parse().unwrap();
        assert_eq!((sized.layers, sized.label().as_str()), (3, "qwen2.5-7b:3"));
        assert_eq!("llama-3.1-8b".parse::<Scaled>().unwrap().layers, 32);
        for (text, part) in [("gpt-5", "llama-3.1-8b"), ("qwen2.5-7b:0", "1 to 28"), ("qwen2.5-7b:x", "1 to 28")] {
            let error = text.parse::<Scaled>().unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn an_architecture_that_is_missing_is_named() {
        let error = "unknown".parse::<Scaled>().unwrap().check().unwrap_err().to_string();
        assert!(error.contains("\"mamba9\"") && error.contains("llama, "), "{error}");
        assert!("deepseek-r1".parse::<Scaled>().unwrap().check().is_ok());
    }
}
