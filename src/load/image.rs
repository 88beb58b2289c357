//! Loaded weights as something that outlives this process: made from what was read, found again by a later process if
//! file, layout and plan are still the same. Keeping is somebody else's: a [`Keeper`].

use super::{Error, LayoutOf, Loaded, Source, places, tensors};
use crate::gguf::{self, TensorInfo};
use crate::model::{self, Model};
use crate::quant::packed::VERSION;
use crate::quant::{DType, Layout};
use crate::sys::arena::Frozen;
use crate::sys::numa::Policy;
use crate::sys::pass;
use crate::vault::{self, FileId, Manifest, Segment, Stored};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Bytes of which a checksum is taken at a time.
const PIECE: usize = 1 << 20;

/// Who keeps images over the life of a process.
pub trait Keeper {
    /// Whether it keeps images at all.
    fn keeps(&self) -> bool;
    /// An image of this file in this variant: its name and its descriptors, the manifest's first.
    fn find(&mut self, path: &Path, variant: &str) -> Option<(String, Vec<OwnedFd>)>;
    /// The image found does not match, for this reason.
    fn reject(&mut self, id: &str, reason: &str);
    /// Begins to free memory of images that nobody uses, until there are `bytes` more, of which `reserved` at most may lie
    /// on reserved pages; answers how much there will be after a while, with what is being freed already.
    fn reclaim(&mut self, bytes: u64, reserved: u64) -> u64;
    /// Takes an image that was just made, for a later [`Keeper::find`].
    fn keep(&mut self, path: &Path, variant: &str, image: Image);
    /// An image that was found is in use; what is left to do with it ([`Image::touch`], [`Image::pages`]) nobody waits for.
    fn settle(&mut self, image: Image);
}

/// Keeps nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Nobody;

impl Keeper for Nobody {
    fn keeps(&self) -> bool {
        false
    }

    fn find(&mut self, _: &Path, _: &str) -> Option<(String, Vec<OwnedFd>)> {
        None
    }

    fn reject(&mut self, _: &str, _: &str) {}

    fn reclaim(&mut self, _: u64, _: u64) -> u64 {
        0
    }

    fn keep(&mut self, _: &Path, _: &str, _: Image) {}

    fn settle(&mut self, _: Image) {}
}

/// What besides a model's files decides how its weights lie in memory: images of different variants do not fit each other.
pub fn variant(layout: LayoutOf<'_>, policy: &Policy) -> String {
    // Wide and high enough for every kernel.
    let packed = |dtype: &&DType| layout(**dtype, 4096, 4096) == Layout::Packed;
    let packed: Vec<String> = DType::ALL.iter().filter(packed).map(DType::to_string).collect();
    format!("layout {VERSION}, packed {}; memory {policy}", packed.join("+"))
}

/// Weights in sealed memory, and all that a later process must know of them.
#[derive(Debug)]
pub struct Image {
    weights: Arc<Frozen>,
    tensors: Vec<Stored>,
    nodes: BTreeMap<usize, u64>,
    files: Vec<FileId>,
    headers: Vec<Vec<u8>>,
}

impl Image {
    pub(super) fn new(
        source: &Source,
        placed: &[super::Placed],
        nodes: BTreeMap<usize, u64>,
        weights: Arc<Frozen>,
    ) -> Image {
        let parts = source.parts.iter();
        // A file that cannot be looked at now has none of an identity; then there is no image to be kept.
        let files = parts.clone().map(|part| FileId::of(&part.path, &part.file, &part.head)).collect::<io::Result<_>>();
        let headers = parts.map(|part| part.head.clone()).collect();
        Image { weights, tensors: stored(placed), nodes, files: files.unwrap_or_default(), headers }
    }

    pub(super) fn weights(&self) -> Arc<Frozen> {
        self.weights.clone()
    }

    /// Enters all of it in the page tables; see [`Frozen::touch`].
    pub fn touch(&self) {
        self.weights.touch();
    }

    /// Bytes on pages of each size, as they are mapped now. Takes some tens of milliseconds for each GB on plain pages.
    pub fn pages(&self) -> BTreeMap<usize, u64> {
        self.weights.pages()
    }

    /// Bytes on each NUMA node when the weights were read; empty where the kernel does not say.
    pub fn nodes(&self) -> &BTreeMap<usize, u64> {
        &self.nodes
    }

    /// Moves what lies on plain pages to huge ones, as far as there are some; see [`Frozen::collapse`].
    pub fn collapse(&self) {
        self.weights.collapse();
    }

