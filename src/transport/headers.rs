//! Header fields that concern one connection only, and what a client may expect of the next one. Pure.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

/// Fields of one connection (RFC 9110, section 7.6.1).
const HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// Removes hop-by-hop fields, those that `Connection` names included.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
        // A client may not make a server drop what the request needs to be understood.
        .filter(|name| !matches!(*name, header::CONTENT_LENGTH | header::CONTENT_TYPE | header::HOST))
        .collect();
    for name in HOP_BY_HOP.iter().chain(&named) {
        headers.remove(name);
    }
}

/// Whether `Expect` asks for something that no server here does: anything but `100-continue`, which hyper answers when
/// the body begins to be read. Such a request is refused with 417 (RFC 9110, section 10.1.1).
pub fn unmet_expectation(headers: &HeaderMap) -> bool {
    let met = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"100-continue");
    !headers.get_all(header::EXPECT).iter().all(met)
}

/// Whether a message is a stream of server-sent events.
pub fn is_event_stream(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    value.get(..17).is_some_and(|start| start.eq_ignore_ascii_case(b"text/event-stream"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for &(name, value) in fields {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn fields_of_one_connection_are_removed() {
        let mut headers = map(&[
            ("connection", "keep-alive, X-Drop, content-length"),
            ("connection", "close"),
            ("x-drop", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("upgrade", "h2c"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("content-length", "3"),
            ("accept", "*/*"),
        ]);
        strip_hop_by_hop(&mut headers);
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["accept", "content-length"]);
    }

    #[test]
    fn only_a_continue_can_be_expected() {
        assert!(!unmet_expectation(&map(&[])));
        assert!(!unmet_expectation(&map(&[("expect", "100-Continue")])));
        assert!(unmet_expectation(&map(&[("expect", "200-ok")])));
        assert!(unmet_expectation(&map(&[("expect", "100-continue"), ("expect", "tea")])));
    }

    #[test]
    fn knows_event_streams() {
        assert!(is_event_stream(&map(&[("content-type", "Text/Event-Stream; charset=utf-8")])));
        assert!(!is_event_stream(&map(&[("content-type", "application/json")])));
        assert!(!is_event_stream(&map(&[])));
    }
}
