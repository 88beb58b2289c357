//! Headers of the models that users run, in their true shapes: what `omnictl inspect` says of them against what their makers
//! publish. No weights: a header names tensors and sizes, nothing else is read.

use omni_inferd::ctl::inspect::inspect;
use omni_inferd::gguf::{Array, File, Value, write::Builder};
use omni_inferd::model::report::Report;
use omni_inferd::quant::DType;

/// A model by its public configuration.
struct Shape {
    name: &'static str,
    arch: &'static str,
    layers: u64,
    d_model: u64,
    vocab: u64,
    mixer: Mixer,
    /// Of dense layers.
    d_ff: u64,
    experts: Option<Experts>,
    expected: Expected,
}

#[derive(Clone, Copy)]
enum Mixer {
    Heads {
        heads: u64,
        kv: u64,
        dim: u64,
        with: With,
    },
    Latent {
        heads: u64,
        q_rank: u64,
        nope: u64,
        value: u64,
    },
    /// Each fourth layer has gated attention, the others a recurrent state.
    Hybrid {
        heads: u64,
        kv: u64,
        key_heads: u64,
        value_heads: u64,
    },
}

/// What attention has besides its matrices.
#[derive(Clone, Copy, PartialEq)]
enum With {
    /// Norms of each head of q and k.
    Norms,
    /// One norm over all heads together.
    WholeNorms,
    Biases,
    NormsAndBiases,
    BiasesAndSinks,
}

#[derive(Clone, Copy)]
struct Experts {
    count: u64,
    used: u64,
    d_ff: u64,
    shared: u64,
    dense: u64,
}

/// What must be said: weights in the file and of one token, bytes of an F16 cache per token and of a state per sequence. All
/// worked out from the configurations by formula; the names of the models have the totals, rounded.
struct Expected {
    total: u64,
    active: u64,
    kv: u64,
    state: Option<u64>,
    /// Billions that the makers publish, total and active, heads and embeddings counted in their own way.
    published: [f64; 2],
}

const KV_RANK: u64 = 512;
const ROPE: u64 = 64;
/// Of hybrids: a head's dimensions with attention and with a state, taps of the convolution.
const HEAD: u64 = 256;
const STATE: u64 = 128;
const KERNEL: u64 = 4;

/// Name, architecture, layers, width and vocabulary; mixer; dense width; experts; what is expected.
macro_rules! shapes {
    ($($name:literal $arch:literal $layers:literal x $d_model:literal, $vocab:literal; $mixer:expr; $d_ff:literal; $experts:expr;
        $total:literal $active:literal kv $kv:literal state $state:expr, $published:expr;)*) => {
        [$(Shape {
            name: $name, arch: $arch, layers: $layers, d_model: $d_model, vocab: $vocab, mixer: $mixer, d_ff: $d_ff,
            experts: $experts,
            expected: Expected { total: $total, active: $active, kv: $kv, state: $state, published: $published },
        }),*]
    };
}

const fn experts(count: u64, used: u64, d_ff: u64, shared: u64, dense: u64) -> Option<Experts> {
    Some(Experts { count, used, d_ff, shared, dense })
}

const fn latent(heads: u64, q_rank: u64, nope: u64, value: u64) -> Mixer {
    Mixer::Latent { heads, q_rank, nope, value }
}

const fn attention(heads: u64, kv: u64, dim: u64, with: With) -> Mixer {
    Mixer::Heads { heads, kv, dim, with }
}

const fn hybrid(heads: u64, kv: u64, key_heads: u64, value_heads: u64) -> Mixer {
    Mixer::Hybrid { heads, kv, key_heads, value_heads }
}