    /// The image's descriptors, the manifest's first. Reads all weights once for their checksums.
    ///
    /// # Errors
    /// No files to tell it by, private memory, no memory, or no descriptors.
    pub fn seal(&self, path: &Path, variant: &str) -> io::Result<Vec<OwnedFd>> {
        if self.files.is_empty() {
            return Err(io::Error::other("the weights are of no file"));
        }
        let segments = self.weights.segments();
        let files: Option<Vec<_>> = segments.iter().map(|segment| segment.file()).collect();
        let files = files.ok_or_else(|| io::Error::other("the weights lie in private memory"))?;
        let bytes = (*self.weights).as_ref();
        let mut tensors = self.tensors.clone();
        for stored in &mut tensors {
            let mut sum = vault::Sum::default();
            bytes[stored.start as usize..][..stored.bytes as usize].chunks(PIECE).for_each(|piece| sum.add(piece));
            stored.sum = sum.end();
        }
        let manifest = Manifest {
            path: path.into(),
            variant: variant.into(),
            files: self.files.clone(),
            bytes: bytes.len() as u64,
            segments: segments.iter().map(|s| Segment { page: s.page as u64, bytes: s.bytes as u64 }).collect(),
            nodes: self.nodes.clone(),
            tensors,
            created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs()),
        };
        let mut descriptors = vec![manifest.seal(&self.headers)?];
        descriptors.extend(pass::copies(&files)?);
        Ok(descriptors)
    }
}

/// An image that was kept, of the same files and variant. Its weights are not mapped yet.
#[derive(Debug)]
pub struct Adopted {
    /// The model's header.
    pub header: gguf::File,
    manifest: Manifest,
    headers: Vec<Vec<u8>>,
    segments: Vec<OwnedFd>,
    /// Files that are not where they were or cannot be looked at, and why: nobody could load them either.
    pub unseen: Vec<(PathBuf, String)>,
}

impl Adopted {
    /// Takes an image's descriptors, the manifest's first, if it is of the present files of `path` in this variant.
    ///
    /// # Errors
    /// What does not match.
    pub fn open(descriptors: Vec<OwnedFd>, path: &Path, variant: &str) -> Result<Adopted, String> {
        let mut descriptors = descriptors.into_iter();
        let first = descriptors.next().ok_or("it has no manifest")?;
        let (_, manifest, headers) = vault::read_manifest(first.as_fd())?;
        if manifest.path != path || manifest.variant != variant {
            return Err(format!("it is of {} with {}", manifest.path.display(), manifest.variant));
        }
        let mut unseen = Vec::new();
        for file in &manifest.files {
            if let Some(why) = file.check()? {
                unseen.push((file.path.clone(), why));
            }
        }
        let parse = |(header, file): (&Vec<u8>, &FileId)| gguf::File::parse(header, file.bytes);
        let parsed = headers.iter().zip(&manifest.files).map(parse).collect::<Result<Vec<_>, _>>();
        let header = parsed.and_then(gguf::File::merge).map_err(|error| format!("its header is odd: {error}"))?;
        Ok(Adopted { header, manifest, headers, segments: descriptors.collect(), unseen })
    }

    /// Bytes of memory that it takes already.
    pub fn resident(&self) -> u64 {
        self.manifest.resident()
    }

    /// Binds its header's tensors to a model that would lie as the image does.
    ///
    /// # Errors
    /// What does not match.
    pub fn bind(&self, layout: LayoutOf<'_>) -> Result<Model<TensorInfo>, String> {
        let model = model::bind(&self.header).map_err(|error| error.to_string())?;
        let (placed, bytes) = places(&model, layout);
        let same = |(mine, its): (&Stored, &Stored)| *mine == Stored { sum: 0, ..its.clone() };
        let (mine, its) = (stored(&placed), &self.manifest.tensors);
        if bytes as u64 != self.manifest.bytes || mine.len() != its.len() || !mine.iter().zip(its).all(same) {
            return Err("its tensors lie in another order".into());
        }
        Ok(model)
    }

    /// Maps the weights of `model`, which [`Adopted::bind`] made of it.
    ///
    /// # Errors
    /// [`Error::Memory`] when the segments cannot be mapped, or [`Error::Tensor`].
    pub fn load(self, model: Model<TensorInfo>, layout: LayoutOf<'_>) -> Result<Loaded, Error> {
        let (placed, bytes) = places(&model, layout);
        let weights = Frozen::adopt(self.segments, bytes).map_err(|source| Error::Memory { bytes, source })?;
        let Manifest { files, nodes, .. } = self.manifest;
        let image = Image { weights: Arc::new(weights), tensors: stored(&placed), nodes, files, headers: self.headers };
        Ok(Loaded { model: tensors(model, placed, &image)?, image })
    }
}

/// Places as a manifest has them, their sums still to be taken.
fn stored(placed: &[super::Placed]) -> Vec<Stored> {
    let stored = |place: &super::Placed| Stored {
        name: place.info.name.clone(),
        dtype: place.info.dtype.to_string(),
        shape: place.info.shape.clone(),
        start: place.range.start as u64,
        bytes: place.range.len() as u64,
        packed: place.panel.is_some(),
        sum: 0,
    };
    placed.iter().map(stored).collect()
}
