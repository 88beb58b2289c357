//! Gets the header of a file, local or behind an address, with as few bytes as it takes.

use super::Error;
use crate::gguf::{File, GrowError, SplitName, parse_growing};
use std::io::{self, Read};
use std::time::Duration;

/// Bytes of the first read; each further one at least doubles what is there.
const FIRST: u64 = 1 << 20;
/// A server must answer, and go on sending, within.
const PATIENCE: Duration = Duration::from_secs(30);

/// A header and what it took.
pub(super) struct Header {
    pub(super) file: File,
    /// Bytes of the whole file, where that is known.
    pub(super) file_bytes: Option<u64>,
    /// Bytes read.
    pub(super) read_bytes: u64,
}

/// Where a file lies.
pub(super) enum Source {
    Local(String),
    Url(String),
}

impl Source {
    pub(super) fn new(target: &str) -> Source {
        let scheme = target.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase());
        match scheme.as_deref() {
            Some("http" | "https") => Source::Url(target.into()),
            _ => Source::Local(target.into()),
        }
    }

    /// The file's place in a split set, by its name.
    pub(super) fn split_name(&self) -> Option<SplitName> {
        match self {
            Source::Local(path) => SplitName::parse(path),
            Source::Url(url) => SplitName::parse(split_query(url).0),
        }
    }

    /// Another file of the set, beside this one.
    pub(super) fn sibling(&self, name: &SplitName, index: u16) -> Source {
        match self {
            Source::Local(_) => Source::Local(name.sibling(index)),
            Source::Url(url) => Source::Url(name.sibling(index) + split_query(url).1),
        }
    }

    /// Reads the header and no more than a read's worth beyond it.
    pub(super) fn header(&self) -> Result<Header, Error> {
        match self {
            Source::Local(path) => local(path).map_err(|error| match error {
                GrowError::Fetch(source) => Error::Read { path: path.clone(), source },
                GrowError::Parse(source) => Error::Gguf { target: path.clone(), source },
            }),
            Source::Url(url) => remote(url),
        }
    }
}

/// An address without and its query and fragment.
fn split_query(url: &str) -> (&str, &str) {
    url.split_at(url.find(['?', '#']).unwrap_or(url.len()))
}

fn local(path: &str) -> Result<Header, GrowError<io::Error>> {
    let mut file = std::fs::File::open(path).map_err(GrowError::Fetch)?;
    let metadata = file.metadata().map_err(GrowError::Fetch)?;
    if metadata.is_dir() {
        return Err(GrowError::Fetch(io::ErrorKind::IsADirectory.into()));
    }
    let mut read = 0;
    let parsed = parse_growing(metadata.len(), FIRST, |have, want| {
        extend(&mut file, have, want)?;
        read = have.len() as u64;
        Ok(())
    })?;
    Ok(Header { file: parsed, file_bytes: Some(metadata.len()), read_bytes: read })
}

fn remote(url: &str) -> Result<Header, Error> {
    let mut remote = Remote::open(url)?;
    let file_bytes = remote.file_bytes;
    let mut read = 0;
    let parsed = parse_growing(file_bytes.unwrap_or(u64::MAX), FIRST, |have, want| {
        remote.extend(have, want)?;
        read = have.len() as u64;
        Ok(())
    });
    match parsed {
        Ok(file) => Ok(Header { file, file_bytes, read_bytes: read }),
        Err(GrowError::Parse(source)) => Err(Error::Gguf { target: url.into(), source }),
        Err(GrowError::Fetch(error)) => Err(error),
    }
}

/// Appends from `reader` until `have` holds `want` bytes or the reader ends.
fn extend(reader: &mut impl Read, have: &mut Vec<u8>, want: u64) -> io::Result<()> {
    let missing = want.saturating_sub(have.len() as u64);
    reader.take(missing).read_to_end(have).map(|_| ())
}

/// A file behind an address. A server that knows ranges is asked for one after the other; of one that does not, the
/// single answer is read as far as needed and then dropped.
struct Remote {
    agent: ureq::Agent,
    url: String,
    file_bytes: Option<u64>,
    body: ureq::BodyReader<'static>,
    /// True where the server answers ranges, so that `body` ends before the file does.
    ranges: bool,
}

impl Remote {
    fn open(url: &str) -> Result<Remote, Error> {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .user_agent(concat!("omnictl/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(PATIENCE))
            .timeout_recv_response(Some(PATIENCE))
            .timeout_per_read(Some(PATIENCE));
        let agent = config.build().new_agent();
        let answer = request(&agent, url, 0, FIRST)?;
        let ranges = answer.status() == 206;
        let file_bytes = match ranges {
            true => content_range(&answer, url, 0)?.1,
            false => answer.body().content_length(),
        };
        Ok(Remote { agent, url: url.into(), file_bytes, body: answer.into_body().into_reader(), ranges })
    }

    /// Grows `have` to `want` bytes, or to the file's end.
    fn extend(&mut self, have: &mut Vec<u8>, want: u64) -> Result<(), Error> {
        let broken = |url: &str, source: io::Error| Error::Fetch { url: url.into(), source: Box::new(source.into()) };
        extend(&mut self.body, have, want).map_err(|source| broken(&self.url, source))?;
        let at = have.len() as u64;
        if self.ranges && at < want {
            let answer = request(&self.agent, &self.url, at, want)?;
            if answer.status() != 206 {
                return Err(Error::Status { url: self.url.clone(), status: answer.status().as_u16() });
            }
            content_range(&answer, &self.url, at)?;
            self.body = answer.into_body().into_reader();
            extend(&mut self.body, have, want).map_err(|source| broken(&self.url, source))?;
        }
        Ok(())
    }
}

/// Asks for bytes `from..to`; any status but 200 and 206 is an error.
fn request(agent: &ureq::Agent, url: &str, from: u64, to: u64) -> Result<http::Response<ureq::Body>, Error> {
    let range = format!("bytes={from}-{}", to.saturating_sub(1));
    // An encoded answer would make offsets meaningless.
    let call = agent.get(url).header("range", range).header("accept-encoding", "identity").call();
    let answer = call.map_err(|source| Error::Fetch { url: url.into(), source: Box::new(source) })?;
    match answer.status().as_u16() {
        200 | 206 => Ok(answer),
        status => Err(Error::Status { url: url.into(), status }),
    }
}

/// First byte and, where told, the file's length from `Content-Range: bytes FIRST-LAST/LENGTH`.
fn content_range(answer: &http::Response<ureq::Body>, url: &str, asked: u64) -> Result<(u64, Option<u64>), Error> {
    let text = answer.headers().get("content-range").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let parsed = || {
        let (range, length) = text.strip_prefix("bytes ")?.split_once('/')?;
        let first = range.split_once('-')?.0.parse::<u64>().ok()?;
        Some((first, length.parse::<u64>().ok()))
    };
    match parsed() {
        Some((first, length)) if first == asked => Ok((first, length)),
        _ => Err(Error::Range { url: url.into(), asked, got: text.into() }),
    }
}
