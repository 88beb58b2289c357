//! `status`, `ps` and `health`: what the daemon runs, and whether it is well.

use super::client::Client;
use super::error::Error;
use super::output::{self, Output};
use super::progress;
use crate::api::control::{ModelInfo, ModelState, ModelStatus, Stats, Status};
use clap::Args;
use comfy_table::Cell;
use http::Method;

/// Path of the daemon's status.
pub const STATUS: &str = "/control/v1/status";

/// Options of `status`.
#[derive(Clone, Debug, Args)]
pub struct StatusArgs {
    /// Draw the host instead: sockets, NUMA nodes, caches, cores and limits; asks no daemon
    #[arg(long)]
    pub topology: bool,
    /// Show how often each expert of a model was chosen, layer by layer; without MODEL of all loaded ones
    #[arg(long, value_name = "MODEL", num_args = 0..=1, conflicts_with = "topology")]
    pub experts: Option<Option<String>>,
}

/// Show the daemon and every model it knows
pub async fn status(client: &Client, out: Output) -> Result<(), Error> {
    let status: Status = client.get(STATUS).await?;
    if out.json { out.value(&status) } else { out.line(&status_text(&status, out)) }
}

/// Show the models that have a process
pub async fn ps(client: &Client, out: Output) -> Result<(), Error> {
    let mut status: Status = client.get(STATUS).await?;
    status.models.retain(|model| model.pid.is_some());
    if out.json { out.value(&status.models) } else { out.line(&ps_text(&status.models, out)) }
}

/// Options of `health`.
#[derive(Clone, Copy, Debug, Args)]
pub struct Health {
    /// Also require that requests are taken now (not starting or draining)
    #[arg(long)]
    pub ready: bool,
}

/// One line and the exit status: 0 when the daemon answers that it is well, else 1.
pub async fn health(client: &Client, args: Health, out: Output) -> Result<(), Error> {
    let path = if args.ready { "/ready" } else { "/health" };
    let well = client.send(Method::GET, path, &()).await;
    let (word, problem) = match &well {
        Ok(_) => ("ok", None),
        Err(error) => ("failed", error.to_string().lines().next().map(str::to_string)),
    };
    if out.json {
        out.value(&serde_json::json!({"status": word, "error": problem}))?;
    } else {
        out.line(&problem.as_ref().map_or_else(|| word.to_string(), |problem| format!("{word}: {problem}")))?;
    }
    well.map(drop).map_err(|_| Error::Failed(String::new()))
}

fn status_text(status: &Status, out: Output) -> String {
    let mut head = vec![
        format!("{} {}", out.bold("omni-inferd"), status.version),
        format!("pid {}", status.pid),
        format!("up {}", output::seconds(status.uptime_seconds)),
        format!("{} of {} memory free", output::bytes(status.memory_available), output::bytes(status.memory_total)),
    ];
    if status.draining {
        head.push(out.red("stopping: takes no new requests"));
    }
    let config = status.config.as_ref().map_or(String::new(), |config| format!("  configuration {config}"));
    let place = out.dim(&format!("socket {}{config}", status.socket));
    let head = format!("{}\n{place}\n", head.join(", "));
    if status.models.is_empty() {
        return format!("{head}\nno models; add one with omnictl load FILE.gguf, or [[model]] in the configuration");
    }
    let columns = [
        ("MODEL", false),
        ("STATE", false),
        ("ARCH", false),
        ("PARAMS", true),
        ("WEIGHTS", true),
        ("CONTEXT", true),
        ("REQUESTS", true),
        ("UPTIME", true),
        ("FILE", false),
    ];
    let table = out.table(&columns, status.models.iter().map(status_row));
    let notes: String = status.models.iter().filter_map(|model| note(model, out)).collect();
    format!("{head}\n{table}{notes}")
}

fn status_row(model: &ModelStatus) -> Vec<Cell> {
    let info = model.info.as_ref();
    let known = |text: Option<String>| Cell::new(text.unwrap_or_else(|| "-".into()));
    let aliases = model.aliases.iter().map(|alias| format!(" ({alias})")).collect::<String>();
    let pinned = if model.pinned { " *" } else { "" };
    vec![
        Cell::new(format!("{}{aliases}{pinned}", model.id)),
        output::state(model.state),
        known(info.map(|info| info.architecture.clone())),
        known(info.map(|info| output::count(info.parameters))),
        known(info.map(|info| output::bytes(info.weight_bytes))),
        known(info.map(|info| format!("{} x {}", info.parallel, info.context))),
        Cell::new(model.active_requests),
        known(model.uptime_seconds.map(output::seconds)),
        Cell::new(&model.path),
    ]
}

/// A line below the table for what does not fit into it.
fn note(model: &ModelStatus, out: Output) -> Option<String> {
    let text = match (model.state, &model.error, &model.progress) {
        (ModelState::Loading, _, Some(progress)) => progress::describe(progress),
        (_, Some(error), _) => out.red(error),
        (ModelState::Ready, ..) => placement(model.info.as_ref()?)?,
        _ => return None,
    };
    Some(format!("\n{}: {text}", model.id))
}

/// Where the weights lie: pages of each size, and nodes where there are several.
fn placement(info: &ModelInfo) -> Option<String> {
    let pages = info.pages.iter().rev();
    let pages = pages.map(|on| format!("{} on pages of {}", output::bytes(on.bytes), output::bytes(on.page)));
    let nodes = info.nodes.iter().filter(|_| info.nodes.len() > 1);
    let nodes = nodes.map(|on| format!("{} on node {}", output::bytes(on.bytes), on.node));
    let text = pages.chain(nodes).collect::<Vec<_>>().join(", ");
    (!text.is_empty()).then(|| format!("weights from {}: {text}", info.read_by))
}

fn ps_text(models: &[ModelStatus], out: Output) -> String {
    let columns = [
        ("MODEL", false),
        ("STATE", false),
        ("PID", true),
        ("MEMORY", true),
        ("TOK/S", true),
        ("RUNNING", true),
        ("WAITING", true),
        ("REQUESTS", true),
        ("TOKENS", true),
        ("RESTARTS", true),
    ];
    out.table(&columns, models.iter().map(ps_row))
}

fn ps_row(model: &ModelStatus) -> Vec<Cell> {
    let known = |text: Option<String>| Cell::new(text.unwrap_or_else(|| "-".into()));
    let stats = model.stats.as_ref();
    let memory = model
        .info
        .as_ref()
        .map(|info| output::bytes(info.weight_bytes.saturating_add(info.kv_bytes).saturating_add(info.state_bytes)));
    vec![
        Cell::new(&model.id),
        output::state(model.state),
        known(model.pid.map(|pid| pid.to_string())),
        known(memory),
        known(stats.and_then(speed).map(|speed| format!("{speed:.1}"))),
        known(stats.map(|stats| stats.running.to_string())),
        known(stats.map(|stats| stats.waiting.to_string())),
        known(stats.map(|stats| stats.requests_total.to_string())),
        known(stats.map(|stats| output::count(stats.completion_tokens_total))),
        Cell::new(model.restarts),
    ]
}

/// Tokens generated per second of decoding, over the worker's life.
fn speed(stats: &Stats) -> Option<f64> {
    (stats.decode_seconds_total > 0.0).then(|| stats.completion_tokens_total as f64 / stats.decode_seconds_total)
}
