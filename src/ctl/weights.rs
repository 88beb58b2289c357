//! What the configured models need, from their headers: the ground on which `doctor` judges the host and `tune` sizes
//! its huge pages.

use super::root::Root;
use crate::config::{self, Config};
use crate::load::Source;
use std::path::PathBuf;

/// Where the configuration lies below a root.
const FILE: &str = "etc/omni-inferd/config.toml";

/// One configured model.
#[derive(Clone, Debug)]
pub struct Need {
    /// Its id.
    pub id: String,
    /// Its file.
    pub path: PathBuf,
    /// Loaded when the daemon starts.
    pub preload: bool,
    /// Bytes of its weights, or why they are not known.
    pub bytes: Result<u64, String>,
}

/// The named file, else the one below `root`, else the defaults.
///
/// # Errors
/// What is wrong with it.
pub fn configuration(root: &Root, explicit: Option<PathBuf>) -> Result<Config, config::Error> {
    match explicit.or_else(|| Some(root.path(FILE)).filter(|path| path.exists())) {
        Some(path) => config::load(Some(&path)),
        None => Ok(Config::with_defaults(&config::Environment::current())),
    }
}

/// Reads the header of every model.
pub fn needs(config: &Config) -> Vec<Need> {
    let need = |model: &config::Model| {
        let bound = Source::open(&model.path).and_then(|source| source.bind());
        let bytes = bound.map(|bound| bound.weight_bytes()).map_err(|error| error.to_string());
        Need { id: model.id.clone(), path: model.path.clone(), preload: model.preload, bytes }
    };
    config.models.iter().map(need).collect()
}
