//! The worker's end of the channel to the daemon's vault. Asked while the model is loaded; what was read is handed over
//! afterwards, from a thread of its own, so that nobody waits for checksums.

use super::control::Reporter;
use super::load::pages;
use super::protocol::Report;
use crate::load::{Image, Keeper, huge_page_bytes};
use crate::sys::pass;
use crate::vault::{Answer, Ask, MESSAGE_BYTES};
use nix::sys::socket::{setsockopt, sockopt::ReceiveTimeout};
use nix::sys::time::TimeVal;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

/// A daemon that gives no answer for so many seconds keeps nothing.
const PATIENCE: i64 = 10;

/// The vault, or none.
#[derive(Debug)]
pub(super) struct Vault {
    channel: Option<Arc<OwnedFd>>,
    /// Enters what was found in the page tables.
    settling: Option<JoinHandle<Image>>,
}

impl Vault {
    pub(super) fn new(channel: Option<OwnedFd>) -> Vault {
        if let Some(channel) = &channel {
            // Without it a daemon that hangs would only be waited for longer.
            let _ = setsockopt(channel, ReceiveTimeout, &TimeVal::new(PATIENCE, 0));
        }
        Vault { channel: channel.map(Arc::new), settling: None }
    }

    /// Tells what pages lie under the image that was found, if one was, as soon as that is known.
    pub(super) fn tell_pages(&mut self, reporter: &Arc<Reporter>) {
        let (Some(settling), reporter) = (self.settling.take(), reporter.clone()) else { return };
        let work = move || {
            let Ok(image) = settling.join() else { return };
            let pages = pages(&image.pages());
            tracing::info!("the weights found lie on {}", super::load::on_pages(&pages));
            reporter.send(&Report::Pages { huge_page_bytes: huge_page_bytes(), pages });
        };
        // Without a thread it stays unknown.
        let _ = std::thread::Builder::new().name("pages".into()).spawn(work);
    }

    /// Asks; a channel that failed once is given up, for questions and answers would no longer match.
    fn ask(&mut self, ask: &Ask) -> Option<(Answer, Vec<OwnedFd>)> {
        let channel = self.channel.as_ref()?;
        match exchange(channel, ask, &[]) {
            Ok(answer) => Some(answer),
            Err(error) => {
                tracing::warn!(%error, "the daemon's vault does not answer; the model is loaded without it");
                self.channel = None;
                None
            }
        }
    }
}

fn exchange(channel: &OwnedFd, ask: &Ask, descriptors: &[OwnedFd]) -> io::Result<(Answer, Vec<OwnedFd>)> {
    let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    pass::send(channel.as_fd(), &serde_json::to_vec(ask)?, &borrowed)?;
    let (answer, descriptors) = pass::receive(channel.as_fd(), MESSAGE_BYTES)?.ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok((serde_json::from_slice(&answer)?, descriptors))
}

impl Keeper for Vault {
    fn keeps(&self) -> bool {
        self.channel.is_some()
    }

    fn find(&mut self, path: &Path, variant: &str) -> Option<(String, Vec<OwnedFd>)> {
        let ask = Ask::Find { path: path.into(), variant: variant.into() };
        match self.ask(&ask)? {
            (Answer::Image { id }, descriptors) => Some((id, descriptors)),
            _ => None,
        }
    }

    fn reject(&mut self, id: &str, reason: &str) {
        tracing::warn!("the weights in the vault are not used, the file is read: {reason}");
        self.ask(&Ask::Reject { id: id.into(), reason: reason.into() });
    }

    fn reclaim(&mut self, bytes: u64, reserved: u64) -> u64 {
        match self.ask(&Ask::Reclaim { bytes, reserved }) {
            Some((Answer::Freed { bytes }, _)) => bytes,
            _ => 0,
        }
    }

    fn settle(&mut self, image: Image) {
        let work = move || {
            image.touch();
            image
        };
        // Without a thread, pages are entered as they are read, and not counted.
        self.settling = std::thread::Builder::new().name("pages".into()).spawn(work).ok();
    }

    fn keep(&mut self, path: &Path, variant: &str, image: Image) {
        let (channel, path, variant) = (self.channel.clone(), path.to_path_buf(), variant.to_owned());
        let work = move || {
            if let Some(channel) = channel {
                let kept = image.seal(&path, &variant).and_then(|sealed| exchange(&channel, &Ask::Keep, &sealed));
                if let Err(error) = kept {
                    tracing::warn!(%error, "the weights cannot be kept for the next start of this model");
                }
            }
            image.collapse();
        };
        if let Err(error) = std::thread::Builder::new().name("vault".into()).spawn(work) {
            tracing::warn!(%error, "no thread for the vault: the next start of this model reads its file");
        }
    }
}
