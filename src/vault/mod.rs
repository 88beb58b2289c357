//! The vault's language: what an image of loaded weights says about itself, and what worker and daemon tell each other
//! about images. An image is a sealed [`Manifest`] and the sealed segments that hold the weights, a descriptor each. It
//! is made and read by `load`, kept by `daemon`, carried between them by `worker`. Nothing here reads a model.

mod manifest;
mod message;
mod sum;

pub use manifest::{FileId, Manifest, Segment, Stored, manifest_bytes, parse_manifest, read_manifest};
pub use message::{Answer, Ask, MESSAGE_BYTES};
pub use sum::{Sum, sum};
