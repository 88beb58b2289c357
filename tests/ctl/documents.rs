//! The committed man pages and completions are what the command lines say. Remake them with
//! `OMNI_UPDATE_DOCUMENTS=1 cargo test --test ctl documents`.

use clap_complete::Shell;
use omni_inferd::ctl::documents::{Document, completion, man_pages};
use std::collections::BTreeSet;
use std::path::Path;

fn programs() -> Vec<clap::Command> {
    vec![omni_inferd::ctl::cli::command(), omni_inferd::daemon::cli::command(), omni_inferd::proxy::cli::command()]
}

/// Compares a directory with what it should hold, or makes it so when asked to.
fn check(directory: &str, wanted: &[Document]) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
    if std::env::var_os("OMNI_UPDATE_DOCUMENTS").is_some() {
        _ = std::fs::remove_dir_all(&directory);
        std::fs::create_dir_all(&directory).unwrap();
        wanted.iter().for_each(|document| std::fs::write(directory.join(&document.name), &document.content).unwrap());
    }
    let remedy = "run: OMNI_UPDATE_DOCUMENTS=1 cargo test --test ctl documents";
    for document in wanted {
        let path = directory.join(&document.name);
        let there = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}; {remedy}", path.display()));
        assert!(there == document.content, "{} is out of date; {remedy}", path.display());
    }
    let names: BTreeSet<_> = wanted.iter().map(|document| document.name.clone()).collect();
    let there: BTreeSet<_> =
        std::fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(there, names, "in {}; {remedy}", directory.display());
}

#[test]
fn man_pages_are_current() {
    let pages: Vec<_> = programs().iter().flat_map(|program| man_pages(program).unwrap()).collect();
    check("man", &pages);
}

#[test]
fn completions_are_current() {
    for (directory, shell) in [("bash", Shell::Bash), ("zsh", Shell::Zsh), ("fish", Shell::Fish)] {
        let scripts: Vec<_> = programs().iter().map(|program| completion(program, shell)).collect();
        check(&format!("completions/{directory}"), &scripts);
    }
}
