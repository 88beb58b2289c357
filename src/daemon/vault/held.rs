//! One image: its descriptors, who uses it, what it takes.

use super::freeing::Bytes;
use super::{STORED, User};
use crate::api::control::VaultImage;
use crate::sys::{arena, notify};
use crate::vault::{Manifest, Segment, read_manifest};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Bytes of the pages that nobody reserved.
const PLAIN: u64 = 4 << 10;

/// One image.
#[derive(Debug)]
pub(super) struct Held {
    pub id: String,
    pub manifest: Arc<Manifest>,
    /// The manifest's, then each segment's.
    pub descriptors: Vec<OwnedFd>,
    /// Workers that have it mapped, and their models.
    pub users: BTreeMap<User, String>,
    /// Every model that had it mapped since the daemon started.
    pub models: BTreeSet<String>,
    pub idle_since: Instant,
    pub verified: Option<Instant>,
    pub stored: bool,
}

impl Held {
    pub fn matches(&self, path: &Path, variant: &str) -> bool {
        self.manifest.path == path && self.manifest.variant == variant
    }

    pub fn status(&self) -> VaultImage {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs());
        VaultImage {
            id: self.id.clone(),
            path: self.manifest.path.display().to_string(),
            variant: self.manifest.variant.clone(),
            bytes: self.manifest.resident(),
            models: self.users.values().cloned().collect(),
            idle_seconds: self.users.is_empty().then(|| self.idle_since.elapsed().as_secs_f64()),
            age_seconds: now.saturating_sub(self.manifest.created) as f64,
            verified_seconds: self.verified.map(|at| at.elapsed().as_secs_f64()),
            stored: self.stored,
        }
    }

    /// A worker has it mapped from now on.
    pub fn used_by(&mut self, user: User, model: &str) {
        self.users.insert(user, model.to_owned());
        self.models.insert(model.to_owned());
    }

    /// A worker has let it go.
    pub fn unused_by(&mut self, user: User) {
        self.users.remove(&user);
    }

    /// Nobody uses it, and of this file's weights no model but `model` used these: when it wants another variant, they
    /// are no use to anybody. One that no model has asked for since the daemon began may yet be another's.
    pub fn is_outgrown(&self, path: &Path, model: &str) -> bool {
        let own = !self.models.is_empty() && self.models.iter().all(|user| user == model);
        self.users.is_empty() && self.manifest.path == path && own
    }

    /// Memory that it takes.
    pub fn takes(&self) -> Bytes {
        let (reserved, plain): (Vec<&Segment>, _) = self.manifest.segments.iter().partition(|s| s.page > PLAIN);
        let sum = |segments: Vec<&Segment>| segments.iter().fold(0u64, |sum, s| sum.saturating_add(s.bytes));
        Bytes { plain: sum(plain), reserved: sum(reserved) }
    }

    /// Tells the service manager to close its copies.
    pub fn forget(&self) {
        (0..self.descriptors.len()).for_each(|number| notify::forget(&stored_name(&self.id, number)));
    }
}

/// The name of an image's descriptor at the service manager.
pub(super) fn stored_name(id: &str, number: usize) -> String {
    format!("{STORED}{id}-{number}")
}

/// What descriptors hold, if it is an image.
pub(super) fn image(descriptors: Vec<OwnedFd>) -> Result<Held, String> {
    let first = descriptors.first().ok_or("it has no manifest")?;
    let (id, manifest, _) = read_manifest(first.as_fd())?;
    let segments = &descriptors[1..];
    let fits = |(file, segment): (&OwnedFd, &Segment)| {
        let length = nix::sys::stat::fstat(file).map_or(0, |stat| stat.st_size.max(0) as u64);
        arena::check_sealed(file.as_fd()).is_ok() && length == segment.bytes
    };
    if segments.len() != manifest.segments.len() || !segments.iter().zip(&manifest.segments).all(fits) {
        return Err("its segments are not those of its manifest".into());
    }
    let now = Instant::now();
    let manifest = Arc::new(manifest);
    let (users, models) = (BTreeMap::new(), BTreeSet::new());
    Ok(Held { id, manifest, descriptors, users, models, idle_since: now, verified: None, stored: false })
}
