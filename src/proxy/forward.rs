//! One request: may it pass, what is passed on, and what comes back. Called by `connection` for each request.

use super::body::{Fault, Report, RequestBody, ResponseBody, drain};
use super::gate::Gate;
use super::headers;
use super::keys::{self, Keys};
use super::path::{self, Route};
use super::reply::Refusal;
use super::upstream::{self, Upstream};
use super::watch::{InFlight, Watch};
use crate::config::proxy::Proxy;
use crate::transport::headers::{is_event_stream, strip_hop_by_hop, unmet_expectation};
use http::{HeaderMap, HeaderValue, Request, Response, Uri, Version, header};
use hyper::body::Incoming;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};
use tokio::sync::Semaphore;

/// What all connections share.
pub struct Shared {
    /// Settings.
    pub config: Proxy,
    /// Who may connect.
    pub gate: Arc<Gate>,
    keys: RwLock<Option<Arc<Keys>>>,
    upstream: Arc<Upstream>,
    requests: Arc<Semaphore>,
}

impl Shared {
    /// Reads the key file; opens nothing else.
    pub fn new(config: Proxy) -> Result<Arc<Self>, keys::Error> {
        let keys = config.keys.as_deref().map(Keys::from_file).transpose()?.map(Arc::new);
        Ok(Arc::new(Shared {
            gate: Gate::new(config.allow.clone(), config.max_connections, config.max_connections_per_address),
            keys: RwLock::new(keys),
            upstream: Upstream::new(config.socket.clone(), config.upstream_timeout),
            requests: Arc::new(Semaphore::new(config.max_requests)),
            config,
        }))
    }

    /// Reads the key file again and returns the number of keys; the old keys stay when the new file is wrong.
    pub fn reload_keys(&self) -> Result<usize, keys::Error> {
        let Some(path) = self.config.keys.as_deref() else { return Ok(0) };
        let keys = Keys::from_file(path)?;
        let count = keys.len();
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(keys));
        Ok(count)
    }

    /// Closes idle connections to the daemon.
    pub fn prune(&self) {
        self.upstream.prune();
    }

    /// The client's name (`None` where no keys are asked for), or the refusal.
    fn client(&self, route: Route, headers: &HeaderMap) -> Result<Option<HeaderValue>, Refusal> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(keys) = keys else { return Ok(None) };
        let owner = headers::presented_key(headers).and_then(|key| keys.owner(key)).cloned();
        match (owner, route) {
            (None, Route::Api) => Err(Refusal::BadKey),
            (owner, _) => Ok(owner),
        }
    }
}

/// Answers one request of `peer`.
pub async fn answer(
    shared: Arc<Shared>,
    watch: Arc<Watch>,
    peer: SocketAddr,
    request: Request<Incoming>,
) -> Response<ResponseBody> {
    let in_flight = watch.begin();
    let (method, path) = (request.method().clone(), request.uri().path().to_string());
    let response = match admit(&shared, &request) {
        Ok(client) => pass(&shared, client, request, in_flight).await,
        Err(refusal) => {
            if !request.headers().contains_key(header::EXPECT) {
                read_away(&shared, refusal, request.into_body());
            }
            own(refusal, in_flight)
        }
    };
    tracing::debug!(%peer, %method, path, status = response.status().as_u16(), "request");
    response
}

/// Checks all that a header can tell.
fn admit(shared: &Shared, request: &Request<Incoming>) -> Result<Option<HeaderValue>, Refusal> {
    let route = path::route(request.uri().path()).ok_or(Refusal::NotFound)?;
    let client = shared.client(route, request.headers())?;
    if unmet_expectation(request.headers()) {
        return Err(Refusal::Expectation);
    }
    let limit = shared.config.max_body_bytes;
    let announced = request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if announced.is_some_and(|length: u64| length > limit) {
        return Err(Refusal::TooLarge { limit });
    }
    Ok(client)
}

/// Hands an admitted request to the daemon.
async fn pass(
    shared: &Arc<Shared>,
    client: Option<HeaderValue>,
    request: Request<Incoming>,
    in_flight: InFlight,
) -> Response<ResponseBody> {
    let Ok(permit) = shared.requests.clone().try_acquire_owned() else { return own(Refusal::Busy, in_flight) };
    let (mut head, body) = request.into_parts();
    let target = head.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let Ok(uri) = target.parse::<Uri>() else { return own(Refusal::NotFound, in_flight) };
    head.uri = uri;
    head.version = Version::HTTP_11;
    head.extensions.clear();
    headers::for_upstream(&mut head.headers, client.as_ref());
    let report = Report::default();
    let body = RequestBody::new(body, shared.config.max_body_bytes, shared.config.body_timeout, report.clone());
    match shared.upstream.send(Request::from_parts(head, body)).await {
        Ok((response, lease)) => {
            let (mut head, inner) = response.into_parts();
            strip_hop_by_hop(&mut head.headers);
            head.version = Version::HTTP_11;
            head.extensions.clear();
            let events = is_event_stream(&head.headers);
            Response::from_parts(head, ResponseBody::passing(inner, lease, permit, events, in_flight))
        }
        Err(error) => {
            let refusal = refusal(shared, &error, &report);
            own(refusal, in_flight)
        }
    }
}

/// Why there is no answer from the daemon: often because of the request's own body.
fn refusal(shared: &Shared, error: &upstream::Error, report: &Report) -> Refusal {
    let limit = shared.config.max_body_bytes;
    match (report.take(), error) {
        (Some((Fault::TooLarge, rest)), _) => {
            read_away(shared, Refusal::TooLarge { limit }, rest);
            Refusal::TooLarge { limit }
        }
        (Some((Fault::Timeout, _)), _) => Refusal::BodyTimeout,
        (Some((Fault::Broken, _)), _) => Refusal::BadBody,
        (None, upstream::Error::Connect { .. }) => Refusal::Unavailable,
        (None, upstream::Error::Stuck { .. }) => {
            tracing::error!("{error}");
            Refusal::Stuck
        }
        (None, upstream::Error::Failed(error)) => {
            tracing::warn!("the daemon gave no answer: {error}");
            Refusal::Dropped
        }
    }
}

/// Reads away a body that is too large, beside the answer: a client that reads only after it has written sees the
/// refusal too. The bytes of a stranger, or of nonsense, are not worth it. Ends with the connection at the latest.
fn read_away(shared: &Shared, refusal: Refusal, body: Incoming) {
    if matches!(refusal, Refusal::TooLarge { .. }) {
        tokio::spawn(drain(body, shared.config.max_body_bytes, shared.config.body_timeout));
    }
}

fn own(refusal: Refusal, in_flight: InFlight) -> Response<ResponseBody> {
    refusal.response().map(|body| ResponseBody::own(body, in_flight))
}
