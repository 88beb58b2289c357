//! What the process and its host contribute to the settings: the default socket, which files exist. Kept apart so that
//! reading a configuration is a pure function that tests and the fuzzer can call.

use std::path::{Path, PathBuf};

/// The facts about the process that settings depend on.
#[derive(Clone, Debug)]
pub struct Environment {
    /// Where the daemon listens when nobody says: [`super::default_socket`].
    pub default_socket: PathBuf,
    /// Whether a file can be read; the reason when it cannot.
    pub readable: fn(&Path) -> Result<(), String>,
}

impl Environment {
    /// This process.
    pub fn current() -> Self {
        Self {
            default_socket: super::default_socket(),
            readable: |path| match std::fs::File::open(path).and_then(|file| file.metadata()) {
                Ok(metadata) if metadata.is_file() => Ok(()),
                Ok(_) => Err("is not a regular file".into()),
                Err(error) => Err(error.to_string()),
            },
        }
    }

    /// An ordinary user on a host where every file exists: for tests and the fuzzer, touches nothing.
    pub fn pure() -> Self {
        Self { default_socket: "/run/user/1000/omni-inferd/omni.sock".into(), readable: |_| Ok(()) }
    }
}
