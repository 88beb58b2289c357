//! What a GGUF holds and whether this build runs it, from metadata and directory alone. Works for any architecture: the
//! common keys mean the same in all of them. Nothing is guessed from names of files or quantisations.
//!
//! Behind `omnictl inspect`; a [`Report`] serialises to its `--json`, whose keys are an interface.

use super::{Error, Model, bind};
use crate::gguf::{File, FromValue, Metadata, Strings, TensorInfo, Value};
use crate::quant::DType;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// A file's summary.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// `general.name`.
    pub name: Option<String>,
    /// `general.architecture`.
    pub architecture: Option<String>,
    /// GGUF version, 2 or 3.
    pub gguf_version: u32,
    /// Files of the split set, 1 where there is none.
    pub files: u16,
    /// True when this build runs it.
    pub supported: bool,
    /// Why it does not run; empty when it does.
    pub reasons: Vec<String>,
    /// What is odd but harmless, e.g. tensors the architecture has no use for.
    pub warnings: Vec<String>,
    /// Weights.
    pub parameters: Parameters,
    /// Mixture of experts; `None` for a dense model.
    pub experts: Option<Experts>,
    /// Transformer blocks.
    pub layers: Option<u64>,
    /// Context the model was trained for, tokens.
    pub context: Option<u64>,
    /// Number of tensors.
    pub tensor_count: usize,
    /// One row per tensor type, most bytes first.
    pub tensor_types: Vec<TypeRow>,
    /// Vocabulary.
    pub tokenizer: Tokenizer,
    /// Sizes in bytes.
    pub bytes: Bytes,
    /// Which metadata key a field was read from.
    pub sources: BTreeMap<&'static str, String>,
}

/// Counts of weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Parameters {
    /// In the file.
    pub total: u64,
    /// Taking part in one token: with experts, only the share that is used.
    pub active: u64,
}

/// Mixture-of-experts layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Experts {
    /// Routed experts per layer.
    pub count: u64,
    /// Of these, used per token.
    pub used: u64,
    /// Experts every token passes.
    pub shared: u64,
}

/// All tensors of one type.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TypeRow {
    /// ggml's name.
    #[serde(rename = "type")]
    pub dtype: &'static str,
    /// How many.
    pub tensors: u64,
    /// Their elements.
    pub elements: u64,
    /// Their bytes, exactly.
    pub bytes: u64,
    /// True when this build can compute with them.
    pub supported: bool,
}

/// What the file says of its tokenizer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Tokenizer {
    /// `tokenizer.ggml.model`.
    pub model: Option<String>,
    /// `tokenizer.ggml.pre`.
    pub pre: Option<String>,
    /// Entries of the vocabulary.
    pub tokens: Option<usize>,
    /// True when the file has a chat template.
    pub chat_template: bool,
}

/// Bytes on disk and in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Bytes {
    /// Tensor data, summed from the directory.
    pub weights: u64,
    /// One token of context in an F16 KV cache.
    pub kv_per_token: Option<u64>,
    /// A whole trained context of it.
    pub kv_at_context: Option<u64>,
    /// Recurrent state of one sequence, whatever its length; `None` for a model without, or one that does not run here.
    pub state_per_sequence: Option<u64>,
    /// Weights that are loaded (not those a warning tells of), one whole context and one recurrent state; scratch buffers
    /// come on top.
    pub load: Option<u64>,
}

