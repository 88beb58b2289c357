//! Checksums of images: compared in the background at a bounded rate, or when somebody asks; what is damaged is let go.

use super::{Held, Vault};
use crate::daemon::model::Order;
use crate::daemon::router::App;
use crate::sys::pass;
use crate::vault::{Manifest, Sum};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes per second that are read for checksums when nobody waits: some hundredths of what one memory channel brings.
pub(super) const RATE: u64 = 256 << 20;
/// Bytes per second when somebody does.
pub const HURRIED: u64 = 2 << 30;
/// Bytes read at a time.
const PIECE: usize = 1 << 20;
/// Checksums are looked at again after.
const AGAIN: Duration = Duration::from_secs(24 * 3600);

impl Vault {
    /// Compares an image's checksums, at so many bytes per second at most. Lets it go when one is wrong, and answers what
    /// and which models served from it. `None`: it is sound, or gone. Blocks.
    ///
    /// # Errors
    /// It cannot be looked at now: there are no descriptors left.
    pub fn verify(&self, id: &str, rate: u64) -> Result<Option<(String, Vec<String>)>, String> {
        let (manifest, copies) = {
            let held = self.held();
            let Some(image) = held.iter().find(|image| image.id == id) else { return Ok(None) };
            let path = image.manifest.path.display();
            let copies = pass::copies(&image.descriptors[1..])
                .map_err(|error| format!("the weights of {path} in memory cannot be verified now: {error}"))?;
            (image.manifest.clone(), copies)
        };
        // An image that is let go meanwhile must not be held up by its examination.
        let is_held = || self.held().iter().any(|image| image.id == id);
        let damage = compare(&manifest, copies, rate, &is_held).err();
        let Some(damage) = damage else {
            let mut held = self.held();
            if let Some(image) = held.iter_mut().find(|image| image.id == id) {
                image.verified = Some(Instant::now());
            }
            return Ok(None);
        };
        let damage = format!("the weights of {} in memory are damaged: {damage}", manifest.path.display());
        let models = self.release(|image| image.id == id).into_iter().flat_map(|image| image.models).collect();
        tracing::error!("{damage}; they are let go, and read from the file again");
        Ok(Some((damage, models)))
    }

    /// The image whose checksums are due.
    pub(super) fn due(&self) -> Option<String> {
        let held = self.held();
        let due = |image: &&Held| image.verified.is_none_or(|at| at.elapsed() >= AGAIN);
        held.iter().find(due).map(|image| image.id.clone())
    }
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

/// Compares checksums; workers whose weights are damaged are started anew after their requests. Answers the damage.
/// Runs to its end even when nobody waits for the answer any more.
///
/// # Errors
/// As [`Vault::verify`].
pub async fn verify(app: &Arc<App>, id: String, rate: u64) -> Result<Option<String>, String> {
    let app = app.clone();
    let checked = tokio::spawn(async move {
        let vault = app.registry.shared.vault.clone();
        let verified = tokio::task::spawn_blocking(move || vault.verify(&id, rate)).await;
        let Some((damage, models)) = verified.map_err(|error| error.to_string())?? else { return Ok(None) };
        for model in models.iter().filter_map(|id| app.registry.find(id)) {
            model.say(tracing::Level::ERROR, "its weights in memory are damaged; starting it again after its requests");
            model.order(Order::Unload { force: false }).await;
            model.order(Order::Load).await;
        }
        Ok(Some(damage))
    });
    checked.await.map_err(|error| error.to_string())?
}
