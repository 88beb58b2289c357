//! The daemon's endpoints by path and method. `/v1/*` and the tokenizer go to the worker of the model that the body
//! names; the rest is answered here (`views`, `control`).

use super::access::{Access, Caller, Right};
use super::forward::{Failure, MODEL_HEADER, REQUEST_HEADER, forward, headless};
use super::registry::Registry;
use super::{control, views};
use crate::api::error::ApiError;
use crate::api::http::{Bodies, Body, parse_json, read_shared};
use crate::api::router::{percent_decode, plain};
use crate::config::Config;
use http::{HeaderMap, HeaderValue, Method, Request, Response, header, request};
use hyper::body::Incoming;
use serde::Deserialize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// A request's body must arrive within.
const BODY_TIMEOUT: Duration = Duration::from_secs(120);
/// All bodies together may be so many times as large as one.
const BODIES: usize = 8;
/// Attempts to reach a worker that cannot be reached although it is ready: it is just dying.
const ATTEMPTS: u32 = 20;
/// Between these attempts.
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(50);

/// What a worker answers: path, and whether it is OpenAI's.
const FORWARDED: [&str; 4] = ["/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"];

/// Asks the main loop to read the configuration again.
pub type ReloadRequest = tokio::sync::oneshot::Sender<Result<crate::api::control::Reloaded, ApiError>>;

/// The daemon, as its endpoints need it.
pub struct App {
    /// Models.
    pub registry: Registry,
    /// The configuration in force; its models are those of the file.
    pub config: RwLock<Arc<Config>>,
    /// Who may do what.
    pub access: RwLock<Arc<Access>>,
    /// The daemon's own log lines.
    pub logs: super::logs::Logs,
    /// Since when.
    pub started: Instant,
    /// Requests answered, for metrics and for naming them.
    pub requests: AtomicU64,
    /// Requests' bodies in memory.
    pub bodies: Arc<Bodies>,
    /// The main loop.
    pub reload: mpsc::Sender<ReloadRequest>,
}

impl App {
    /// The configuration in force.
    pub fn config(&self) -> Arc<Config> {
        self.config.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Who may do what, now.
    pub fn access(&self) -> Arc<Access> {
        self.access.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Answers one request.
pub async fn handle(app: Arc<App>, request: Request<Incoming>) -> Response<Body> {
    let number = app.requests.fetch_add(1, Ordering::Relaxed);
    let id = request_id(request.headers(), number);
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let started = Instant::now();
    let answer = route(&app, request, &id).await;
    let mut response = answer.unwrap_or_else(ApiError::into_response);
    response.headers_mut().insert(REQUEST_HEADER, id.clone());
    let model = response.headers().get(MODEL_HEADER).and_then(|model| model.to_str().ok());
    tracing::debug!(
        model,
        request = id.to_str().unwrap_or_default(),
        "{method} {path}: {} after {:.1} ms",
        response.status().as_u16(),
        started.elapsed().as_secs_f64() * 1e3
    );
    if method == Method::HEAD { headless(response) } else { response }
}

/// The client's own name for the request when it is a sane one.
fn request_id(headers: &HeaderMap, number: u64) -> HeaderValue {
    let sane = |value: &&HeaderValue| {
        (1..=64).contains(&value.len())
            && value.as_bytes().iter().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b))
    };
    let own = || HeaderValue::from_str(&format!("req-{:x}-{number}", std::process::id()));
    let given = headers.get(REQUEST_HEADER).filter(sane).cloned();
    given.or_else(|| own().ok()).unwrap_or(HeaderValue::from_static("req"))
}

async fn route(app: &Arc<App>, request: Request<Incoming>, id: &HeaderValue) -> Result<Response<Body>, ApiError> {
    let (mut head, body) = request.into_parts();
    // Decoded once, so that no spelling of a path slips past the check of rights below.
    let path = percent_decode(head.uri.path());
    let right = if path.starts_with("/control") { Right::Control } else { Right::Complete };
    if !matches!(path.as_str(), "/health" | "/ready") {
        let caller = head.extensions.remove::<Caller>();
        let caller = caller.ok_or_else(|| ApiError::internal("the connection's credentials are not known"))?;
        app.access().check(&caller, right).await?;
    }
    if right == Right::Control {
        return control::route(app, &head, &path, body).await;
    }
    if FORWARDED.contains(&path.as_str()) {
        if head.method != Method::POST {
            return Err(ApiError::method_not_allowed(&path, "POST"));
        }
        return pass_on(app, head, body, id).await;
    }
    let model = path.strip_prefix("/v1/models/");
    if !matches!(path.as_str(), "/health" | "/ready" | "/metrics" | "/v1/models") && model.is_none() {
        return Err(ApiError::not_found(format!("there is no {path}")));
    }
    if !matches!(head.method, Method::GET | Method::HEAD) {
        return Err(ApiError::method_not_allowed(&path, "GET, HEAD"));
    }
    match (path.as_str(), model) {
        (_, Some(name)) => views::model(app, name),
        ("/health", _) => Ok(views::health(app)),
        ("/ready", _) => views::ready(app),
        ("/metrics", _) => super::metrics::render(app),
        _ => Ok(views::models(app)),
    }
}

/// The one field that the daemon reads.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Addressed {
    model: Option<String>,
}

async fn pass_on(
    app: &Arc<App>,
    head: request::Parts,
    body: Incoming,
    id: &HeaderValue,
) -> Result<Response<Body>, ApiError> {
    app.registry.check_open()?;
    plain(&head.headers)?;
    let limit = app.registry.shared.settings().max_body_bytes;
    let expected = head.headers.contains_key(header::EXPECT);
    let all = (&app.bodies, limit.saturating_mul(BODIES));
    // Counted until the worker begins its answer: then it has read the body and made tokens of it.
    let (body, _share) = read_shared(body, expected, (limit, BODY_TIMEOUT), all).await?;
    let addressed: Addressed = parse_json(&body)?;
    let model = app.registry.resolve(addressed.model.as_deref())?;
    for _ in 0..ATTEMPTS {
        let lease = app.registry.admit(&model).await?;
        match forward(lease, &head, body.clone(), id).await {
            Ok(response) => return Ok(response),
            Err(Failure::Died(error)) => return Err(error),
            Err(Failure::NotSent) => tokio::time::sleep(BETWEEN_ATTEMPTS).await,
        }
    }
    let message = format!("the worker of model '{}' cannot be reached", model.id());
    Err(ApiError::unavailable(message, Duration::from_secs(1)).code("worker_died"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sane_request_id_is_kept() {
        let mut headers = HeaderMap::new();
        assert!(request_id(&headers, 7).to_str().unwrap().ends_with("-7"));
        headers.insert(REQUEST_HEADER, HeaderValue::from_static("abc-1.2_3"));
        assert_eq!(request_id(&headers, 7), "abc-1.2_3");
        headers.insert(REQUEST_HEADER, HeaderValue::from_static("a b"));
        assert!(request_id(&headers, 7).to_str().unwrap().starts_with("req-"));
    }
}
