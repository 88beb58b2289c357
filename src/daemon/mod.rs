//! The supervisor of all models.
pub mod lifecycle;
