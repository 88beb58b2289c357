//! The `[proxy]` table of a TOML file to checked [`Proxy`] settings. Other tables belong to the daemon and are left
//! alone, so that proxy and daemon may share one file or have one each. Called by `omni-proxy`, and by the daemon's `--check` of a shared file.

use super::Error;
use super::document::{Document, Section};
use ipnet::IpNet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Most connections or requests that may be allowed at once.
const MOST_AT_ONCE: usize = 1_000_000;

/// Everything configurable about the proxy, checked. Each field is a key of `[proxy]` under the same name.
#[derive(Clone, Debug, PartialEq)]
pub struct Proxy {
    /// The daemon's Unix socket.
    pub socket: PathBuf,
    /// Addresses to listen on; ignored when a service manager passes sockets. Default `127.0.0.1:8080`.
    pub listen: Vec<SocketAddr>,
    /// File of hashed API keys; without one every client that may connect is served.
    pub keys: Option<PathBuf>,
    /// Networks clients may come from; empty: any.
    pub allow: Vec<IpNet>,
    /// Most connections at once. Default 4096.
    pub max_connections: usize,
    /// Most connections at once from one address. Default 1024.
    pub max_connections_per_address: usize,
    /// Most requests in flight; further ones get 503. Default 2048.
    pub max_requests: usize,
    /// Most bytes of a request's header. Default 32 KiB.
    pub max_header_bytes: usize,
    /// A request's header must be complete so long after its first byte. Default 10 s.
    pub header_timeout: Duration,
    /// Most bytes of a request's body. Default 32 MiB.
    pub max_body_bytes: u64,
    /// Longest pause between two pieces of a request's body. Default 30 s.
    pub body_timeout: Duration,
    /// Longest pause between two requests of a connection. Default 75 s.
    pub idle_timeout: Duration,
    /// A client that takes nothing of a waiting answer for so long is cut off. Default 60 s.
    pub write_timeout: Duration,
    /// A daemon that has not begun an answer for so long is asked for its health, and given as long again: one that does
    /// not answer that either is stuck, and its clients get 504. Default 5 s.
    pub upstream_timeout: Duration,
    /// On SIGTERM: how long running answers may finish. Default 60 s.
    pub drain_timeout: Duration,
    /// `error`, `warn`, `info`, `debug`, `trace`, or a tracing filter. Default `info`.
    pub log: String,
}

impl Default for Proxy {
    fn default() -> Self {
        Proxy {
            socket: super::client_socket(),
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 8080))],
            keys: None,
            allow: Vec::new(),
            max_connections: 4096,
            max_connections_per_address: 1024,
            max_requests: 2048,
            max_header_bytes: 32 << 10,
            header_timeout: Duration::from_secs(10),
            max_body_bytes: 32 << 20,
            body_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(75),
            write_timeout: Duration::from_secs(60),
            upstream_timeout: Duration::from_secs(5),
            drain_timeout: Duration::from_secs(60),
            log: "info".into(),
        }
    }
}

impl Proxy {
    /// Reads and checks the `[proxy]` table of `path`.
    ///
    /// # Errors
    /// [`Error::Read`] when the file cannot be read, else as [`Proxy::parse`].
    pub fn from_file(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.into(), source })?;
        Self::parse(&text, path)
    }

    /// The same from a file's text; `path` only names it in errors and anchors relative paths.
    ///
    /// # Errors
    /// [`Error::Invalid`] with every problem found.
    pub fn parse(text: &str, path: &Path) -> Result<Self, Error> {
        Document::read(text, path, |document, root| {
            let Some(value) = root.get("proxy") else {
                let what = "there is no [proxy] table".to_string();
                document.problem(0..0, "proxy", what, "add one, or leave --config away".into());
                return Proxy::default();
            };
            let mut section = Section::new(document, "proxy", document.table("proxy", value));
            let proxy = Self::read(&mut section);
            section.finish();
            proxy
        })
    }

    /// Reads every key, defaults where the section has none of use.
    pub(super) fn read(section: &mut Section<'_, '_>) -> Self {
        let defaults = Proxy::default();
        let address = |text: &str| text.parse().map_err(|_| format!("\"{}\" is no address", text.escape_debug()));
        let mut count = |key, default| section.count(key, 1..=MOST_AT_ONCE).unwrap_or(default);
        Proxy {
            max_connections: count("max_connections", defaults.max_connections),
            max_connections_per_address: count("max_connections_per_address", defaults.max_connections_per_address),
            max_requests: count("max_requests", defaults.max_requests),
            socket: section.file_path("socket", "/run/omni-inferd/omni.sock").unwrap_or(defaults.socket),
            listen: section
                .parsed("listen", "an address like \"127.0.0.1:8080\" or \"[::]:8080\"", address)
                .unwrap_or(defaults.listen),
            keys: section.file_path("keys", "/etc/omni-inferd/keys"),
            allow: section.parsed("allow", NETWORK, network).unwrap_or(defaults.allow),
            // hyper cannot work with a buffer under 8 KiB, and nobody needs a header over 1 MiB.
            max_header_bytes: section.size("max_header_bytes", 8 << 10..=1 << 20).unwrap_or(defaults.max_header_bytes),
            header_timeout: section.positive("header_timeout", defaults.header_timeout),
            max_body_bytes: section
                .size("max_body_bytes", 1 << 10..=1 << 40)
                .map_or(defaults.max_body_bytes, |bytes| bytes as u64),
            body_timeout: section.positive("body_timeout", defaults.body_timeout),
            idle_timeout: section.positive("idle_timeout", defaults.idle_timeout),
            write_timeout: section.positive("write_timeout", defaults.write_timeout),
            upstream_timeout: section.positive("upstream_timeout", defaults.upstream_timeout),
            drain_timeout: section.positive("drain_timeout", defaults.drain_timeout),
            log: section.log_filter("log").unwrap_or(defaults.log),
        }
    }
}

