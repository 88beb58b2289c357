//! The bytes themselves: several readers, each with one aligned buffer, take pieces of the files in order. Past the page
//! cache (`O_DIRECT`) where the file system allows it, which leaves the cache to others and is faster than copying out
//! of it; else straight to where the bytes belong.

use super::source::Part;
use super::{Error, Mapping, Progress, Source};
use crate::gguf::TensorInfo;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, mpsc};
use std::vec::IntoIter;

/// Readers at once: enough to keep an NVMe drive busy.
const READERS: usize = 4;
/// Bytes of one read. Reads start and end at its multiples, so that no sector is read twice.
const CHUNK: u64 = 4 << 20;
/// What `O_DIRECT` wants offsets, lengths and addresses aligned to, on every file system in use.
const SECTOR: u64 = 4096;

/// One read and where its bytes go.
struct Job<'a> {
    file: u16,
    range: Range<u64>,
    pieces: Vec<Piece<'a>>,
}

struct Piece<'a> {
    offset: u64,
    target: &'a mut [u8],
}

/// Reads all `tensors`, sorted by file and offset, to their ranges of `arena`.
pub(super) fn read_all(
    source: &Source,
    tensors: &[(&TensorInfo, Range<usize>)],
    arena: &mut [u8],
    progress: &mut dyn FnMut(Progress),
) -> Result<(), Error> {
    let bytes_total = tensors.iter().map(|(t, _)| t.size).sum();
    let jobs = Mutex::new(cut(tensors, arena).into_iter());
    let stop = AtomicBool::new(false);
    let mut bytes_done = 0;
    let mut failure = None;
    progress(Progress { bytes_done, bytes_total });
    std::thread::scope(|scope| {
        let (sender, reports) = mpsc::channel();
        for _ in 0..READERS {
            let (sender, jobs, stop) = (sender.clone(), &jobs, &stop);
            scope.spawn(move || reader(source, jobs, stop, &sender));
        }
        drop(sender);
        for report in reports {
            match report {
                Ok(bytes) => {
                    bytes_done += bytes;
                    progress(Progress { bytes_done, bytes_total });
                }
                Err(error) => {
                    stop.store(true, Ordering::Relaxed);
                    failure.get_or_insert(error);
                }
            }
        }
    });
    failure.map_or(Ok(()), Err)
}

/// Cuts the tensors at multiples of [`CHUNK`] and joins what one read brings.
fn cut<'a>(tensors: &[(&TensorInfo, Range<usize>)], mut arena: &'a mut [u8]) -> Vec<Job<'a>> {
    let mut jobs: Vec<Job<'a>> = Vec::new();
    let mut taken = 0;
    for (info, range) in tensors {
        arena = arena.split_at_mut(range.start - taken).1;
        taken = range.start;
        let mut offset = info.offset;
        while taken < range.end {
            let chunk_end = (offset / CHUNK + 1) * CHUNK;
            let len = (range.end - taken).min((chunk_end - offset) as usize);
            let (target, rest) = arena.split_at_mut(len);
            arena = rest;
            taken += len;
            let end = offset + len as u64;
            match jobs.last_mut() {
                Some(job) if job.file == info.file && job.range.start / CHUNK == offset / CHUNK => {
                    job.range.end = end;
                    job.pieces.push(Piece { offset, target });
                }
                _ => jobs.push(Job { file: info.file, range: offset..end, pieces: vec![Piece { offset, target }] }),
            }
            offset = end;
        }
    }
    jobs
}

/// Takes jobs until there are none; reports the bytes of each.
fn reader(
    source: &Source,
    jobs: &Mutex<IntoIter<Job<'_>>>,
    stop: &AtomicBool,
    report: &mpsc::Sender<Result<u64, Error>>,
) {
    let bounce_bytes = (CHUNK + 2 * SECTOR) as usize;
    let mut bounce = match Mapping::new(bounce_bytes) {
        Ok(bounce) => bounce,
        Err(source) => {
            let _ = report.send(Err(Error::Memory { bytes: bounce_bytes, source }));
            return;
        }
    };
    while !stop.load(Ordering::Relaxed) {
        let next = jobs.lock().map_or(None, |mut jobs| jobs.next());
        let Some(job) = next else { return };
        let bytes: usize = job.pieces.iter().map(|p| p.target.len()).sum();
        let outcome = match &source.made {
            Some(made) => {
                job.pieces.into_iter().for_each(|piece| (made.fill)(piece.offset, piece.target));
                Ok(())
            }
            None => read_job(&source.parts[usize::from(job.file)], job, bounce.as_mut_slice()),
        };
        let outcome = outcome.map(|()| bytes as u64);
        if report.send(outcome).is_err() {
            return;
        }
    }
}

fn read_job(part: &Part, job: Job<'_>, bounce: &mut [u8]) -> Result<(), Error> {
    if let Some(start) = read_direct(part, &job.range, bounce)? {
        for piece in job.pieces {
            piece.target.copy_from_slice(&bounce[(piece.offset - start) as usize..][..piece.target.len()]);
        }
        return Ok(());
    }
    for piece in job.pieces {
        part.file.read_exact_at(piece.target, piece.offset).map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => short(part, piece.offset + piece.target.len() as u64),
            _ => Error::Read { path: part.path.clone(), offset: piece.offset, source },
        })?;
    }
    Ok(())
}

/// Reads the sectors around `range` past the page cache. The file offset of `bounce[0]`, or `None` where the file
/// system does not support that.
fn read_direct(part: &Part, range: &Range<u64>, bounce: &mut [u8]) -> Result<Option<u64>, Error> {
    let Some(file) = &part.direct else { return Ok(None) };
    let start = range.start / SECTOR * SECTOR;
    let wanted = (range.end - start) as usize;
    let aligned = range.end.next_multiple_of(SECTOR) - start;
    let mut have = 0;
    while have < wanted {
        match file.read_at(&mut bounce[have..aligned as usize], start + have as u64) {
            // The end of the file is the only place where a direct read may stop within a sector.
            Ok(0) => return Err(short(part, range.end)),
            Ok(n) => have += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) && (have as u64).is_multiple_of(SECTOR) => {
                return Ok(None);
            }
            Err(_) if !(have as u64).is_multiple_of(SECTOR) => return Err(short(part, range.end)),
            Err(source) => {
                return Err(Error::Read { path: part.path.clone(), offset: start + have as u64, source });
            }
        }
    }
    Ok(Some(start))
}

fn short(part: &Part, wanted: u64) -> Error {
    let end = part.file.metadata().map_or(0, |meta| meta.len());
    Error::Short { path: part.path.clone(), end, wanted }
}

/// The file ranges that would be read, in order.
#[cfg(test)]
pub(super) fn spans(tensors: &[(&TensorInfo, Range<usize>)], arena: &mut [u8]) -> Vec<Range<u64>> {
    cut(tensors, arena).into_iter().map(|job| job.range).collect()
}