#[rustfmt::skip]
const SHAPES: [Shape; 16] = shapes! {
    "DeepSeek-R1" "deepseek2" 61 x 7168, 129280; latent(128, 1536, 128, 128); 18432; experts(256, 8, 2048, 1, 3);
        671_026_419_200 37_552_297_472 kv 70_272 state None, [671.0, 37.0];
    "Kimi-K2" "deepseek2" 61 x 7168, 163840; latent(64, 1536, 128, 128); 18432; experts(384, 8, 2048, 1, 1);
        1_026_408_232_448 32_861_500_928 kv 70_272 state None, [1000.0, 32.0];
    "DeepSeek-V2" "deepseek2" 60 x 5120, 102400; latent(128, 1536, 128, 128); 12288; experts(160, 6, 1536, 2, 1);
        235_741_434_880 21_375_800_320 kv 69_120 state None, [236.0, 21.0];
    "DeepSeek-V2-Lite" "deepseek2" 27 x 2048, 102400; latent(16, 0, 128, 128); 10944; experts(64, 6, 1408, 2, 1);
        15_706_484_224 2_661_150_208 kv 31_104 state None, [15.7, 2.4];
    "GLM-4.7-Flash" "deepseek2" 47 x 2048, 154880; latent(20, 768, 192, 256); 10240; experts(64, 4, 1536, 1, 1);
        29_943_393_920 3_896_766_080 kv 54_144 state None, [30.0, 3.0];
    "Qwen3-30B-A3B" "qwen3moe" 48 x 2048, 151936; attention(32, 4, 128, With::Norms); 6144; experts(128, 8, 768, 0, 0);
        30_532_122_624 3_353_032_704 kv 98_304 state None, [30.5, 3.3];
    "Qwen3-235B-A22B" "qwen3moe" 94 x 4096, 151936; attention(64, 4, 128, With::Norms); 12288; experts(128, 8, 1536, 0, 0);
        235_093_634_560 22_190_763_520 kv 192_512 state None, [235.0, 22.0];
    "Qwen3-Next-80B-A3B" "qwen3next" 48 x 2048, 151936; hybrid(16, 2, 16, 32); 5120; experts(512, 10, 512, 1, 0);
        79_674_391_296 3_874_929_408 kv 24_576 state Some(79_036_416), [80.0, 3.0];
    "Qwen3.5-27B" "qwen35" 64 x 5120, 248320; hybrid(24, 4, 16, 48); 17408; None;
        26_895_998_464 26_895_998_464 kv 65_536 state Some(156_893_184), [27.0, 27.0];
    "Qwen3.5-35B-A3B" "qwen35moe" 40 x 2048, 248320; hybrid(16, 2, 16, 32); 512; experts(256, 8, 512, 1, 0);
        34_660_610_688 3_454_988_928 kv 20_480 state Some(65_863_680), [35.0, 3.0];
    "Qwen3.5-122B-A10B" "qwen35moe" 48 x 3072, 248320; hybrid(32, 2, 16, 64); 1024; experts(256, 8, 1024, 1, 0);
        122_111_526_912 9_771_288_576 kv 24_576 state Some(156_303_360), [122.0, 10.0];
    "gpt-oss-20b" "gpt-oss" 24 x 2880, 201088; attention(64, 8, 64, With::BiasesAndSinks); 2880; experts(32, 4, 2880, 0, 0);
        20_914_757_184 4_187_440_704 kv 49_152 state None, [20.91, 3.61];
    "gpt-oss-120b" "gpt-oss" 36 x 2880, 201088; attention(64, 8, 64, With::BiasesAndSinks); 2880; experts(128, 4, 2880, 0, 0);
        116_829_156_672 5_711_982_912 kv 73_728 state None, [116.83, 5.13];
    "GLM-4.6" "glm4moe" 92 x 5120, 151552; attention(96, 8, 128, With::NormsAndBiases); 12288; experts(160, 8, 1536, 1, 3);
        356_785_898_816 33_632_266_144 kv 376_832 state None, [357.0, 32.0];
    "GLM-4.5-Air" "glm4moe" 46 x 4096, 151552; attention(96, 8, 128, With::Biases); 10944; experts(128, 8, 1408, 1, 1);
        109_227_310_848 13_424_129_664 kv 188_416 state None, [110.0, 12.0];
    "MiniMax-M2" "minimax-m2" 62 x 3072, 200064; attention(48, 8, 128, With::WholeNorms); 1536; experts(256, 8, 1536, 0, 0);
        228_689_764_864 11_030_553_088 kv 253_952 state None, [230.0, 10.0];
};

/// A header being written: keys of the architecture, and tensors of a type that all kernels have, F32 where norms are.
struct Header<'a> {
    shape: &'a Shape,
    builder: Builder,
    sizes: Vec<u64>,
    prefix: String,
}

