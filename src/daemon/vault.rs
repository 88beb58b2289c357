//! The vault: images of loaded weights that outlive the workers that made them, and with a service manager the daemon,
//! too. Holds descriptors and reads bytes; what they mean is the workers' business. Called by `process` for each worker,
//! by `control`, and by a task of its own that lets go of what nobody uses and looks after checksums ([`look_after`]).

mod attend;
mod freeing;
mod held;
mod sums;

pub use attend::attend;
pub use sums::{HURRIED, verify};

use super::router::App;
use crate::api::control::VaultImage;
use crate::sys::memory::Memory;
use crate::sys::notify;
use freeing::Freeing;
use held::{Held, image, stored_name};
use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How descriptors are called at the service manager: this, the image's name, `-`, and their number.
pub const STORED: &str = "vault-";
/// How often is looked after the images.
const TURN: Duration = Duration::from_millis(500);
/// What could not be verified is tried again after.
const LATER: Duration = Duration::from_secs(60);

/// A worker, by the number of its socket.
pub type User = u64;

/// All images.
#[derive(Debug, Default)]
pub struct Vault {
    held: Mutex<Vec<Held>>,
    /// Nothing is kept.
    off: AtomicBool,
    freeing: Arc<Freeing>,
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
        out.iter().for_each(Held::forget);
        let shown = out.iter().map(Held::status).collect();
        self.freeing.close(out);
        shown
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

    /// Lets go of images that nobody uses, the longest unused first, until somebody has `bytes` more who can use `reserved`
    /// bytes on reserved pages at most: images that bring nothing stay. Answers how much there will be, with what is
    /// on its way already.
    fn reclaim(&self, bytes: u64, mut reserved: u64) -> u64 {
        let mut freed = self.freeing.under_way().gain(&mut reserved);
        let mut idle: Vec<_> = self
            .held()
            .iter()
            .filter(|image| image.users.is_empty())
            .map(|image| (image.idle_since, image.id.clone(), image.takes()))
            .collect();
        idle.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
        for (_, id, takes) in idle {
            if freed >= bytes {
                break;
            }
            let mut left = reserved;
            let gain = takes.gain(&mut left);
            if gain == 0 {
                continue;
            }
            for image in self.release(|image| image.id == id && image.users.is_empty()) {
                tracing::info!("the weights of {} are let go: their memory is needed", image.path);
                (freed, reserved) = (freed.saturating_add(gain), left);
            }
        }
        freed
    }

    /// Gives way when the host runs out of memory: the kernel would kill workers, and that frees no image. Reserved pages
    /// would not help it.
    fn yield_to(&self, memory: &Memory) {
        let least = memory.total / 50;
        if memory.available < least {
            self.reclaim(least - memory.available, 0);
        }
    }

    fn keep(&self, user: User, model: &str, mut image: Held) {
        // What it replaces was no use to its maker.
        self.release(|old| old.matches(&image.manifest.path, &image.manifest.variant));
        let told = (0..)
            .zip(&image.descriptors)
            .map(|(number, descriptor)| notify::store(&stored_name(&image.id, number), descriptor.as_fd()));
        image.stored = told.fold(true, |all, told| all & told);
        image.used_by(user, model);
        // Its sums were just taken of the very same bytes.
        image.verified = Some(Instant::now());
        let mut held = self.held();
        if self.off.load(Ordering::Relaxed) {
            // Switched off since it was offered.
            drop(held);
            image.forget();
            self.freeing.close(vec![image]);
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
            let Some(id) = app.registry.shared.vault.due() else { continue };
            if let Err(error) = verify(&app, id, sums::RATE).await {
                tracing::warn!("{error}");
                tokio::time::sleep(LATER).await;
            }
        }
    };
    tokio::join!(expiry, sums);
}

#[cfg(test)]
mod tests;
