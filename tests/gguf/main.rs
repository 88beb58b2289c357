//! The GGUF reader and the model binding: bundled models, the catalogue of malformed files, properties, `inspect`.

mod alloc;
mod bundled;
mod handcrafted;
mod inspect;
mod malformed;
mod model;
mod properties;
mod raw;
