//! What anybody may see: the models, whether the daemon lives, whether what should be loaded is.

use super::model::Model;
use super::router::App;
use crate::api::control::ModelState;
use crate::api::error::ApiError;
use crate::api::http::{Body, json};
use crate::api::wire::models::{Health, ModelCard, ModelList};
use http::{Response, StatusCode};
use std::sync::atomic::Ordering;
use std::time::{Duration, UNIX_EPOCH};

/// A model of the list, with its state.
fn listed(model: &Model) -> ModelCard {
    let settings = model.settings();
    let status = model.status();
    // The file's age stands in for the model's: it is known before it is loaded and does not change with restarts.
    let modified = std::fs::metadata(&settings.path).and_then(|metadata| metadata.modified()).ok();
    let created = modified.and_then(|at| at.duration_since(UNIX_EPOCH).ok()).map_or(0, |age| age.as_secs());
    let context = status.info.map(|info| info.context).or(settings.context);
    let card = ModelCard::new(&settings.id, &settings.aliases, created, context);
    ModelCard { state: Some(status.state), ..card }
}

/// `GET /v1/models`.
pub fn models(app: &App) -> Response<Body> {
    let data = app.registry.models().iter().map(|model| listed(model)).collect();
    json(StatusCode::OK, &ModelList::new(data))
}

/// `GET /v1/models/{id}`.
pub fn model(app: &App, name: &str) -> Result<Response<Body>, ApiError> {
    if name.is_empty() {
        return Err(ApiError::not_found("there is no /v1/models/; ask for /v1/models, or name one"));
    }
    let model = app.registry.resolve(Some(name))?;
    Ok(json(StatusCode::OK, &listed(&model)))
}

/// `GET /health`: 200 as long as somebody answers at all.
pub fn health(app: &App) -> Response<Body> {
    let draining = app.registry.shared.draining.load(Ordering::Acquire);
    json(StatusCode::OK, &Health { status: if draining { "draining" } else { "ok" }.into() })
}

/// `GET /ready`: 200 when every model to be preloaded is ready.
pub fn ready(app: &App) -> Result<Response<Body>, ApiError> {
    app.registry.check_open()?;
    let waiting: Vec<String> = app
        .registry
        .models()
        .iter()
        .filter(|model| model.settings().preload && model.state() != ModelState::Ready)
        .map(|model| format!("{} is {}", model.id(), model.state().name()))
        .collect();
    if waiting.is_empty() {
        return Ok(json(StatusCode::OK, &Health { status: "ready".into() }));
    }
    Err(ApiError::unavailable(format!("not ready: {}", waiting.join(", ")), Duration::from_secs(1)).code("not_ready"))
}
