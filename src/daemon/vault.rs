//! The vault: images of loaded weights that outlive the workers that made them, and with a service manager the daemon,
//! too. Holds descriptors and reads bytes; what they mean is the workers' business. Called by `process` for each worker,
//! by `control`, and by a task of its own that lets go of what nobody uses and looks after checksums ([`look_after`]).

use super::model::Order;
use super::router::App;
use crate::api::control::VaultImage;
use crate::sys::memory::Memory;
use crate::sys::{arena, notify, pass};
use crate::vault::{Answer, Ask, MESSAGE_BYTES, Manifest, Sum, read_manifest};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How descriptors are called at the service manager: this, the image's name, `-`, and their number.
pub const STORED: &str = "vault-";
/// Bytes per second that are read for checksums when nobody waits: some hundredths of what one memory channel brings.
const RATE: u64 = 256 << 20;
/// Bytes per second when somebody does.
pub const HURRIED: u64 = 2 << 30;
/// Bytes read at a time.
const PIECE: usize = 1 << 20;
/// Checksums are looked at again after.
const AGAIN: Duration = Duration::from_secs(24 * 3600);
/// How often is looked after the images.
const TURN: Duration = Duration::from_millis(500);

/// A worker, by the number of its socket.
pub type User = u64;

/// One image.
#[derive(Debug)]
struct Held {
    id: String,
    manifest: Arc<Manifest>,
    /// The manifest's, then each segment's.
    descriptors: Vec<OwnedFd>,
    /// Workers that have it mapped, and their models.
    users: BTreeMap<User, String>,
    idle_since: Instant,
    verified: Option<Instant>,
    stored: bool,
}

impl Held {
    fn matches(&self, path: &Path, variant: &str) -> bool {
        self.manifest.path == path && self.manifest.variant == variant
    }

    fn status(&self) -> VaultImage {
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

    /// Gives the memory back, as soon as the service manager has closed its copies, too.
    fn release(self) -> VaultImage {
        if self.stored {
            (0..self.descriptors.len()).for_each(|number| notify::forget(&stored_name(&self.id, number)));
        }
        self.status()
    }
}

fn stored_name(id: &str, number: usize) -> String {
    format!("{STORED}{id}-{number}")
}

/// All images.
#[derive(Debug, Default)]
pub struct Vault {
    held: Mutex<Vec<Held>>,
    /// Nothing is kept.
    off: AtomicBool,
}

impl Vault {
    fn held(&self) -> MutexGuard<'_, Vec<Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps images from now on, or none.
    pub fn switch(&self, on: bool) {
        self.off.store(!on, Ordering::Relaxed);
        if !on {
            self.release(|_| true);
        }
    }

    /// Takes what an earlier daemon left with the service manager.
    pub fn restore(&self, stored: Vec<(String, OwnedFd)>) {
        let mut images: HashMap<String, BTreeMap<usize, OwnedFd>> = HashMap::new();
        for (name, descriptor) in stored {
            let parts = name.strip_prefix(STORED).and_then(|rest| rest.rsplit_once('-'));
            match parts.and_then(|(id, number)| Some((id.to_owned(), number.parse().ok()?))) {
                Some((id, number)) => drop(images.entry(id).or_default().insert(number, descriptor)),
                None => notify::forget(&name),
            }
        }
        for (id, descriptors) in images {
            let names: Vec<String> = descriptors.keys().map(|number| stored_name(&id, *number)).collect();
            let whole = descriptors.keys().copied().eq(0..descriptors.len());
            let image = if whole { image(descriptors.into_values().collect()) } else { Err("it is not whole".into()) };
            match image.and_then(|image| if image.id == id { Ok(image) } else { Err("it is another one".into()) }) {
                Ok(image) if !self.off.load(Ordering::Relaxed) => {
                    tracing::info!("the weights of {} are still in memory", image.manifest.path.display());
                    self.held().push(Held { stored: true, ..image });
                }
                refused => {
                    if let Err(reason) = refused {
                        tracing::warn!("an image of weights that was stored is let go: {reason}");
                    }
                    names.iter().for_each(|name| notify::forget(name));
                }
            }
        }
    }

    /// Every image.
    pub fn list(&self) -> Vec<VaultImage> {
        self.held().iter().map(Held::status).collect()
    }

    /// Lets images go.
    fn release(&self, gone: impl Fn(&Held) -> bool) -> Vec<VaultImage> {
        let mut held = self.held();
        let (out, kept) = std::mem::take(&mut *held).into_iter().partition(|image| gone(image));
        *held = kept;
        drop(held);
        let out: Vec<Held> = out;
        out.into_iter().map(Held::release).collect()
    }

    /// Lets one image go, or all that nobody uses. A worker that uses it keeps the memory until it ends.
    pub fn evict(&self, id: Option<&str>) -> Vec<VaultImage> {
        self.release(|image| id.map_or(image.users.is_empty(), |id| image.id == id))
    }

