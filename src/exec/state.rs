//! The recurrent state of hybrid models: one reservation, cut into slots. A slot holds one sequence's state of all layers,
//! or a snapshot of it. Which sequence owns which slot, and what is a snapshot of what, is the scheduler's business.

use super::Error;
use crate::load::Mapping;
use crate::model::{HeadOrder, Hparams, Recurrence};
use crate::ops::{DeltaShape, StateLayer};

/// Bytes of the recurrent state of `slots` sequences or snapshots; 0 for a model without. Exact.
pub fn state_bytes(model: &Hparams, slots: usize) -> u64 {
    model.state_bytes().saturating_mul(slots as u64)
}

/// The recurrence's numbers as the operations take them.
pub(super) fn shape(r: &Recurrence) -> DeltaShape {
    DeltaShape {
        kernel: r.kernel,
        key_heads: r.key_heads,
        value_heads: r.value_heads,
        key_dim: r.key_dim,
        value_dim: r.value_dim,
        tiled: r.order == HeadOrder::Tiled,
    }
}

/// States of all slots: slot after slot, in each the recurrent layers in order.
pub(super) struct StateCache {
    memory: Mapping,
    slot_len: usize,
    layer_len: usize,
}

impl StateCache {
    /// Reserves `slots` slots. Zeroed pages: a slot costs memory only once it is used.
    pub(super) fn new(model: &Hparams, slots: usize) -> Result<StateCache, Error> {
        let bytes = usize::try_from(state_bytes(model, slots)).unwrap_or(usize::MAX);
        let memory = Mapping::new(bytes).map_err(|source| Error::State { bytes, source })?;
        let layer_len = model.recurrence.as_ref().map_or(0, Recurrence::state_len);
        let slot_len = model.recurrence.as_ref().map_or(0, |r| r.layers() * layer_len);
        Ok(StateCache { memory, slot_len, layer_len })
    }

    /// Bytes reserved.
    pub(super) fn bytes(&self) -> usize {
        self.memory.as_ref().len()
    }

    /// The part of the `index`-th recurrent layer.
    pub(super) fn layer(&mut self, index: usize) -> StateLayer<'_> {
        let (slot_len, offset) = (self.slot_len, index * self.layer_len);
        StateLayer { memory: self.memory.as_mut_f32s(), slot_len, offset }
    }

    /// Copies one slot to another.
    pub(super) fn copy(&mut self, from: usize, to: usize) {
        let len = self.slot_len;
        self.memory.as_mut_f32s().copy_within(from * len..(from + 1) * len, to * len);
    }
}