impl Report {
    /// Summarises a file. Never fails: what cannot be read is missing or a reason.
    pub fn new(file: &File) -> Report {
        let mut keys = Keys::new(&file.metadata);
        let experts = experts(&mut keys);
        let bound = bind(file);
        // Of a bound model it is known; the keys are asked all the same, for the sources.
        let kv_per_token = kv_per_token(&mut keys);
        let exact = bound.as_ref().ok().map(|model| model.hparams.kv_bytes_per_token(DType::F16));
        let kv_per_token = exact.or(kv_per_token);
        let context = keys.number("context", "context_length");
        let unused = bound.as_ref().map(|model| model.ignored.clone()).unwrap_or_default();
        let weights = file.tensors.iter().fold(0u64, |sum, tensor| sum.saturating_add(tensor.size));
        let kv_at_context = kv_per_token.zip(context).map(|(bytes, tokens)| bytes.saturating_mul(tokens));
        let state = bound.as_ref().ok().map(|model| model.hparams.state_bytes()).filter(|&bytes| bytes > 0);
        let warnings = bound.as_ref().map(|model| warnings(file, model)).unwrap_or_default();
        let loaded = bound.as_ref().map_or(weights, |model| model.weight_bytes());
        let reasons = bound.err().map(|error| reasons(file, &error)).unwrap_or_default();
        Report {
            name: keys.text("name", "general.name"),
            architecture: keys.text("architecture", "general.architecture"),
            gguf_version: file.version,
            files: file.files,
            supported: reasons.is_empty(),
            reasons,
            warnings,
            parameters: parameters(file, experts, &unused),
            experts,
            layers: keys.number("layers", "block_count"),
            context,
            tensor_count: file.tensors.len(),
            tensor_types: tensor_types(file),
            tokenizer: tokenizer(&mut keys),
            bytes: Bytes {
                weights,
                kv_per_token,
                kv_at_context,
                state_per_sequence: state,
                load: kv_at_context.map(|kv| kv.saturating_add(loaded).saturating_add(state.unwrap_or(0))),
            },
            sources: keys.sources,
        }
    }

    /// Adds a reason why the model does not run, found elsewhere (tokenizer, incomplete files).
    pub fn refuse(&mut self, reason: String) {
        self.supported = false;
        self.reasons.push(reason);
    }
}

/// Looks keys up and remembers which field came from which.
struct Keys<'a> {
    metadata: &'a Metadata,
    prefix: &'a str,
    sources: BTreeMap<&'static str, String>,
}

impl<'a> Keys<'a> {
    fn new(metadata: &'a Metadata) -> Self {
        let prefix = metadata.get_str("general.architecture").ok().flatten().unwrap_or_default();
        Keys { metadata, prefix, sources: BTreeMap::new() }
    }

    /// A value of full key `key`, noted as the source of `field`.
    fn find<T: FromValue<'a>>(&mut self, field: &'static str, key: String) -> Option<T> {
        let value = self.metadata.get(&key).ok().flatten()?;
        self.sources.insert(field, key);
        Some(value)
    }

    fn text(&mut self, field: &'static str, key: &str) -> Option<String> {
        self.find::<&str>(field, key.into()).map(str::to_owned)
    }

    /// The architecture's own number `name`.
    fn number(&mut self, field: &'static str, name: &str) -> Option<u64> {
        self.find(field, format!("{}.{name}", self.prefix))
    }

    /// The architecture's number `name` without a note.
    fn quiet(&self, name: &str) -> Option<u64> {
        self.metadata.get(&format!("{}.{name}", self.prefix)).ok().flatten()
    }
}

fn experts(keys: &mut Keys) -> Option<Experts> {
    let count = keys.number("experts.count", "expert_count").filter(|&count| count > 0)?;
    Some(Experts {
        count,
        used: keys.number("experts.used", "expert_used_count").unwrap_or(count).min(count),
        shared: keys.number("experts.shared", "expert_shared_count").unwrap_or(0),
    })
}

/// Routed experts' weights are the tensors named `…_exps…`; of them a token uses `used` in `count`. Of tensors that are
/// not bound it uses nothing.
fn parameters(file: &File, experts: Option<Experts>, unused: &[String]) -> Parameters {
    let unused: HashSet<&str> = unused.iter().map(String::as_str).collect();
    let (mut total, mut active) = (0u64, 0u64);
    for tensor in &file.tensors {
        let elements = tensor.elements();
        let share = match experts {
            _ if unused.contains(tensor.name.as_str()) => 0,
            Some(experts) if tensor.name.contains("_exps.") => {
                // At most `elements`, so the cast is exact.
                (u128::from(elements) * u128::from(experts.used) / u128::from(experts.count)) as u64
            }
            _ => elements,
        };
        total = total.saturating_add(elements);
        active = active.saturating_add(share);
    }
    Parameters { total, active }
}