/// What [`network`] reads, for messages.
pub const NETWORK: &str = "a network like \"10.0.0.0/8\", \"fd00::/8\" or \"192.168.1.7\"";

/// Reads a network, or a single address as the network of itself.
///
/// # Errors
/// What is wrong with the text.
pub fn network(text: &str) -> Result<IpNet, String> {
    let single = |_| text.parse::<std::net::IpAddr>().map(IpNet::from);
    text.parse::<IpNet>().or_else(single).map_err(|_| format!("\"{}\" is no network", text.escape_debug()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Proxy, String> {
        Proxy::parse(text, Path::new("/etc/o.toml")).map_err(|error| error.to_string())
    }

    #[test]
    fn reads_every_key_and_ignores_the_daemons_tables() {
        let text = r#"
            [daemon]
            socket = "/elsewhere"
            [proxy]
            socket = "/run/x.sock"
            listen = ["0.0.0.0:80", "[::1]:8080"]
            keys = "keys.txt"
            allow = ["10.0.0.0/8", "192.168.1.7"]
            max_connections = 1_000
            max_connections_per_address = 10
            max_requests = 20
            max_header_bytes = "16KiB"
            header_timeout = "500ms"
            max_body_bytes = 1048576
            body_timeout = "5s"
            idle_timeout = "1m"
            write_timeout = "30s"
            upstream_timeout = "3s"
            drain_timeout = "2m"
            log = "debug"
        "#;
        let proxy = parse(text).unwrap();
        assert_eq!(proxy.listen.len(), 2);
        assert_eq!(proxy.keys.as_deref(), Some(Path::new("/etc/keys.txt")));
        assert_eq!(proxy.allow[1].to_string(), "192.168.1.7/32");
        assert_eq!((proxy.max_connections, proxy.max_header_bytes), (1000, 16 << 10));
        assert_eq!((proxy.header_timeout, proxy.body_timeout), (Duration::from_millis(500), Duration::from_secs(5)));
    }

    #[test]
    fn names_line_key_and_remedy() {
        let cases = [
            ("[proxy]\n\nsockett = 'x'", "/etc/o.toml: line 3: proxy.sockett: unknown key; did you mean `socket`?"),
            ("[proxy]\nlisten = '8080'", "line 2: proxy.listen: \"8080\" is no address; write an address like"),
            ("[proxy]\nlisten = 8080", "proxy.listen: is of type integer; write an address like"),
            ("[proxy]\nallow = ['10.0.0.0/40']", "proxy.allow: \"10.0.0.0/40\" is no network; write a network like"),
            ("[proxy]\nmax_connections = 0", "proxy.max_connections: 0 is out of bounds; write a whole number from 1"),
            ("[proxy]\nmax_connections = -1", "write a whole number"),
            ("[proxy]\nmax_body_bytes = '64XB'", "\"xb\" is not a unit of size; write a size from 1KiB to 1024GiB"),
            ("[proxy]\nmax_body_bytes = '99999999999GiB'", "write a size"),
            ("[proxy]\nmax_header_bytes = 10", "write a size from 8KiB to 1MiB"),
            ("[proxy]\nidle_timeout = 'soon'", "write a number with its unit, for instance idle_timeout = \"30s\""),
            ("[proxy]\nidle_timeout = '0s'", "must not be zero; the default is \"1m 15s\""),
            ("[proxy]\nlog = 'a=b=c'", "proxy.log: \"a=b=c\" is no log filter"),
            ("[proxi]", "there is no [proxy] table; add one"),
            ("proxy = 1", "is not a table"),
            ("\n[proxy\n", "/etc/o.toml: line 2:"),
        ];
        for (text, wanted) in cases {
            let error = parse(text).unwrap_err();
            assert!(error.contains(wanted), "{text:?} gave {error:?}");
        }
    }
}
