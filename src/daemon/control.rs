//! The control API: what `omnictl` and administrators use. Wire types and the table of endpoints stand in
//! [`crate::api::control`]; rights were checked by `router`.

use super::model::{Model, Order};
use super::router::App;
use super::supervisor::settle;
use super::vault::Vault;
use crate::api::control::{Event, Evicted, LoadFile, ModelState, ModelStatus, Status, VaultImages};
use crate::api::error::ApiError;
use crate::api::http::{Body, BoxError, json, parse_json, read_body};
use crate::api::sse;
use crate::sys::memory::Memory;
use bytes::Bytes;
use http::{Method, Response, StatusCode, header, request};
use http_body_util::BodyExt;
use hyper::body::{Frame, Incoming};
use serde::Serialize;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{broadcast, mpsc, oneshot};

/// A request of the control API is a few fields.
const BODY_BYTES: usize = 64 << 10;
/// It arrives within.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Weights that could not be verified may be so after.
const VERIFY_AGAIN: Duration = Duration::from_secs(5);
/// Lines of a log when nobody says how many.
const LOG_LINES: usize = 100;

/// Answers a request below `/control`.
///
/// # Errors
/// 404 and 405 for what there is not; what each endpoint refuses.
pub async fn route(
    app: &Arc<App>,
    head: &request::Parts,
    path: &str,
    body: Incoming,
) -> Result<Response<Body>, ApiError> {
    let path = path.strip_prefix("/control/v1/").unwrap_or_default();
    let (model, action) = match path.strip_prefix("models/").map(|rest| rest.split_once('/').unwrap_or((rest, ""))) {
        Some((model, action)) => (Some(model), action),
        None => (None, ""),
    };
    let allowed = match (path, model, action) {
        ("status" | "events" | "logs", ..) | (_, Some(_), "" | "experts") => "GET, HEAD",
        ("models", ..) => "GET, HEAD, POST",
        ("vault", ..) => "GET, HEAD",
        ("reload" | "vault/verify" | "vault/evict", ..) | (_, Some(_), "load" | "unload") => "POST",
        _ => return Err(ApiError::not_found(format!("there is no {}", head.uri.path()))),
    };
    let method = if head.method == Method::HEAD { "GET" } else { head.method.as_str() };
    if !allowed.split(", ").any(|allowed| allowed == method) {
        return Err(ApiError::method_not_allowed(head.uri.path(), allowed));
    }
    let query = Query(head.uri.query().unwrap_or_default());
    if let Some(name) = model {
        let model = find(app, name)?;
        return match action {
            "load" => load(app, &model, query.flag("wait")?).await,
            "experts" => experts(&model),
            "unload" => Ok(unload(app, &model, query.flag("force")?).await),
            _ => Ok(json(StatusCode::OK, &model.status())),
        };
    }
    match (path, method) {
        ("status", _) => Ok(json(StatusCode::OK, &status(app))),
        ("models", "POST") => add(app, body, query.flag("wait")?).await,
        ("models", _) => Ok(json(StatusCode::OK, &ModelStatuses { models: statuses(app) })),
        ("reload", _) => reload(app).await,
        ("vault", _) => Ok(json(StatusCode::OK, &VaultImages { images: vault(app).list(), ..VaultImages::default() })),
        ("vault/verify", _) => verify(app, query.text("id")).await,
        ("vault/evict", _) => evict(app, query.text("id")),
        ("events", _) if head.method == Method::HEAD => Ok(sse::channel(sse::Pace::default()).1),
        ("events", _) => Ok(events(app)),
        _ => logs(app, &query),
    }
}

#[derive(Serialize)]
struct ModelStatuses {
    models: Vec<ModelStatus>,
}

fn find(app: &App, name: &str) -> Result<Arc<Model>, ApiError> {
    let known = || app.registry.models().iter().map(|model| model.id()).collect::<Vec<_>>();
    app.registry.find(name).ok_or_else(|| ApiError::model_not_found(name, &known()))
}

fn statuses(app: &App) -> Vec<ModelStatus> {
    app.registry.models().iter().map(|model| model.status()).collect()
}

