//! The OpenAPI document: generated from the wire types, checked in as `docs/openapi.json`.

use super::control;
use super::error::ErrorBody;
use super::wire::{chat, completions, models, tokens};
use utoipa::{IntoResponses, OpenApi};

/// What any request may be answered when the server cannot take it.
#[derive(IntoResponses)]
#[allow(dead_code, reason = "a list of answers for the document, never built")]
pub enum Failures {
    /// A key is needed, and none or a wrong one was sent.
    #[response(status = 401)]
    Unauthorized(ErrorBody),
    /// The client may not do this.
    #[response(status = 403)]
    Forbidden(ErrorBody),
    /// No such path.
    #[response(status = 404)]
    NotFound(ErrorBody),
    /// The path knows other methods.
    #[response(status = 405)]
    Method(ErrorBody),
    /// Too many requests at once; see `Retry-After`.
    #[response(status = 429)]
    TooMany(ErrorBody),
    /// The server failed.
    #[response(status = 500)]
    Internal(ErrorBody),
    /// Loading, draining or restarting; see `Retry-After`.
    #[response(status = 503)]
    Unavailable(ErrorBody),
}

/// [`Failures`], and what may be wrong with the request itself.
#[derive(IntoResponses)]
#[allow(dead_code, reason = "a list of answers for the document, never built")]
pub enum Refusals {
    /// The request is wrong; `param` names the field.
    #[response(status = 400)]
    BadRequest(ErrorBody),
    /// A key is needed, and none or a wrong one was sent.
    #[response(status = 401)]
    Unauthorized(ErrorBody),
    /// The client may not do this.
    #[response(status = 403)]
    Forbidden(ErrorBody),
    /// No such model or path.
    #[response(status = 404)]
    NotFound(ErrorBody),
    /// The path knows other methods.
    #[response(status = 405)]
    Method(ErrorBody),
    /// The body did not arrive in time.
    #[response(status = 408)]
    Timeout(ErrorBody),
    /// Not in the present state.
    #[response(status = 409)]
    Conflict(ErrorBody),
    /// The body is too large.
    #[response(status = 413)]
    TooLarge(ErrorBody),
    /// The body is compressed.
    #[response(status = 415)]
    Media(ErrorBody),
    /// Too many requests at once; see `Retry-After`.
    #[response(status = 429)]
    TooMany(ErrorBody),
    /// The server failed.
    #[response(status = 500)]
    Internal(ErrorBody),
    /// Loading, draining or restarting; see `Retry-After`.
    #[response(status = 503)]
    Unavailable(ErrorBody),
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "omni-inferd",
        description = "OpenAI's completion endpoints, and the control API, which only the Unix socket has. Every field \
                       of a request may be absent or null unless its description says otherwise."
    ),
    paths(
        super::completions::completions,
        super::chat::chat_completions,
        super::tokens::tokenize,
        super::tokens::detokenize,
        super::models::models,
        super::models::model,
        super::models::health,
        paths::ready,
        paths::metrics,
        paths::status,
        paths::list,
        paths::one,
        paths::add,
        paths::load,
        paths::unload,
        paths::experts,
        paths::reload,
        paths::vault,
        paths::verify,
        paths::evict,
        paths::events,
        paths::logs,
    ),
    components(schemas(
        chat::ChatChunk,
        chat::ToolCall,
        completions::CompletionResponse,
        models::ModelCard,
        tokens::Piece,
        control::Event,
        ErrorBody
    ))
)]
struct Document;

/// The document as JSON text, ending with a line break.
pub fn document() -> Result<String, serde_json::Error> {
    Ok(Document::openapi().to_pretty_json()? + "\n")
}

/// Endpoints of the daemon, described here because the document has one place.
#[allow(dead_code, reason = "they only carry the descriptions")]
mod paths {
    use super::super::control::{Evicted, ExpertChoices, LoadFile, ModelStatus, Reloaded, Status, VaultImages};
    use super::super::wire::models::Health;
    use super::{Failures, Refusals};

