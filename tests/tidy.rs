//! The house rules that a machine can check: who may name whom, lengths, documentation, where `unsafe` may stand.
//! Reads the tree as text; the rules are those of the module map in `src/lib.rs`. Each check reports all its faults.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Module, and the modules it may name. A module may always name itself.
const LAYERS: &[(&str, &[&str])] = &[
    ("sys", &[]),
    ("quant", &[]),
    ("transport", &[]),
    ("vault", &["sys"]),
    ("sched", &[]),
    ("sample", &[]),
    ("config", &[]),
    ("gguf", &["quant"]),
    ("text", &["gguf", "sys::heap"]),
    ("model", &["gguf", "quant"]),
    ("plan", &["model", "sys"]),
    ("ops", &["quant", "sys"]),
    ("load", &["plan", "model", "gguf", "quant", "ops", "sys", "vault"]),
    ("exec", &["model", "load", "ops", "quant", "sys"]),
    ("engine", &["exec", "sched", "sample", "load", "plan", "model", "gguf", "ops", "sys"]),
    ("api", &["engine", "text", "plan", "config", "sample", "transport"]),
    ("worker", &["engine", "api", "text", "config", "sys", "gguf", "load", "vault"]),
    ("daemon", &["api", "config", "sys", "plan", "transport", "vault", "worker::protocol"]),
    ("proxy", &["config", "sys", "transport"]),
    // The offline commands (logits, perplexity, bench, tokenize) run a file without a daemon.
    // To plan it asks the engine what it would reserve.
    (
        "ctl",
        &["api", "config", "plan", "gguf", "model", "sys", "text", "load", "exec", "ops", "quant", "engine::planning"],
    ),
];

/// The only places with `unsafe`.
const UNSAFE_ALLOWED: &[&str] = &["src/sys/", "src/ops/cpu/"];

/// Longest file and function, in lines.
const FILE_LINES: usize = 600;
const FUNCTION_LINES: usize = 70;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources(below: &str) -> Vec<(PathBuf, String)> {
    fn walk(dir: &Path, out: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, out);
            } else if path.extension().is_some_and(|e| e == "rs") {
                out.push(path);
            }
        }
    }
    let mut paths = Vec::new();
    walk(&root().join(below), &mut paths);
    paths.sort();
    assert!(!paths.is_empty(), "no sources below {below}");
    paths
        .into_iter()
        .map(|p| (p.strip_prefix(root()).unwrap().to_path_buf(), fs::read_to_string(&p).unwrap()))
        .collect()
}

/// All that is held to lengths and documentation.
fn everything() -> Vec<(PathBuf, String)> {
    ["src", "tests", "benches"].into_iter().flat_map(sources).collect()
}

/// Fails the test with all faults, a line each.
fn report(faults: &[String]) {
    assert!(faults.is_empty(), "{} faults\n{}", faults.len(), faults.join("\n"));
}

/// The code without its `#[cfg(test)]` module and without comments; test files are empty.
fn production(path: &Path, text: &str) -> String {
    let name = path.file_name().unwrap().to_str().unwrap();
    if name == "tests.rs" || name.ends_with("_tests.rs") || path.components().any(|c| c.as_os_str() == "tests") {
        return String::new();
    }
    let end = text.find("#[cfg(test)]\nmod ").unwrap_or(text.len());
    text[..end]
        .lines()
        .map(|l| l.find("//").map_or(l, |i| if l[..i].matches('"').count() % 2 == 0 { &l[..i] } else { l }))
        .collect::<Vec<_>>()
        .join("\n")
}

/// Paths named through `crate::`, nested braces of `use crate::{…}` included: `a`, or `a::b` one level deep.
fn named_modules(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        if let Some(body) = rest.strip_prefix('{') {
            let mut depth = 0;
            let mut item = String::new();
            for c in body.chars() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => found.extend(path_head(&std::mem::take(&mut item))),
                    _ => {}
                }
                if depth == 0 && c != ',' && c != '}' {
                    item.push(c);
                }
            }
            found.extend(path_head(&item));
        } else {
            found.extend(path_head(rest));
        }
    }
    found
}

fn path_head(path: &str) -> Option<String> {
    let mut parts = path.trim().split("::").map(|p| p.trim_end_matches(|c: char| !(c.is_alphanumeric() || c == '_')));
    let ident = |p: &str| p.split(|c: char| !(c.is_alphanumeric() || c == '_')).next().unwrap_or("").to_string();
    let first = ident(parts.next()?);
    let second = parts.next().map(ident).unwrap_or_default();
    (!first.is_empty()).then(|| if second.is_empty() { first } else { format!("{first}::{second}") })
}

#[test]
fn modules_name_only_what_their_layer_allows() {
    let table: BTreeMap<&str, &[&str]> = LAYERS.iter().copied().collect();
    let mut faults = Vec::new();
    for (path, text) in sources("src") {
        let parts: Vec<_> = path.iter().map(|p| p.to_str().unwrap()).collect();
        if parts[1] == "bin" || parts[1] == "lib.rs" {
            continue;
        }
        let module = parts[1];
        let allowed =
            table.get(module).unwrap_or_else(|| panic!("module {module} has no row in the table of tests/tidy.rs"));
        for named in named_modules(&production(&path, &text)) {
            let head = named.split("::").next().unwrap();
            let known = table.contains_key(head);
            if known && head != module && !allowed.contains(&head) && !allowed.contains(&named.as_str()) {
                faults.push(format!("{}: {module} may not name {named}", path.display()));
            }
        }
    }
    report(&faults);
}

