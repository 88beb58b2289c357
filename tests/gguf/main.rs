//! The GGUF reader and the model binding: bundled models, the catalogue of malformed files, properties, `inspect`.

mod bundled;
