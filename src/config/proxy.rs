//! The `[proxy]` table of a TOML file to checked [`Proxy`] settings. Other tables belong to the daemon and are left
//! alone, so that proxy and daemon may share one file or have one each. Called by `omni-proxy` only.

use ipnet::IpNet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

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
    /// Most bytes of a request's body. Default 64 MiB.
    pub max_body_bytes: u64,
    /// Longest pause between two pieces of a request's body. Default 30 s.
    pub body_timeout: Duration,
    /// Longest pause between two requests of a connection. Default 75 s.
    pub idle_timeout: Duration,
    /// A client that takes nothing of a waiting answer for so long is cut off. Default 60 s.
    pub write_timeout: Duration,
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
            max_body_bytes: 64 << 20,
            body_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(75),
            write_timeout: Duration::from_secs(60),
            drain_timeout: Duration::from_secs(60),
            log: "info".into(),
        }
    }
}

/// Why a file was refused, with what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {source}; check the path and its permissions", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file is read, but not right.
    #[error("{}:{line}: {what}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Key, problem and remedy.
        what: String,
    },
}

/// Every key, for the message about an unknown one.
const KEYS: [&str; 15] = [
    "socket",
    "listen",
    "keys",
    "allow",
    "max_connections",
    "max_connections_per_address",
    "max_requests",
    "max_header_bytes",
    "header_timeout",
    "max_body_bytes",
    "body_timeout",
    "idle_timeout",
    "write_timeout",
    "drain_timeout",
    "log",
];

impl Proxy {
    /// Reads and checks the `[proxy]` table of `path`.
    pub fn from_file(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.into(), source })?;
        Self::parse(&text, path)
    }

    /// The same from a file's text; `path` only names it in errors and anchors relative paths.
    pub fn parse(text: &str, path: &Path) -> Result<Self, Error> {
        let invalid = |at: usize, what: String| {
            let line = text.as_bytes().iter().take(at).filter(|&&byte| byte == b'\n').count() + 1;
            Error::Invalid { path: path.into(), line, what }
        };
        let root = DeTable::parse(text)
            .map_err(|error| invalid(error.span().map_or(0, |span| span.start), error.message().to_string()))?;
        let Some((key, table)) = root.get_ref().iter().find(|(key, _)| key.get_ref() == "proxy") else {
            return Err(invalid(0, "there is no [proxy] table; add one, or leave --config away".into()));
        };
        let DeValue::Table(table) = table.get_ref() else {
            return Err(invalid(key.span().start, "`proxy` must be a table; write [proxy]".into()));
        };
        let mut proxy = Proxy::default();
        let base = path.parent().unwrap_or(Path::new(""));
        for (key, value) in table.iter() {
            proxy.set(key.get_ref(), value, base).map_err(|what| {
                invalid(value.span().start.min(text.len()), format!("`proxy.{}` {what}", key.get_ref()))
            })?;
        }
        Ok(proxy)
    }

    /// Sets one key; errors say problem and remedy.
    fn set(&mut self, key: &str, value: &Spanned<DeValue>, base: &Path) -> Result<(), String> {
        let value = value.get_ref();
        match key {
            "socket" => self.socket = base.join(string(value)?),
            "listen" => self.listen = list(value, "an address like \"127.0.0.1:8080\" or \"[::]:8080\"")?,
            "keys" => self.keys = Some(base.join(string(value)?)),
            "allow" => self.allow = networks(value)?,
            "max_connections" => self.max_connections = count(value)?,
            "max_connections_per_address" => self.max_connections_per_address = count(value)?,
            "max_requests" => self.max_requests = count(value)?,
            "max_header_bytes" => self.max_header_bytes = header_bytes(value)?,
            "header_timeout" => self.header_timeout = duration(value)?,
            "max_body_bytes" => self.max_body_bytes = bytes(value)?,
            "body_timeout" => self.body_timeout = duration(value)?,
            "idle_timeout" => self.idle_timeout = duration(value)?,
            "write_timeout" => self.write_timeout = duration(value)?,
            "drain_timeout" => self.drain_timeout = duration(value)?,
            "log" => self.log = log_filter(string(value)?)?,
            _ => return Err(format!("is not a known key; known are: {}", KEYS.join(", "))),
        }
        Ok(())
    }
}

/// Checks a tracing filter such as `info` or `omni_inferd=debug`.
pub fn log_filter(text: &str) -> Result<String, String> {
    match tracing_subscriber::EnvFilter::try_new(text) {
        Ok(_) => Ok(text.to_string()),
        Err(error) => Err(format!("is no log filter ({error}); use error, warn, info, debug or trace")),
    }
}

/// Reads a network, or a single address as the network of itself.
pub fn network(text: &str) -> Result<IpNet, String> {
    let single = |_| text.parse::<std::net::IpAddr>().map(IpNet::from);
    text.parse::<IpNet>()
        .or_else(single)
        .map_err(|_| format!("{text:?} is no network; write one like \"10.0.0.0/8\", \"fd00::/8\" or \"192.168.1.7\""))
}

fn string<'a>(value: &'a DeValue) -> Result<&'a str, String> {
    match value {
        DeValue::String(text) if !text.is_empty() => Ok(text),
        _ => Err("must be a string that is not empty; put it in quotes".into()),
    }
}

