//! The bytes themselves. One thread keeps many reads in flight by io_uring, others put what has come to its place; where
//! io_uring or reading past the page cache (`O_DIRECT`) is refused, these others read for themselves. The disk does not
//! wait for them as long as they keep up, and the buffers are few.

use super::jobs::{self, CHUNK, Job, Piece, Place, Placed, SECTOR};
use super::source::{Made, Part};
use super::{Error, Mapping, Method, Progress, Source};
use crate::ops::cpu::pack_panels;
use crate::sys::uring::{Read, Ring};
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, Scope};
use std::vec::IntoIter;

/// Reads in flight.
const DEPTH: usize = 8;
/// Most threads that put bytes to their place.
const WORKERS: usize = 16;
/// Fewest of them where they read for themselves.
const READERS: usize = 4;

type Jobs<'a> = IntoIter<Job<'a>>;
type Buffers<'a> = std::slice::ChunksExactMut<'a, u8>;
/// Bytes put to their place, or why not.
type Report = Result<u64, Error>;

/// Reads all tensors to their places in `arena`.
pub(super) fn read_all(
    source: &Source,
    tensors: &[Placed],
    arena: &mut [u8],
    progress: &mut dyn FnMut(Progress),
) -> Result<(), Error> {
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    let direct = source.made.is_none() && source.parts.iter().all(|part| part.direct.is_some());
    let ring = if direct && source.ring { Ring::new(DEPTH).ok() } else { None };
    let (method, workers, buffers) = match (&ring, direct) {
        (Some(_), _) => (Method::Ring, cpus.min(WORKERS), DEPTH + cpus.min(WORKERS)),
        (None, true) => (Method::Direct, cpus.clamp(READERS, WORKERS), cpus.clamp(READERS, WORKERS)),
        (None, false) => (Method::Cached, cpus.clamp(READERS, WORKERS), cpus.clamp(READERS, WORKERS)),
    };
    let bytes = buffers * CHUNK;
    let mut memory = Mapping::new(bytes).map_err(|source| Error::Memory { bytes, source })?;
    let buffers = memory.as_mut_slice().chunks_exact_mut(CHUNK);
    let jobs = jobs::cut(tensors, arena).into_iter();
    let refused = source.parts.iter().map(|_| AtomicBool::new(false)).collect();
    let load = Load { source, tensors, refused, stop: AtomicBool::new(false) };

    let mut now = Progress { bytes_done: 0, bytes_total: tensors.iter().map(|t| t.info.size).sum(), method };
    progress(now);
    thread::scope(|scope| {
        let (report, reports) = mpsc::channel();
        let started = match ring {
            Some(ring) => load.start_ring(scope, ring, jobs, buffers, workers, report),
            None => load.start_readers(scope, jobs, buffers, report),
        };
        let mut outcome = started.map_err(|source| load.stopped(Error::Thread { source }));
        for report in reports {
            match report {
                Ok(bytes) => {
                    now.bytes_done += bytes;
                    progress(now);
                }
                Err(error) => outcome = outcome.and(Err(load.stopped(error))),
            }
        }
        outcome
    })
}

/// What all threads of a load share.
struct Load<'s> {
    source: &'s Source,
    tensors: &'s [Placed],
    /// Files whose file system turned out not to read past the page cache.
    refused: Vec<AtomicBool>,
    stop: AtomicBool,
}

/// Work that comes from the ring.
enum Task<'a> {
    /// The buffer holds the job's sectors.
    Place(Job<'a>, &'a mut [u8]),
    /// The ring cannot read it. A straight job needs no buffer.
    Read(Job<'a>, Option<&'a mut [u8]>),
}

