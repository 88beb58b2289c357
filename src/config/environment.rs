//! What the process and its host contribute to the settings: user, runtime directories, which files exist. Kept apart
//! so that reading a configuration is a pure function that tests and the fuzzer can call.

use std::path::{Path, PathBuf};

/// The facts about the process that settings depend on.
#[derive(Clone, Debug)]
pub struct Environment {
    /// Effective user id.
    pub uid: u32,
    /// `RUNTIME_DIRECTORY`, set by systemd for units with `RuntimeDirectory=`.
    pub runtime_directory: Option<PathBuf>,
    /// `XDG_RUNTIME_DIR`, set for logged-in users.
    pub xdg_runtime_dir: Option<PathBuf>,
    /// Whether a file can be read; the reason when it cannot.
    pub readable: fn(&Path) -> Result<(), String>,
}

impl Environment {
    /// This process.
    pub fn current() -> Self {
        // systemd separates several directories by colons; the first is the unit's own.
        let first = |value: std::ffi::OsString| {
            value.to_str().and_then(|v| v.split(':').next()).filter(|v| v.starts_with('/')).map(PathBuf::from)
        };
        Self {
            uid: nix::unistd::geteuid().as_raw(),
            runtime_directory: std::env::var_os("RUNTIME_DIRECTORY").and_then(first),
            xdg_runtime_dir: std::env::var_os("XDG_RUNTIME_DIR").and_then(first).filter(|dir| dir.is_dir()),
            readable: |path| match std::fs::File::open(path).and_then(|file| file.metadata()) {
                Ok(metadata) if metadata.is_file() => Ok(()),
                Ok(_) => Err("is not a regular file".into()),
                Err(error) => Err(error.to_string()),
            },
        }
    }

    /// An ordinary user on a host where every file exists: for tests and the fuzzer, touches nothing.
    pub fn pure() -> Self {
        Self {
            uid: 1000,
            runtime_directory: None,
            xdg_runtime_dir: Some("/run/user/1000".into()),
            readable: |_| Ok(()),
        }
    }

    /// Where the daemon listens when nobody says: see [`super::Daemon::socket`].
    pub fn default_socket(&self) -> PathBuf {
        let directory = match (&self.runtime_directory, &self.xdg_runtime_dir) {
            (Some(directory), _) => directory.clone(),
            (None, _) if self.uid == 0 => PathBuf::from("/run/omni-inferd"),
            (None, Some(directory)) => directory.join("omni-inferd"),
            (None, None) => PathBuf::from(format!("/tmp/omni-inferd-{}", self.uid)),
        };
        directory.join("omni.sock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_socket_follows_the_process() {
        let user = Environment::pure();
        assert_eq!(user.default_socket(), Path::new("/run/user/1000/omni-inferd/omni.sock"));
        let bare = Environment { xdg_runtime_dir: None, ..user.clone() };
        assert_eq!(bare.default_socket(), Path::new("/tmp/omni-inferd-1000/omni.sock"));
        let root = Environment { uid: 0, ..user.clone() };
        assert_eq!(root.default_socket(), Path::new("/run/omni-inferd/omni.sock"));
        let unit = Environment { runtime_directory: Some("/run/other".into()), ..root };
        assert_eq!(unit.default_socket(), Path::new("/run/other/omni.sock"));
    }
}
