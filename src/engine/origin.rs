//! Where a model's weights come from: an image that was kept, if it matches, else the file.

use super::open::OpenError;
use crate::gguf::TensorInfo;
use crate::load::{Adopted, Keeper, LayoutOf, Loaded, Metadata, Method, Progress, Source};
use crate::model::Model;
use crate::sys::numa::Policy;
use std::path::Path;

/// See the module.
pub(super) enum Origin {
    File(Source),
    /// By its name.
    Kept(String, Box<Adopted>),
}

impl Origin {
    /// What is kept, if it matches; else the file.
    pub fn find(
        path: &Path,
        variant: &str,
        layout: LayoutOf<'_>,
        keeper: &mut dyn Keeper,
    ) -> Result<(Origin, Model<TensorInfo>), OpenError> {
        if let Some((id, descriptors)) = keeper.find(path, variant) {
            let adopted = Adopted::open(descriptors, path, variant);
            match adopted.and_then(|adopted| adopted.bind(layout).map(|model| (adopted, model))) {
                Ok((adopted, model)) => return Ok((Origin::Kept(id, Box::new(adopted)), model)),
                Err(reason) => keeper.reject(&id, &reason),
            }
        }
        Origin::file(path)
    }

    /// The file.
    pub fn file(path: &Path) -> Result<(Origin, Model<TensorInfo>), OpenError> {
        let source = Source::open(path)?;
        let model = source.bind()?;
        Ok((Origin::File(source), model))
    }

    /// The name of what was kept.
    pub fn kept(&self) -> Option<String> {
        match self {
            Origin::File(_) => None,
            Origin::Kept(id, _) => Some(id.clone()),
        }
    }

    /// Bytes of memory that the weights take already.
    pub fn resident(&self) -> u64 {
        match self {
            Origin::File(_) => 0,
            Origin::Kept(_, adopted) => adopted.resident(),
        }
    }

    /// What the operator should know of it.
    pub fn note(&self) -> Option<String> {
        let Origin::Kept(_, adopted) = self else { return None };
        let (path, why) = adopted.unseen.first()?;
        let path = path.display();
        Some(format!("{path} {why}; the model is served from the weights that were kept, and cannot be loaded anew"))
    }

    /// The weights, the file's metadata, and whether they had to be read.
    pub fn load(
        self,
        model: Model<TensorInfo>,
        layout: LayoutOf<'_>,
        memory: (&Policy, bool),
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(Metadata, Loaded, bool), OpenError> {
        match self {
            Origin::File(source) => {
                let loaded = source.load_at(model, layout, memory, progress)?;
                Ok((source.header.metadata, loaded, true))
            }
            Origin::Kept(_, mut adopted) => {
                let (metadata, bytes) = (std::mem::take(&mut adopted.header.metadata), model.weight_bytes());
                let loaded = adopted.load(model, layout)?;
                progress(Progress { bytes_done: bytes, bytes_total: bytes, method: Method::Kept });
                Ok((metadata, loaded, false))
            }
        }
    }
}
