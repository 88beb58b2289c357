//! What stands beside an image's weights: which file they are of, how they lie, their checksums, and the file's header,
//! so that a model can be served again without a look into its file.
//!
//! ```text
//! "OMNIVLT1" | SHA-256 of all that follows | u64 length of the JSON text | JSON text | headers of the files, one by one
//! ```

use crate::sys::arena;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"OMNIVLT1";
/// Bytes before the JSON text.
const HEAD: usize = 8 + 32 + 8;
/// No manifest is longer: a header has at most 256 MiB, a split set some of them.
const MOST: u64 = 1 << 30;

/// A file as it was when its weights were read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileId {
    /// Where.
    pub path: PathBuf,
    /// Device number.
    pub device: u64,
    /// Inode.
    pub inode: u64,
    /// Length.
    pub bytes: u64,
    /// Modified: seconds and nanoseconds.
    pub modified: (i64, i64),
    /// Bytes of its header in the manifest.
    pub header_bytes: u64,
    /// SHA-256 of these.
    pub header_sha256: String,
}

impl FileId {
    /// A file's identity; `header` is how it begins.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub fn of(path: &Path, file: &File, header: &[u8]) -> io::Result<FileId> {
        let meta = file.metadata()?;
        Ok(FileId {
            path: path.into(),
            device: meta.dev(),
            inode: meta.ino(),
            bytes: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            header_bytes: header.len() as u64,
            header_sha256: hex(&Sha256::digest(header)),
        })
    }

    /// Whether this very file, unchanged, still stands at its path: `None` when it does. Otherwise why it cannot be looked
    /// at, be it that nothing is there or that the disk fails: then nothing says that it changed.
    ///
    /// # Errors
    /// It can be looked at, and is not the same.
    pub fn check(&self) -> Result<Option<String>, String> {
        let meta = match std::fs::metadata(&self.path) {
            Ok(meta) => meta,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some("is gone".into())),
            Err(error) => return Ok(Some(format!("cannot be looked at ({error})"))),
        };
        let now = (meta.dev(), meta.ino(), meta.len(), (meta.mtime(), meta.mtime_nsec()));
        if now == (self.device, self.inode, self.bytes, self.modified) {
            return Ok(None);
        }
        Err(format!("{} has changed since", self.path.display()))
    }
}

/// Bytes of a segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Bytes of its pages.
    pub page: u64,
    /// Length.
    pub bytes: u64,
}

/// A tensor in the image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// Name.
    pub name: String,
    /// Element type's name.
    pub dtype: String,
    /// Elements of each dimension, the fastest first.
    pub shape: Vec<u64>,
    /// Where it begins, in bytes from the image's start.
    pub start: u64,
    /// Its length.
    pub bytes: u64,
    /// Its rows lie packed.
    pub packed: bool,
    /// [`super::sum()`] of its bytes.
    pub sum: u64,
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Path as the worker was told to load it.
    pub path: PathBuf,
    /// What besides the files decides how the weights lie: version of the layout, kernels, memory policy.
    pub variant: String,
    /// Every file of the model.
    pub files: Vec<FileId>,
    /// Bytes of the image in use.
    pub bytes: u64,
    /// Its segments, in their order.
    pub segments: Vec<Segment>,
    /// Bytes on each NUMA node when it was loaded.
    pub nodes: BTreeMap<usize, u64>,
    /// Every tensor, by rising start.
    pub tensors: Vec<Stored>,
    /// When it was made, in seconds since 1970.
    pub created: u64,
}

impl Manifest {
    /// Writes it into a sealed memory file; `headers` are those of the files, in their order.
    ///
    /// # Errors
    /// No memory or no descriptors.
    pub fn seal(&self, headers: &[Vec<u8>]) -> io::Result<OwnedFd> {
        arena::sealed_file(&manifest_bytes(&serde_json::to_vec(self)?, headers))
    }

    /// Bytes of memory that the image takes.
    pub fn resident(&self) -> u64 {
        self.segments.iter().fold(0, |sum, segment| sum.saturating_add(segment.bytes))
    }

    /// The parts of `segments` that hold a range of the image: which segment, from where, how many bytes.
    pub fn pieces(&self, start: u64, bytes: u64) -> Vec<(usize, u64, u64)> {
        let (mut pieces, mut at, mut left, mut base) = (Vec::new(), start, bytes, 0u64);
        for (index, segment) in self.segments.iter().enumerate() {
            let end = base.saturating_add(segment.bytes);
            if left > 0 && at < end {
                let take = left.min(end - at);
                pieces.push((index, at - base, take));
                (at, left) = (at + take, left - take);
            }
            base = end;
        }
        pieces
    }

    fn check(&self, headers: u64) -> Result<(), &'static str> {
        let fits = |stored: &Stored| stored.start.checked_add(stored.bytes).is_some_and(|end| end <= self.bytes);
        let sum = self.files.iter().try_fold(0u64, |sum, file| sum.checked_add(file.header_bytes));
        match () {
            () if self.bytes > self.resident() => Err("its segments are too short"),
            () if !self.tensors.iter().all(fits) => Err("a tensor ends beyond it"),
            () if self.files.is_empty() || sum != Some(headers) => Err("its headers are not those of its files"),
            () => Ok(()),
        }
    }
}

/// A manifest's bytes, of its JSON text and the headers of the files; see the module.
pub fn manifest_bytes(json: &[u8], headers: &[Vec<u8>]) -> Vec<u8> {
    let rest = [&(json.len() as u64).to_le_bytes(), json, &headers.concat()].concat();
    [&MAGIC[..], &Sha256::digest(&rest), &rest].concat()
}

/// A manifest that was read: its image's name, itself, and the headers of its files.
pub type Read = (String, Manifest, Vec<Vec<u8>>);

