//! The paged KV cache: one reservation for all layers, cut into blocks of [`super::KV_BLOCK`] tokens. Which sequence owns which
//! block is the scheduler's business.

use super::Error;
use crate::load::Mapping;
use crate::model::Hparams;
use crate::ops::{KvLayer, KvShape};
use crate::quant::DType;

/// Element type of the KV cache. The quantised ones need head sizes that are multiples of 32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvType {
    /// Half precision: the default.
    #[default]
    F16,
    /// The upper half of a single: more range, less precision.
    Bf16,
    /// Eight bits and a scale per 32: half of F16's memory.
    Q8_0,
    /// Four bits, a scale and a minimum per 32: a third.
    Q4_1,
    /// Four bits and a scale per 32: the least memory.
    Q4_0,
    /// Single precision: twice the memory, for comparisons.
    F32,
}

impl KvType {
    /// All of them.
    pub const ALL: [KvType; 6] = [KvType::F16, KvType::Bf16, KvType::Q8_0, KvType::Q4_1, KvType::Q4_0, KvType::F32];

    /// As settings name it, e.g. `q8_0`.
    pub fn name(self) -> &'static str {
        match self {
            KvType::F16 => "f16",
            KvType::Bf16 => "bf16",
            KvType::Q8_0 => "q8_0",
            KvType::Q4_1 => "q4_1",
            KvType::Q4_0 => "q4_0",
            KvType::F32 => "f32",
        }
    }

    fn dtype(self) -> DType {
        match self {
            KvType::F16 => DType::F16,
            KvType::Bf16 => DType::BF16,
            KvType::Q8_0 => DType::Q8_0,
            KvType::Q4_1 => DType::Q4_1,
            KvType::Q4_0 => DType::Q4_0,
            KvType::F32 => DType::F32,
        }
    }

    /// Whether a model's heads suit the type.
    ///
    /// # Errors
    /// [`Error::Ops`] when they do not.
    pub fn check(self, model: &Hparams) -> Result<(), Error> {
        Ok(self.shape(model).check()?)
    }

    /// One layer's cache of a model.
    pub(super) fn shape(self, model: &Hparams) -> KvShape {
        KvShape {
            kv_heads: model.kv_heads,
            key_dim: model.key_dim,
            value_dim: model.value_dim,
            key_type: self.dtype(),
            value_type: self.dtype(),
            latent: model.latent.is_some(),
        }
    }
}

impl std::str::FromStr for KvType {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let names = || KvType::ALL.map(KvType::name).join(", ");
        let found = KvType::ALL.into_iter().find(|kv_type| kv_type.name() == name);
        found.ok_or_else(|| format!("KV cache type `{name}` is unknown; use one of: {}", names()))
    }
}

/// Bytes of a cache of `blocks` blocks for all layers of `model` that have attention. Exact.
pub fn kv_bytes(model: &Hparams, kv_type: KvType, blocks: usize) -> u64 {
    let shape = kv_type.shape(model);
    let per_block = (shape.key_block_bytes() + shape.value_block_bytes()) as u64;
    per_block.saturating_mul(model.kv_layers() as u64).saturating_mul(blocks as u64)
}

/// Keys and values of all layers with attention: for each of them its keys, then its values, laid out as [`KvShape`] says.
pub(super) struct KvCache {
    memory: Mapping,
    shape: KvShape,
    blocks: usize,
}

impl KvCache {
    /// Reserves `blocks` blocks for each layer.
    pub(super) fn new(model: &Hparams, kv_type: KvType, blocks: usize) -> Result<KvCache, Error> {
        kv_type.check(model)?;
        let bytes = usize::try_from(kv_bytes(model, kv_type, blocks)).unwrap_or(usize::MAX);
        let memory = Mapping::new(bytes).map_err(|source| Error::Kv { bytes, source })?;
        Ok(KvCache { memory, shape: kv_type.shape(model), blocks })
    }

    /// Bytes reserved.
    pub(super) fn bytes(&self) -> usize {
        self.memory.as_ref().len()
    }

    /// One layer's part; only those with attention count.
    pub(super) fn layer(&mut self, index: usize) -> KvLayer<'_> {
        let key_bytes = self.blocks * self.shape.key_block_bytes();
        let value_bytes = self.blocks * self.shape.value_block_bytes();
        let start = index * (key_bytes + value_bytes);
        let layer = &mut self.memory.as_mut_slice()[start..start + key_bytes + value_bytes];
        let (keys, values) = layer.split_at_mut(key_bytes);
        KvLayer { shape: self.shape, keys, values }
    }
}
