//! Carries out a plan: opens a GGUF file or a split set, reads the header and no more, and then each tensor's bytes once
//! into anonymous memory. No weight is mapped from a file and nothing is read twice, so the peak is the weights and some
//! bounded buffers. Called by `engine`, and by commands that look at a file without running it.

mod error;
mod read;
mod source;
#[cfg(test)]
mod tests;

pub use crate::gguf::Metadata;
pub use crate::sys::memory::Mapping;
pub use error::Error;
pub use source::{Fill, Source};

use crate::gguf::TensorInfo;
use crate::model::Model;
use crate::ops::Tensor;
use std::ops::Range;
use std::sync::Arc;

/// Where a tensor starts in the arena: a cache line, and the widest vector register.
const ALIGNMENT: usize = 64;

/// How far a load has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of weights in place.
    pub bytes_done: u64,
    /// Bytes in all.
    pub bytes_total: u64,
}

impl Source {
    /// Reads the weights of `model`, which was bound to this source. `progress` is called on this thread, a few times
    /// per second of reading at least, the last time with everything done.
    ///
    /// # Errors
    /// [`Error`] when the file is short, changes while it is read, cannot be read, or memory is refused.
    pub fn load(&self, model: Model<TensorInfo>, progress: &mut dyn FnMut(Progress)) -> Result<Model<Tensor>, Error> {
        let (ranges, bytes) = lay_out(&model);
        let mut arena = Mapping::new(bytes).map_err(|source| Error::Memory { bytes, source })?;
        let tensors: Vec<(&TensorInfo, Range<usize>)> = ranges.iter().map(|(t, r)| (t, r.clone())).collect();
        read::read_all(self, &tensors, arena.as_mut_slice(), progress)?;
        self.check_unchanged()?;
        let storage: Arc<dyn AsRef<[u8]> + Send + Sync> = Arc::new(arena);
        let mut ranges =
            ranges.into_iter().map(|(t, range)| (t.name, range)).collect::<std::collections::HashMap<_, _>>();
        model.try_map(|_, info| {
            let range = ranges.remove(&info.name).unwrap_or_default();
            let (rows, cols) = shape(&info);
            Ok(Tensor::new(info.name, info.dtype, rows, cols, storage.clone(), range)?)
        })
    }
}

/// Each tensor's place in the arena, in the order of the file, and the arena's size.
fn lay_out(model: &Model<TensorInfo>) -> (Vec<(TensorInfo, Range<usize>)>, usize) {
    let mut tensors: Vec<TensorInfo> = model.tensors().into_iter().cloned().collect();
    tensors.sort_by_key(|t| (t.file, t.offset));
    let mut end = 0usize;
    let mut placed = Vec::with_capacity(tensors.len());
    for tensor in tensors {
        let start = end.next_multiple_of(ALIGNMENT);
        end = start.saturating_add(usize::try_from(tensor.size).unwrap_or(usize::MAX));
        placed.push((tensor, start..end));
    }
    (placed, end)
}

/// Rows and columns of a bound tensor: a vector is one row.
fn shape(info: &TensorInfo) -> (usize, usize) {
    let cols = info.shape.first().copied().unwrap_or(1) as usize;
    let rows = info.shape.iter().skip(1).product::<u64>() as usize;
    (rows, cols)
}