impl<'s> Load<'s> {
    /// Starts a thread that reads and `workers` that put bytes to their place.
    fn start_ring<'scope, 'a: 'scope>(
        &'a self,
        scope: &'scope Scope<'scope, '_>,
        ring: Ring,
        jobs: Jobs<'a>,
        buffers: Buffers<'a>,
        workers: usize,
        report: Sender<Report>,
    ) -> io::Result<()> {
        let (free, spare) = mpsc::channel();
        let (tasks, inbox) = mpsc::channel();
        let inbox = Arc::new(Mutex::new(inbox));
        for buffer in buffers {
            let _ = free.send(buffer);
        }
        for _ in 0..workers {
            let (inbox, free, report) = (inbox.clone(), free.clone(), report.clone());
            let body = move || {
                let next = || inbox.lock().unwrap_or_else(PoisonError::into_inner).recv().ok();
                while let Some(task) = next() {
                    let (outcome, buffer) = match task {
                        Task::Place(job, buffer) => (Ok(self.place(job, buffer)), Some(buffer)),
                        Task::Read(job, None) => (self.read(job, &mut []), None),
                        Task::Read(job, Some(buffer)) => (self.read(job, buffer), Some(buffer)),
                    };
                    // Nobody takes buffers, or reports, when all is read or lost.
                    let _ = (buffer.map(|buffer| free.send(buffer)), report.send(outcome));
                }
            };
            thread::Builder::new().name("load".into()).spawn_scoped(scope, body)?;
        }
        let body = move || self.fetch(ring, jobs, &spare, &tasks, &report);
        thread::Builder::new().name("load-ring".into()).spawn_scoped(scope, body).map(drop)
    }

    /// Starts a thread per buffer that reads and puts bytes to their place in turn.
    fn start_readers<'scope, 'a: 'scope>(
        &'a self,
        scope: &'scope Scope<'scope, '_>,
        jobs: Jobs<'a>,
        buffers: Buffers<'a>,
        report: Sender<Report>,
    ) -> io::Result<()> {
        let jobs = Arc::new(Mutex::new(jobs));
        for buffer in buffers {
            let (jobs, report) = (jobs.clone(), report.clone());
            let body = move || {
                let next = || jobs.lock().unwrap_or_else(PoisonError::into_inner).next();
                while let Some(job) = next().filter(|_| !self.is_stopped()) {
                    let _ = report.send(self.read(job, buffer));
                }
            };
            thread::Builder::new().name("load".into()).spawn_scoped(scope, body)?;
        }
        Ok(())
    }

    /// Keeps the ring busy. What it cannot read, because the file system does not support that, goes to the workers.
    fn fetch<'a>(
        &'a self,
        ring: Ring,
        mut jobs: Jobs<'a>,
        spare: &Receiver<&'a mut [u8]>,
        tasks: &Sender<Task<'a>>,
        report: &Sender<Report>,
    ) {
        let mut waiting: Option<Job<'a>> = None;
        let next = |idle| loop {
            let mut job = waiting.take().or_else(|| jobs.next()).filter(|_| !self.is_stopped())?;
            let (direct, sectors) = (self.direct(job.file), job.sectors());
            let into = match (&mut job.place, direct) {
                (Place::Straight(piece), Some(_)) => std::mem::take(&mut piece.target),
                (Place::Straight(_), None) => {
                    let _ = tasks.send(Task::Read(job, None));
                    continue;
                }
                (Place::Through(_), _) if idle => spare.recv().ok()?,
                (Place::Through(_), _) => match spare.try_recv() {
                    Ok(buffer) => buffer,
                    Err(_) => {
                        waiting = Some(job);
                        return None;
                    }
                },
            };
            if let Some(file) = direct {
                let len = (sectors.end - sectors.start) as usize;
                return Some(Read { file: file.as_fd(), offset: sectors.start, into, len, tag: job });
            }
            let _ = tasks.send(Task::Read(job, Some(into)));
        };
        let done = |read: Read<'a, Job<'a>>, outcome: io::Result<usize>| {
            let (mut job, mut buffer) = (read.tag, Some(read.into));
            let checked = self.check(&job, outcome);
            if let Place::Straight(piece) = &mut job.place {
                piece.target = buffer.take().unwrap_or_default();
            }
            match (checked, buffer) {
                (Err(error), _) => drop(report.send(Err(error))),
                (Ok(true), None) => drop(report.send(Ok(job.bytes()))),
                (Ok(true), Some(buffer)) => drop(tasks.send(Task::Place(job, buffer))),
                (Ok(false), buffer) => drop(tasks.send(Task::Read(job, buffer))),
            }
        };
        if let Err(source) = ring.drive(SECTOR as usize, next, done) {
            let _ = report.send(Err(Error::Ring { source }));
        }
    }

    /// Whether a direct read brought what was wanted; false where the file system does not support such reads.
    fn check(&self, job: &Job<'_>, outcome: io::Result<usize>) -> Result<bool, Error> {
        let start = job.sectors().start;
        match outcome {
            Ok(bytes) if start + bytes as u64 >= job.range.end => Ok(true),
            Ok(bytes) => Err(self.short(job.tensor_at(start + bytes as u64), job.range.end)),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                self.refused[usize::from(job.file)].store(true, Ordering::Relaxed);
                Ok(false)
            }
            Err(error) => Err(self.failed(job.tensor_at(start), job.range.start, error)),
        }
    }

    /// Reads a job from this thread.
    fn read(&self, mut job: Job<'_>, buffer: &mut [u8]) -> Report {
        if let Some(made) = &self.source.made {
            return Ok(self.make(made, job, buffer));
        }
        if let Some(file) = self.direct(job.file) {
            let sectors = job.sectors();
            let len = (sectors.end - sectors.start) as usize;
            let into = match &mut job.place {
                Place::Straight(piece) => &mut *piece.target,
                Place::Through(_) => &mut buffer[..len],
            };
            let outcome = read_direct(file, sectors.start, into);
            if self.check(&job, outcome)? {
                return Ok(self.place(job, buffer));
            }
        }
        let file = &self.part(job.file).file;
        let bytes = job.bytes();
        for piece in job.place.pieces_mut() {
            let packed = self.tensors[piece.tensor].panel.is_some();
            let len = piece.target.len();
            let into = if packed { &mut buffer[..len] } else { &mut *piece.target };
            if let Err(error) = file.read_exact_at(into, piece.offset) {
                let Piece { tensor, offset, .. } = *piece;
                return Err(match error.kind() {
                    io::ErrorKind::UnexpectedEof => self.short(tensor, job.range.end),
                    _ => self.failed(tensor, offset, error),
                });
            }
            if packed {
                self.put(piece, &buffer[..len]);
            }
        }
        Ok(bytes)
    }

    /// Makes the bytes of a job that is on no disk.
    fn make(&self, made: &Made, mut job: Job<'_>, buffer: &mut [u8]) -> u64 {
        let bytes = job.bytes();
        for piece in job.place.pieces_mut() {
            let len = piece.target.len();
            if self.tensors[piece.tensor].panel.is_some() {
                (made.fill)(piece.offset, &mut buffer[..len]);
                self.put(piece, &buffer[..len]);
            } else {
                (made.fill)(piece.offset, piece.target);
            }
        }
        bytes
    }

    /// Puts the bytes of a job to their place; `buffer` holds its sectors. Yields their number.
    fn place(&self, mut job: Job<'_>, buffer: &[u8]) -> u64 {
        let (start, bytes) = (job.sectors().start, job.bytes());
        if let Place::Through(pieces) = &mut job.place {
            for piece in pieces {
                let len = piece.target.len();
                self.put(piece, &buffer[(piece.offset - start) as usize..][..len]);
            }
        }
        bytes
    }

    /// Puts the bytes of a piece to their place: packed, when that is how the tensor is to lie.
    fn put(&self, piece: &mut Piece<'_>, bytes: &[u8]) {
        let Placed { info, panel, .. } = &self.tensors[piece.tensor];
        // The last rows of a matrix, which fill no panel, stay as they are.
        let packed = panel.map_or(0, |panel| bytes.len() / panel * panel);
        if packed > 0 {
            pack_panels(info.dtype, info.shape[0] as usize, &bytes[..packed], &mut piece.target[..packed]);
        }
        piece.target[packed..].copy_from_slice(&bytes[packed..]);
    }

    fn part(&self, file: u16) -> &'s Part {
        &self.source.parts[usize::from(file)]
    }

    /// The file for reads past the page cache, as long as they work.
    fn direct(&self, file: u16) -> Option<&'s fs::File> {
        let refused = self.refused[usize::from(file)].load(Ordering::Relaxed);
        self.part(file).direct.as_ref().filter(|_| !refused)
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Ends the load as soon as the reads in flight have.
    fn stopped(&self, error: Error) -> Error {
        self.stop.store(true, Ordering::Relaxed);
        error
    }

    /// The file ended before byte `wanted` of tensor `tensor`.
    fn short(&self, tensor: usize, wanted: u64) -> Error {
        let info = &self.tensors[tensor].info;
        let part = self.part(info.file);
        let end = part.file.metadata().map_or(0, |meta| meta.len());
        Error::Short { path: part.path.clone(), tensor: info.name.clone(), end, wanted }
    }

    fn failed(&self, tensor: usize, offset: u64, source: io::Error) -> Error {
        let info = &self.tensors[tensor].info;
        Error::Read { path: self.part(info.file).path.clone(), tensor: info.name.clone(), offset, source }
    }
}

/// Fills `into` from `offset`, both whole sectors, as far as the file goes. Yields the bytes read.
fn read_direct(file: &fs::File, offset: u64, into: &mut [u8]) -> io::Result<usize> {
    let mut have = 0;
    while have < into.len() {
        match file.read_at(&mut into[have..], offset + have as u64) {
            Ok(0) => break,
            Ok(bytes) => have += bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        // Only the end of the file stops a direct read within a sector.
        if !have.is_multiple_of(SECTOR as usize) {
            break;
        }
    }
    Ok(have)
}
