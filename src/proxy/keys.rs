//! API keys. The file holds SHA-256 hashes, so that reading it gives nobody a key; a presented key is compared with
//! every entry in constant time. Called by `forward` for each request and by `cli` for `--hash-key`.
//!
//! One entry per line, `sha256:<64 hexadecimal digits> <name>`; blank lines and lines starting with `#` are skipped.

use http::HeaderValue;
use sha2::{Digest, Sha256};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

/// Most bytes read of a key file: some ten thousand keys.
const MAX_FILE: u64 = 1 << 20;

/// Why a key file was refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read the key file {}: {source}; check the path and its permissions", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The file is far larger than a list of keys.
    #[error("the key file {} is over {MAX_FILE} bytes; is it the right file?", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// A line is wrong.
    #[error("{}:{line}: {what}; write `sha256:<64 hexadecimal digits> <name>` (omni-proxy --hash-key prints one)", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// The problem.
        what: &'static str,
    },
    /// No entry at all, which would lock everybody out.
    #[error("the key file {} holds no key; add a line with omni-proxy --hash-key NAME", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

/// Hash of a key.
type Hash = [u8; 32];

/// The keys of a file.
#[derive(Debug, Default)]
pub struct Keys {
    entries: Vec<(Hash, HeaderValue)>,
}

impl Keys {
    /// Reads a key file.
    pub fn from_file(path: &Path) -> Result<Self, Error> {
        let read = |source| Error::Read { path: path.into(), source };
        let mut text = String::new();
        let size =
            std::fs::File::open(path).map_err(read)?.take(MAX_FILE + 1).read_to_string(&mut text).map_err(read)?;
        if size as u64 > MAX_FILE {
            return Err(Error::TooLarge { path: path.into() });
        }
        Self::parse(&text, path)
    }

    /// The same from a file's text; `path` only names it in errors.
    pub fn parse(text: &str, path: &Path) -> Result<Self, Error> {
        let mut keys = Keys::default();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let entry = keys.entry(line);
            keys.entries.push(entry.map_err(|what| Error::Line { path: path.into(), line: index + 1, what })?);
        }
        if keys.entries.is_empty() { Err(Error::Empty { path: path.into() }) } else { Ok(keys) }
    }

    fn entry(&self, line: &str) -> Result<(Hash, HeaderValue), &'static str> {
        let (hash, name) = line.split_once(char::is_whitespace).ok_or("the name is missing")?;
        let digits = hash.strip_prefix("sha256:").ok_or("the hash must start with `sha256:`")?;
        let hash = parse_hash(digits).ok_or("the hash must have 64 hexadecimal digits")?;
        let name = name.trim();
        if !is_name(name) {
            return Err("the name may have up to 64 of A-Z a-z 0-9 . _ - @");
        }
        if self.entries.iter().any(|(other, _)| *other == hash) {
            return Err("this key is there already");
        }
        HeaderValue::from_str(name).map(|name| (hash, name)).map_err(|_| "the name is unfit for a header")
    }

    /// Owner of `key`. Looks at every entry whatever it finds, so that time tells nothing.
    pub fn owner(&self, key: &str) -> Option<&HeaderValue> {
        let hash = hash(key);
        let mut found = u64::MAX;
        for (index, (entry, _)) in self.entries.iter().enumerate() {
            let same: Choice = entry.ct_eq(&hash);
            found.conditional_assign(&(index as u64), same);
        }
        self.entries.get(usize::try_from(found).ok()?).map(|(_, name)| name)
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// Whether `name` may stand in a key file.
pub fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'@'))
}

/// The line of a key file for `key`.
pub fn line(key: &str, name: &str) -> String {
    format!("sha256:{} {name}", hex(&hash(key)))
}

/// A new key with 256 random bits.
pub fn generate() -> io::Result<String> {
    let mut random = [0u8; 32];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
    Ok(format!("omni-{}", hex(&random)))
}

fn hash(key: &str) -> Hash {
    Sha256::digest(key.as_bytes()).into()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn parse_hash(digits: &str) -> Option<Hash> {
    if digits.len() != 64 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    let mut hash = [0; 32];
    for (byte, pair) in hash.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_owner_by_hash() {
        // echo -n secret | sha256sum
        let secret = "sha256:2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
        let text = format!("# team\n\n{secret} alice\n{}\n", line("other", "bob"));
        let keys = Keys::parse(&text, Path::new("keys")).unwrap();
        assert_eq!(keys.len(), 2);
        assert_eq!(keys.owner("secret").unwrap(), "alice");
        assert_eq!(keys.owner("other").unwrap(), "bob");
        assert_eq!(keys.owner("secret2"), None);
        assert_eq!(keys.owner(""), None);
        assert!(line("secret", "x").starts_with(secret));
    }

    #[test]
    fn refuses_broken_files_by_line() {
        let cases = [
            ("", "holds no key"),
            ("# nothing\n", "holds no key"),
            ("\nplain-key alice", "keys:2: the hash must start with `sha256:`"),
            ("sha256:00", "keys:1: the name is missing"),
            ("sha256:00 alice", "64 hexadecimal digits"),
            (&format!("{} x\u{e9}", &line("k", "")[..71]), "the name may have"),
            (&format!("{}\n{}", line("k", "a"), line("k", "b")), "keys:2: this key is there already"),
        ];
        for (text, wanted) in cases {
            let error = Keys::parse(text, Path::new("keys")).unwrap_err().to_string();
            assert!(error.contains(wanted), "{text:?} gave {error}");
        }
        let error = Keys::from_file(Path::new("/nonexistent/keys")).unwrap_err().to_string();
        assert!(error.contains("cannot read the key file /nonexistent/keys"), "{error}");
    }

    #[test]
    fn generates_distinct_keys() {
        let (one, two) = (generate().unwrap(), generate().unwrap());
        assert_ne!(one, two);
        assert_eq!(one.len(), 5 + 64);
    }
}
