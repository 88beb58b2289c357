//! Images made by hand: kept, found, let go, damaged, restored.

use super::*;
use crate::sys::{arena, pass};
use crate::vault::{Answer, Ask, FileId, Manifest, Segment, Stored, read_manifest, sum};
use std::fs::File;
use std::path::Path;

/// An image of `bytes`, as a worker would send it; `damage` is done after the sums were taken.
fn sealed(path: &Path, variant: &str, bytes: &[u8], damage: bool) -> Vec<OwnedFd> {
    on_pages(path, variant, bytes, damage, 4096)
}

/// As [`sealed`], with pages of a size that the manifest claims.
fn on_pages(path: &Path, variant: &str, bytes: &[u8], damage: bool, page: usize) -> Vec<OwnedFd> {
    let mut content = bytes.to_vec();
    content.resize(bytes.len().next_multiple_of(page), 0);
    let file = File::open("/dev/null").unwrap();
    let tensor = Stored {
        name: "a.weight".into(),
        dtype: "F32".into(),
        shape: vec![bytes.len() as u64 / 4],
        start: 0,
        bytes: bytes.len() as u64,
        packed: false,
        sum: sum(bytes),
    };
    let manifest = Manifest {
        path: path.into(),
        variant: variant.into(),
        files: vec![FileId::of(path, &file, b"GGUF").unwrap()],
        bytes: bytes.len() as u64,
        segments: vec![Segment { page: page as u64, bytes: content.len() as u64 }],
        nodes: BTreeMap::new(),
        tensors: vec![tensor],
        created: 0,
    };
    content[17] ^= u8::from(damage);
    vec![manifest.seal(&[b"GGUF".to_vec()]).unwrap(), arena::sealed_file(&content).unwrap()]
}

fn keep(vault: &Vault, user: User, path: &str, bytes: usize) -> String {
    let answer = vault.answer(user, "m", Ask::Keep, sealed(Path::new(path), "v", &vec![7; bytes], false));
    assert_eq!(answer.0, Answer::Nothing);
    vault.list().pop().unwrap().id
}

fn find(vault: &Vault, user: User, path: &str, variant: &str) -> Option<String> {
    match vault.answer(user, "m", Ask::Find { path: path.into(), variant: variant.into() }, Vec::new()) {
        (Answer::Image { id }, descriptors) => {
            assert_eq!(descriptors.len(), 2);
            Some(id)
        }
        _ => None,
    }
}

#[test]
fn what_is_kept_is_found_by_file_and_variant() {
    let vault = Vault::default();
    let id = keep(&vault, 1, "/m/a", 8000);
    assert_eq!(find(&vault, 2, "/m/a", "v"), Some(id.clone()));
    assert_eq!((find(&vault, 2, "/m/a", "w"), find(&vault, 2, "/m/b", "v")), (None, None));
    let shown = &vault.list()[0];
    assert_eq!((shown.bytes, shown.models.len(), shown.idle_seconds, shown.stored), (8192, 2, None, false));
    let other = keep(&vault, 3, "/m/a", 9000);
    assert_eq!(find(&vault, 2, "/m/a", "v"), Some(other.clone()), "the newest");
    assert_eq!(vault.list().len(), 1, "and the only one");
    vault.answer(2, "m", Ask::Reject { id: other, reason: "the file has changed".into() }, Vec::new());
    assert_eq!(vault.list(), []);
}

