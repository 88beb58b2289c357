//! Split sets: one model in several files, `name-00001-of-00009.gguf`. Names here are strings; nothing is opened.

use super::{Error, File};
use std::collections::HashSet;

/// The last part of a file's name that belongs to a split set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SplitName {
    stem: String,
    suffix: String,
    /// Number of this file, from 0.
    pub index: u16,
    /// Files of the set.
    pub count: u16,
}

impl SplitName {
    /// Recognises `PREFIX-NNNNN-of-NNNNN.gguf`, in a path or the path part of an address. `None` for any other name.
    pub fn parse(name: &str) -> Option<SplitName> {
        let rest = name.strip_suffix(".gguf")?;
        let (rest, count) = rest.rsplit_once("-of-")?;
        let (stem, number) = rest.rsplit_once('-')?;
        let digits = |text: &str| {
            let plain = text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
            plain.then(|| text.parse::<u16>().ok()).flatten()
        };
        let (number, count) = (digits(number)?, digits(count)?);
        (1..=count).contains(&number).then(|| SplitName {
            stem: stem.into(),
            suffix: ".gguf".into(),
            index: number - 1,
            count,
        })
    }

    /// The name of file `index` (from 0) of the set.
    pub fn sibling(&self, index: u16) -> String {
        format!("{}-{:05}-of-{:05}{}", self.stem, u32::from(index) + 1, self.count, self.suffix)
    }

    /// All names of the set, in order.
    pub fn siblings(&self) -> impl Iterator<Item = String> + '_ {
        (0..self.count).map(|index| self.sibling(index))
    }
}

impl File {
    /// `split.count`: the files of the set this one belongs to, 1 where it stands alone.
    pub fn split_count(&self) -> Result<u16, Error> {
        Ok(self.metadata.get::<u16>("split.count")?.unwrap_or(1).max(1))
    }

    /// Joins the files of a split set, given in order, to one. A single file that is no part of a set passes through.
    ///
    /// Metadata is the first file's; [`TensorInfo::file`](super::TensorInfo) says where each tensor's data lies.
    pub fn merge(files: Vec<File>) -> Result<File, Error> {
        let wrong = |problem: String| Error::Split { problem };
        let given = files.len();
        let mut files = files.into_iter().enumerate();
        let Some((_, mut whole)) = files.next() else { return Err(wrong("no file was given".into())) };
        let count = whole.split_count()?;
        check_part(&whole, 0, count, given)?;
        if usize::from(count) != given {
            return Err(wrong(format!("the set has {count} files (split.count), {given} were given")));
        }
        for (index, part) in files {
            check_part(&part, index, count, given)?;
            // The cast is exact: `index` is below `count`.
            whole.tensors.extend(part.tensors.into_iter().map(|mut tensor| {
                tensor.file = index as u16;
                tensor
            }));
        }
        if let Some(expected) = whole.metadata.get::<u64>("split.tensors.count")?
            && expected != whole.tensors.len() as u64
        {
            let found = whole.tensors.len();
            return Err(wrong(format!("{expected} tensors are promised (split.tensors.count), {found} are there")));
        }
        let mut names = HashSet::with_capacity(whole.tensors.len());
        if let Some(twice) = whole.tensors.iter().find(|tensor| !names.insert(tensor.name.as_str())) {
            return Err(Error::Duplicate { what: "tensor", name: twice.name.clone(), offset: 0 });
        }
        whole.files = count;
        Ok(whole)
    }
}

/// A part must be the one its place says, of the same set.
fn check_part(part: &File, index: usize, count: u16, given: usize) -> Result<(), Error> {
    let wrong = |problem: String| Err(Error::Split { problem });
    if part.files != 1 {
        return wrong(format!("file {} of {given} is merged already", index + 1));
    }
    let own_count = part.split_count()?;
    if own_count != count {
        return wrong(format!("file {} belongs to a set of {own_count}, the first one to a set of {count}", index + 1));
    }
    match part.metadata.get::<usize>("split.no")? {
        Some(no) if no != index => {
            wrong(format!("file {} of {given} says it is number {} (split.no)", index + 1, no + 1))
        }
        None if count > 1 => wrong(format!("file {} of {given} has no split.no", index + 1)),
        _ => Ok(()),
    }
}