#[test]
fn the_checker_sees_nested_and_plain_paths() {
    let found = named_modules("use crate::{gguf::File, model::{self, Model}, quant};\nlet x = crate::text::Error::A;");
    let heads: Vec<_> = found.iter().map(|p| p.split("::").next().unwrap()).collect();
    assert_eq!(heads, ["gguf", "model", "quant", "text"]);
}

#[test]
fn binaries_are_thin() {
    let thick = sources("src/bin").into_iter().filter(|(_, text)| text.lines().count() > 20);
    report(&thick.map(|(path, _)| format!("{} has more than 20 lines", path.display())).collect::<Vec<_>>());
}

#[test]
fn files_and_functions_keep_their_length() {
    let mut faults = Vec::new();
    for (path, text) in everything() {
        let lines = text.lines().count();
        if lines > FILE_LINES {
            faults.push(format!("{}: {lines} lines, at most {FILE_LINES}", path.display()));
        }
        for (name, at, length) in functions(&text) {
            if length > FUNCTION_LINES {
                faults.push(format!("{}:{at}: {name} has {length} lines, at most {FUNCTION_LINES}", path.display()));
            }
        }
    }
    report(&faults);
}

/// Name, first line and length of each function, by rustfmt's indentation.
fn functions(text: &str) -> Vec<(String, usize, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (i, line) in lines.iter().enumerate() {
        let code = line.trim_start();
        let indent = line.len() - code.len();
        let Some(at) = code.find("fn ") else { continue };
        let lead = &code[..at];
        let is_fn = lead.split_whitespace().all(|w| {
            matches!(w, "pub" | "const" | "async" | "unsafe" | "extern" | "\"C\"" | "default") || w.starts_with("pub(")
        });
        if !is_fn {
            continue;
        }
        let name: String = code[at + 3..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        let close = format!("{}}}", " ".repeat(indent));
        if let Some(end) = lines[i..].iter().position(|l| *l == close || (*l == *line && l.ends_with(['}', ';']))) {
            found.push((name, i + 1, end + 1));
        }
    }
    found
}

#[test]
fn modules_say_what_they_are_for() {
    let mute = everything().into_iter().filter(|(_, text)| !text.starts_with("//!"));
    let fault = |path: PathBuf| format!("{}: begins without `//!` that says its one job", path.display());
    report(&mute.map(|(path, _)| fault(path)).collect::<Vec<_>>());
}

#[test]
fn unsafe_stands_where_it_may() {
    let mut faults = Vec::new();
    for (path, text) in sources("src") {
        let allowed = UNSAFE_ALLOWED.iter().any(|p| path.starts_with(p));
        let code = production(&path, &text);
        if !allowed && ["unsafe {", "unsafe fn", "unsafe impl"].iter().any(|word| code.contains(word)) {
            faults.push(format!("{}: unsafe outside of {UNSAFE_ALLOWED:?}", path.display()));
        }
    }
    report(&faults);
}

#[test]
fn nothing_is_left_undone() {
    let marks = ["todo!(", "unimplemented!(", concat!("TO", "DO"), concat!("FIX", "ME"), concat!("#[ig", "nore")];
    let mut faults = Vec::new();
    for (path, text) in everything().into_iter().filter(|(path, _)| !path.ends_with("tidy.rs")) {
        let found = marks.iter().filter(|mark| text.contains(**mark));
        faults.extend(found.map(|mark| format!("{}: contains {mark}", path.display())));
    }
    report(&faults);
}

#[test]
fn only_config_reads_the_environment() {
    let mut faults = Vec::new();
    for (path, text) in sources("src") {
        let may = path.starts_with("src/config") || path.starts_with("src/sys");
        if !may && production(&path, &text).contains("env::var") {
            faults.push(format!("{}: reads the environment; settings belong to config/", path.display()));
        }
    }
    report(&faults);
}

/// README's table of promises: each row names tests that exist, or says that it is pending.
#[test]
fn promises_name_their_tests() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let section = readme.split("## Promises").nth(1).unwrap().split("\n## ").next().unwrap();
    let rows: Vec<&str> = section.lines().filter(|line| line.starts_with("| ")).skip(1).collect();
    assert!(rows.len() > 20, "the table has {} rows", rows.len());
    let mut faults = Vec::new();
    for row in rows {
        let proof = row.trim_end_matches([' ', '|']).rsplit(" | ").next().unwrap();
        let named: Vec<&str> = proof.split('`').skip(1).step_by(2).collect();
        if named.is_empty() && !proof.contains("pending") {
            faults.push(format!("neither a test nor pending: {row}"));
        }
        for name in named {
            let (file, test) = name.split_once("::").unwrap_or((name, ""));
            let text = fs::read_to_string(root().join(file)).unwrap_or_default();
            if !["fn ", "def "].iter().any(|word| text.contains(&format!("{word}{test}("))) {
                faults.push(format!("README.md promises {name}, which does not exist"));
            }
        }
    }
    report(&faults);
}
