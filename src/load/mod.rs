//! x
pub use crate::sys::memory::Mapping;
