//! `omnictl inspect FILE|URL`: what a GGUF holds and whether it runs here, before anything is downloaded or loaded.
//!
//! Reads headers only: a local file by growing reads, an address by range requests, the other files of a split set
//! beside the first. Needs no daemon. A file that does not run is a report all the same, not an error.

mod fetch;

use crate::gguf::{self, File};
use crate::model::report::Report;
use crate::text::{ChatTemplate, Tokenizer};
use comfy_table::{CellAlignment, Table, presets};
use fetch::{Header, Source};
use serde::Serialize;
use std::io::{self, Write};

/// Show what a GGUF file holds and whether it runs here, reading its header only.
#[derive(clap::Args, Clone, Debug)]
pub struct InspectArgs {
    /// A local file or an http(s) address; of a split set any one file, the others are found by name.
    #[arg(value_name = "FILE|URL")]
    pub target: String,
    /// Print JSON instead of tables.
    #[arg(long)]
    pub json: bool,
}

/// Why nothing can be said about a file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A local file could not be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// The system's reason.
        source: io::Error,
    },
    /// No answer from the server.
    #[error("cannot fetch {url}: {source}")]
    Fetch {
        /// The address asked for.
        url: String,
        /// What went wrong.
        source: Box<ureq::Error>,
    },
    /// The server refused.
    #[error("{url} answered with status {status}{}", if *.status == 401 || *.status == 403 { "; it may need a login: download it with your account and inspect the file" } else { "" })]
    Status {
        /// The address asked for.
        url: String,
        /// HTTP status.
        status: u16,
    },
    /// The server sent another part of the file than the one asked for.
    #[error("{url} answered a request for the bytes from {asked} on with {got:?}; its range support is broken")]
    Range {
        /// The address asked for.
        url: String,
        /// First byte asked for.
        asked: u64,
        /// `Content-Range` of the answer.
        got: String,
    },
    /// No GGUF, or a damaged one.
    #[error("{target}: {source}")]
    Gguf {
        /// The file or address.
        target: String,
        /// What is wrong.
        source: gguf::Error,
    },
    /// A part of a split set is not there.
    #[error("{target}: {what}")]
    Incomplete {
        /// The file or address.
        target: String,
        /// What is missing.
        what: String,
    },
    /// The report could not be printed.
    #[error("cannot print the report: {0}")]
    Print(#[from] io::Error),
}

/// A report with where it came from: what `--json` prints.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Inspection {
    /// The file or address as given.
    pub target: String,
    /// Bytes of all files read about, where their servers say.
    pub file_bytes: Option<u64>,
    /// Bytes of headers: what had to be understood.
    pub header_bytes: u64,
    /// Bytes read or fetched for it.
    pub read_bytes: u64,
    /// What the file holds.
    #[serde(flatten)]
    pub report: Report,
}

/// Inspects and prints to standard output.
pub fn run(args: &InspectArgs) -> Result<(), Error> {
    let inspection = inspect(&args.target)?;
    let mut out = io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &inspection).map_err(io::Error::from)?;
        writeln!(out)?;
    } else {
        write!(out, "{}", tables(&inspection))?;
    }
    out.flush()?;
    Ok(())
}

/// Reads the headers of `target` (file or address) and of the rest of its split set, and summarises them.
pub fn inspect(target: &str) -> Result<Inspection, Error> {
    let source = Source::new(target);
    let mut headers = vec![source.header()?];
    let mut obstacles = Vec::new();
    let wrong = |source| Error::Gguf { target: target.into(), source };
    if headers[0].file.split_count().map_err(wrong)? > 1 {
        match siblings(&source, &headers[0]) {
            Ok(all) => headers = all,
            Err(obstacle) => obstacles.push(obstacle),
        }
    }
    for header in &headers {
        if let Some(len) = header.file_bytes
            && let Err(error) = header.file.check_data(len)
        {
            obstacles.push(error.to_string());
        }
    }
    let file_bytes = headers.iter().map(|header| header.file_bytes).sum::<Option<u64>>();
    let header_bytes = headers.iter().map(|header| header.file.header_bytes).sum();
    let read_bytes = headers.iter().map(|header| header.read_bytes).sum();
    let mut files: Vec<File> = headers.into_iter().map(|header| header.file).collect();
    let file = match files.len() {
        // One file of a set whose others are missing is reported by itself.
        1 => files.swap_remove(0),
        _ => File::merge(files).map_err(wrong)?,
    };
    let mut report = Report::new(&file);
    text_obstacles(&file, &mut report);
    obstacles.into_iter().for_each(|obstacle| report.refuse(obstacle));
    Ok(Inspection { target: target.into(), file_bytes, header_bytes, read_bytes, report })
}

/// Metadata and directory of `target` (file or address), a whole split set as one. Its data need not be there.
///
/// # Errors
/// [`Error`], also when a part of the set is missing.
pub fn header(target: &str) -> Result<File, Error> {
    let source = Source::new(target);
    let wrong = |source| Error::Gguf { target: target.into(), source };
    let first = source.header()?;
    if first.file.split_count().map_err(wrong)? <= 1 {
        return Ok(first.file);
    }
    let all = siblings(&source, &first).map_err(|what| Error::Incomplete { target: target.into(), what })?;
    File::merge(all.into_iter().map(|header| header.file).collect()).map_err(wrong)
}

