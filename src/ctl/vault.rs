//! `vault`: the weights that stay in memory for the next worker. Shows them, has their checksums compared, lets them go.

use super::client::{Client, segment};
use super::error::Error;
use super::output::{self, Output};
use crate::api::control::{Evicted, VaultImage, VaultImages};
use clap::{Args, Subcommand};
use comfy_table::Cell;

/// Path of the control API's vault.
const VAULT: &str = "/control/v1/vault";

/// Options of `vault`.
#[derive(Clone, Debug, Args)]
pub struct VaultArgs {
    /// What to do [default: list]
    #[command(subcommand)]
    pub action: Option<Action>,
}

/// What to do with the vault.
#[derive(Clone, Debug, Subcommand)]
pub enum Action {
    /// Show what is kept, which models use it, and since when nobody does
    List,
    /// Compare checksums; damaged weights are let go and read from their file again (exit status 1)
    Verify {
        /// Only this one
        image: Option<String>,
    },
    /// Let one go, or all that no model uses; a model that uses it keeps the memory until it is unloaded
    Evict {
        /// Image to let go
        image: Option<String>,
    },
}

/// Lists, verifies or evicts.
///
/// # Errors
/// The daemon's refusal; damage that was found.
pub async fn run(client: &Client, args: VaultArgs, out: Output) -> Result<(), Error> {
    let with = |action: &str, image: Option<String>| {
        format!("{VAULT}/{action}{}", image.map_or(String::new(), |image| format!("?id={}", segment(&image))))
    };
    match args.action.unwrap_or(Action::List) {
        Action::List => {
            let vault: VaultImages = client.get(VAULT).await?;
            if out.json { out.value(&vault) } else { out.line(&list(&vault.images, out)) }
        }
        Action::Verify { image } => {
            let found: VaultImages = client.post(&with("verify", image), &()).await?;
            if out.json {
                out.value(&found)?;
            } else {
                out.line(&format!("{} sound, {} damaged", images(found.images.len()), found.damaged.len()))?;
            }
            if found.damaged.is_empty() { Ok(()) } else { Err(Error::Failed(found.damaged.join("\n"))) }
        }
        Action::Evict { image } => {
            let gone: Evicted = client.post(&with("evict", image), &()).await?;
            if out.json {
                return out.value(&gone);
            }
            let used: Vec<&str> = gone.images.iter().flat_map(|image| &image.models).map(String::as_str).collect();
            let used = match used.is_empty() {
                true => String::new(),
                false => format!("; {} keeps the memory until it is unloaded", used.join(", ")),
            };
            out.line(&format!("let go of {}, {}{used}", images(gone.images.len()), output::bytes(gone.bytes)))
        }
    }
}

fn images(count: usize) -> String {
    format!("{count} image{}", if count == 1 { "" } else { "s" })
}

fn list(images: &[VaultImage], out: Output) -> String {
    if images.is_empty() {
        return "the vault is empty".into();
    }
    let columns = [
        ("IMAGE", false),
        ("SIZE", true),
        ("MODELS", false),
        ("UNUSED", true),
        ("VERIFIED", true),
        ("OUTLIVES", false),
        ("FILE", false),
    ];
    let row = |image: &VaultImage| {
        let time = |seconds: Option<f64>| seconds.map_or("-".into(), output::seconds);
        let models = if image.models.is_empty() { "-".into() } else { image.models.join(", ") };
        vec![
            Cell::new(&image.id),
            Cell::new(output::bytes(image.bytes)),
            Cell::new(models),
            Cell::new(time(image.idle_seconds)),
            Cell::new(image.verified_seconds.map_or("not yet".into(), |at| format!("{} ago", output::seconds(at)))),
            Cell::new(if image.stored { "the daemon" } else { "workers" }),
            Cell::new(&image.path),
        ]
    };
    out.table(&columns, images.iter().map(row))
}