/// A string or an array of strings, each parsed as `T`.
fn list<T: std::str::FromStr>(value: &DeValue, wanted: &str) -> Result<Vec<T>, String> {
    strings(value)?.iter().map(|text| text.parse().map_err(|_| format!("has {text:?}; write {wanted}"))).collect()
}

fn networks(value: &DeValue) -> Result<Vec<IpNet>, String> {
    strings(value)?.iter().map(|text| network(text).map_err(|what| format!("is wrong: {what}"))).collect()
}

fn strings<'a>(value: &'a DeValue) -> Result<Vec<&'a str>, String> {
    match value {
        DeValue::Array(items) => items.iter().map(|item| string(item.get_ref())).collect(),
        other => Ok(vec![string(other)?]),
    }
}

fn integer(value: &DeValue) -> Option<u64> {
    match value {
        DeValue::Integer(number) => {
            u64::from_str_radix(&number.as_str().replace('_', ""), number.radix()).ok().filter(|&n| n > 0)
        }
        _ => None,
    }
}

fn count(value: &DeValue) -> Result<usize, String> {
    let most = tokio::sync::Semaphore::MAX_PERMITS;
    integer(value)
        .and_then(|number| usize::try_from(number).ok())
        .filter(|&number| number <= most)
        .ok_or_else(|| "must be a whole number of at least 1".into())
}

/// Bytes: an integer, or a string with a unit (`64MiB`).
fn bytes(value: &DeValue) -> Result<u64, String> {
    const WANTED: &str = "must be a number of bytes, such as 65536 or \"64MiB\"";
    if let DeValue::String(text) = value {
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let shift = match text[digits..].trim() {
            "" | "B" => 0,
            "KiB" => 10,
            "MiB" => 20,
            "GiB" => 30,
            _ => return Err(WANTED.into()),
        };
        let number = text[..digits].parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
        return number.filter(|&number| number > 0).ok_or_else(|| WANTED.into());
    }
    integer(value).ok_or_else(|| WANTED.into())
}

/// hyper cannot work with a buffer under 8 KiB, and nobody needs a header over 1 MiB.
fn header_bytes(value: &DeValue) -> Result<usize, String> {
    match bytes(value)? {
        number @ 8192..=1_048_576 => Ok(number as usize),
        _ => Err("must be from 8KiB to 1MiB".into()),
    }
}

/// A pause: whole seconds, or a string with a unit (`500ms`, `2m`), from 1 ms to a day.
fn duration(value: &DeValue) -> Result<Duration, String> {
    let parsed = match value {
        DeValue::String(text) => humantime::parse_duration(text).ok(),
        other => integer(other).map(Duration::from_secs),
    };
    parsed
        .filter(|time| (Duration::from_millis(1)..=Duration::from_secs(86_400)).contains(time))
        .ok_or_else(|| "must be a time from 1ms to 24h, such as 30 (seconds), \"500ms\" or \"2m\"".into())
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
            body_timeout = 5
            idle_timeout = "1m"
            write_timeout = "30s"
            drain_timeout = "2m"
            log = "debug"
        "#;
        let proxy = parse(text).unwrap();
        assert_eq!(proxy.listen.len(), 2);
        assert_eq!(proxy.keys.as_deref(), Some(Path::new("/etc/keys.txt")));
        assert_eq!(proxy.allow[1].to_string(), "192.168.1.7/32");
        assert_eq!((proxy.max_connections, proxy.max_header_bytes), (1000, 16 << 10));
        assert_eq!((proxy.header_timeout, proxy.body_timeout), (Duration::from_millis(500), Duration::from_secs(5)));
        assert_eq!(KEYS.len(), 15);
    }

    #[test]
    fn names_line_key_and_remedy() {
        let cases = [
            (
                "[proxy]\n\nsockett = 'x'",
                "/etc/o.toml:3: `proxy.sockett` is not a known key; known are: socket, listen",
            ),
            ("[proxy]\nlisten = '8080'", "/etc/o.toml:2: `proxy.listen` has \"8080\"; write an address"),
            ("[proxy]\nallow = ['10.0.0.0/40']", "`proxy.allow` is wrong: \"10.0.0.0/40\" is no network"),
            ("[proxy]\nmax_connections = 0", "`proxy.max_connections` must be a whole number of at least 1"),
            ("[proxy]\nmax_connections = -1", "must be a whole number"),
            ("[proxy]\nmax_body_bytes = '64MB'", "must be a number of bytes"),
            ("[proxy]\nmax_body_bytes = '99999999999GiB'", "must be a number of bytes"),
            ("[proxy]\nmax_header_bytes = 10", "from 8KiB to 1MiB"),
            ("[proxy]\nidle_timeout = 'soon'", "must be a time"),
            ("[proxy]\nlog = 'a=b=c'", "is no log filter"),
            ("[proxi]", "there is no [proxy] table"),
            ("proxy = 1", "must be a table"),
            ("\n[proxy\n", "/etc/o.toml:2:"),
        ];
        for (text, wanted) in cases {
            let error = parse(text).unwrap_err();
            assert!(error.contains(wanted), "{text:?} gave {error:?}");
        }
    }
}