fn status(app: &App) -> Status {
    let memory = Memory::now().unwrap_or_default();
    let config = app.config();
    Status {
        version: env!("CARGO_PKG_VERSION").into(),
        pid: std::process::id(),
        uptime_seconds: app.started.elapsed().as_secs_f64(),
        socket: config.daemon.socket.display().to_string(),
        config: config.source.as_ref().map(|path| path.display().to_string()),
        draining: app.registry.shared.draining.load(Ordering::Acquire),
        memory_total: memory.total,
        memory_available: memory.available,
        models: statuses(app),
    }
}

fn vault(app: &App) -> &Vault {
    &app.registry.shared.vault
}

/// 404 for an image that there is not.
fn check_image(app: &App, id: Option<&str>) -> Result<(), ApiError> {
    match id.filter(|id| vault(app).list().iter().all(|image| image.id != *id)) {
        Some(id) => Err(ApiError::not_found(format!("the vault has no image '{id}'; see omnictl vault"))),
        None => Ok(()),
    }
}

async fn verify(app: &Arc<App>, id: Option<String>) -> Result<Response<Body>, ApiError> {
    check_image(app, id.as_deref())?;
    let images = vault(app).list().into_iter().map(|image| image.id);
    let mut damaged = Vec::new();
    for image in images.filter(|image| id.as_ref().is_none_or(|id| id == image)) {
        let verified = super::vault::verify(app, image, super::vault::HURRIED).await;
        damaged.extend(verified.map_err(|error| ApiError::unavailable(error, VERIFY_AGAIN))?);
    }
    let images = vault(app).list().into_iter().filter(|image| id.as_ref().is_none_or(|id| *id == image.id)).collect();
    Ok(json(StatusCode::OK, &VaultImages { images, damaged }))
}

fn evict(app: &App, id: Option<String>) -> Result<Response<Body>, ApiError> {
    check_image(app, id.as_deref())?;
    let images = vault(app).evict(id.as_deref());
    let bytes = images.iter().map(|image| image.bytes).sum();
    Ok(json(StatusCode::OK, &Evicted { images, bytes }))
}

async fn load(app: &App, model: &Arc<Model>, wait: bool) -> Result<Response<Body>, ApiError> {
    app.registry.check_open()?;
    model.order(Order::Load).await;
    answer_load(app, model, wait).await
}

async fn add(app: &App, body: Incoming, wait: bool) -> Result<Response<Body>, ApiError> {
    app.registry.check_open()?;
    let body = read_body(body, BODY_BYTES, BODY_TIMEOUT).await?;
    let model = app.registry.load_file(parse_json::<LoadFile>(&body)?).await?;
    answer_load(app, &model, wait).await
}

/// 200 when the model is ready (or, having waited, failed for good), 202 while it is on its way.
async fn answer_load(app: &App, model: &Arc<Model>, wait: bool) -> Result<Response<Body>, ApiError> {
    let mut watch = settle(model).await;
    if wait {
        let on_its_way =
            |state: &ModelState| !matches!(state, ModelState::Loading | ModelState::Restarting | ModelState::Draining);
        let _ = watch.wait_for(on_its_way).await;
    }
    let status = model.status();
    if wait && status.state == ModelState::Failed {
        // Whoever loaded a file by hand has the reason now.
        app.registry.forget(model).await;
    }
    let done = wait || status.state == ModelState::Ready;
    Ok(json(if done { StatusCode::OK } else { StatusCode::ACCEPTED }, &status))
}

fn experts(model: &Model) -> Result<Response<Body>, ApiError> {
    let none = || {
        let what = match model.state() {
            ModelState::Ready => "it has no experts, or has told of none yet",
            _ => "it is not loaded",
        };
        ApiError::not_found(format!("no choices of experts are known of '{}': {what}", model.id()))
    };
    Ok(json(StatusCode::OK, &model.experts().ok_or_else(none)?))
}

async fn unload(app: &App, model: &Arc<Model>, force: bool) -> Response<Body> {
    model.order(Order::Unload { force }).await;
    let mut watch = settle(model).await;
    let _ = watch.wait_for(|state| *state != ModelState::Draining).await;
    let status = model.status();
    app.registry.forget(model).await;
    json(StatusCode::OK, &status)
}

async fn reload(app: &App) -> Result<Response<Body>, ApiError> {
    app.registry.check_open()?;
    let (answer, changes) = oneshot::channel();
    let busy = || ApiError::unavailable("the configuration is being read again already", Duration::from_secs(1));
    app.reload.try_send(answer).map_err(|_| busy())?;
    let changes = changes.await.map_err(|_| busy())??;
    Ok(json(StatusCode::OK, &changes))
}

