//! `load` and `unload`: brings a model into memory with progress, or takes it out.

use super::client::{Client, segment};
use super::error::Error;
use super::output::{self, Output};
use super::progress::Bar;
use crate::api::control::{Event, LoadFile, ModelState, ModelStatus};
use clap::Args;
use http::Method;
use std::convert::Infallible;
use std::path::Path;

/// Path of the control API's models.
const MODELS: &str = "/control/v1/models";

/// Options of `load`.
#[derive(Clone, Debug, Args)]
pub struct Load {
    /// Id of a model the daemon knows, or a GGUF file (first of a split set)
    #[arg(value_name = "ID|FILE")]
    pub model: String,
    /// FILE: id under which clients name it [default: from the file's name]
    #[arg(long, value_name = "ID")]
    pub id: Option<String>,
    /// FILE: context in tokens
    #[arg(long, value_name = "TOKENS")]
    pub ctx: Option<usize>,
    /// FILE: sequences at once
    #[arg(long, value_name = "N")]
    pub parallel: Option<usize>,
    /// FILE: compute threads
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
}

/// Options of `unload`.
#[derive(Clone, Debug, Args)]
pub struct Unload {
    /// Model id or alias
    #[arg(value_name = "ID")]
    pub model: String,
    /// Cut running streams instead of waiting for them
    #[arg(long)]
    pub force: bool,
}

/// Loads a model and waits until it is ready.
pub async fn load(client: &Client, args: Load, out: Output) -> Result<(), Error> {
    // Subscribed before the request, so that no progress is missed. Without events there is only no bar.
    let events = client.events(Method::GET, "/control/v1/events", &()).await.ok();
    let bar = Bar::new(&args.model);
    let id = known_id(&args)?;
    let loading = async {
        match file(&args)? {
            Some(request) => {
                let model: ModelStatus = client.post(&format!("{MODELS}?wait=true"), &request).await?;
                wait_ready(client, model).await
            }
            None => {
                let model = client.post(&format!("{MODELS}/{}/load?wait=true", segment(&args.model)), &()).await?;
                wait_ready(client, model).await
            }
        }
    };
    let watching = async {
        if let Some(mut events) = events {
            while let Ok(Some(event)) = events.next_json::<Event>().await {
                if let Event::Status { model } = event
                    && (id.as_deref() == Some(&*model.id)
                        || model.aliases.iter().any(|alias| Some(alias) == id.as_ref()))
                {
                    bar.show(&model);
                }
            }
        }
        std::future::pending::<Infallible>().await
    };
    let loaded = tokio::select! {
        loaded = loading => loaded,
        never = watching => match never {},
    };
    bar.finish();
    let model = loaded?;
    if out.json { out.value(&model) } else { out.line(&summary(&model)) }
}

/// An answer may come before the end of the load; asks again until it is over.
async fn wait_ready(client: &Client, mut model: ModelStatus) -> Result<ModelStatus, Error> {
    loop {
        match model.state {
            ModelState::Ready => return Ok(model),
            ModelState::Failed | ModelState::Unloaded => {
                let reason = model.error.unwrap_or_else(|| "no reason was given; see omnictl logs".into());
                return Err(Error::Failed(format!("{} is not loaded: {reason}", model.id)));
            }
            ModelState::Loading | ModelState::Draining | ModelState::Restarting => {
                tokio::time::sleep(std::time::Duration::from_millis(200)).await;
                model = client.get(&format!("{MODELS}/{}", segment(&model.id))).await?;
            }
        }
    }
}

/// The request for a file; `None` when the argument is an id.
fn file(args: &Load) -> Result<Option<LoadFile>, Error> {
    let path = Path::new(&args.model);
    let looks_like_file =
        path.extension().is_some_and(|end| end.eq_ignore_ascii_case("gguf")) || args.model.starts_with(['/', '.']);
    if !looks_like_file {
        let settings = [("--id", args.id.is_some()), ("--ctx", args.ctx.is_some())];
        let more = [("--parallel", args.parallel.is_some()), ("--threads", args.threads.is_some())];
        if let Some((option, _)) = settings.iter().chain(&more).find(|(_, given)| *given) {
            return Err(Error::Usage(format!(
                "{option} goes with a file, and {:?} is an id; change the model's settings in the configuration, then omnictl reload",
                args.model
            )));
        }
        return Ok(None);
    }
    // The daemon has another working directory.
    let path =
        path.canonicalize().map_err(|error| Error::NotFound(format!("cannot open {:?}: {error}", args.model)))?;
    let path = path.into_os_string().into_string().map_err(|path| Error::Usage(format!("{path:?} is not UTF-8")))?;
    let Load { id, ctx, parallel, threads, .. } = args.clone();
    Ok(Some(LoadFile { path, id, context: ctx, parallel, threads }))
}

/// The id whose events belong to this load: for a file without `--id`, the file's name as the daemon takes it.
fn known_id(args: &Load) -> Result<Option<String>, Error> {
    let name = Path::new(&args.model).file_stem().map(|stem| stem.to_string_lossy().into_owned());
    Ok(match file(args)? {
        Some(_) => args.id.clone().or(name),
        None => Some(args.model.clone()),
    })
}

fn summary(model: &ModelStatus) -> String {
    let mut text = format!("{} is ready", model.id);
    if let Some(info) = &model.info {
        text += &format!(
            ": {} {}, {} of weights, context {} x {}, {} threads, {}",
            info.architecture,
            output::count(info.parameters),
            output::bytes(info.weight_bytes),
            info.parallel,
            info.context,
            info.threads,
            info.isa
        );
    }
    if let Some(seconds) = model.load_seconds {
        text += &format!(", loaded in {}", output::seconds(seconds));
    }
    text
}

/// Unloads a model and waits until it is gone.
pub async fn unload(client: &Client, args: Unload, out: Output) -> Result<(), Error> {
    let force = if args.force { "?force=true" } else { "" };
    let path = format!("{MODELS}/{}/unload{force}", segment(&args.model));
    let before: ModelStatus = client.get(&format!("{MODELS}/{}", segment(&args.model))).await?;
    let mut model: ModelStatus = client.post(&path, &()).await?;
    while model.state == ModelState::Draining {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        model = client.get(&format!("{MODELS}/{}", segment(&model.id))).await?;
    }
    let word = if before.state == ModelState::Unloaded { "was not loaded" } else { "is unloaded" };
    if out.json { out.value(&model) } else { out.line(&format!("{} {word}", model.id)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(model: &str) -> Load {
        Load { model: model.into(), id: None, ctx: None, parallel: None, threads: None }
    }

    #[test]
    fn tells_ids_from_files() {
        assert_eq!(file(&args("oracle")).unwrap(), None);
        assert_eq!(file(&args("org/oracle")).unwrap(), None);
        assert_eq!(file(&args("/nonexistent/x.gguf")).unwrap_err().code(), 4);
        let error = file(&Load { ctx: Some(1), ..args("oracle") }).unwrap_err();
        assert_eq!((error.code(), error.to_string().starts_with("--ctx goes with a file")), (2, true));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tiny.GGUF");
        std::fs::write(&path, "").unwrap();
        let request = file(&Load { ctx: Some(5), ..args(path.to_str().unwrap()) }).unwrap().unwrap();
        assert_eq!((request.context, Path::new(&request.path).is_absolute()), (Some(5), true));
        assert_eq!(known_id(&args(path.to_str().unwrap())).unwrap().as_deref(), Some("tiny"));
    }
}
