//! A GGUF taken apart to its fields, each of which can be set to anything: the material of malformed files.

use omni_inferd::gguf::{self, File};
use omni_inferd::model::{self, Model};
use omni_inferd::text::Tokenizer;

/// A file's parts. Lengths and counts are written as the parts have them unless overridden.
#[derive(Clone)]
pub struct Raw {
    pub magic: [u8; 4],
    pub version: u32,
    pub tensor_count: Option<u64>,
    pub key_count: Option<u64>,
    pub keys: Vec<Key>,
    pub tensors: Vec<Tensor>,
    pub alignment: usize,
    pub data: Vec<u8>,
}

/// A key: raw bytes with its length, type, raw value.
#[derive(Clone)]
pub struct Key {
    pub name: Vec<u8>,
    pub name_len: Option<u64>,
    pub kind: u32,
    pub value: Vec<u8>,
}

#[derive(Clone)]
pub struct Tensor {
    pub name: Vec<u8>,
    pub name_len: Option<u64>,
    pub dims: Vec<u64>,
    pub kind: u32,
    pub offset: u64,
}

pub fn string(text: impl AsRef<[u8]>) -> Vec<u8> {
    let text = text.as_ref();
    [&(text.len() as u64).to_le_bytes(), text].concat()
}

pub fn array(kind: u32, count: u64, elements: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &count.to_le_bytes(), elements].concat()
}

pub fn strings<T: AsRef<[u8]>>(items: &[T]) -> Vec<u8> {
    array(8, items.len() as u64, &items.iter().flat_map(string).collect::<Vec<u8>>())
}

pub fn key(name: impl AsRef<[u8]>, kind: u32, value: impl AsRef<[u8]>) -> Key {
    Key { name: name.as_ref().into(), name_len: None, kind, value: value.as_ref().into() }
}

impl Raw {
    /// Nothing but a header.
    pub fn empty() -> Raw {
        let (magic, version) = (*b"GGUF", 3);
        let (keys, tensors, data) = (Vec::new(), Vec::new(), Vec::new());
        Raw { magic, version, tensor_count: None, key_count: None, keys, tensors, alignment: 32, data }
    }

    /// Adds a tensor behind the others, its data zero.
    pub fn add(&mut self, name: &str, dims: &[u64], kind: u32, bytes: usize) {
        let offset = self.data.len() as u64;
        self.tensors.push(Tensor { name: name.into(), name_len: None, dims: dims.into(), kind, offset });
        self.data.resize((self.data.len() + bytes).next_multiple_of(self.alignment), 0);
    }

    /// The header without padding or data.
    pub fn header(&self) -> Vec<u8> {
        let mut out = [&self.magic[..], &self.version.to_le_bytes()].concat();
        out.extend(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.key_count.unwrap_or(self.keys.len() as u64).to_le_bytes());
        for key in &self.keys {
            out.extend(key.name_len.unwrap_or(key.name.len() as u64).to_le_bytes());
            out.extend(&key.name);
            out.extend(key.kind.to_le_bytes());
            out.extend(&key.value);
        }
        for tensor in &self.tensors {
            out.extend(tensor.name_len.unwrap_or(tensor.name.len() as u64).to_le_bytes());
            out.extend(&tensor.name);
            out.extend((tensor.dims.len() as u32).to_le_bytes());
            tensor.dims.iter().for_each(|dim| out.extend(dim.to_le_bytes()));
            out.extend(tensor.kind.to_le_bytes());
            out.extend(tensor.offset.to_le_bytes());
        }
        out
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = self.header();
        out.resize(out.len().next_multiple_of(self.alignment), 0);
        out.extend(&self.data);
        out
    }

    pub fn key_mut(&mut self, name: &str) -> &mut Key {
        self.keys.iter_mut().find(|key| key.name == name.as_bytes()).unwrap()
    }

    pub fn set(&mut self, name: &str, kind: u32, value: impl AsRef<[u8]>) {
        let key = self.key_mut(name);
        (key.kind, key.value) = (kind, value.as_ref().into());
    }

    pub fn set_u32(&mut self, name: &str, value: u32) {
        self.set(name, 4, value.to_le_bytes());
    }

    pub fn remove(&mut self, name: &str) {
        self.keys.retain(|key| key.name != name.as_bytes());
    }

    pub fn push(&mut self, name: impl AsRef<[u8]>, kind: u32, value: impl AsRef<[u8]>) {
        self.keys.push(key(name, kind, value));
    }