/// First a `status` of each model, then what happens. A reader that lags behind gets all of them again.
fn events(app: &Arc<App>) -> Response<Body> {
    let (sender, response) = sse::channel(sse::Pace::default());
    let app = app.clone();
    let mut events = app.registry.shared.events.subscribe();
    tokio::spawn(async move {
        let mut outbox: Vec<Event> = snapshot(&app);
        loop {
            for event in outbox.drain(..) {
                let name = match &event {
                    Event::Status { .. } => "status",
                    Event::Reloaded { .. } => "reloaded",
                    Event::Stopping => "stopping",
                };
                if sender.named(name, &event).await.is_err() || event == Event::Stopping {
                    return;
                }
            }
            tokio::select! {
                () = sender.closed() => return,
                event = events.recv() => match event {
                    Ok(event) => outbox.push(event),
                    Err(broadcast::error::RecvError::Lagged(_)) => outbox = snapshot(&app),
                    Err(broadcast::error::RecvError::Closed) => return,
                },
            }
        }
    });
    response
}

fn snapshot(app: &App) -> Vec<Event> {
    statuses(app).into_iter().map(|status| Event::Status { model: Box::new(status) }).collect()
}

fn logs(app: &Arc<App>, query: &Query<'_>) -> Result<Response<Body>, ApiError> {
    let logs = match query.text("model").filter(|name| !name.is_empty()) {
        Some(name) => find(app, &name)?.logs.clone(),
        None => app.logs.clone(),
    };
    let lines = match query.text("lines").map(|text| text.parse::<u32>()) {
        None => LOG_LINES,
        Some(Ok(lines)) => lines as usize,
        Some(Err(_)) => return Err(ApiError::invalid("lines", "must be a whole number")),
    };
    let (past, coming) = logs.tail(lines);
    let mut text = String::new();
    for line in past {
        text.push_str(&line);
        text.push('\n');
    }
    if !query.flag("follow")? {
        return Ok(crate::api::http::text(StatusCode::OK, text));
    }
    Ok(follow(text, coming, app.registry.shared.events.subscribe()))
}

/// The lines so far and those to come, until the reader leaves or the daemon stops.
fn follow(
    text: String,
    mut coming: broadcast::Receiver<Arc<str>>,
    mut events: broadcast::Receiver<Event>,
) -> Response<Body> {
    let (sender, receiver) = mpsc::channel::<Bytes>(64);
    tokio::spawn(async move {
        let mut text = Bytes::from(text);
        loop {
            if !text.is_empty() && sender.send(std::mem::take(&mut text)).await.is_err() {
                return;
            }
            tokio::select! {
                () = sender.closed() => return,
                line = coming.recv() => match line {
                    Ok(line) => text = format!("{line}\n").into(),
                    Err(broadcast::error::RecvError::Lagged(missed)) => text = format!("… {missed} lines missed\n").into(),
                    Err(broadcast::error::RecvError::Closed) => return,
                },
                event = events.recv() => if matches!(event, Ok(Event::Stopping)) { return },
            }
        }
    });
    let mut response = Response::new(Lines(receiver).boxed());
    let plain = header::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

/// Lines as they come.
struct Lines(mpsc::Receiver<Bytes>);

impl hyper::body::Body for Lines {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.0.poll_recv(cx).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// A query string: `wait=true&lines=5`.
struct Query<'a>(&'a str);

impl Query<'_> {
    fn text(&self, name: &str) -> Option<String> {
        let pair =
            self.0.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, ""))).find(|(key, _)| *key == name);
        pair.map(|(_, value)| crate::api::router::percent_decode(value))
    }

    /// `true`, `1` or nothing after the name mean yes.
    fn flag(&self, name: &'static str) -> Result<bool, ApiError> {
        match self.text(name).as_deref() {
            None | Some("false" | "0") => Ok(false),
            Some("" | "true" | "1") => Ok(true),
            Some(_) => Err(ApiError::invalid(name, "must be true or false")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_read() {
        let query = Query("wait&force=false&model=a%2Fb&lines=x&odd=maybe");
        assert!(query.flag("wait").unwrap());
        assert!(!query.flag("force").unwrap() && !query.flag("absent").unwrap());
        assert_eq!(query.text("model").as_deref(), Some("a/b"));
        assert_eq!(query.flag("odd").unwrap_err().param.as_deref(), Some("odd"));
    }
}
