//! `GET /v1/models`, `GET /v1/models/{id}` and `GET /health` of one worker. The daemon answers its own for all models.

use super::backend::Served;
use super::error::ApiError;
use super::http::{Body, json};
use super::wire::models::{Health, ModelCard, ModelList};
use http::{Response, StatusCode};

/// The models there are.
#[utoipa::path(get, path = "/v1/models", tag = "models", responses(
    (status = 200, description = "The models", body = ModelList), super::openapi::Failures
))]
pub fn models(served: &Served) -> Response<Body> {
    json(StatusCode::OK, &ModelList::new(vec![served.card()]))
}

/// One of the models, by id or alias.
#[utoipa::path(get, path = "/v1/models/{id}", tag = "models", params(("id" = String, Path, description = "Id or alias")),
    responses((status = 200, description = "The model", body = ModelCard), super::openapi::Refusals)
)]
pub fn model(served: &Served, id: &str) -> Result<Response<Body>, ApiError> {
    if id == served.id || served.aliases.iter().any(|alias| alias == id) {
        return Ok(json(StatusCode::OK, &served.card()));
    }
    Err(ApiError::model_not_found(id, std::slice::from_ref(&served.id)))
}

/// Whether the server is there.
#[utoipa::path(get, path = "/health", tag = "health", responses(
    (status = 200, description = "It is", body = Health), super::openapi::Failures
))]
pub fn health() -> Response<Body> {
    json(StatusCode::OK, &Health::default())
}