    pub fn tensor_mut(&mut self, name: &str) -> &mut Tensor {
        self.tensors.iter_mut().find(|tensor| tensor.name == name.as_bytes()).unwrap()
    }
}

/// The vocabulary of the sample: three control tokens, the 256 bytes, then plain words.
pub fn sample_tokens() -> Vec<String> {
    let control = ["<unk>", "<s>", "</s>"].map(String::from);
    let bytes = (0..256).map(|byte| format!("<0x{byte:02X}>"));
    let words = (0..253).map(|i| match i {
        0 => "▁".into(),
        1..27 => char::from(b'a' + i as u8 - 1).to_string(),
        _ => format!("▁w{i}"),
    });
    control.into_iter().chain(bytes).chain(words).collect()
}

/// A llama of five blocks: width 64, 8 heads over 4, feed-forward 172, vocabulary 512, Q4_0 where rows allow it.
pub fn sample() -> Raw {
    let mut raw = Raw::empty();
    raw.push("general.architecture", 8, string("llama"));
    raw.push("general.name", 8, string("sample"));
    let numbers = [
        ("context_length", 512u32),
        ("embedding_length", 64),
        ("block_count", 5),
        ("feed_forward_length", 172),
        ("attention.head_count", 8),
        ("attention.head_count_kv", 4),
        ("rope.dimension_count", 8),
    ];
    for (name, number) in numbers {
        raw.push(format!("llama.{name}"), 4, number.to_le_bytes());
    }
    raw.push("llama.rope.freq_base", 6, 10_000f32.to_le_bytes());
    raw.push("llama.attention.layer_norm_rms_epsilon", 6, 1e-5f32.to_le_bytes());
    raw.push("tokenizer.ggml.model", 8, string("llama"));
    raw.push("tokenizer.ggml.pre", 8, string("default"));
    raw.push("tokenizer.ggml.tokens", 9, strings(&sample_tokens()));
    raw.push("tokenizer.ggml.scores", 9, array(6, 512, &[0; 512 * 4]));
    let kinds =
        (0..512).flat_map(|i| [2u32, 3, 3].get(i).copied().unwrap_or(if i < 259 { 6 } else { 1 }).to_le_bytes());
    raw.push("tokenizer.ggml.token_type", 9, array(5, 512, &kinds.collect::<Vec<u8>>()));
    raw.push("tokenizer.ggml.bos_token_id", 4, 1u32.to_le_bytes());
    raw.push("tokenizer.ggml.eos_token_id", 4, 2u32.to_le_bytes());
    raw.push("tokenizer.ggml.unknown_token_id", 4, 0u32.to_le_bytes());
    let (f32, f16, q4_0) = (0, 1, 2);
    raw.add("token_embd.weight", &[64, 512], q4_0, 2 * 18 * 512);
    raw.add("output_norm.weight", &[64], f32, 256);
    for i in 0..5 {
        let name = |name: &str| format!("blk.{i}.{name}.weight");
        raw.add(&name("attn_norm"), &[64], f32, 256);
        raw.add(&name("attn_q"), &[64, 64], q4_0, 2 * 18 * 64);
        raw.add(&name("attn_k"), &[64, 32], q4_0, 2 * 18 * 32);
        raw.add(&name("attn_v"), &[64, 32], q4_0, 2 * 18 * 32);
        raw.add(&name("attn_output"), &[64, 64], q4_0, 2 * 18 * 64);
        raw.add(&name("ffn_norm"), &[64], f32, 256);
        raw.add(&name("ffn_gate"), &[64, 172], q4_0, 2 * 18 * 172);
        raw.add(&name("ffn_up"), &[64, 172], q4_0, 2 * 18 * 172);
        raw.add(&name("ffn_down"), &[172, 64], f16, 172 * 64 * 2);
    }
    raw
}

/// A change that breaks a file.
pub type Mutate = fn(&mut Raw);

/// What the reader alone says: header, then data bounds.
pub fn read(bytes: &[u8]) -> Result<File, gguf::Error> {
    let file = File::parse(bytes, bytes.len() as u64)?;
    file.check_data(bytes.len() as u64)?;
    Ok(file)
}

/// What everything up to a usable model says.
pub fn load(bytes: &[u8]) -> Result<Model<gguf::TensorInfo>, String> {
    let file = read(bytes).map_err(|error| error.to_string())?;
    let file = File::merge(vec![file]).map_err(|error| error.to_string())?;
    let model = model::bind(&file).map_err(|error| error.to_string())?;
    Tokenizer::from_metadata(&file.metadata).map_err(|error| error.to_string())?;
    Ok(model)
}
