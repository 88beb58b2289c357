//! Reading request bodies: never more than the limit, of one and of all together, never longer than the time allowed, and
//! JSON errors that name the place or the field.

use super::super::error::ApiError;
use super::BoxError;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Incoming};
use serde::de::DeserializeOwned;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// A body up to this does not count among [`Bodies`]: as many as there are connections fit into memory.
const SMALL: usize = 64 << 10;
/// The rest of a refused body is read for so long, so that a client that writes first and reads then sees the refusal.
const DRAIN: Duration = Duration::from_secs(10);

const NOT_AN_OBJECT: &str = "the request's body must be a JSON object";

/// Reads a whole body of at most `limit` bytes within `within`. A larger one is refused with 413, before it is read
/// where its length is announced; a slow one with 408.
pub async fn read_body<B>(body: B, limit: usize, within: Duration) -> Result<Bytes, ApiError>
where
    B: HttpBody<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    if body.size_hint().lower() > limit as u64 {
        return Err(ApiError::too_large(limit));
    }
    let mut body = std::pin::pin!(body);
    timely(within, collect(&mut body, limit, |_| Ok(()))).await
}

/// Bytes of the bodies that are in memory now, over all requests.
#[derive(Debug, Default)]
pub struct Bodies(AtomicUsize);

/// A body's bytes among [`Bodies`], until it is dropped.
#[derive(Debug)]
pub struct Share {
    bodies: Arc<Bodies>,
    bytes: usize,
}

impl Share {
    /// Counts a body that has grown to `bytes`, unless all together would then exceed `most`.
    fn grow(&mut self, bytes: usize, most: usize) -> Result<(), ApiError> {
        if bytes <= SMALL {
            return Ok(());
        }
        let sum = |all: usize| Some(all - self.bytes + bytes).filter(|all| *all <= most);
        if self.bodies.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, sum).is_err() {
            let message = format!("the requests that are being handled take {most} bytes together; try again");
            return Err(ApiError::unavailable(message, Duration::from_secs(1)).code("overloaded"));
        }
        self.bytes = bytes;
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.bodies.0.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

/// As [`read_body`], where all `bodies` together may take `most` bytes; what would exceed them is refused with 503. The
/// rest of a refused body is read away unless the client waits to be asked for it (`expected`).
pub async fn read_shared(
    mut body: Incoming,
    expected: bool,
    (limit, within): (usize, Duration),
    (bodies, most): (&Arc<Bodies>, usize),
) -> Result<(Bytes, Share), ApiError> {
    let mut share = Share { bodies: bodies.clone(), bytes: 0 };
    let read = if body.size_hint().lower() > limit as u64 {
        Err(ApiError::too_large(limit))
    } else {
        timely(within, collect(&mut body, limit, |bytes| share.grow(bytes, most))).await
    };
    if read.is_err() && !expected {
        tokio::spawn(tokio::time::timeout(DRAIN, async move {
            let mut left = limit.saturating_mul(2);
            while let Some(Ok(frame)) = body.frame().await {
                let Some(rest) = left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) else { return };
                left = rest;
            }
        }));
    }
    Ok((read?, share))
}

async fn timely(within: Duration, reading: impl Future<Output = Result<Bytes, ApiError>>) -> Result<Bytes, ApiError> {
    match tokio::time::timeout(within, reading).await {
        Ok(result) => result,
        Err(_) => Err(ApiError::timeout(format!("the request's body did not arrive within {within:?}"))),
    }
}

/// `grown` is asked before a body becomes so long.
async fn collect<B>(
    body: &mut B,
    limit: usize,
    mut grown: impl FnMut(usize) -> Result<(), ApiError>,
) -> Result<Bytes, ApiError>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            let error: BoxError = error.into();
            ApiError::bad_request(format!("the request's body broke off: {error}"))
        })?;
        let Ok(data) = frame.into_data() else { continue };
        if whole.len() + data.len() > limit {
            return Err(ApiError::too_large(limit));
        }
        grown(whole.len() + data.len())?;
        whole.extend_from_slice(&data);
    }
    Ok(whole.freeze())
}