impl Header<'_> {
    fn key(&mut self, name: &str, value: Value) {
        let key = format!("{}.{name}", self.shape.arch);
        self.builder = std::mem::take(&mut self.builder).key(key, value);
    }

    fn numbers<const N: usize>(&mut self, numbers: [(&str, u64); N]) {
        numbers.into_iter().for_each(|(name, number)| self.key(name, Value::U32(number as u32)));
    }

    fn tensor(&mut self, name: &str, shape: &[u64], dtype: DType) {
        let elements: u64 = shape.iter().product();
        let name = format!("{}{name}", self.prefix);
        self.builder = std::mem::take(&mut self.builder).tensor(name, shape, dtype, Vec::new());
        self.sizes.push(elements / dtype.block_len() as u64 * dtype.block_bytes() as u64);
    }

    fn vector(&mut self, name: &str, len: u64) {
        self.tensor(name, &[len], DType::F32);
    }

    /// By rows and columns.
    fn matrix(&mut self, name: &str, rows: u64, cols: u64) {
        self.tensor(&format!("{name}.weight"), &[cols, rows], DType::Q8_0);
    }

    fn stack(&mut self, name: &str, count: u64, rows: u64, cols: u64) {
        self.tensor(&format!("{name}.weight"), &[cols, rows, count], DType::Q8_0);
    }

    fn metadata(&mut self) {
        let s = self.shape;
        let further = u64::from(s.arch == "glm4moe");
        self.numbers([
            ("block_count", s.layers + further),
            ("context_length", 131_072),
            ("embedding_length", s.d_model),
            ("feed_forward_length", s.d_ff),
            ("vocab_size", s.vocab),
            ("nextn_predict_layers", further),
        ]);
        self.key("attention.layer_norm_rms_epsilon", Value::F32(1e-6));
        match s.mixer {
            Mixer::Heads { heads, kv, dim, .. } => self.heads_metadata(heads, kv, dim),
            Mixer::Latent { heads, q_rank, nope, value } => {
                self.heads_metadata(heads, 1, KV_RANK + ROPE);
                self.numbers([
                    ("attention.q_lora_rank", q_rank),
                    ("attention.kv_lora_rank", KV_RANK),
                    ("attention.key_length_mla", nope + ROPE),
                    ("attention.value_length_mla", value),
                    ("rope.dimension_count", ROPE),
                ]);
            }
            Mixer::Hybrid { heads, kv, key_heads, value_heads } => {
                self.heads_metadata(heads, kv, HEAD);
                self.numbers([
                    ("rope.dimension_count", HEAD / 4),
                    ("full_attention_interval", 4),
                    ("ssm.conv_kernel", KERNEL),
                    ("ssm.state_size", STATE),
                    ("ssm.group_count", key_heads),
                    ("ssm.time_step_rank", value_heads),
                    ("ssm.inner_size", value_heads * STATE),
                ]);
                self.key("rope.dimension_sections", Value::Array(Array::I32(vec![11, 11, 10, 0])));
            }
        }
        if let Some(e) = s.experts {
            self.numbers([
                ("expert_count", e.count),
                ("expert_used_count", e.used),
                ("expert_feed_forward_length", e.d_ff),
                ("leading_dense_block_count", e.dense),
            ]);
            if e.shared > 0 {
                self.numbers([("expert_shared_feed_forward_length", e.shared * e.d_ff)]);
            }
        }
    }

    fn heads_metadata(&mut self, heads: u64, kv: u64, dim: u64) {
        self.numbers([
            ("attention.head_count", heads),
            ("attention.head_count_kv", kv),
            ("attention.key_length", dim),
            ("attention.value_length", if kv == 1 { KV_RANK } else { dim }),
        ]);
    }

    fn block(&mut self, layer: u64) {
        let s = self.shape;
        self.prefix = format!("blk.{layer}.");
        self.vector("attn_norm.weight", s.d_model);
        match s.mixer {
            Mixer::Heads { heads, kv, dim, with } => self.attention(heads, kv, dim, 1, with),
            Mixer::Latent { heads, q_rank, nope, value } => self.latent(heads, q_rank, nope, value),
            Mixer::Hybrid { heads, kv, .. } if layer % 4 == 3 => self.attention(heads, kv, HEAD, 2, With::Norms),
            Mixer::Hybrid { key_heads, value_heads, .. } => self.recurrent(key_heads * STATE, value_heads),
        }
        let after = matches!(s.arch, "glm4moe" | "gpt-oss") || matches!(s.mixer, Mixer::Hybrid { .. });
        self.vector(if after { "post_attention_norm.weight" } else { "ffn_norm.weight" }, s.d_model);
        match s.experts {
            Some(e) if layer >= e.dense => self.experts(e),
            _ => self.feed_forward("", s.d_ff),
        }
    }

    /// `parts`: 2 where each head's gate follows its query.
    fn attention(&mut self, heads: u64, kv: u64, dim: u64, parts: u64, with: With) {
        let d = self.shape.d_model;
        for (name, rows) in [("attn_q", parts * heads * dim), ("attn_k", kv * dim), ("attn_v", kv * dim)] {
            self.matrix(name, rows, d);
            if matches!(with, With::Biases | With::NormsAndBiases | With::BiasesAndSinks) {
                self.vector(&format!("{name}.bias"), rows);
            }
        }
        self.matrix("attn_output", d, heads * dim);
        let norms = match with {
            With::Norms | With::NormsAndBiases => [dim; 2],
            With::WholeNorms => [heads * dim, kv * dim],
            _ => [0; 2],
        };
        if norms[0] > 0 {
            self.vector("attn_q_norm.weight", norms[0]);
            self.vector("attn_k_norm.weight", norms[1]);
        }
        if with == With::BiasesAndSinks {
            self.vector("attn_output.bias", d);
            self.vector("attn_sinks.weight", heads);
        }
    }

    fn latent(&mut self, heads: u64, q_rank: u64, nope: u64, value: u64) {
        let (d, q) = (self.shape.d_model, heads * (nope + ROPE));
        if q_rank > 0 {
            self.matrix("attn_q_a", q_rank, d);
            self.vector("attn_q_a_norm.weight", q_rank);
            self.matrix("attn_q_b", q, q_rank);
        } else {
            self.matrix("attn_q", q, d);
        }
        self.matrix("attn_kv_a_mqa", KV_RANK + ROPE, d);
        self.vector("attn_kv_a_norm.weight", KV_RANK);
        self.stack("attn_k_b", heads, KV_RANK, nope);
        self.stack("attn_v_b", heads, value, KV_RANK);
        self.matrix("attn_output", d, heads * value);
    }

    fn recurrent(&mut self, keys: u64, value_heads: u64) {
        let (d, values) = (self.shape.d_model, value_heads * STATE);
        self.matrix("attn_qkv", 2 * keys + values, d);
        self.matrix("attn_gate", values, d);
        if self.shape.arch == "qwen3next" {
            self.matrix("ssm_ba", 2 * value_heads, d);
        } else {
            self.matrix("ssm_beta", value_heads, d);
            self.matrix("ssm_alpha", value_heads, d);
        }
        self.tensor("ssm_conv1d.weight", &[KERNEL, 2 * keys + values], DType::F32);
        self.vector("ssm_dt.bias", value_heads);
        self.vector("ssm_a", value_heads);
        self.vector("ssm_norm.weight", STATE);
        self.matrix("ssm_out", d, values);
    }

    fn experts(&mut self, e: Experts) {
        let (d, arch) = (self.shape.d_model, self.shape.arch);
        self.tensor("ffn_gate_inp.weight", &[d, e.count], DType::F32);
        let older = self.shape.name.starts_with("DeepSeek-V2");
        if matches!(arch, "deepseek2" | "glm4moe" | "minimax-m2") && !older {
            self.vector("exp_probs_b.bias", e.count);
        }
        for (name, rows, cols) in [("gate", e.d_ff, d), ("up", e.d_ff, d), ("down", d, e.d_ff)] {
            self.stack(&format!("ffn_{name}_exps"), e.count, rows, cols);
            if arch == "gpt-oss" {
                self.tensor(&format!("ffn_{name}_exps.bias"), &[rows, e.count], DType::F32);
            }
        }
        if arch == "gpt-oss" {
            self.vector("ffn_gate_inp.bias", e.count);
        }
        if e.shared > 0 {
            self.feed_forward("_shexp", e.shared * e.d_ff);
            if matches!(self.shape.mixer, Mixer::Hybrid { .. }) {
                self.vector("ffn_gate_inp_shexp.weight", d);
            }
        }
    }

    fn feed_forward(&mut self, suffix: &str, d_ff: u64) {
        let d = self.shape.d_model;
        for (name, rows, cols) in [("gate", d_ff, d), ("up", d_ff, d), ("down", d, d_ff)] {
            self.matrix(&format!("ffn_{name}{suffix}"), rows, cols);
        }
    }
}