/// The headers of a whole split set, or why it is not complete.
fn siblings(source: &Source, first: &Header) -> Result<Vec<Header>, String> {
    let count = first.file.split_count().map_err(|error| error.to_string())?;
    let name = source.split_name().ok_or_else(|| {
        format!("the file is one of {count} (split.count), but its name does not end in -NNNNN-of-NNNNN.gguf")
    })?;
    if name.count != count {
        return Err(format!("the name says {} files, the metadata {count} (split.count)", name.count));
    }
    let parts = (0..count).map(|index| source.sibling(&name, index).header());
    parts.collect::<Result<_, _>>().map_err(|error| format!("the split set is not complete: {error}"))
}

/// Adds what the vocabulary or the chat template has against running the model.
fn text_obstacles(file: &File, report: &mut Report) {
    match Tokenizer::from_metadata(&file.metadata) {
        Ok(tokenizer) => report.warnings.extend(tokenizer.warning().map(Into::into)),
        Err(error) => report.refuse(error.to_string()),
    }
    if let Err(error) = ChatTemplate::from_metadata(&file.metadata) {
        report.warnings.push(error.to_string());
    }
}

/// The report for people.
fn tables(inspection: &Inspection) -> String {
    let report = &inspection.report;
    let mut facts = Table::new();
    facts.load_style(presets::NOTHING);
    let mut fact = |name: &str, value: Option<String>, field: &str| {
        let source = report.sources.get(field).map(|key| format!("[{key}]")).unwrap_or_default();
        facts.add_row([name.to_owned(), value.map_or("-".into(), |value| printable(&value)), source]);
    };
    let count = |value: Option<u64>| value.map(grouped);
    fact("name", report.name.clone(), "name");
    fact("architecture", report.architecture.clone(), "architecture");
    fact("runs here", Some(if report.supported { "yes" } else { "no" }.into()), "");
    fact("parameters", Some(parameters(report)), "");
    if let Some(experts) = report.experts {
        let text = format!("{} of {} used, {} shared", experts.used, experts.count, experts.shared);
        fact("experts", Some(text), "experts.count");
    }
    fact("layers", count(report.layers), "layers");
    fact("context", count(report.context).map(|n| n + " tokens"), "context");
    fact("tokenizer", tokenizer(report), "tokenizer.model");
    fact(
        "chat template",
        Some(if report.tokenizer.chat_template { "yes" } else { "no" }.into()),
        "tokenizer.chat_template",
    );
    fact("weights", Some(size(report.bytes.weights)), "");
    fact("KV per token", report.bytes.kv_per_token.map(size), "bytes.kv_per_token");
    fact("KV at full context", report.bytes.kv_at_context.map(size), "");
    if let Some(state) = report.bytes.state_per_sequence {
        fact("state per sequence", Some(size(state)), "");
    }
    fact("to load", report.bytes.load.map(|n| size(n) + " with one full context"), "");
    fact("file", Some(file_facts(inspection)), "");
    let mut text = format!("{}\n\n{}\n", facts.trim_fmt(), types(report).trim_fmt());
    for (label, lines) in [("does not run", &report.reasons), ("note", &report.warnings)] {
        lines.iter().for_each(|line| text.push_str(&format!("\n{label}: {}\n", printable(line))));
    }
    text
}

fn types(report: &Report) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(["type", "tensors", "elements", "bytes", "runs here"]);
    for row in &report.tensor_types {
        let supported = if row.supported { "yes" } else { "no" };
        table.add_row([row.dtype, &grouped(row.tensors), &grouped(row.elements), &grouped(row.bytes), supported]);
    }
    for column in 1..=3 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn parameters(report: &Report) -> String {
    let (total, active) = (report.parameters.total, report.parameters.active);
    if active == total { grouped(total) } else { format!("{}, {} active per token", grouped(total), grouped(active)) }
}

fn tokenizer(report: &Report) -> Option<String> {
    let t = &report.tokenizer;
    let pre = t.pre.as_ref().map(|pre| format!(", pre-tokenizer {pre}")).unwrap_or_default();
    let tokens = t.tokens.map(|count| format!(", {} tokens", grouped(count as u64))).unwrap_or_default();
    t.model.as_ref().map(|model| format!("{model}{pre}{tokens}"))
}

fn file_facts(inspection: &Inspection) -> String {
    let (report, read) = (&inspection.report, size(inspection.read_bytes));
    let whole = inspection.file_bytes.map_or("of unknown size".into(), size);
    let files = if report.files > 1 { format!("{} files, ", report.files) } else { String::new() };
    format!("GGUF {}, {files}{whole}; {read} read", report.gguf_version)
}

/// Digits in groups of three.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() * 4 / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Bytes exactly, and in the largest fitting unit.
fn size(bytes: u64) -> String {
    let exact = format!("{} bytes", grouped(bytes));
    match bytes {
        0..1024 => exact,
        1024..0x10_0000 => format!("{exact} ({:.1} KiB)", bytes as f64 / 1024.0),
        0x10_0000..0x4000_0000 => format!("{exact} ({:.1} MiB)", bytes as f64 / 1_048_576.0),
        _ => format!("{exact} ({:.2} GiB)", bytes as f64 / 1_073_741_824.0),
    }
}

/// A file's words made safe for a terminal: no control characters, no endless lines.
fn printable(text: &str) -> String {
    const LONGEST: usize = 400;
    let clean = text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c });
    let mut short: String = clean.take(LONGEST).collect();
    if text.chars().nth(LONGEST).is_some() {
        short.push('…');
    }
    short
}
