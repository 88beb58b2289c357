//! What the process and its host contribute to the settings: the default socket, which files exist. Kept apart so that
//! reading a configuration is a pure function that tests and the fuzzer can call.

use std::os::unix::fs::OpenOptionsExt;
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
        Self { default_socket: super::default_socket(), readable }
    }

    /// An ordinary user on a host where every file exists: for tests and the fuzzer, touches nothing.
    pub fn pure() -> Self {
        Self { default_socket: "/run/user/1000/omni-inferd/omni.sock".into(), readable: |_| Ok(()) }
    }
}

/// Opens the file and closes it again. Never waits: a plain open of a FIFO would, for a writer that may never come.
fn readable(path: &Path) -> Result<(), String> {
    let opened = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    match opened.and_then(|file| file.metadata()) {
        Ok(metadata) if metadata.is_file() => Ok(()),
        Ok(_) => Err("is not a regular file".into()),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_are_readable_and_a_fifo_does_not_block() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo.gguf");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let readable = Environment::current().readable;
        assert_eq!(readable(&fifo), Err("is not a regular file".into()));
        assert_eq!(readable(directory.path()), Err("is not a regular file".into()));
        std::fs::write(directory.path().join("a.gguf"), "").unwrap();
        assert_eq!(readable(&directory.path().join("a.gguf")), Ok(()));
    }
}
