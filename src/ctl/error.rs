//! What went wrong in a command, as its user reads it: what, why, what to do; and the exit status that goes with it.

use super::{bench, inspect, offline, textcmds};
use crate::api::error::ErrorBody;
use http::StatusCode;
use std::io;
use std::path::PathBuf;

/// Exit statuses, as `omnictl --help` documents them.
pub const EXIT_STATUS: &str = "\
Exit status:
    0  done
    1  failed
    2  wrong usage
    3  the daemon cannot be reached
    4  no such model or file
  130  interrupted by Ctrl-C";

/// See the module.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens on the socket.
    #[error("cannot reach omni-inferd at {}: {source}\n{}", socket.display(), advice(source))]
    Unreachable {
        /// The socket.
        socket: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The daemon refused or failed.
    #[error("{message}")]
    Refused {
        /// HTTP status.
        status: StatusCode,
        /// The daemon's own words.
        message: String,
    },
    /// The daemon's answer makes no sense.
    #[error("omni-inferd at {} gave an answer that omnictl does not understand: {what}\nare both of the same version? compare omnictl --version with omnictl status", socket.display())]
    Answer {
        /// The socket.
        socket: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The command failed for a reason of its own.
    #[error("{0}")]
    Failed(String),
    /// A file or model that is not there.
    #[error("{0}")]
    NotFound(String),
    /// Options that do not go together.
    #[error("{0}")]
    Usage(String),
    /// Ctrl-C ended the command; its user knows why.
    #[error("")]
    Interrupted,
    /// Reading or writing of the command itself failed.
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl Error {
    /// From an answer whose status is not 2xx.
    pub fn refused(status: StatusCode, body: &[u8]) -> Self {
        let message = match serde_json::from_slice::<ErrorBody>(body) {
            Ok(body) => body.error.message,
            Err(_) => {
                let text = String::from_utf8_lossy(body);
                let first = text.lines().next().unwrap_or_default().chars().take(200).collect::<String>();
                format!("omni-inferd answered {status}: {first}")
            }
        };
        Error::Refused { status, message }
    }

    /// Exit status; see [`EXIT_STATUS`].
    pub fn code(&self) -> u8 {
        match self {
            Error::Unreachable { .. } => 3,
            Error::Refused { status, .. } if *status == StatusCode::NOT_FOUND => 4,
            Error::NotFound(_) => 4,
            Error::Usage(_) => 2,
            Error::Interrupted => 130,
            _ => 1,
        }
    }

    /// The reader of the output left, which is no failure.
    pub fn is_broken_pipe(&self) -> bool {
        matches!(self, Error::Io(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

/// From a command on a file: a reader of the output that left, and a file that is not there, are told apart by the
/// system's error behind them.
fn of_file(error: &(dyn std::error::Error + 'static)) -> Error {
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    let system = causes.find_map(|cause| cause.downcast_ref::<io::Error>()).map(io::Error::kind);
    match system {
        Some(io::ErrorKind::BrokenPipe) => io::Error::from(io::ErrorKind::BrokenPipe).into(),
        Some(io::ErrorKind::NotFound) => Error::NotFound(error.to_string()),
        _ => Error::Failed(error.to_string()),
    }
}

impl From<inspect::Error> for Error {
    fn from(error: inspect::Error) -> Self {
        match &error {
            inspect::Error::Status { status: 404 | 410, .. } => Error::NotFound(error.to_string()),
            _ => of_file(&error),
        }
    }
}

impl From<textcmds::Error> for Error {
    fn from(error: textcmds::Error) -> Self {
        of_file(&error)
    }
}

impl From<bench::Error> for Error {
    fn from(error: bench::Error) -> Self {
        match error {
            bench::Error::Usage(what) => Error::Usage(what),
            _ => of_file(&error),
        }
    }
}

impl From<offline::Error> for Error {
    fn from(error: offline::Error) -> Self {
        of_file(&error)
    }
}

fn advice(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::PermissionDenied => {
            "you may not open this socket; ask to be added to the group omni or omni-admin"
        }
        _ => {
            "is it running? start it with `omni-inferd serve MODEL.gguf` or `systemctl start omni-inferd`, or name its socket with --socket"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speaks_with_the_daemons_words() {
        let body = br#"{"error":{"message":"no model `x`; known: a, b","type":"t","param":null,"code":null}}"#;
        let error = Error::refused(StatusCode::NOT_FOUND, body);
        assert_eq!((error.to_string().as_str(), error.code()), ("no model `x`; known: a, b", 4));
        let error = Error::refused(StatusCode::BAD_GATEWAY, b"<html>\nnonsense");
        assert_eq!((error.to_string().as_str(), error.code()), ("omni-inferd answered 502 Bad Gateway: <html>", 1));
    }
}