/// Reads a manifest. The image's name is the beginning of its digest: equal names are equal manifests.
///
/// # Errors
/// What is wrong with it.
pub fn read_manifest(file: BorrowedFd<'_>) -> Result<Read, String> {
    parse_manifest(&content(file).map_err(|error| format!("the manifest cannot be read: {error}"))?)
}

/// As [`read_manifest`], of a manifest's bytes.
///
/// # Errors
/// What is wrong with it.
pub fn parse_manifest(bytes: &[u8]) -> Result<Read, String> {
    let (head, rest) = bytes.split_at_checked(HEAD).ok_or("the manifest is cut short")?;
    if &head[..8] != MAGIC {
        return Err("that is no manifest, or one of another version".into());
    }
    let digest = Sha256::digest(&bytes[40..]);
    if head[8..40] != digest[..] {
        return Err("the manifest is damaged".into());
    }
    let length = u64::from_le_bytes(head[40..].try_into().map_err(|_| "the manifest is cut short")?);
    let split = usize::try_from(length).ok().and_then(|length| rest.split_at_checked(length));
    let (json, mut rest) = split.ok_or("the manifest is cut short")?;
    let manifest: Manifest = serde_json::from_slice(json).map_err(|error| format!("the manifest is odd: {error}"))?;
    manifest.check(rest.len() as u64)?;
    let mut headers = Vec::with_capacity(manifest.files.len());
    for file in &manifest.files {
        let (header, others) = rest.split_at(file.header_bytes as usize);
        if hex(&Sha256::digest(header)) != file.header_sha256 {
            return Err(format!("the header of {} is damaged", file.path.display()));
        }
        headers.push(header.to_vec());
        rest = others;
    }
    Ok((hex(&digest[..8]), manifest, headers))
}

/// A sealed file's bytes; its length cannot change while it is read.
fn content(file: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    arena::check_sealed(file.as_fd())?;
    let file = File::from(file.try_clone_to_owned()?);
    let length = file.metadata()?.len();
    if length > MOST {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{length} bytes")));
    }
    let mut bytes = vec![0; length as usize];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(header: &[u8]) -> (Manifest, tempfile::NamedTempFile) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "weights").unwrap();
        let stored = |name: &str, start, bytes| Stored {
            name: name.into(),
            dtype: "f32".into(),
            shape: vec![bytes / 4],
            start,
            bytes,
            packed: false,
            sum: 7,
        };
        let manifest = Manifest {
            path: file.path().into(),
            variant: "v".into(),
            files: vec![FileId::of(file.path(), file.as_file(), header).unwrap()],
            bytes: 5000,
            segments: vec![Segment { page: 4096, bytes: 4096 }, Segment { page: 4096, bytes: 4096 }],
            nodes: BTreeMap::from([(0, 8192)]),
            tensors: vec![stored("a", 0, 64), stored("b", 64, 4936)],
            created: 1,
        };
        (manifest, file)
    }

    #[test]
    fn what_is_sealed_is_read_again() {
        let (manifest, _file) = manifest(b"GGUF header");
        let sealed = manifest.seal(&[b"GGUF header".to_vec()]).unwrap();
        let (id, read, headers) = read_manifest(sealed.as_fd()).unwrap();
        assert_eq!((read, headers, id.len()), (manifest.clone(), vec![b"GGUF header".to_vec()], 16));
        let again = manifest.seal(&[b"GGUF header".to_vec()]).unwrap();
        assert_eq!(read_manifest(again.as_fd()).unwrap().0, id);
        assert_eq!(manifest.pieces(64, 4936), [(0, 64, 4032), (1, 0, 904)]);
    }

    #[test]
    fn what_is_damaged_is_refused() {
        let (manifest, _file) = manifest(b"GGUF header");
        let sealed = manifest.seal(&[b"GGUF header".to_vec()]).unwrap();
        let bytes = content(sealed.as_fd()).unwrap();
        let refusal = |bytes: &[u8]| read_manifest(arena::sealed_file(bytes).unwrap().as_fd()).unwrap_err();
        for at in [0, 8, 39, 45, 60, bytes.len() - 1] {
            let mut other = bytes.clone();
            other[at] ^= 1;
            refusal(&other);
        }
        for length in [0, 7, HEAD - 1, HEAD, bytes.len() - 1] {
            refusal(&bytes[..length]);
        }
        assert!(read_manifest(tempfile::tempfile().unwrap().as_fd()).is_err(), "not sealed");
        let short = Manifest { bytes: 9000, ..manifest.clone() };
        assert!(read_manifest(short.seal(&[b"GGUF header".to_vec()]).unwrap().as_fd()).is_err());
        assert!(read_manifest(manifest.seal(&[b"GGUF haeder".to_vec()]).unwrap().as_fd()).is_err(), "another header");
        assert!(read_manifest(manifest.seal(&[]).unwrap().as_fd()).is_err());
    }

    #[test]
    fn a_file_is_the_same_changed_gone_or_out_of_sight() {
        let (manifest, file) = manifest(b"x");
        let id = &manifest.files[0];
        assert_eq!(id.check(), Ok(None));
        // Neither gone nor changed: it cannot be looked at, as on a failing disk.
        let beyond = FileId { path: file.path().join("below-a-file"), ..id.clone() };
        assert!(beyond.check().unwrap().unwrap().contains("cannot be looked at"));
        std::fs::write(file.path(), "weighty").unwrap();
        let old = std::time::SystemTime::UNIX_EPOCH;
        file.as_file().set_modified(old).unwrap();
        assert!(id.check().unwrap_err().contains("has changed"));
        drop(file);
        assert_eq!(id.check().unwrap().unwrap(), "is gone");
    }
}
