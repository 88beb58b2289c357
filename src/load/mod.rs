//! Carries out a plan: opens a GGUF file or a split set, reads the header and no more, and then each tensor's bytes once
//! into memory, packed on the way. No weight is mapped from a file and none is held twice, so the peak is the weights and
//! some bounded buffers. What was read is an [`Image`], which somebody may keep for a later process. Called by `engine`,
//! and by commands that look at a file without running it.

mod error;
mod image;
mod jobs;
mod read;
mod source;
#[cfg(test)]
mod tests;

pub use crate::gguf::Metadata;
pub use crate::sys::memory::{Mapping, huge_page_bytes};
pub use error::Error;
pub use image::{Adopted, Image, Keeper, Nobody, variant};
pub use source::{Fill, Source};

use crate::gguf::TensorInfo;
use crate::model::Model;
use crate::ops::Tensor;
use crate::quant::packed::ROWS;
use crate::quant::{DType, Layout};
use crate::sys::arena::{self, Arena, Part};
use crate::sys::memory::{Memory, available_on, total_on};
use crate::sys::numa::Policy;
use jobs::Placed;
use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::thread;

/// Least bytes of a part of a matrix that lies on a node of its own: some huge pages.
const LEAST_PART: usize = 4 << 20;
/// Most parts.
const MOST_PARTS: usize = 16 << 10;

/// How a matrix of a type, rows and columns is to lie.
pub type LayoutOf<'a> = &'a dyn Fn(DType, usize, usize) -> Layout;

/// How far a load has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of weights in place.
    pub bytes_done: u64,
    /// Bytes in all.
    pub bytes_total: u64,
    /// How they are read.
    pub method: Method,
}

/// How the bytes of a file come to memory; the best that kernel and file system allow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Method {
    /// io_uring, past the page cache.
    Ring,
    /// A thread per read, past the page cache.
    Direct,
    /// A thread per read, through the page cache.
    #[default]
    Cached,
    /// Not at all: they are in memory.
    Kept,
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Method::Ring => "io_uring, direct",
            Method::Direct => "threads, direct",
            Method::Cached => "threads, page cache",
            Method::Kept => "the vault",
        })
    }
}

/// A model in memory.
pub struct Loaded {
    /// Its tensors.
    pub model: Model<Tensor>,
    /// What they lie in.
    pub image: Image,
}

impl Source {
    /// Reads the weights of `model` to wherever there is memory, for this process alone; see [`Source::load_at`].
    ///
    /// # Errors
    /// As [`Source::load_at`].
    pub fn load(
        &self,
        model: Model<TensorInfo>,
        layout: LayoutOf<'_>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Model<Tensor>, Error> {
        self.load_at(model, layout, (&Policy::Local, false), progress).map(|loaded| loaded.model)
    }

