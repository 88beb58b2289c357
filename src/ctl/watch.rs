//! `logs`, `events` and `reload`: what happens in the daemon, and making it read its configuration again.

use super::client::Client;
use super::error::Error;
use super::output::Output;
use super::progress;
use crate::api::control::{Event, ModelStatus, Reloaded};
use clap::Args;
use http::Method;
use http_body_util::BodyExt;

/// Options of `logs`.
#[derive(Clone, Debug, Args)]
pub struct Logs {
    /// Only this model's lines [default: the daemon's own]
    #[arg(value_name = "MODEL")]
    pub model: Option<String>,
    /// Keep showing lines as they come
    #[arg(short, long)]
    pub follow: bool,
    /// Show the last N lines
    #[arg(short = 'n', long, value_name = "N", default_value_t = 100)]
    pub lines: usize,
}

/// Writes log lines as they come.
pub async fn logs(client: &Client, args: Logs, out: Output) -> Result<(), Error> {
    let model = args.model.as_ref().map_or(String::new(), |model| format!("&model={}", super::client::segment(model)));
    let follow = if args.follow { "&follow=true" } else { "" };
    let path = format!("/control/v1/logs?lines={}{model}{follow}", args.lines);
    let mut body = client.send(Method::GET, &path, &()).await?.into_body();
    let mut cut = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| client.strange(format!("the log broke off: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        // Whole lines only, so that no character is split between two pieces.
        cut.extend_from_slice(&data);
        let end = cut.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        let lines: Vec<u8> = cut.drain(..end).collect();
        out.write(&String::from_utf8_lossy(&lines))?;
    }
    if cut.is_empty() { Ok(()) } else { out.line(&String::from_utf8_lossy(&cut)) }
}

/// Writes events until the daemon stops.
pub async fn events(client: &Client, out: Output) -> Result<(), Error> {
    let mut events = client.events(Method::GET, "/control/v1/events", &()).await?;
    while let Some(event) = events.next().await? {
        if out.json {
            out.line(&event.data)?;
            continue;
        }
        let event: Event = serde_json::from_str(&event.data).map_err(|error| client.strange(error))?;
        let now = jiff::Zoned::now().strftime("%H:%M:%S").to_string();
        out.line(&format!("{} {}", out.dim(&now), event_text(&event)))?;
    }
    Ok(())
}

fn event_text(event: &Event) -> String {
    match event {
        Event::Status { model } => status_text(model),
        Event::Reloaded { changes } => format!("configuration read: {}", reloaded_text(changes)),
        Event::Stopping => "the daemon is stopping".into(),
    }
}

fn status_text(model: &ModelStatus) -> String {
    let mut text = format!("{} {}", model.id, model.state.name());
    if let Some(progress) = &model.progress {
        text += &format!("  {}", progress::describe(progress));
    }
    if let Some(error) = &model.error {
        text += &format!(": {error}");
    }
    text
}

/// Makes the daemon read its configuration again.
pub async fn reload(client: &Client, out: Output) -> Result<(), Error> {
    let changes: Reloaded = client.post("/control/v1/reload", &()).await?;
    if out.json {
        return out.value(&changes);
    }
    out.line(&reloaded_text(&changes))?;
    if changes.needs_restart.is_empty() {
        return Ok(());
    }
    out.line(&format!("takes effect only after a restart of omni-inferd: {}", changes.needs_restart.join(", ")))
}

fn reloaded_text(changes: &Reloaded) -> String {
    let lists = [("added", &changes.added), ("removed", &changes.removed), ("changed", &changes.changed)];
    let parts: Vec<_> = lists
        .iter()
        .filter(|(_, ids)| !ids.is_empty())
        .map(|(what, ids)| format!("{what} {}", ids.join(", ")))
        .collect();
    if parts.is_empty() { "no model changed".into() } else { parts.join("; ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_changed() {
        let ids = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        let changes = Reloaded { added: ids(&["a", "b"]), changed: ids(&["c"]), ..Reloaded::default() };
        assert_eq!(reloaded_text(&changes), "added a, b; changed c");
        assert_eq!(reloaded_text(&Reloaded::default()), "no model changed");
    }
}
