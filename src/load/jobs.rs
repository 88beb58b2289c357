//! Where each tensor goes, and which reads bring it there. Decides; reads nothing.
//!
//! ```text
//! file    ┆ sector ┆ sector ┆ sector ┆ sector ┆ …
//!           [ tensor a          ][ tensor b   ]
//! jobs    [through a buffer][ straight         ][through a buffer …
//! ```
//! Whole sectors of a tensor that stays as it is are read straight to their place, which is why that place is as far
//! from a sector's start as the bytes in the file. All else passes through a buffer: edges, small tensors, panels.

use crate::gguf::TensorInfo;
use crate::model::Model;
use std::ops::Range;

/// Most bytes of one read, and bytes of a buffer: long enough for a disk to stream, short enough that many are in flight.
pub(super) const CHUNK: usize = 4 << 20;
/// What `O_DIRECT` wants offsets, lengths and addresses aligned to, on every file system in use.
pub(super) const SECTOR: u64 = 4096;
/// Where a tensor starts in the arena: a cache line, and the widest vector register.
pub(super) const ALIGNMENT: usize = 64;
/// Smaller tensors are not worth a read of their own.
const STRAIGHT_BYTES: u64 = 128 << 10;

/// A tensor and its place in the arena.
#[derive(Clone, Debug)]
pub(super) struct Placed {
    pub info: TensorInfo,
    pub range: Range<usize>,
    /// Bytes of the panels that its rows are packed in; `None`: it stays as it is.
    pub panel: Option<usize>,
    /// Its whole sectors can be read straight to their place.
    pub straight: bool,
}

/// A read and where its bytes go.
#[derive(Debug)]
pub(super) struct Job<'a> {
    pub file: u16,
    /// Bytes wanted; straight ones are whole sectors.
    pub range: Range<u64>,
    pub place: Place<'a>,
}

#[derive(Debug)]
pub(super) enum Place<'a> {
    Straight(Piece<'a>),
    /// By rising offset.
    Through(Vec<Piece<'a>>),
}

/// Bytes of one tensor.
#[derive(Debug)]
pub(super) struct Piece<'a> {
    /// Which of the tensors placed.
    pub tensor: usize,
    /// In the file.
    pub offset: u64,
    pub target: &'a mut [u8],
}

impl Job<'_> {
    /// The sectors that hold the bytes wanted.
    pub(super) fn sectors(&self) -> Range<u64> {
        self.range.start / SECTOR * SECTOR..self.range.end.next_multiple_of(SECTOR)
    }

    /// Bytes that are in place when it is done.
    pub(super) fn bytes(&self) -> u64 {
        self.place.pieces().iter().map(|piece| piece.target.len() as u64).sum()
    }

    /// The tensor that byte `offset` of the file belongs to, or else the nearest of this job.
    pub(super) fn tensor_at(&self, offset: u64) -> usize {
        let pieces = self.place.pieces();
        let at = pieces.iter().rposition(|piece| piece.offset <= offset).unwrap_or(0);
        pieces.get(at).map_or(0, |piece| piece.tensor)
    }
}

impl<'a> Place<'a> {
    pub(super) fn pieces(&self) -> &[Piece<'a>] {
        match self {
            Place::Straight(piece) => std::slice::from_ref(piece),
            Place::Through(pieces) => pieces,
        }
    }

    pub(super) fn pieces_mut(&mut self) -> &mut [Piece<'a>] {
        match self {
            Place::Straight(piece) => std::slice::from_mut(piece),
            Place::Through(pieces) => pieces,
        }
    }
}

/// Each tensor's place in the arena, in the order of the file, and the arena's size. `panel`: bytes of a tensor's panels
/// where it is to be packed.
pub(super) fn lay_out(model: &Model<TensorInfo>, panel: impl Fn(&TensorInfo) -> Option<usize>) -> (Vec<Placed>, usize) {
    let mut tensors: Vec<TensorInfo> = model.tensors().into_iter().cloned().collect();
    tensors.sort_by_key(|t| (t.file, t.offset));
    let mut end = 0usize;
    let mut placed = Vec::with_capacity(tensors.len());
    for info in tensors {
        // Panels that no buffer holds are left as they are.
        let panel = panel(&info).filter(|&panel| panel <= CHUNK - SECTOR as usize);
        let straight = panel.is_none() && info.size >= STRAIGHT_BYTES && info.offset.is_multiple_of(ALIGNMENT as u64);
        let start = match straight {
            true => {
                let phase = (info.offset % SECTOR) as usize;
                end.saturating_sub(phase).next_multiple_of(SECTOR as usize) + phase
            }
            false => end.next_multiple_of(ALIGNMENT),
        };
        end = start.saturating_add(usize::try_from(info.size).unwrap_or(usize::MAX));
        placed.push(Placed { info, range: start..end, panel, straight });
    }
    (placed, end)
}

/// Cuts tensors, sorted by file and offset, to reads of at most [`CHUNK`] bytes in the order of the files.
pub(super) fn cut<'a>(tensors: &[Placed], mut arena: &'a mut [u8]) -> Vec<Job<'a>> {
    let mut jobs: Vec<Job<'a>> = Vec::new();
    let mut taken = 0;
    for (tensor, Placed { info, range, panel, straight }) in tensors.iter().enumerate() {
        arena = arena.split_at_mut(range.start - taken).1;
        taken = range.end;
        let (mut rest, after) = arena.split_at_mut(range.len());
        arena = after;
        let mut offset = info.offset;
        while !rest.is_empty() {
            let to_sector = (offset.next_multiple_of(SECTOR) - offset) as usize;
            let sectors = rest.len() / SECTOR as usize * SECTOR as usize;
            let len = match straight {
                true if to_sector == 0 && sectors > 0 => sectors.min(CHUNK),
                true if to_sector > 0 => to_sector.min(rest.len()),
                _ => through(jobs.last(), info.file, offset, rest.len(), panel.unwrap_or(1)),
            };
            let (target, later) = rest.split_at_mut(len);
            rest = later;
            let piece = Piece { tensor, offset, target };
            let range = offset..offset + len as u64;
            offset = range.end;
            if *straight && to_sector == 0 && sectors > 0 {
                jobs.push(Job { file: info.file, range, place: Place::Straight(piece) });
                continue;
            }
            match jobs.last_mut() {
                Some(Job { file, range: joined, place: Place::Through(pieces) })
                    if *file == info.file && room(joined, &range) >= len =>
                {
                    joined.end = range.end;
                    pieces.push(piece);
                }
                _ => jobs.push(Job { file: info.file, range, place: Place::Through(vec![piece]) }),
            }
        }
    }
    jobs
}

/// How many of `rest` bytes at `offset` the next read through a buffer takes, in whole units: those that still fit to
/// the last job, else to one of its own.
fn through(last: Option<&Job<'_>>, file: u16, offset: u64, rest: usize, unit: usize) -> usize {
    let next = offset..offset;
    let left = match last {
        Some(Job { file: same, range, place: Place::Through(_) }) if *same == file => room(range, &next),
        _ => 0,
    };
    let fit = |room: usize| if rest <= room { rest } else { room / unit * unit };
    match fit(left) {
        0 => fit(room(&next, &next)),
        len => len,
    }
}

/// Bytes at `next` that a buffer with the sectors of `job` still holds; none when bytes that nobody wants lie between.
fn room(job: &Range<u64>, next: &Range<u64>) -> usize {
    if next.start.saturating_sub(job.end) >= SECTOR {
        return 0;
    }
    let end = job.start / SECTOR * SECTOR + CHUNK as u64;
    end.saturating_sub(next.start) as usize
}