/// Bytes per token of an F16 cache for an architecture that is not bound: latent attention keeps its compressed vector,
/// hybrids cache every n-th layer only, `head_count_kv` may differ by layer. `None` where the keys do not say.
fn kv_per_token(keys: &mut Keys) -> Option<u64> {
    const F16_BYTES: u64 = 2;
    let layers = keys.quiet("block_count")? / keys.quiet("full_attention_interval").unwrap_or(1).max(1);
    if let Some(rank) = keys.number("bytes.kv_per_token", "attention.kv_lora_rank") {
        let rope = keys.quiet("rope.dimension_count")?;
        return rank.checked_add(rope)?.checked_mul(layers)?.checked_mul(F16_BYTES);
    }
    let heads = keys.quiet("attention.head_count");
    let key = format!("{}.attention.head_count_kv", keys.prefix);
    let all_heads = match keys.metadata.find(&key) {
        Some(Value::Array(array)) => u64::try_from(array.integers()?.iter().filter(|&&n| n > 0).sum::<i128>()).ok()?,
        _ => keys.number("bytes.kv_per_token", "attention.head_count_kv").or(heads)?.checked_mul(layers)?,
    };
    let even = || keys.quiet("embedding_length")?.checked_div(heads?);
    let key_dim = keys.quiet("attention.key_length").or_else(even)?;
    let value_dim = keys.quiet("attention.value_length").or_else(even)?;
    key_dim.checked_add(value_dim)?.checked_mul(all_heads)?.checked_mul(F16_BYTES)
}

fn tensor_types(file: &File) -> Vec<TypeRow> {
    let mut rows: BTreeMap<DType, TypeRow> = BTreeMap::new();
    for tensor in &file.tensors {
        let dtype = tensor.dtype;
        let row = rows.entry(dtype).or_insert(TypeRow {
            dtype: dtype.name(),
            tensors: 0,
            elements: 0,
            bytes: 0,
            supported: dtype.is_supported(),
        });
        row.tensors += 1;
        row.elements = row.elements.saturating_add(tensor.elements());
        row.bytes = row.bytes.saturating_add(tensor.size);
    }
    let mut rows: Vec<TypeRow> = rows.into_values().collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row.bytes));
    rows
}

fn tokenizer(keys: &mut Keys) -> Tokenizer {
    Tokenizer {
        model: keys.text("tokenizer.model", "tokenizer.ggml.model"),
        pre: keys.text("tokenizer.pre", "tokenizer.ggml.pre"),
        tokens: keys.find::<&Strings>("tokenizer.tokens", "tokenizer.ggml.tokens".into()).map(Strings::len),
        chat_template: keys.find::<&str>("tokenizer.chat_template", "tokenizer.chat_template".into()).is_some(),
    }
}

/// Why binding failed, and what else stands in the way once that is solved.
fn reasons(file: &File, error: &Error) -> Vec<String> {
    if file.tensors.is_empty() && !matches!(error, Error::UnknownArchitecture { .. }) {
        return vec!["the file holds no tensors: it is a vocabulary or a part of a split set".into()];
    }
    let mut reasons = vec![error.to_string()];
    let mut undecodable: Vec<DType> =
        file.tensors.iter().map(|tensor| tensor.dtype).filter(|dtype| !dtype.is_supported()).collect();
    undecodable.sort_unstable();
    undecodable.dedup();
    if !undecodable.is_empty() && !matches!(error, Error::Type { .. }) {
        let names: Vec<&str> = undecodable.iter().map(|dtype| dtype.name()).collect();
        reasons.push(format!("no decoder for tensor type {}", names.join(", ")));
    }
    reasons
}

/// What is in the file and not used: blocks for predicting further tokens, and what the architecture does not know.
fn warnings(file: &File, model: &Model<TensorInfo>) -> Vec<String> {
    const SHOWN: usize = 8;
    let (further, unknown) = model.further_and_unknown();
    let mut warnings = Vec::new();
    if !further.is_empty() {
        let blocks: BTreeSet<usize> = further.iter().filter_map(|name| super::block_of(name)).collect();
        let names: HashSet<&str> = further.iter().copied().collect();
        let skipped = file.tensors.iter().filter(|tensor| names.contains(tensor.name.as_str()));
        let bytes: u64 = skipped.fold(0, |sum, tensor| sum.saturating_add(tensor.size));
        let blocks = blocks.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
        warnings.push(format!(
            "block {blocks} is for predicting further tokens (MTP, nextn) and is skipped: {} tensors of {bytes} bytes are not \
             loaded",
            further.len()
        ));
    }
    if !unknown.is_empty() {
        let more = if unknown.len() > SHOWN { ", …" } else { "" };
        let shown = unknown[..unknown.len().min(SHOWN)].join(", ");
        warnings.push(format!("{} tensors are not used: {shown}{more}", unknown.len()));
    }
    warnings
}
