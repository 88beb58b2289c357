//! One table of the file with typed getters. A getter that cannot use a value notes a [`Problem`] with line and remedy
//! and answers `None`, so that one reading finds everything that is wrong. Used by `read` and `proxy` only.

use super::error::{Error, Problem};
use super::units::{log_filter, nearest, parse_duration, parse_size};
use std::cell::RefCell;
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};
use std::time::Duration;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Problems found so far, and what is needed to name their place.
pub(super) struct Document<'t> {
    text: &'t str,
    /// The file: relative paths in it start at its directory.
    origin: &'t Path,
    problems: RefCell<Vec<Problem>>,
}

impl<'t> Document<'t> {
    pub(super) fn new(text: &'t str, origin: &'t Path) -> Self {
        Self { text, origin, problems: RefCell::default() }
    }

    /// Parses `text` and hands its root to `read`; answers what that made of it if nothing was wrong.
    ///
    /// # Errors
    /// [`Error::Invalid`] with every problem found.
    pub(super) fn read<T>(
        text: &'t str,
        origin: &'t Path,
        read: impl FnOnce(&Self, &DeTable<'t>) -> T,
    ) -> Result<T, Error> {
        let document = Self::new(text, origin);
        let value = match DeTable::parse(text) {
            Ok(root) => Some(read(&document, root.get_ref())),
            Err(error) => {
                let remedy = "see config.example.toml for the form".to_string();
                document.problem(error.span().unwrap_or_default(), "", error.message().replace('\n', ", "), remedy);
                None
            }
        };
        match (value, document.into_problems()) {
            (Some(value), problems) if problems.is_empty() => Ok(value),
            (_, problems) => Err(Error::Invalid { path: origin.to_path_buf(), problems }),
        }
    }

    /// The table that `value` must be.
    pub(super) fn table<'s>(&self, name: &str, value: &'s Spanned<DeValue<'t>>) -> Option<&'s DeTable<'t>> {
        let table = value.get_ref().as_table();
        if table.is_none() {
            self.problem(value.span(), name, "is not a table".into(), format!("write [{name}] and keys below it"));
        }
        table
    }

    /// Line of a byte offset, from 1.
    pub(super) fn line(&self, offset: usize) -> usize {
        1 + self.text.as_bytes()[..offset.min(self.text.len())].iter().filter(|byte| **byte == b'\n').count()
    }

    pub(super) fn problem(&self, at: Range<usize>, key: impl Into<String>, what: String, remedy: String) {
        let problem = Problem { line: self.line(at.start), key: key.into(), what, remedy };
        self.problems.borrow_mut().push(problem);
    }

    /// The problems in the file's order.
    fn into_problems(self) -> Vec<Problem> {
        let mut problems = self.problems.into_inner();
        problems.sort_by_key(|problem| problem.line);
        problems
    }
}

/// A table being read. [`Section::finish`] reports the keys that nobody asked for.
pub(super) struct Section<'s, 't> {
    document: &'s Document<'t>,
    name: String,
    table: Option<&'s DeTable<'t>>,
    /// Where the table begins: the place of what is missing from it.
    start: Range<usize>,
    known: Vec<&'static str>,
}

impl<'s, 't> Section<'s, 't> {
    pub(super) fn new(document: &'s Document<'t>, name: impl Into<String>, table: Option<&'s DeTable<'t>>) -> Self {
        let start = table.into_iter().flatten().map(|(key, _)| key.span()).min_by_key(|span| span.start);
        Self { document, name: name.into(), table, start: start.unwrap_or_default(), known: Vec::new() }
    }

    /// `section.key`.
    pub(super) fn path(&self, key: &str) -> String {
        if self.name.is_empty() { key.into() } else { format!("{}.{key}", self.name) }
    }

    /// The value as it stands, and the key marked as known.
    pub(super) fn value(&mut self, key: &'static str) -> Option<&'s Spanned<DeValue<'t>>> {
        self.known.push(key);
        self.table.and_then(|table| table.get(key))
    }