    /// Lets go of images that nobody used for `ttl`.
    fn expire(&self, ttl: Duration) {
        for image in self.release(|image| image.users.is_empty() && image.idle_since.elapsed() >= ttl) {
            tracing::info!("the weights of {} were kept for vault_ttl and are let go", image.path);
        }
    }

    /// Lets go of images that nobody uses, the longest unused first, until `bytes` are free; answers how many are.
    fn reclaim(&self, bytes: u64) -> u64 {
        let mut idle: Vec<(Instant, String, u64)> = self
            .held()
            .iter()
            .filter(|image| image.users.is_empty())
            .map(|image| (image.idle_since, image.id.clone(), image.manifest.resident()))
            .collect();
        idle.sort();
        let mut freed = 0;
        for (_, id, size) in idle {
            if freed >= bytes {
                break;
            }
            for image in self.release(|image| image.id == id && image.users.is_empty()) {
                tracing::info!("the weights of {} are let go: their memory is needed", image.path);
                freed += size;
            }
        }
        freed
    }

    /// Gives way when the host runs out of memory: the kernel would kill workers, and that frees no image.
    fn yield_to(&self, memory: &Memory) {
        let least = memory.total / 50;
        if memory.available < least {
            self.reclaim(least - memory.available);
        }
    }

    /// A worker asks.
    fn answer(&self, user: User, model: &str, ask: Ask, descriptors: Vec<OwnedFd>) -> (Answer, Vec<OwnedFd>) {
        let nothing = || (Answer::Nothing, Vec::new());
        match ask {
            _ if self.off.load(Ordering::Relaxed) => nothing(),
            Ask::Find { path, variant } => {
                let mut held = self.held();
                // The newest: an older one may be of a file that was replaced while a worker uses it.
                let Some(image) = held.iter_mut().rev().find(|image| image.matches(&path, &variant)) else {
                    return nothing();
                };
                let Ok(copies) = pass::copies(&image.descriptors) else { return nothing() };
                image.users.insert(user, model.to_owned());
                (Answer::Image { id: image.id.clone() }, copies)
            }
            Ask::Reject { id, reason } => {
                tracing::warn!(model, "the weights in the vault do not match and are let go: {reason}");
                self.release(|image| image.id == id);
                nothing()
            }
            Ask::Keep => {
                match image(descriptors) {
                    Ok(image) => self.keep(user, model, image),
                    Err(reason) => tracing::warn!(model, "weights are not kept: {reason}"),
                }
                nothing()
            }
            Ask::Reclaim { bytes } => (Answer::Freed { bytes: self.reclaim(bytes) }, Vec::new()),
        }
    }

    fn keep(&self, user: User, model: &str, mut image: Held) {
        // What it replaces was no use to its maker.
        self.release(|old| old.matches(&image.manifest.path, &image.manifest.variant));
        let told = (0..)
            .zip(&image.descriptors)
            .map(|(number, descriptor)| notify::store(&stored_name(&image.id, number), descriptor.as_fd()));
        image.stored = told.fold(true, |all, told| all & told);
        image.users.insert(user, model.to_owned());
        // Its sums were just taken of the very same bytes.
        image.verified = Some(Instant::now());
        let mut held = self.held();
        if self.off.load(Ordering::Relaxed) {
            // Switched off since it was offered.
            (0..image.descriptors.len()).for_each(|number| notify::forget(&stored_name(&image.id, number)));
            return;
        }
        tracing::info!(model, "{} bytes of weights are kept as {}", image.manifest.resident(), image.id);
        held.push(image);
    }

    /// A worker is gone.
    pub fn leave(&self, user: User) {
        for image in self.held().iter_mut() {
            if image.users.remove(&user).is_some() {
                image.idle_since = Instant::now();
            }
        }
    }

    /// Compares an image's checksums, at so many bytes per second at most. Lets it go when one is wrong, and answers what
    /// and which models served from it. `None`: it is sound, or gone. Blocks.
    pub fn verify(&self, id: &str, rate: u64) -> Option<(String, Vec<String>)> {
        let (manifest, copies) = {
            let held = self.held();
            let image = held.iter().find(|image| image.id == id)?;
            (image.manifest.clone(), pass::copies(&image.descriptors[1..]).ok()?)
        };
        // An image that is let go meanwhile must not be held up by its examination.
        let is_held = || self.held().iter().any(|image| image.id == id);
        let damage = compare(&manifest, copies, rate, &is_held).err();
        let Some(damage) = damage else {
            let mut held = self.held();
            let image = held.iter_mut().find(|image| image.id == id)?;
            image.verified = Some(Instant::now());
            return None;
        };
        let damage = format!("the weights of {} in memory are damaged: {damage}", manifest.path.display());
        let models = self.release(|image| image.id == id).into_iter().flat_map(|image| image.models).collect();
        tracing::error!("{damage}; they are let go, and read from the file again");
        Some((damage, models))
    }