/// Reads a JSON object into a wire type whose fields all have defaults. Bad JSON is refused with its line and column,
/// a field of the wrong type by its name.
pub fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(ApiError::bad_request("the request's body is empty; send a JSON object"));
    }
    // Serde would read an array as the fields in order.
    if bytes.trim_ascii_start().starts_with(b"[") && serde_json::from_slice::<serde::de::IgnoredAny>(bytes).is_ok() {
        return Err(ApiError::bad_request(NOT_AN_OBJECT));
    }
    serde_json::from_slice(bytes).map_err(|error| describe::<T>(bytes, &error))
}

/// Serde does not say which field it disliked, so on the error path each field is tried alone.
fn describe<T: DeserializeOwned>(bytes: &[u8], error: &serde_json::Error) -> ApiError {
    let value = match serde_json::from_slice::<serde_json::Value>(bytes) {
        Ok(value) => value,
        Err(error) => return ApiError::bad_request(format!("the request's body is not valid JSON: {error}")),
    };
    let serde_json::Value::Object(fields) = value else {
        return ApiError::bad_request(NOT_AN_OBJECT);
    };
    for (name, value) in fields {
        let alone = serde_json::Map::from_iter([(name.clone(), value)]);
        if let Err(error) = serde_json::from_value::<T>(alone.into()) {
            return ApiError::invalid(&name, error);
        }
    }
    ApiError::bad_request(format!("the request cannot be read: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{Full, StreamBody};
    use hyper::body::Frame;

    #[derive(serde::Deserialize, Default, Debug, PartialEq)]
    #[serde(default)]
    struct Wire {
        n: Option<u32>,
        stop: Vec<String>,
    }

    #[test]
    fn json_errors_name_place_or_field() {
        assert_eq!(parse_json::<Wire>(br#"{"n":3,"other":[{}]}"#).unwrap(), Wire { n: Some(3), stop: vec![] });
        let error = parse_json::<Wire>(b"{\"n\":\n 3,,}").unwrap_err();
        assert!(error.message.contains("line 2 column 4"), "{error}");
        let error = parse_json::<Wire>(br#"{"n":1,"stop":["a",7]}"#).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("stop"));
        assert!(error.message.contains("expected a string"), "{error}");
        assert_eq!(parse_json::<Wire>(br#"{"n":-1}"#).unwrap_err().param.as_deref(), Some("n"));
        assert!(parse_json::<Wire>(b"[1]").unwrap_err().message.contains("must be a JSON object"));
        assert!(parse_json::<Wire>(b" \n").unwrap_err().message.contains("empty"));
        assert!(parse_json::<Wire>(br#"{"n":1,"n":2}"#).unwrap_err().message.contains("duplicate"));
        assert!(
            parse_json::<Wire>(&[b"{\"x\":".as_slice(), &[b'['; 100_000]].concat())
                .unwrap_err()
                .message
                .contains("recursion limit")
        );
        assert!(parse_json::<Wire>(&[b'['; 100_000]).is_err());
        assert!(parse_json::<Wire>(b"{\"n\":\"\xff\"}").unwrap_err().message.contains("not valid JSON"));
    }

    #[tokio::test]
    async fn bodies_are_limited_in_bytes_and_time() {
        let second = Duration::from_secs(1);
        assert_eq!(read_body(Full::new(Bytes::from("12345")), 5, second).await.unwrap(), "12345");
        assert_eq!(read_body(Full::new(Bytes::from("123456")), 5, second).await.unwrap_err().status, 413);
        let chunk = |text: &'static str| Ok::<_, std::io::Error>(Frame::data(Bytes::from(text)));
        let chunks = StreamBody::new(futures_util::stream::iter([chunk("123"), chunk("456")]));
        assert_eq!(read_body(chunks, 5, second).await.unwrap_err().status, 413);
        let stuck = StreamBody::new(futures_util::stream::pending::<Result<Frame<Bytes>, std::io::Error>>());
        assert_eq!(read_body(stuck, 5, Duration::from_millis(10)).await.unwrap_err().status, 408);
    }
}