    /// Where a key's value stands, for problems found later.
    pub(super) fn span(&self, key: &str) -> Range<usize> {
        self.table.and_then(|table| table.get(key)).map(Spanned::span).unwrap_or_default()
    }

    /// Notes a problem at a key; at the table's start when the key is missing.
    pub(super) fn problem(&self, key: &str, what: impl Into<String>, remedy: impl Into<String>) {
        let at = self.table.and_then(|table| table.get(key)).map_or_else(|| self.start.clone(), Spanned::span);
        self.document.problem(at, self.path(key), what.into(), remedy.into());
    }

    fn typed<T>(
        &mut self,
        key: &'static str,
        wanted: &str,
        convert: impl FnOnce(&'s DeValue<'t>) -> Option<T>,
    ) -> Option<T> {
        let value = self.value(key)?.get_ref();
        let converted = convert(value);
        if converted.is_none() {
            self.problem(key, format!("is of type {}", value.type_str()), format!("write {wanted}"));
        }
        converted
    }

    pub(super) fn boolean(&mut self, key: &'static str) -> Option<bool> {
        self.typed(key, "true or false", DeValue::as_bool)
    }

    pub(super) fn string(&mut self, key: &'static str, example: &str) -> Option<String> {
        self.typed(key, &format!("a string, for instance {key} = \"{example}\""), |value| {
            value.as_str().map(str::to_owned)
        })
    }

    /// A string that must be one of a few.
    pub(super) fn choice(&mut self, key: &'static str, choices: &[&str]) -> Option<String> {
        let text = self.string(key, choices.first().copied().unwrap_or_default())?;
        if choices.contains(&text.as_str()) {
            return Some(text);
        }
        self.problem(key, format!("\"{text}\" is not known"), format!("write one of: {}", choices.join(", ")));
        None
    }

    pub(super) fn strings(&mut self, key: &'static str) -> Option<Vec<String>> {
        self.typed(key, &format!("a list of strings, for instance {key} = [\"a\", \"b\"]"), |value| {
            let array = value.as_array()?;
            array.iter().map(|item| item.get_ref().as_str().map(str::to_owned)).collect()
        })
    }

