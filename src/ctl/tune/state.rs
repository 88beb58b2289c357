//! Making changes and taking them back. What was there before the first change is written down before anything is
//! changed, in a file that is replaced as a whole: whatever happens afterwards, a rollback finds it.

use super::plan::{Action, Change, Plan};
use crate::ctl::error::Error;
use crate::ctl::root::Root;
use serde::{Deserialize, Serialize};
use std::io::{self, Write};
use std::path::Path;

/// Where is remembered what was.
pub const SAVED: &str = "var/lib/omni-inferd/tune.json";

/// One file as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Was {
    /// What people call it.
    what: String,
    /// The file, from the root on.
    file: String,
    /// A value of the kernel's, to be written into the file; otherwise the file is replaced or removed.
    value: bool,
    /// Its text; `None`: there was none.
    before: Option<String>,
}

/// Makes the changes of a plan. Returns what could not be set, as sentences; the rest is changed all the same.
///
/// # Errors
/// What was could not be written down, or a file could not be replaced; nothing further is changed then.
pub fn apply(root: &Root, plan: &Plan) -> Result<Vec<String>, Error> {
    if plan.changes.is_empty() {
        return Ok(Vec::new());
    }
    let mut saved = load(root)?;
    for change in &plan.changes {
        // What an earlier --apply found is what a rollback shall restore.
        if !saved.iter().any(|was| was.file == change.file) {
            saved.push(before(root, change)?);
        }
    }
    let text = serde_json::to_vec_pretty(&saved).map_err(io::Error::from)?;
    replace(&root.path(SAVED), &text)?;
    let mut failed = Vec::new();
    for change in &plan.changes {
        let path = root.path(&change.file);
        match change.action {
            Action::Write => replace(&path, change.value.as_bytes())?,
            Action::Link => link(&path, &change.value)?,
            Action::Set => match std::fs::write(&path, &change.value) {
                Ok(()) => failed.extend(shortfall(root, change)),
                Err(error) => failed.push(format!("{} stays at {}: {error}", change.what, change.from)),
            },
        }
    }
    Ok(failed)
}

/// Huge pages may be fewer than asked for: memory is in pieces.
fn shortfall(root: &Root, change: &Change) -> Option<String> {
    let now = root.number(&change.file)?;
    let wanted: u64 = change.value.parse().ok()?;
    let remedy = "the rest comes with the next boot, when memory is not in pieces yet";
    (now < wanted && change.file.contains("hugepages")).then(|| format!("{}: {now} of {wanted}; {remedy}", change.what))
}

/// Takes everything back; returns what was restored. Nothing saved: nothing done.
///
/// # Errors
/// Something could not be restored; what was stays written down, so that it can be tried again.
pub fn rollback(root: &Root) -> Result<Vec<String>, Error> {
    let saved = load(root)?;
    let mut restored = Vec::new();
    let mut failed = Vec::new();
    for was in saved.iter().rev() {
        let path = root.path(&was.file);
        let done = match &was.before {
            Some(text) if was.value => std::fs::write(&path, text),
            Some(text) => replace(&path, text.as_bytes()).map_err(io::Error::other),
            None => std::fs::remove_file(&path).or_else(|error| match error.kind() {
                io::ErrorKind::NotFound => Ok(()),
                _ => Err(error),
            }),
        };
        match done {
            Ok(()) => restored.push(was.what.clone()),
            Err(error) => failed.push(format!("{}: {error}", was.what)),
        }
    }
    if !failed.is_empty() {
        return Err(Error::Failed(format!("not restored: {}{}", failed.join("; "), advice(&failed))));
    }
    if !saved.is_empty() {
        std::fs::remove_file(root.path(SAVED))?;
    }
    Ok(restored)
}

/// What is written down; nothing when there is no such file.
fn load(root: &Root) -> Result<Vec<Was>, Error> {
    let path = root.path(SAVED);
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed("read", &path, &error)),
    };
    serde_json::from_slice(&text)
        .map_err(|error| Error::Failed(format!("{} is damaged: {error}; correct or remove it", path.display())))
}

fn before(root: &Root, change: &Change) -> Result<Was, Error> {
    let was = |value, before| Was { what: change.what.clone(), file: change.file.clone(), value, before };
    if change.action == Action::Set {
        return Ok(was(true, Some(change.from.clone())));
    }
    let path = root.path(&change.file);
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(was(false, Some(text))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(was(false, None)),
        Err(error) => Err(failed("read", &path, &error)),
    }
}

fn link(path: &Path, target: &str) -> Result<(), Error> {
    let make = || -> io::Result<()> {
        std::fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
        std::os::unix::fs::symlink(target, path)
    };
    make().map_err(|error| failed("make the link", path, &error))
}

/// The whole file or nothing of it, also when the power fails.
fn replace(path: &Path, text: &[u8]) -> Result<(), Error> {
    let new = path.with_added_extension("new");
    let write = || -> io::Result<()> {
        let directory = path.parent().unwrap_or(Path::new("/"));
        std::fs::create_dir_all(directory)?;
        let mut file = std::fs::File::create(&new)?;
        file.write_all(text)?;
        file.sync_all()?;
        std::fs::rename(&new, path)?;
        std::fs::File::open(directory)?.sync_all()
    };
    write().map_err(|error| failed("write", path, &error))
}

fn failed(what: &str, path: &Path, error: &io::Error) -> Error {
    let text = format!("cannot {what} {}: {error}", path.display());
    let advice = if error.kind() == io::ErrorKind::PermissionDenied { "; run it as root" } else { "" };
    Error::Failed(text + advice)
}

fn advice(failed: &[String]) -> &'static str {
    if failed.iter().any(|text| text.contains("ermission denied")) { "; run it as root" } else { "" }
}