/// Waits until nothing is on its way to be free.
fn freed(vault: &Vault) {
    let start = Instant::now();
    while vault.freeing.under_way() != freeing::Bytes::default() {
        assert!(start.elapsed() < Duration::from_secs(10), "it is never free");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn reclaim(vault: &Vault, bytes: u64, reserved: u64) -> u64 {
    freed(vault);
    vault.reclaim(bytes, reserved)
}

#[test]
fn what_brings_nothing_stays() {
    let vault = Vault::default();
    let large = 2 << 20;
    for (user, path, page) in [(1, "/m/huge", large), (2, "/m/plain", 4096), (3, "/m/huger", large)] {
        vault.answer(user, "m", Ask::Keep, on_pages(Path::new(path), "v", &[7; 4096], false, page));
        vault.leave(user);
        std::thread::sleep(Duration::from_millis(2));
    }
    let left = || vault.list().into_iter().map(|image| image.path).collect::<Vec<_>>();
    assert_eq!(left().len(), 3);
    vault.yield_to(&Memory { total: 1 << 30, most: 1 << 30, available: 0, cgroup: None });
    assert_eq!(left(), ["/m/huge", "/m/huger"], "reserved pages are of no use to a host out of memory");
    assert_eq!(reclaim(&vault, 1 << 30, 0), 0);
    assert_eq!(left().len(), 2);
    assert_eq!(reclaim(&vault, 1 << 20, 1 << 20), 1 << 20, "of a page only the half is of use");
    assert_eq!(left(), ["/m/huger"]);
    assert_eq!(reclaim(&vault, 1 << 30, 1 << 30), large as u64);
    assert_eq!(left(), Vec::<String>::new());
}

#[test]
fn what_is_being_freed_is_counted_and_not_freed_twice() {
    let vault = Vault::default();
    for (user, path) in [(1, "/m/a"), (2, "/m/b")] {
        keep(&vault, user, path, 4096);
        vault.leave(user);
        std::thread::sleep(Duration::from_millis(2));
    }
    // A service manager that never comes to it: so long it is on its way.
    let images = std::mem::take(&mut *vault.held());
    let (first, second) = images.into_iter().partition::<Vec<_>, _>(|image| image.manifest.path == Path::new("/m/a"));
    vault.held().extend(second);
    let way = vault.freeing.hold(first);
    assert_eq!((vault.reclaim(1, 0), vault.list().len()), (4096, 1), "enough is on its way");
    assert_eq!((vault.reclaim(4097, 0), vault.list().len()), (8192, 0));
    drop(way);
    assert_eq!(reclaim(&vault, 1, 0), 0);
}

#[test]
fn weights_for_old_settings_go_when_their_model_wants_others() {
    let vault = Vault::default();
    let seen = |model: &str, variant: &str| {
        matches!(
            vault.answer(9, model, Ask::Find { path: "/m/a".into(), variant: variant.into() }, vec![]).0,
            Answer::Image { .. }
        )
    };
    vault.answer(1, "one", Ask::Keep, sealed(Path::new("/m/a"), "v", &[7; 5000], false));
    assert!(!seen("one", "w"));
    assert_eq!(vault.list().len(), 1, "a worker uses them");
    vault.leave(1);
    assert!(!seen("two", "w"));
    assert_eq!(vault.list().len(), 1, "another model's settings are no old ones of this");
    assert!(!seen("one", "w"));
    assert_eq!(vault.list(), []);
    vault.answer(1, "one", Ask::Keep, sealed(Path::new("/m/a"), "v", &[7; 5000], false));
    assert!(seen("two", "v"));
    vault.leave(1);
    vault.leave(9);
    assert!(!seen("one", "w"));
    assert_eq!(vault.list().len(), 1, "the other one may want them again");
}

#[test]
fn what_nobody_uses_goes_for_time_or_memory() {
    let vault = Vault::default();
    for (user, path) in [(1, "/m/a"), (2, "/m/b"), (3, "/m/c")] {
        keep(&vault, user, path, 4096);
    }
    vault.leave(2);
    std::thread::sleep(Duration::from_millis(2));
    vault.leave(1);
    vault.expire(Duration::from_secs(60));
    assert_eq!((vault.list().len(), vault.evict(Some("other")).len()), (3, 0));
    assert_eq!(reclaim(&vault, 1, 0), 4096);
    let left = || vault.list().into_iter().map(|image| image.path).collect::<Vec<_>>();
    assert_eq!(left(), ["/m/a", "/m/c"], "the longest unused first");
    freed(&vault);
    assert_eq!(
        vault.answer(9, "m", Ask::Reclaim { bytes: 1 << 40, reserved: 0 }, vec![]).0,
        Answer::Freed { bytes: 4096 }
    );
    freed(&vault);
    assert_eq!(left(), ["/m/c"], "what is used stays");
    vault.yield_to(&Memory { total: 1 << 30, most: 1 << 30, available: 0, cgroup: None });
    assert_eq!(left(), ["/m/c"]);
    keep(&vault, 4, "/m/d", 4096);
    vault.leave(4);
    vault.yield_to(&Memory { total: 1 << 30, most: 1 << 30, available: 1 << 29, cgroup: None });
    assert_eq!(left(), ["/m/c", "/m/d"], "there is memory enough");
    freed(&vault);
    vault.yield_to(&Memory { total: 1 << 30, most: 1 << 30, available: 1 << 20, cgroup: None });
    assert_eq!(left(), ["/m/c"], "the host runs out of it");
    vault.expire(Duration::ZERO);
    assert_eq!(vault.evict(None), []);
    vault.leave(3);
    vault.expire(Duration::ZERO);
    assert_eq!(vault.list(), []);
    keep(&vault, 1, "/m/a", 4096);
    vault.switch(false);
    assert_eq!((vault.list(), find(&vault, 1, "/m/a", "v")), (vec![], None), "switched off");
}

#[test]
fn damage_is_found_and_let_go() {
    let vault = Vault::default();
    let bytes: Vec<u8> = (0..3 << 20).map(|i: u32| (i % 241) as u8).collect();
    vault.answer(1, "good", Ask::Keep, sealed(Path::new("/m/a"), "v", &bytes, false));
    vault.answer(2, "bad", Ask::Keep, sealed(Path::new("/m/b"), "v", &bytes, true));
    let ids: Vec<String> = vault.list().into_iter().map(|image| image.id).collect();
    assert_eq!(vault.verify(&ids[0], HURRIED), Ok(None));
    let (damage, models) = vault.verify(&ids[1], HURRIED).unwrap().unwrap();
    assert!(damage.contains("/m/b") && damage.contains("tensor a.weight"), "{damage}");
    assert_eq!((models, vault.list().len()), (vec!["bad".to_string()], 1));
    assert_eq!(vault.verify("none", HURRIED), Ok(None));
    let start = Instant::now();
    vault.verify(&ids[0], 15 << 20).unwrap();
    assert!(start.elapsed() >= Duration::from_millis(190), "3 MiB at 15 MiB/s");
}

#[test]
fn what_is_no_image_is_not_kept() {
    let vault = Vault::default();
    let whole = sealed(Path::new("/m/a"), "v", &[1; 5000], false);
    let copies = || pass::copies(&whole).unwrap();
    let open = || OwnedFd::from(tempfile::tempfile().unwrap());
    let mut swapped = copies();
    swapped.swap(0, 1);
    for odd in [vec![], copies()[..1].iter().map(|fd| fd.try_clone().unwrap()).collect(), swapped, vec![open()]] {
        vault.answer(1, "m", Ask::Keep, odd);
    }
    let mut unsealed = copies();
    unsealed[1] = open();
    vault.answer(1, "m", Ask::Keep, unsealed);
    assert_eq!(vault.list(), []);
}

#[test]
fn stored_descriptors_make_images_again_in_any_order() {
    let vault = Vault::default();
    let first = sealed(Path::new("/m/a"), "v", &[1; 5000], false);
    let id = read_manifest(first[0].as_fd()).unwrap().0;
    let named =
        |id: &str, fds: Vec<OwnedFd>| (0..).zip(fds).map(|(n, fd)| (stored_name(id, n), fd)).collect::<Vec<_>>();
    let mut stored = named(&id, first);
    stored.reverse();
    let half = sealed(Path::new("/m/b"), "v", &[2; 5000], false);
    stored.extend(named("0000000000000000", half).into_iter().take(1));
    stored.push(("vault-odd".into(), tempfile::tempfile().unwrap().into()));
    vault.restore(stored);
    let images = vault.list();
    assert_eq!((images.len(), images[0].id.as_str(), images[0].stored), (1, id.as_str(), true));
    assert!(images[0].verified_seconds.is_none() && vault.due() == Some(id.clone()), "looked after soon");
    assert_eq!(find(&vault, 1, "/m/a", "v"), Some(id));
}
