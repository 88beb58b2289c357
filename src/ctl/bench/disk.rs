//! How fast the disk reads past the page cache: the limit of a cold load. As `dd iflag=direct` does, one read after the
//! other, and with several at once.

use super::Error;
use super::temporary::Temporary;
use crate::sys::memory::Mapping;
use serde::Serialize;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Bytes of a read.
const BLOCK: u64 = 4 << 20;
/// Reads at once in the second pass.
const READERS: usize = 8;
/// A pass ends after this.
const LONGEST: Duration = Duration::from_secs(4);
/// Bytes of the file that is made where none is given.
const OWN_BYTES: u64 = 1 << 30;

/// Direct reads of one file.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DiskRate {
    /// The file, or the directory of the temporary one.
    pub path: String,
    /// One read of 4 MiB after the other, GB/s.
    pub sequential: f64,
    /// Eight at once, GB/s.
    pub concurrent: f64,
}

/// Reads `file`, or a temporary file in `dir`.
///
/// # Errors
/// [`Error::Disk`] when it cannot be read past the page cache, [`Error::Write`] when there is no room for a temporary file.
pub fn probe(file: Option<&Path>, dir: &Path) -> Result<DiskRate, Error> {
    let own = Temporary::new(dir, "disk");
    let own_path = own.0.clone();
    let (path, shown) = file.map_or((own_path.as_path(), dir), |file| (file, file));
    let failed = |source| Error::Disk { path: path.to_path_buf(), source };
    let writer = match file {
        None => Some(own.create().map_err(|source| Error::Write { path: own_path.clone(), source })?),
        Some(_) => None,
    };
    let direct = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path).map_err(failed)?;
    // From here on the file has no name: however this process ends, nothing stays.
    drop(own);
    if let Some(writer) = writer {
        write_own(writer).map_err(|source| Error::Write { path: path.to_path_buf(), source })?;
    }
    let len = direct.metadata().map_err(failed)?.len();
    if len < BLOCK {
        let short = io::Error::new(io::ErrorKind::UnexpectedEof, format!("{len} bytes are too few to measure"));
        return Err(failed(short));
    }
    let [sequential, concurrent] = [1, READERS].map(|readers| pass(&direct, len, readers).map_err(failed));
    Ok(DiskRate { path: shown.display().to_string(), sequential: sequential?, concurrent: concurrent? })
}

/// Reads whole blocks from the start on, `readers` at a time: GB/s.
fn pass(file: &File, len: u64, readers: usize) -> io::Result<f64> {
    let (next, read, began) = (AtomicU64::new(0), AtomicU64::new(0), Instant::now());
    let reader = || -> io::Result<()> {
        let mut buffer = Mapping::new(BLOCK as usize)?;
        while began.elapsed() < LONGEST {
            let at = next.fetch_add(BLOCK, Ordering::Relaxed);
            if at + BLOCK > len {
                break;
            }
            read.fetch_add(file.read_at(buffer.as_mut_slice(), at)? as u64, Ordering::Relaxed);
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..readers).map(|_| scope.spawn(reader)).collect();
        let ended =
            running.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into())));
        ended.collect::<io::Result<Vec<()>>>()
    })?;
    Ok(read.into_inner() as f64 / began.elapsed().as_nanos().max(1) as f64)
}

/// A file whose data no disk can guess or leave out.
fn write_own(mut file: File) -> io::Result<()> {
    let mut block = vec![0u8; BLOCK as usize];
    let mut state = 1u64;
    for _ in 0..OWN_BYTES / BLOCK {
        for word in block.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        file.write_all(&block)?;
    }
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_past_the_cache_or_says_why_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        std::fs::write(&path, vec![7u8; 9 << 20]).unwrap();
        match probe(Some(&path), dir.path()) {
            Ok(rate) => assert!(rate.sequential > 0.0 && rate.concurrent > 0.0, "{rate:?}"),
            Err(error) => assert!(error.to_string().contains("page cache"), "{error}"),
        }
        std::fs::write(&path, b"short").unwrap();
        assert!(probe(Some(&path), dir.path()).unwrap_err().to_string().contains("too few"));
        assert!(probe(Some(Path::new("/nonexistent")), dir.path()).is_err());
    }
}
