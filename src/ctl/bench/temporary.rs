//! Files of some gigabytes that must not stay behind: removed when their owner goes, and when the process is interrupted.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, Once, PoisonError};
use tokio::signal::unix::{SignalKind, signal};

/// Those that are there.
static FILES: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// A file that goes when this goes.
pub struct Temporary(pub PathBuf);

impl Temporary {
    /// A name in `dir` that only this process uses. Nothing is made yet.
    pub fn new(dir: &Path, what: &str) -> Temporary {
        static WATCH: Once = Once::new();
        WATCH.call_once(watch);
        let mut files = FILES.lock().unwrap_or_else(PoisonError::into_inner);
        let free = |n: &usize| dir.join(format!("omnictl-bench-{}-{n}-{what}", std::process::id()));
        let path = (0..).map(|n| free(&n)).find(|path| !files.contains(path)).unwrap_or_default();
        files.push(path.clone());
        Temporary(path)
    }

    /// Makes the file, which must not be there.
    pub fn create(&self) -> io::Result<File> {
        OpenOptions::new().write(true).create_new(true).open(&self.0)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // One that was never made cannot be removed.
        let _ = std::fs::remove_file(&self.0);
        FILES.lock().unwrap_or_else(PoisonError::into_inner).retain(|path| *path != self.0);
    }
}

/// Waits for an interruption on a thread of its own; then removes what is there and ends the process. Where no thread can
/// be had, files stay behind, which is no reason not to measure.
fn watch() {
    let wait = || {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
        runtime.block_on(async {
            let (Ok(mut interrupt), Ok(mut terminate)) =
                (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
            else {
                return;
            };
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
            let files = FILES.lock().unwrap_or_else(PoisonError::into_inner);
            files.iter().for_each(|path| _ = std::fs::remove_file(path));
            std::process::exit(130);
        });
    };
    let _ = std::thread::Builder::new().name("interrupt".into()).spawn(wait);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_goes_with_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (Temporary::new(dir.path(), "x"), Temporary::new(dir.path(), "x"));
        assert_ne!(a.0, b.0);
        drop(a.create().unwrap());
        assert!(a.0.exists() && a.create().is_err());
        let path = a.0.clone();
        drop((a, b));
        assert!(!path.exists());
    }
}
