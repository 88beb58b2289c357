//! The same daemon with its own worker and the bundled model.
