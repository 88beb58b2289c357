//! Linux, as far as the rest needs it. Knows no model.

pub mod memory; // anonymous mappings, and how much memory there is
