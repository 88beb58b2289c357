//! What is passed on of a request's header: hop-by-hop fields end here, keys never go further, and `x-omni-*` comes
//! from the proxy alone. Pure.

use crate::transport::headers::strip_hop_by_hop;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};

/// Carries the name of the key's owner to the daemon.
pub const CLIENT: HeaderName = HeaderName::from_static("x-omni-client");

/// Turns a client's request header into the one the daemon sees.
pub fn for_upstream(headers: &mut HeaderMap, client: Option<&HeaderValue>) {
    strip_hop_by_hop(headers);
    let ours: Vec<HeaderName> = headers.keys().filter(|name| name.as_str().starts_with("x-omni-")).cloned().collect();
    let secret = [header::AUTHORIZATION, HeaderName::from_static("x-api-key"), header::COOKIE];
    // `Expect` is answered here, by reading the body; HTTP/2 settings belong to an upgrade that is not taken.
    let answered = [header::EXPECT, HeaderName::from_static("http2-settings")];
    for name in ours.iter().chain(&secret).chain(&answered) {
        headers.remove(name);
    }
    headers.insert(header::HOST, HeaderValue::from_static("omni-inferd"));
    if let Some(client) = client {
        headers.insert(CLIENT, client.clone());
    }
}

/// The key a client presents: `Authorization: Bearer KEY`, else `x-api-key: KEY`.
pub fn presented_key(headers: &HeaderMap) -> Option<&str> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(|value| {
        let (scheme, key) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
    });
    bearer.or_else(|| headers.get("x-api-key")?.to_str().ok().map(str::trim)).filter(|key| !key.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let field = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        let mut headers = HeaderMap::new();
        fields.iter().map(field).for_each(|(name, value)| _ = headers.append(name, value));
        headers
    }

    #[test]
    fn only_end_to_end_fields_reach_the_daemon() {
        let mut headers = map(&[
            ("host", "evil"),
            ("connection", "keep-alive, X-Drop, content-length"),
            ("connection", "close"),
            ("x-drop", "1"),
            ("keep-alive", "timeout=5"),
            ("upgrade", "h2c"),
            ("http2-settings", "AAMAAABkAAQAAP__"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("authorization", "Bearer secret"),
            ("x-api-key", "secret"),
            ("x-omni-client", "root"),
            ("x-omni-admin", "1"),
            ("expect", "100-continue"),
            ("content-length", "3"),
            ("content-type", "application/json"),
            ("accept", "*/*"),
        ]);
        for_upstream(&mut headers, Some(&HeaderValue::from_static("alice")));
        let mut left: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        left.sort_unstable();
        let wanted = [
            ("accept", "*/*"),
            ("content-length", "3"),
            ("content-type", "application/json"),
            ("host", "omni-inferd"),
            ("x-omni-client", "alice"),
        ];
        assert_eq!(left, wanted);
    }

    #[test]
    fn finds_the_key() {
        assert_eq!(presented_key(&map(&[("authorization", "Bearer k1"), ("x-api-key", "k2")])), Some("k1"));
        assert_eq!(presented_key(&map(&[("authorization", "bearer  k1 ")])), Some("k1"));
        assert_eq!(presented_key(&map(&[("authorization", "Basic dTpw"), ("x-api-key", "k2")])), Some("k2"));
        assert_eq!(presented_key(&map(&[("authorization", "Bearer ")])), None);
        assert_eq!(presented_key(&map(&[("authorization", "Bearer")])), None);
        assert_eq!(presented_key(&map(&[])), None);
    }
}