    /// `/control/v1/models`.
    #[derive(utoipa::ToSchema)]
    struct ModelStatuses {
        models: Vec<ModelStatus>,
    }

    #[utoipa::path(get, path = "/ready", tag = "health", responses(
        (status = 200, description = "Every model to be preloaded is ready", body = Health), Failures))]
    fn ready() {}

    #[utoipa::path(get, path = "/metrics", tag = "health", responses(
        (status = 200, description = "Figures in OpenMetrics text", body = String, content_type = "application/openmetrics-text"),
        Failures))]
    fn metrics() {}

    #[utoipa::path(get, path = "/control/v1/status", tag = "control", responses(
        (status = 200, description = "The daemon and all it runs", body = Status), Failures))]
    fn status() {}

    #[utoipa::path(get, path = "/control/v1/models", tag = "control", responses(
        (status = 200, description = "Every model known", body = ModelStatuses), Failures))]
    fn list() {}

    #[utoipa::path(get, path = "/control/v1/models/{id}", tag = "control", params(("id" = String, Path)),
        responses((status = 200, description = "One model", body = ModelStatus), Refusals))]
    fn one() {}

    #[utoipa::path(post, path = "/control/v1/models", tag = "control", request_body = LoadFile,
        params(("wait" = Option<bool>, Query, description = "Answer when it is ready or failed")), responses(
        (status = 200, description = "The model, loaded", body = ModelStatus),
        (status = 202, description = "The model, loading", body = ModelStatus), Refusals))]
    fn add() {}

    #[utoipa::path(post, path = "/control/v1/models/{id}/load", tag = "control", params(
        ("id" = String, Path), ("wait" = Option<bool>, Query, description = "Answer when it is ready or failed")),
        responses((status = 200, description = "Loaded", body = ModelStatus),
            (status = 202, description = "Loading", body = ModelStatus), Refusals))]
    fn load() {}

    #[utoipa::path(post, path = "/control/v1/models/{id}/unload", tag = "control", params(
        ("id" = String, Path), ("force" = Option<bool>, Query, description = "Cut running streams")),
        responses((status = 200, description = "Unloaded", body = ModelStatus), Refusals))]
    fn unload() {}

    #[utoipa::path(get, path = "/control/v1/models/{id}/experts", tag = "control", params(("id" = String, Path)),
        responses((status = 200, description = "How often each expert was chosen", body = ExpertChoices), Refusals))]
    fn experts() {}

    #[utoipa::path(post, path = "/control/v1/reload", tag = "control", responses(
        (status = 200, description = "The configuration was read again", body = Reloaded), Refusals))]
    fn reload() {}

    #[utoipa::path(get, path = "/control/v1/vault", tag = "control", responses(
        (status = 200, description = "Weights that are kept for the next worker", body = VaultImages), Failures))]
    fn vault() {}

    #[utoipa::path(post, path = "/control/v1/vault/verify", tag = "control", params(
        ("id" = Option<String>, Query, description = "Only this image")), responses(
        (status = 200, description = "What is sound, and what was let go", body = VaultImages), Refusals))]
    fn verify() {}

    #[utoipa::path(post, path = "/control/v1/vault/evict", tag = "control", params(
        ("id" = Option<String>, Query, description = "This image; without it all that no model uses")), responses(
        (status = 200, description = "What was let go", body = Evicted), Refusals))]
    fn evict() {}

    #[utoipa::path(get, path = "/control/v1/events", tag = "control", responses(
        (status = 200, description = "Events as they happen", body = String, content_type = "text/event-stream"),
        Failures))]
    fn events() {}

    #[utoipa::path(get, path = "/control/v1/logs", tag = "control", params(
        ("model" = Option<String>, Query, description = "Only this model's"),
        ("lines" = Option<u32>, Query, description = "At most so many, the latest"),
        ("follow" = Option<bool>, Query, description = "Go on with what comes")),
        responses((status = 200, description = "Lines", body = String, content_type = "text/plain"), Refusals))]
    fn logs() {}
}