    /// Reads the weights of `model`, which was bound to this source, to memory placed by `policy`, in the order that
    /// `layout` says for a type, rows and columns. `kept`: somebody will keep the image. `progress` is called on this
    /// thread, a few times per second of reading at least, the last time with everything done.
    ///
    /// # Errors
    /// [`Error`] when the file is short, changes while it is read, cannot be read, or memory is refused.
    pub fn load_at(
        &self,
        model: Model<TensorInfo>,
        layout: LayoutOf<'_>,
        (policy, kept): (&Policy, bool),
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Loaded, Error> {
        let (placed, bytes) = places(&model, layout);
        let memory = |source| Error::Memory { bytes, source };
        let mut wait = || progress(Progress { bytes_total: model.weight_bytes(), ..Progress::default() });
        let parts = parts(&placed, bytes, policy);
        let mut arena = Arena::new(bytes, (policy, &parts), kept, &mut wait).map_err(memory)?;
        let (target, faults) = arena.as_mut();
        thread::scope(|scope| {
            // Without a thread of their own, pages come into being as they are written.
            let pages = thread::Builder::new().name("load-pages".into());
            let _ = pages.spawn_scoped(scope, || faults.populate());
            let read = read::read_all(self, &placed, target, progress);
            faults.stop();
            read
        })?;
        self.check_unchanged()?;
        let nodes = arena.nodes();
        let image = Image::new(self, &placed, nodes, Arc::new(arena.freeze().map_err(memory)?));
        Ok(Loaded { model: tensors(model, placed, &image)?, image })
    }
}

/// Bytes that a model with so many bytes of weights may take now: what the host and its control groups have available (of
/// a node alone when it is bound to one), and the reserved pages that its weights would take.
///
/// # Errors
/// When `/proc/meminfo` cannot be read.
pub fn available(weight_bytes: u64, policy: &Policy) -> std::io::Result<u64> {
    let node = match policy {
        Policy::Bind(node) => available_on(Path::new("/"), *node),
        Policy::Local | Policy::Interleave(_) | Policy::Partition(_) => None,
    };
    let plain = Memory::now()?.available.min(node.unwrap_or(u64::MAX));
    Ok(plain.saturating_add(reserved(weight_bytes, policy)))
}

/// Bytes that a model may take when nobody else takes any: of the host and its control groups, of a node alone when it is
/// bound to one.
///
/// # Errors
/// As [`available`].
pub fn most(policy: &Policy) -> std::io::Result<u64> {
    let node = match policy {
        Policy::Bind(node) => total_on(Path::new("/"), *node),
        Policy::Local | Policy::Interleave(_) | Policy::Partition(_) => None,
    };
    Ok(Memory::now()?.most.min(node.unwrap_or(u64::MAX)))
}

/// Bytes of so many bytes of weights that reserved pages would hold now.
pub fn reserved(weight_bytes: u64, policy: &Policy) -> u64 {
    arena::reserved_for(weight_bytes, policy)
}

/// Each tensor's place in the image, and the image's size.
fn places(model: &Model<TensorInfo>, layout: LayoutOf<'_>) -> (Vec<Placed>, usize) {
    // Rows of an embedding that is nothing else are decoded one by one: packed, each would be scattered.
    let looked_up = model.output.as_ref().map(|_| model.embedding.name.clone());
    let panel = |info: &TensorInfo| {
        let (rows, cols) = shape(info);
        // Panels of a stack must not span two matrices.
        let whole = info.shape.len() < 3 || info.shape[1].is_multiple_of(ROWS as u64);
        let packed = layout(info.dtype, rows, cols) == Layout::Packed && looked_up.as_ref() != Some(&info.name);
        let packed = packed && whole;
        info.dtype.row_bytes(cols).filter(|_| packed)?.checked_mul(ROWS)
    };
    jobs::lay_out(model, panel)
}

/// The parts of matrices that threads are dealt, with their nodes, where `policy` partitions: rows of each matrix by as many
/// as stay together in a panel, of a stack of experts those of each expert. What would be cut too small to matter stays
/// whole.
fn parts(placed: &[Placed], bytes: usize, policy: &Policy) -> Vec<Part> {
    // Each part is a mapping to the kernel, which has 65530 of them by default.
    let least = LEAST_PART.max(bytes / MOST_PARTS);
    let mut parts = Vec::new();
    for place in placed.iter().filter(|place| place.info.shape.len() > 1) {
        let rows = place.info.shape[1] as usize;
        let matrices = place.info.shape.iter().skip(2).product::<u64>().max(1) as usize;
        let length = place.range.len() / matrices;
        let cut = policy.parts(rows.div_ceil(ROWS));
        let byte = |panel: usize| length / rows.max(1) * rows.min(panel * ROWS);
        if cut.iter().any(|(panels, _)| byte(panels.end) - byte(panels.start) < least) {
            continue;
        }
        for start in (0..matrices).map(|number| place.range.start + number * length) {
            parts
                .extend(cut.iter().map(|(panels, node)| (start + byte(panels.start)..start + byte(panels.end), *node)));
        }
    }
    parts
}

/// The tensors of `model` over the bytes of an image.
fn tensors(model: Model<TensorInfo>, placed: Vec<Placed>, image: &Image) -> Result<Model<Tensor>, Error> {
    let storage: Arc<dyn AsRef<[u8]> + Send + Sync> = image.weights();
    let places = placed.into_iter().map(|p| (p.info.name, (p.range, p.panel.is_some())));
    let mut places: HashMap<_, _> = places.collect();
    model.try_map(|_, info| {
        let (range, packed) = places.remove(&info.name).unwrap_or_default();
        let (rows, cols) = shape(&info);
        let tensor = Tensor::new(info.name, info.dtype, rows, cols, storage.clone(), range)?;
        Ok(if packed { tensor.packed()? } else { tensor })
    })
}

/// Rows and columns of a bound tensor: a vector is one row.
fn shape(info: &TensorInfo) -> (usize, usize) {
    let cols = info.shape.first().copied().unwrap_or(1) as usize;
    let rows = info.shape.iter().skip(1).product::<u64>() as usize;
    (rows, cols)
}
