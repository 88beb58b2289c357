//! (to be written)
pub mod inspect;
