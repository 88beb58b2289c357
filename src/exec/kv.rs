//! The paged KV cache: one reservation for all layers, cut into blocks of [`KV_BLOCK`] tokens. Which sequence owns which
//! block is the scheduler's business.

use super::Error;
use crate::load::Mapping;
use crate::model::Hparams;
use crate::ops::{KV_BLOCK, KvLayer, KvShape};
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

    /// One layer's cache of a model.
    ///
    /// # Errors
    /// [`Error::Ops`] when the model's heads do not suit the type.
    pub fn shape(self, model: &Hparams) -> Result<KvShape, Error> {
        let shape = KvShape {
            kv_heads: model.kv_heads,
            key_dim: model.key_dim,
            value_dim: model.value_dim,
            key_type: self.dtype(),
            value_type: self.dtype(),
        };
        shape.check()?;
        Ok(shape)
    }

    /// Bytes of one token in all layers, exact.
    ///
    /// # Errors
    /// As [`KvType::shape`].
    pub fn token_bytes(self, model: &Hparams) -> Result<u64, Error> {
        Ok((self.shape(model)?.token_bytes() as u64).saturating_mul(model.layers as u64))
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

/// Keys and values of all layers: for each layer its keys, then its values, laid out as [`KvShape`] says.
pub(super) struct KvCache {
    memory: Mapping,
    shape: KvShape,
    blocks: usize,
}

impl KvCache {
    /// Reserves `blocks` blocks for each layer.
    pub(super) fn new(model: &Hparams, kv_type: KvType, blocks: usize) -> Result<KvCache, Error> {
        let shape = kv_type.shape(model)?;
        let per_token = usize::try_from(kv_type.token_bytes(model)?).unwrap_or(usize::MAX);
        let bytes = per_token.saturating_mul(KV_BLOCK).saturating_mul(blocks);
        let memory = Mapping::new(bytes).map_err(|source| Error::Kv { bytes, source })?;
        Ok(KvCache { memory, shape, blocks })
    }

    /// Bytes reserved.
    pub(super) fn bytes(&self) -> usize {
        self.memory.as_ref().len()
    }

    /// Of one layer.
    pub(super) fn shape(&self) -> &KvShape {
        &self.shape
    }

    /// One layer's part.
    pub(super) fn layer(&mut self, index: usize) -> KvLayer<'_> {
        let key_bytes = self.blocks * self.shape.key_block_bytes();
        let value_bytes = self.blocks * self.shape.value_block_bytes();
        let start = index * (key_bytes + value_bytes);
        let layer = &mut self.memory.as_mut_slice()[start..start + key_bytes + value_bytes];
        let (keys, values) = layer.split_at_mut(key_bytes);
        KvLayer { shape: self.shape, keys, values }
    }
}