    /// The image whose checksums are due.
    fn due(&self) -> Option<String> {
        let held = self.held();
        let due = |image: &&Held| image.verified.is_none_or(|at| at.elapsed() >= AGAIN);
        held.iter().find(due).map(|image| image.id.clone())
    }
}

/// What descriptors hold, if it is an image.
fn image(descriptors: Vec<OwnedFd>) -> Result<Held, String> {
    let first = descriptors.first().ok_or("it has no manifest")?;
    let (id, manifest, _) = read_manifest(first.as_fd())?;
    let segments = &descriptors[1..];
    let fits = |(file, segment): (&OwnedFd, &crate::vault::Segment)| {
        let length = nix::sys::stat::fstat(file).map_or(0, |stat| stat.st_size.max(0) as u64);
        arena::check_sealed(file.as_fd()).is_ok() && length == segment.bytes
    };
    if segments.len() != manifest.segments.len() || !segments.iter().zip(&manifest.segments).all(fits) {
        return Err("its segments are not those of its manifest".into());
    }
    let now = Instant::now();
    let manifest = Arc::new(manifest);
    Ok(Held { id, manifest, descriptors, users: BTreeMap::new(), idle_since: now, verified: None, stored: false })
}

fn compare(manifest: &Manifest, segments: Vec<OwnedFd>, rate: u64, is_wanted: &dyn Fn() -> bool) -> Result<(), String> {
    let files: Vec<File> = segments.into_iter().map(File::from).collect();
    let mut buffer = vec![0; PIECE];
    let (start, mut read) = (Instant::now(), 0u64);
    for tensor in &manifest.tensors {
        let mut sum = Sum::default();
        for (segment, mut at, mut left) in manifest.pieces(tensor.start, tensor.bytes) {
            while left > 0 {
                if !is_wanted() {
                    return Ok(());
                }
                let piece = &mut buffer[..left.min(PIECE as u64) as usize];
                let file = files.get(segment).ok_or("a segment is missing")?;
                file.read_exact_at(piece, at).map_err(|error| format!("{}: {error}", tensor.name))?;
                sum.add(piece);
                (at, left, read) = (at + piece.len() as u64, left - piece.len() as u64, read + piece.len() as u64);
                let due = Duration::from_secs_f64(read as f64 / rate as f64);
                std::thread::sleep(due.saturating_sub(start.elapsed()));
            }
        }
        if sum.end() != tensor.sum {
            return Err(format!("tensor {}", tensor.name));
        }
    }
    Ok(())
}

/// Answers one worker, on a thread of its own, until it is gone.
///
/// # Errors
/// Out of threads.
pub fn attend(vault: Arc<Vault>, channel: OwnedFd, user: User, model: String) -> io::Result<()> {
    let body = move || {
        if let Err(error) = converse(&vault, &channel, user, &model) {
            tracing::warn!(%error, model, "a worker's questions to the vault end");
        }
        vault.leave(user);
    };
    std::thread::Builder::new().name("vault".into()).spawn(body).map(drop)
}

fn converse(vault: &Vault, channel: &OwnedFd, user: User, model: &str) -> io::Result<()> {
    while let Some((message, descriptors)) = pass::receive(channel.as_fd(), MESSAGE_BYTES)? {
        let (answer, descriptors) = vault.answer(user, model, serde_json::from_slice(&message)?, descriptors);
        let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        pass::send(channel.as_fd(), &serde_json::to_vec(&answer)?, &borrowed)?;
    }
    Ok(())
}

/// Lets go of what nobody uses, and compares checksums in turn, for as long as the daemon lives. Never ends.
pub async fn look_after(app: Arc<App>) {
    let expiry = async {
        let mut ticks = tokio::time::interval(TURN);
        loop {
            ticks.tick().await;
            app.registry.shared.vault.expire(app.registry.shared.settings().vault_ttl);
            app.registry.shared.vault.yield_to(&Memory::now().unwrap_or_default());
        }
    };
    let sums = async {
        let mut ticks = tokio::time::interval(TURN);
        loop {
            ticks.tick().await;
            if let Some(id) = app.registry.shared.vault.due() {
                verify(&app, id, RATE).await;
            }
        }
    };
    tokio::join!(expiry, sums);
}

/// Compares checksums; workers whose weights are damaged are started anew after their requests. Answers the damage.
/// Runs to its end even when nobody waits for the answer any more.
pub async fn verify(app: &Arc<App>, id: String, rate: u64) -> Option<String> {
    let app = app.clone();
    let checked = tokio::spawn(async move {
        let vault = app.registry.shared.vault.clone();
        let (damage, models) = tokio::task::spawn_blocking(move || vault.verify(&id, rate)).await.ok()??;
        for model in models.iter().filter_map(|id| app.registry.find(id)) {
            model.say(tracing::Level::ERROR, "its weights in memory are damaged; starting it again after its requests");
            model.order(Order::Unload { force: false }).await;
            model.order(Order::Load).await;
        }
        Some(damage)
    });
    checked.await.ok()?
}

#[cfg(test)]
mod tests;
