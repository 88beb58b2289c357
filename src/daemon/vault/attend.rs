//! One worker's questions, answered on a thread of their own.

use super::held::image;
use super::{User, Vault};
use crate::sys::pass;
use crate::vault::{Answer, Ask, MESSAGE_BYTES};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl Vault {
    /// A worker asks.
    pub(super) fn answer(
        &self,
        user: User,
        model: &str,
        ask: Ask,
        descriptors: Vec<OwnedFd>,
    ) -> (Answer, Vec<OwnedFd>) {
        let nothing = || (Answer::Nothing, Vec::new());
        match ask {
            _ if self.off.load(Ordering::Relaxed) => nothing(),
            Ask::Find { path, variant } => {
                let mut held = self.held();
                // The newest: an older one may be of a file that was replaced while a worker uses it.
                let Some(image) = held.iter_mut().rev().find(|image| image.matches(&path, &variant)) else {
                    drop(held);
                    self.outgrow(&path, model);
                    return nothing();
                };
                let Ok(copies) = pass::copies(&image.descriptors) else { return nothing() };
                image.used_by(user, model);
                (Answer::Image { id: image.id.clone() }, copies)
            }
            Ask::Reject { id, reason } => {
                tracing::warn!(model, "the weights in the vault do not match and are let go: {reason}");
                // The asker has closed its copies: what it frees is on its way, and counted.
                self.held().iter_mut().filter(|image| image.id == id).for_each(|image| image.unused_by(user));
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
            Ask::Reclaim { bytes, reserved } => (Answer::Freed { bytes: self.reclaim(bytes, reserved) }, Vec::new()),
        }
    }

    /// A model wants weights of `path` in a variant that there is not: those in another one were for its old settings.
    fn outgrow(&self, path: &Path, model: &str) {
        for image in self.release(|image| image.is_outgrown(path, model)) {
            tracing::info!(model, "the weights of {} are let go: they lie as it no longer wants them", image.path);
        }
    }
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
