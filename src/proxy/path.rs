//! Which paths pass. A path is decoded and checked as the most permissive reader behind could take it; what is
//! ambiguous is refused, so that no spelling of `/control` gets through. Pure.

/// What a path leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// `/health` or `/ready`: passes without a key, for load balancers.
    Probe,
    /// Below `/v1/`.
    Api,
}

/// The route of a request's raw path (without query), `None` for all that must not pass.
pub fn route(raw: &str) -> Option<Route> {
    let decoded = decode(raw)?;
    if matches!(decoded.as_str(), "/health" | "/ready") {
        return Some(Route::Probe);
    }
    let rest = decoded.strip_prefix("/v1/")?;
    let harmless = |segment: &str| !matches!(segment, "" | "." | "..") && !segment.starts_with("..;");
    rest.split('/').all(harmless).then_some(Route::Api)
}

/// Percent-decodes once. `None` when an escape is broken, decodes to another escape, a control character, a backslash,
/// or bytes that are not UTF-8.
fn decode(raw: &str) -> Option<String> {
    let mut bytes = raw.bytes();
    let mut out = Vec::with_capacity(raw.len());
    while let Some(byte) = bytes.next() {
        let byte = match byte {
            b'%' => hex(bytes.next()?)? << 4 | hex(bytes.next()?)?,
            other => other,
        };
        if byte.is_ascii_control() || matches!(byte, b'%' | b'\\' | b'?' | b'#') {
            return None;
        }
        out.push(byte);
    }
    String::from_utf8(out).ok()
}

/// Value of one hexadecimal digit.
fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lets_the_api_and_probes_through() {
        for path in ["/v1/models", "/v1/chat/completions", "/v1/models/org%2Fname", "/v1/models/a%20b", "/v1/x..y"] {
            assert_eq!(route(path), Some(Route::Api), "{path}");
        }
        assert_eq!(route("/health"), Some(Route::Probe));
        assert_eq!(route("/ready"), Some(Route::Probe));
    }

    #[test]
    fn refuses_the_rest_and_every_trick() {
        let refused = [
            "",
            "*",
            "/",
            "/v1",
            "/v1/",
            "/V1/models",
            "v1/models",
            "/control",
            "/control/v1/status",
            "/metrics",
            "/tokenize",
            "/health/",
            "/health/x",
            "//v1/models",
            "/v1//models",
            "/v1/../control/v1/status",
            "/v1/./models",
            "/v1/..",
            "/v1/models/..",
            "/v1/%2e%2e/control",
            "/v1/%2E./control",
            "/v1/..%2fcontrol",
            "/v1%2f..%2fcontrol",
            "/v1/%252e%252e/control",
            "/v1/..;/control",
            "/v1/..\\control",
            "/v1/%5c..%5ccontrol",
            "/v1/a%00b",
            "/v1/a%0d%0ab",
            "/v1/%",
            "/v1/%4",
            "/v1/%zz",
            "/v1/%ff",
            "/v1/a%3fb",
            "/v1/a%23b",
            "/%63ontrol",
            "/./control",
        ];
        for path in refused {
            assert_eq!(route(path), None, "{path}");
        }
    }

    proptest::proptest! {
        #[test]
        fn what_passes_stays_below_v1(path in "/v1/[./%25eEcf;a\\\\]{0,16}") {
            if route(&path) == Some(Route::Api) {
                let decoded = decode(&path).unwrap();
                proptest::prop_assert!(decoded.starts_with("/v1/"));
                proptest::prop_assert!(!decoded.split('/').any(|part| part == ".." || part == "."));
                proptest::prop_assert!(!decoded.contains("//"));
            }
        }
    }
}
