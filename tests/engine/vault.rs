//! An engine on weights that were kept, and what it asks of whoever keeps them.

use super::support::{bundled, greedy, prompt, request, run};
use omni_inferd::engine::{EngineOptions, OpenError, open_kept};
use omni_inferd::load::{Image, Keeper};
use omni_inferd::sys::memory::Memory;
use omni_inferd::sys::pass;
use std::os::fd::OwnedFd;
use std::path::Path;

/// Keeps the last image, and notes what else it is asked.
#[derive(Default)]
struct Shelf {
    kept: Option<(String, Vec<OwnedFd>)>,
    rejected: Vec<String>,
    settled: u64,
    wanted: Vec<u64>,
}

impl Keeper for Shelf {
    fn keeps(&self) -> bool {
        true
    }

    fn find(&mut self, _: &Path, variant: &str) -> Option<(String, Vec<OwnedFd>)> {
        let (kept, descriptors) = self.kept.as_ref()?;
        (kept == variant).then(|| ("id".into(), pass::copies(descriptors).unwrap()))
    }

    fn reject(&mut self, _: &str, reason: &str) {
        self.rejected.push(reason.into());
    }

    fn reclaim(&mut self, bytes: u64, _: u64) -> u64 {
        self.wanted.push(bytes);
        0
    }

    fn keep(&mut self, path: &Path, variant: &str, image: Image) {
        self.kept = Some((variant.into(), image.seal(path, variant).unwrap()));
    }

    fn settle(&mut self, image: Image) {
        image.touch();
        self.settled += image.pages().values().sum::<u64>();
    }
}

fn options() -> EngineOptions {
    EngineOptions { context: Some(256), parallel: 1, threads: Some(1), ..EngineOptions::default() }
}

#[test]
fn kept_weights_serve_as_those_that_were_read() {
    let path = bundled("q8_0");
    let mut shelf = Shelf::default();
    let first = open_kept(&path, &options(), &mut shelf, &mut |_| ()).unwrap();
    assert_ne!(first.facts.read_by, "the vault");
    let second = open_kept(&path, &options(), &mut shelf, &mut |_| ()).unwrap();
    assert_eq!(second.facts.read_by, "the vault");
    assert!(second.facts.pages.is_empty() && shelf.settled >= second.facts.weight_bytes, "counted afterwards");
    assert_eq!((first.facts.nodes, first.facts.vocab), (second.facts.nodes, second.facts.vocab));
    assert_eq!(first.metadata, second.metadata);
    let tokens = |handle| run(handle, request(&prompt(3, 20), 16, greedy())).tokens;
    assert_eq!(tokens(&first.handle), tokens(&second.handle));
    let plain = EngineOptions { disable_isa: vec!["avx512".into(), "avx512vnni".into(), "avx2".into()], ..options() };
    let third = open_kept(&path, &plain, &mut shelf, &mut |_| ()).unwrap();
    assert!(third.facts.isa != second.facts.isa || second.facts.isa == "scalar");
    assert_eq!(shelf.rejected, Vec::<String>::new());
    assert_eq!(shelf.wanted, Vec::<u64>::new(), "there is room enough");
}

#[test]
fn another_file_than_that_of_the_image_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    std::fs::copy(bundled("q8_0"), &path).unwrap();
    let mut shelf = Shelf::default();
    open_kept(&path, &options(), &mut shelf, &mut |_| ()).unwrap();
    std::fs::copy(bundled("q8_0"), &path).unwrap();
    let again = open_kept(&path, &options(), &mut shelf, &mut |_| ()).unwrap();
    assert_ne!(again.facts.read_by, "the vault");
    assert!(shelf.rejected[0].contains("has changed since"), "{:?}", shelf.rejected);
    std::fs::remove_file(&path).unwrap();
    let gone = open_kept(&path, &options(), &mut shelf, &mut |_| ()).unwrap();
    assert!(gone.facts.read_by == "the vault" && gone.facts.notes[0].contains("is gone"), "{:?}", gone.facts.notes);
}

#[test]
fn weights_that_cannot_be_mapped_are_read_from_the_file() {
    let path = bundled("q8_0");
    let mut shelf = Shelf::default();
    open_kept(&path, &options(), &mut shelf, &mut |_| ()).unwrap();
    let (_, descriptors) = shelf.kept.as_mut().unwrap();
    let last = descriptors.last_mut().unwrap();
    *last = tempfile::tempfile().unwrap().into();
    let opened = open_kept(&path, &options(), &mut shelf, &mut |_| ()).unwrap();
    assert_ne!(opened.facts.read_by, "the vault");
    assert!(shelf.rejected.len() == 1 && shelf.rejected[0].contains("for the weights"), "{:?}", shelf.rejected);
    assert_eq!(run(&opened.handle, request(&prompt(3, 20), 4, greedy())).tokens.len(), 4);
    let again = open_kept(&path, &options(), &mut shelf, &mut |_| ()).unwrap();
    assert_eq!(again.facts.read_by, "the vault", "the new image is kept");
}

#[test]
fn memory_that_is_missing_is_asked_for_before_a_model_is_refused() {
    let try_with = |context| {
        let options = EngineOptions { context: Some(context), parallel: 1, ..options() };
        let mut shelf = Shelf::default();
        let outcome = open_kept(&bundled("q8_0"), &options, &mut shelf, &mut |_| ());
        let Err(OpenError::Refused(refusal) | OpenError::Never(refusal)) = outcome else {
            panic!("a context of {context} tokens is accepted")
        };
        (refusal.placement, shelf.wanted)
    };
    let (placement, wanted) = try_with(1 << 40);
    assert!(wanted.is_empty(), "what never fits asks nobody: {wanted:?}");

    // More than there is now and less than there can be; what else the model takes is known from the plan before.
    let per_token = placement.kv_bytes / placement.context as u64;
    let memory = Memory::now().unwrap();
    let target = memory.available.midpoint(memory.total);
    let mut kv_bytes = target;
    let asked = (0..4).any(|_| {
        let (placement, wanted) = try_with((kv_bytes / per_token) as usize);
        kv_bytes -= placement.total_bytes().saturating_sub(target);
        assert!(wanted.len() < 2 && wanted.iter().all(|bytes| *bytes < target), "{wanted:?} of {target}");
        !wanted.is_empty()
    });
    assert!(asked, "{memory:?}, {per_token} bytes a token");
}