/// A file of the shape: its header's bytes, and the length of the whole.
fn header(shape: &Shape) -> (Vec<u8>, u64) {
    let builder = Builder::new()
        .key("general.architecture", Value::String(shape.arch.into()))
        .key("tokenizer.ggml.model", Value::String("none".into()));
    let mut header = Header { shape, builder, sizes: Vec::new(), prefix: String::new() };
    header.metadata();
    header.matrix("token_embd", shape.vocab, shape.d_model);
    header.vector("output_norm.weight", shape.d_model);
    header.matrix("output", shape.vocab, shape.d_model);
    (0..shape.layers).for_each(|layer| header.block(layer));
    if shape.arch == "glm4moe" {
        // The layer that predicts the token after the next, without an embedding and a head of its own.
        header.block(shape.layers);
        header.matrix("nextn.eh_proj", shape.d_model, 2 * shape.d_model);
        for norm in ["nextn.enorm.weight", "nextn.hnorm.weight", "nextn.shared_head_norm.weight"] {
            header.vector(norm, shape.d_model);
        }
    }
    let bytes = header.builder.build_header(&header.sizes);
    let data: u64 = header.sizes.iter().map(|size| size.next_multiple_of(32)).sum();
    let len = bytes.len() as u64 + data;
    (bytes, len)
}

