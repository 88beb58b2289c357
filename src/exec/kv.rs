//! The paged KV cache: one reservation for all layers, cut into blocks of [`super::KV_BLOCK`] tokens. Which sequence owns which
//! block is the scheduler's business.

use super::Error;
use crate::load::Mapping;
use crate::model::Hparams;
use crate::ops::{KvLayer, KvShape};
use crate::quant::DType;

/// Element type of the KV cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvType {
    /// Half precision: the default.
    #[default]
    F16,
    /// Single precision: twice the memory, for comparisons.
    F32,
}

impl KvType {
    /// `f16` or `f32`.
    pub fn name(self) -> &'static str {
        match self {
            KvType::F16 => "f16",
            KvType::F32 => "f32",
        }
    }

    fn dtype(self) -> DType {
        match self {
            KvType::F16 => DType::F16,
            KvType::F32 => DType::F32,
        }
    }
}

impl std::str::FromStr for KvType {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "f16" => Ok(KvType::F16),
            "f32" => Ok(KvType::F32),
            other => Err(format!("KV cache type `{other}` is unknown; use f16 or f32")),
        }
    }
}

/// Bytes of a cache of `blocks` blocks for all layers of `model`.
pub fn kv_bytes(model: &Hparams, kv_type: KvType, blocks: usize) -> u64 {
    let shape = shape(model, kv_type);
    let per_block = (shape.key_block_bytes() + shape.value_block_bytes()) as u64;
    per_block.saturating_mul(model.layers as u64).saturating_mul(blocks as u64)
}

fn shape(model: &Hparams, kv_type: KvType) -> KvShape {
    KvShape { kv_heads: model.kv_heads, key_dim: model.key_dim, value_dim: model.value_dim, dtype: kv_type.dtype() }
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
        let bytes = usize::try_from(kv_bytes(model, kv_type, blocks)).unwrap_or(usize::MAX);
        let memory = Mapping::new(bytes).map_err(|source| Error::Kv { bytes, source })?;
        Ok(KvCache { memory, shape: shape(model, kv_type), blocks })
    }

    /// Bytes reserved.
    pub(super) fn bytes(&self) -> usize {
        self.memory.as_ref().len()
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
