//! Why a well-formed GGUF is no model this build runs.

use super::Architecture;
use crate::gguf;
use crate::quant::DType;

/// Why a file was refused when its tensors were bound. Shapes are in the file's order, columns first.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Metadata that is missing or of the wrong type.
    #[error(transparent)]
    Metadata(#[from] gguf::Error),
    /// Another architecture than those this build runs.
    #[error(
        "architecture {found:?} (general.architecture) is not supported{}; supported are {}",
        nearest(found),
        known()
    )]
    UnknownArchitecture {
        /// The file's.
        found: String,
    },
    /// Part of a split set.
    #[error("the model is split into {count} files (split.count), only {files} of them opened; open the whole set")]
    Incomplete {
        /// Files of the set.
        count: u16,
        /// Files merged.
        files: u16,
    },
    /// A key whose value makes no model, or one this build does not run.
    #[error("{key} is {value}: {problem}")]
    BadValue {
        /// The key.
        key: String,
        /// Its value.
        value: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A tensor the architecture needs.
    #[error("tensor {tensor:?} is missing")]
    MissingTensor {
        /// Its name.
        tensor: String,
    },
    /// A tensor of another shape than the metadata says.
    #[error("tensor {tensor:?} has shape {found:?}, the metadata asks for {expected:?}")]
    Shape {
        /// Its name.
        tensor: String,
        /// From the metadata.
        expected: Vec<u64>,
        /// In the file.
        found: Vec<u64>,
    },
    /// A tensor whose type cannot be computed with.
    #[error("tensor {tensor:?} is of type {dtype}: {problem}")]
    Type {
        /// Its name.
        tensor: String,
        /// Its type.
        dtype: DType,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A factor for the whole of a tensor, where none is applied.
    #[error(
        "tensor {tensor:?} is a factor for the whole of {weight:?}, which is of type {dtype}; it cannot be applied there: \
         convert {weight:?} with another type"
    )]
    Factor {
        /// The factor's name.
        tensor: String,
        /// The name of what it belongs to.
        weight: String,
        /// The type of that.
        dtype: DType,
    },
}

fn nearest(found: &str) -> String {
    match super::nearest::nearest(found) {
        Some((nearest, "")) => format!(", the nearest known one is {}", nearest.name()),
        Some((nearest, other)) => {
            format!(", the nearest known one is {}, from which it differs: {other}", nearest.name())
        }
        None => String::new(),
    }
}

fn known() -> String {
    Architecture::ALL.map(Architecture::name).join(", ")
}