#[test]
fn reports_of_true_shapes_are_what_their_makers_publish() {
    for shape in &SHAPES {
        let (name, expected) = (shape.name, &shape.expected);
        let (bytes, len) = header(shape);
        let report = Report::new(&File::parse(&bytes, len).unwrap());
        assert!(report.supported, "{name}: {:?}", report.reasons);
        assert_eq!((report.parameters.total, report.parameters.active), (expected.total, expected.active), "{name}");
        let found = report.experts.map(|experts| (experts.count, experts.used));
        assert_eq!(found, shape.experts.map(|experts| (experts.count, experts.used)), "{name}");
        assert_eq!(report.bytes.kv_per_token, Some(expected.kv), "{name}");
        assert_eq!(report.bytes.state_per_sequence, expected.state, "{name}");
        // Some leave the embedding out of what is active, of which a token reads one row, some round down.
        let [total, active] = expected.published;
        let embedding = (shape.vocab * shape.d_model) as f64 / 1e9;
        let [all, used] = [expected.total, expected.active].map(|count| count as f64 / 1e9);
        assert!((all / total - 1.0).abs() < 0.03, "{name}: {all} of {total}");
        let near = |used: f64| used / active > 0.97 && used / active < 1.2;
        assert!(near(used) || near(used - embedding), "{name}: {used} active of {active}");
        let notes = usize::from(shape.arch == "glm4moe");
        assert_eq!(report.warnings.len(), notes, "{name}: {:?}", report.warnings);
        assert!(report.warnings.iter().all(|note| note.contains(&format!("block {} is for", shape.layers))), "{name}");
    }
}

/// The command on a file as large as the model, of which it reads the header alone.
#[test]
fn a_terabyte_is_inspected_by_its_header() {
    let shape = &SHAPES[1];
    let (bytes, len) = header(shape);
    assert!(len > 1_000_000_000_000, "{len}");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kimi-k2.gguf");
    std::fs::write(&path, &bytes).unwrap();
    // A hole: no disk is taken.
    std::fs::File::options().write(true).open(&path).unwrap().set_len(len).unwrap();
    let seen = inspect(path.to_str().unwrap()).unwrap();
    // Of what the model needs it lacks the vocabulary alone.
    assert!(
        matches!(&seen.report.reasons[..], [one] if one.contains("tokenizer model `none`")),
        "{:?}",
        seen.report.reasons
    );
    assert_eq!((seen.report.parameters.total, seen.file_bytes), (1_026_408_232_448, Some(len)));
    assert!(seen.read_bytes < 4 << 20, "{} bytes were read", seen.read_bytes);
}