    /// A string or a list of strings, each read by `parse`, whose error says what is wrong with one.
    pub(super) fn parsed<T>(
        &mut self,
        key: &'static str,
        wanted: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Vec<T>> {
        let texts = self.typed(key, &format!("{wanted}, or a list of such"), |value| match value {
            DeValue::Array(items) => items.iter().map(|item| item.get_ref().as_str()).collect::<Option<Vec<_>>>(),
            single => single.as_str().map(|text| vec![text]),
        })?;
        let values = texts.into_iter().map(parse).collect::<Result<_, _>>();
        values.map_err(|what| self.problem(key, what, format!("write {wanted}"))).ok()
    }

    /// What to log, as [`log_filter`] has it.
    pub(super) fn log_filter(&mut self, key: &'static str) -> Option<String> {
        let text = self.string(key, "info")?;
        log_filter(&text)
            .map_err(|what| self.problem(key, what, "write error, warn, info, debug, trace or a tracing filter"))
            .ok()
    }

    /// A whole number within bounds.
    pub(super) fn count(&mut self, key: &'static str, bounds: RangeInclusive<usize>) -> Option<usize> {
        let remedy = format!("write a whole number from {} to {}", bounds.start(), bounds.end());
        let value = self.value(key)?.get_ref();
        let parsed = value.as_integer().and_then(|n| usize::from_str_radix(n.as_str(), n.radix()).ok());
        match parsed {
            Some(number) if bounds.contains(&number) => return parsed,
            Some(number) => self.problem(key, format!("{number} is out of bounds"), remedy),
            None => self.problem(key, "is not a whole number of use here", remedy),
        }
        None
    }

    pub(super) fn duration(&mut self, key: &'static str) -> Option<Duration> {
        let remedy = format!("write a number with its unit, for instance {key} = \"30s\" (ms, s, m, h, days)");
        let value = self.value(key)?.get_ref();
        match value.as_str().map(parse_duration) {
            Some(Ok(duration)) => return Some(duration),
            Some(Err(what)) => self.problem(key, what, remedy),
            None => self.problem(key, format!("is of type {}", value.type_str()), remedy),
        }
        None
    }

    /// A duration above zero; `default` where there is none of use.
    pub(super) fn positive(&mut self, key: &'static str, default: Duration) -> Duration {
        match self.duration(key) {
            Some(duration) if !duration.is_zero() => return duration,
            Some(_) => {
                let remedy = format!("the default is \"{}\"", humantime::format_duration(default));
                self.problem(key, "must not be zero", remedy);
            }
            None => {}
        }
        default
    }

    /// Bytes: a whole number, or a string with unit.
    pub(super) fn size(&mut self, key: &'static str, bounds: RangeInclusive<usize>) -> Option<usize> {
        let (least, most) = (super::format_size(*bounds.start()), super::format_size(*bounds.end()));
        let remedy = format!("write a size from {least} to {most}, for instance {key} = \"64MiB\"");
        let value = self.value(key)?.get_ref();
        let parsed = match (value.as_str(), value.as_integer()) {
            (Some(text), _) => parse_size(text),
            (None, Some(number)) => usize::from_str_radix(number.as_str(), number.radix())
                .map_err(|_| format!("{} is not a size", number.as_str())),
            (None, None) => Err(format!("is of type {}", value.type_str())),
        };
        match parsed {
            Ok(bytes) if bounds.contains(&bytes) => return Some(bytes),
            Ok(bytes) => self.problem(key, format!("{bytes} bytes are out of bounds"), remedy),
            Err(what) => self.problem(key, what, remedy),
        }
        None
    }

    /// A path; a relative one starts at the file's directory.
    pub(super) fn file_path(&mut self, key: &'static str, example: &str) -> Option<PathBuf> {
        let text = self.string(key, example)?;
        if text.is_empty() || text.contains('\0') {
            self.problem(key, "is no path", format!("write a path, for instance {key} = \"{example}\""));
            return None;
        }
        let directory = self.document.origin.parent().unwrap_or(Path::new(""));
        Some(directory.join(text))
    }

    /// The tables that a key's list holds, each a section of its own; what is no list of tables is a problem.
    pub(super) fn sections(&mut self, key: &'static str) -> Vec<Section<'s, 't>> {
        let Some(value) = self.value(key) else { return Vec::new() };
        let Some(array) = value.get_ref().as_array() else {
            // The path without the numbers of lists.
            let path: String = self.path(key).split(['[', ']']).step_by(2).collect();
            self.problem(key, "is not a list of tables", format!("start each with [[{path}]]"));
            return Vec::new();
        };
        let section = |(index, item): (usize, &'s Spanned<DeValue<'t>>)| {
            let name = format!("{}[{index}]", self.path(key));
            let table = self.document.table(&name, item)?;
            Some(Section::new(self.document, name, Some(table)))
        };
        array.iter().enumerate().filter_map(section).collect()
    }

    /// Reports unknown keys with the nearest known one; answers the known keys.
    pub(super) fn finish(self) -> Vec<&'static str> {
        for (key, _) in self.table.into_iter().flatten() {
            let name = key.get_ref().as_ref();
            if self.known.contains(&name) {
                continue;
            }
            let remedy = match nearest(name, self.known.iter().copied()) {
                Some(known) => format!("did you mean `{known}`?"),
                None => format!("known here: {}", self.known.join(", ")),
            };
            self.document.problem(key.span(), self.path(name), "unknown key".into(), remedy);
        }
        self.known
    }
}
