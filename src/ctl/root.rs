//! The host's files below a root directory: `/`, or a tree that a test made. What is missing or unreadable is `None`;
//! nothing here fails. Called by `doctor` and `tune`.

use crate::sys::affinity;
use crate::sys::topology::Topology;
use std::path::{Path, PathBuf};

/// A root directory.
#[derive(Clone, Debug)]
pub struct Root(PathBuf);

impl Root {
    /// Files below `directory`.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Root(directory.into())
    }

    /// The directory itself.
    pub fn directory(&self) -> &Path {
        &self.0
    }

    /// Where a file of the host lies; `file` may begin with `/`.
    pub fn path(&self, file: impl AsRef<Path>) -> PathBuf {
        let file = file.as_ref();
        self.0.join(file.strip_prefix("/").unwrap_or(file))
    }

    /// A file's text without surrounding blanks.
    pub fn text(&self, file: impl AsRef<Path>) -> Option<String> {
        let bytes = std::fs::read(self.path(file)).ok()?;
        Some(String::from_utf8_lossy(&bytes).trim().to_string())
    }

    /// A file that holds one number.
    pub fn number(&self, file: impl AsRef<Path>) -> Option<u64> {
        self.text(file)?.parse().ok()
    }

    /// Names in a directory, sorted; none where there is no such directory.
    pub fn names(&self, directory: impl AsRef<Path>) -> Vec<String> {
        let entries = std::fs::read_dir(self.path(directory)).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names
    }

    /// Whether there is such a file or directory.
    pub fn exists(&self, file: impl AsRef<Path>) -> bool {
        self.path(file).exists()
    }

    /// Last part of what a symbolic link points at.
    pub fn link(&self, file: impl AsRef<Path>) -> Option<String> {
        let target = std::fs::read_link(self.path(file)).ok()?;
        Some(target.file_name()?.to_string_lossy().into_owned())
    }

    /// The choice in brackets of a file such as `always [madvise] never`.
    pub fn chosen(&self, file: impl AsRef<Path>) -> Option<String> {
        let text = self.text(file)?;
        let (_, rest) = text.split_once('[')?;
        Some(rest.split_once(']')?.0.to_string())
    }

    /// Bytes of `KEY: N kB` in `/proc/meminfo`.
    pub fn meminfo(&self, key: &str) -> Option<u64> {
        let text = self.text("proc/meminfo")?;
        let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
        value.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
    }

    /// The topology for the CPUs this process may use.
    pub fn topology(&self) -> Topology {
        let status = self.text("proc/self/status").unwrap_or_default();
        let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        let allowed = allowed.and_then(|list| affinity::parse_list(list.trim()).ok()).unwrap_or_default();
        let possible = Topology::read(&self.0, &[]).withheld.iter().map(|cpu| cpu.id).collect::<Vec<_>>();
        // The mask may name CPUs that are not there, as many as the kernel was built for.
        let usable: Vec<usize> = allowed.iter().copied().filter(|id| possible.contains(id)).collect();
        Topology::read(&self.0, if usable.is_empty() { &possible } else { &usable })
    }
}

/// A tree of files for tests.
#[cfg(test)]
pub mod fixture {
    use super::Root;
    use std::fs;
    use std::ops::Deref;

    /// Lives as long as the test.
    pub struct Tree {
        root: Root,
        _directory: tempfile::TempDir,
    }

    impl Tree {
        /// With these files.
        pub fn new(files: &[(&str, &str)]) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let root = Root::new(directory.path());
            let tree = Tree { root, _directory: directory };
            files.iter().for_each(|(file, text)| tree.write(file, text));
            tree
        }

        /// Adds or replaces a file.
        pub fn write(&self, file: &str, text: &str) {
            let path = self.path(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        /// Adds a symbolic link; `target` is another file of the tree.
        pub fn symlink(&self, file: &str, target: &str) {
            let path = self.path(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::create_dir_all(self.path(target)).unwrap();
            std::os::unix::fs::symlink(self.path(target), path).unwrap();
        }
    }

    impl Deref for Tree {
        type Target = Root;

        fn deref(&self) -> &Root {
            &self.root
        }
    }
}
