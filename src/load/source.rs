//! An opened model file: descriptors, sizes and the parsed header of a single file or a whole split set.

use super::Error;
use crate::gguf::{self, GrowError, SplitName, TensorInfo};
use crate::model::{self, Model};
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes of the first read; a header that is longer is read on.
const FIRST_READ: u64 = 1 << 20;

/// An opened GGUF, all parts of it.
#[derive(Debug)]
pub struct Source {
    /// Metadata and tensor directory of all parts.
    pub header: gguf::File,
    pub(super) parts: Vec<Part>,
    /// Use io_uring where the kernel lets us.
    pub(super) ring: bool,
    pub(super) made: Option<Made>,
}

/// Writes the bytes of a file from an offset on: any range at any time, always the same, from several threads at once.
pub type Fill = dyn Fn(u64, &mut [u8]) + Send + Sync;

/// A file that is on no disk.
pub(super) struct Made {
    name: PathBuf,
    pub fill: Arc<Fill>,
}

impl std::fmt::Debug for Made {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Made({})", self.name.display())
    }
}

/// One file of it.
#[derive(Debug)]
pub(super) struct Part {
    pub path: PathBuf,
    pub file: fs::File,
    /// The same file without the page cache, where the file system allows that.
    pub direct: Option<fs::File>,
    pub len: u64,
    stamp: Stamp,
    /// How it begins, as far as it is no tensor's data.
    pub head: Vec<u8>,
}

/// What changes when somebody writes to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    len: u64,
    modified: (i64, i64),
}

impl Stamp {
    fn of(file: &fs::File) -> io::Result<Stamp> {
        let meta = file.metadata()?;
        Ok(Stamp { len: meta.len(), modified: (meta.mtime(), meta.mtime_nsec()) })
    }
}

impl Source {
    /// Opens a file, or the whole split set that any of its files belongs to, and reads the headers.
    ///
    /// # Errors
    /// [`Error`] when a file is missing, unreadable or not a well-formed GGUF.
    pub fn open(path: &Path) -> Result<Source, Error> {
        let paths = match path.to_str().and_then(SplitName::parse) {
            Some(name) => name.siblings().map(PathBuf::from).collect(),
            None => vec![path.to_path_buf()],
        };
        let count = paths.len() as u16;
        let mut parts = Vec::with_capacity(paths.len());
        let mut headers = Vec::with_capacity(paths.len());
        for (number, part) in (1..).zip(paths) {
            let is_asked_for = count == 1 || part == path;
            let mut part = Part::open(part).map_err(|(path, source)| match is_asked_for {
                true => Error::Open { path, source },
                false => Error::MissingPart { path, number, count, source },
            })?;
            headers.push(part.header()?);
            parts.push(part);
        }
        let header = gguf::File::merge(headers).map_err(|source| Error::Split { path: path.into(), source })?;
        Ok(Source { header, parts, ring: true, made: None })
    }

    /// A model whose weights `fill` makes, for measurements without a file. `header` is that of the file they would be in.
    pub fn made(name: impl Into<PathBuf>, header: gguf::File, fill: Arc<Fill>) -> Source {
        Source { header, parts: Vec::new(), ring: false, made: Some(Made { name: name.into(), fill }) }
    }

    /// Binds the tensors to a model and checks that their data is all there. Reads no weight.
    ///
    /// # Errors
    /// [`Error::Model`] when this build cannot run it, [`Error::Gguf`] when a file is too short for its tensors.
    pub fn bind(&self) -> Result<Model<TensorInfo>, Error> {
        let model = model::bind(&self.header).map_err(|source| Error::Model { path: self.path().into(), source })?;
        for tensor in self.header.tensors.iter().filter(|_| self.made.is_none()) {
            let part = &self.parts[usize::from(tensor.file)];
            let end = tensor.offset.saturating_add(tensor.size);
            if end > part.len {
                let source = gguf::Error::OutOfFile { tensor: tensor.name.clone(), end, file_len: part.len };
                return Err(Error::Gguf { path: part.path.clone(), source });
            }
        }
        Ok(model)
    }

    /// The first file's path, or the name of what is on no disk.
    pub fn path(&self) -> &Path {
        self.made.as_ref().map_or_else(|| self.parts[0].path.as_path(), |made| &made.name)
    }

    /// Every file of the set, in order.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.parts.iter().map(|part| part.path.as_path())
    }

    /// Refuses files that were written to since they were opened.
    pub(super) fn check_unchanged(&self) -> Result<(), Error> {
        for part in &self.parts {
            let path = || part.path.clone();
            let now = Stamp::of(&part.file).map_err(|source| Error::Open { path: path(), source })?;
            if now != part.stamp {
                return Err(Error::Changed { path: path() });
            }
        }
        Ok(())
    }
}

impl Part {
    fn open(path: PathBuf) -> Result<Part, (PathBuf, io::Error)> {
        // Without O_NONBLOCK the open of a FIFO would wait for a writer; regular files do not care.
        let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path).and_then(|file| {
            let meta = file.metadata()?;
            if meta.is_dir() {
                return Err(io::Error::new(io::ErrorKind::IsADirectory, "it is a directory"));
            }
            if !meta.is_file() {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
            }
            Ok((Stamp::of(&file)?, file))
        });
        match opened {
            Ok((stamp, file)) => {
                let direct = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&path).ok();
                Ok(Part { path, file, direct, len: stamp.len, stamp, head: Vec::new() })
            }
            Err(error) => Err((path, error)),
        }
    }

    fn header(&mut self) -> Result<gguf::File, Error> {
        let (file, head) = (&self.file, &mut self.head);
        let fetch = |buffer: &mut Vec<u8>, len: u64| {
            let have = buffer.len();
            // `len` is bounded by the file's length and by the parser's limit on headers.
            buffer.resize(len as usize, 0);
            file.read_exact_at(&mut buffer[have..], have as u64)?;
            head.extend_from_slice(&buffer[have..]);
            Ok(())
        };
        let parsed = gguf::parse_growing(self.len, FIRST_READ, fetch).map_err(|error| match error {
            GrowError::Parse(source) => Error::Gguf { path: self.path.clone(), source },
            GrowError::Fetch(source) => Error::Header { path: self.path.clone(), source },
        })?;
        if let Some(data) = parsed.tensors.iter().map(|tensor| tensor.offset).min() {
            self.head.truncate(usize::try_from(data).unwrap_or(usize::MAX));
        }
        self.head.shrink_to_fit();
        Ok(parsed)
    }
}
