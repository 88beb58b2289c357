//! HTTP over the daemon's Unix socket. One connection per request: dropping an answer before its end closes it, which
//! cancels the work behind it. Used by all commands that need the daemon.

use super::error::Error;
use super::sse::{Event, Parser};
use bytes::Bytes;
use http::{Method, Request, Response, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use tokio::net::UnixStream;

/// Largest answer that is read whole, bytes.
const LIMIT: usize = 64 << 20;

/// Talks to one daemon.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// Connects to nothing yet.
    pub fn new(socket: PathBuf) -> Self {
        Client { socket }
    }

    /// The daemon's socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// `GET`, JSON out.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        let response = self.send(Method::GET, path, &()).await?;
        self.json(response).await
    }

    /// `POST` of JSON (`&()` for none), JSON out.
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, Error> {
        let response = self.send(Method::POST, path, body).await?;
        self.json(response).await
    }

    /// A stream of server-sent events.
    pub async fn events(&self, method: Method, path: &str, body: &impl Serialize) -> Result<Events, Error> {
        let response = self.send(method, path, body).await?;
        let kind = response.headers().get(header::CONTENT_TYPE).map(|value| value.as_bytes().to_vec());
        if !kind.is_some_and(|kind| kind.starts_with(b"text/event-stream")) {
            return Err(self.strange("no event stream where one was asked for"));
        }
        Ok(Events {
            client: self.clone(),
            body: response.into_body(),
            parser: Parser::default(),
            ready: VecDeque::new(),
        })
    }

    /// Any request; an answer whose status is not 2xx is an error.
    pub async fn send(&self, method: Method, path: &str, body: &impl Serialize) -> Result<Response<Incoming>, Error> {
        let unreachable = |source| Error::Unreachable { socket: self.socket.clone(), source };
        let stream = UnixStream::connect(&self.socket).await.map_err(unreachable)?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| self.strange(error))?;
        tokio::spawn(connection);
        let body = match serde_json::to_vec(body) {
            Ok(text) if text == b"null" => Bytes::new(),
            Ok(text) => Bytes::from(text),
            Err(error) => return Err(Error::Failed(format!("the request cannot be written as JSON: {error}"))),
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "omni-inferd")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| Error::Usage(format!("{path:?} cannot be asked for: {error}")))?;
        let response = sender.send_request(request).await.map_err(|error| self.strange(error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = self.collect(response).await.unwrap_or_default();
        Err(Error::refused(status, &body))
    }

    /// The whole body of an answer.
    pub async fn collect(&self, response: Response<Incoming>) -> Result<Bytes, Error> {
        let body = Limited::new(response.into_body(), LIMIT).collect().await;
        Ok(body.map_err(|error| self.strange(error))?.to_bytes())
    }

    async fn json<T: DeserializeOwned>(&self, response: Response<Incoming>) -> Result<T, Error> {
        let body = self.collect(response).await?;
        serde_json::from_slice(&body).map_err(|error| self.strange(error))
    }

    /// An answer that makes no sense.
    pub fn strange(&self, what: impl std::fmt::Display) -> Error {
        Error::Answer { socket: self.socket.clone(), what: what.to_string() }
    }
}

/// Events as they come.
pub struct Events {
    client: Client,
    body: Incoming,
    parser: Parser,
    ready: VecDeque<Event>,
}

impl Events {
    /// The next event; `None` at the stream's end.
    pub async fn next(&mut self) -> Result<Option<Event>, Error> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(Some(event));
            }
            let Some(frame) = self.body.frame().await else { return Ok(None) };
            let frame = frame.map_err(|error| self.client.strange(format!("the stream broke off: {error}")))?;
            if let Ok(data) = frame.into_data() {
                self.ready.extend(self.parser.push(&data).map_err(|error| self.client.strange(error))?);
            }
        }
    }

    /// The next event's data as JSON. `None` at the end and at `[DONE]`; an error object in the stream is an error.
    pub async fn next_json<T: DeserializeOwned>(&mut self) -> Result<Option<T>, Error> {
        let Some(event) = self.next().await? else { return Ok(None) };
        if event.data == "[DONE]" {
            return Ok(None);
        }
        if let Ok(body) = serde_json::from_str::<crate::api::error::ErrorBody>(&event.data) {
            return Err(Error::Failed(body.error.message));
        }
        serde_json::from_str(&event.data).map(Some).map_err(|error| self.client.strange(error))
    }
}

/// Writes a model's id so that it is one segment of a path.
pub fn segment(id: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.~:@".contains(byte);
    let encode = |byte: u8| if plain(&byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    // A segment of dots alone would be read as a directory.
    if id.chars().all(|c| c == '.') { "%2E".repeat(id.len()) } else { id.bytes().map(encode).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_single_segments() {
        assert_eq!(segment("oracle-7b.Q4"), "oracle-7b.Q4");
        assert_eq!(segment("org/name?x y"), "org%2Fname%3Fx%20y");
        assert_eq!(segment(".."), "%2E%2E");
    }
}
