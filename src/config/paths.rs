//! Where things lie when nobody said otherwise, as clients of the daemon see it: its socket, temporary files, and the
//! terminal's wish for no colours. Reads variables, never a file. Used by proxy and omnictl.

use std::path::PathBuf;

/// Default path of the daemon's Unix socket; see [`super::Environment::default_socket`].
pub fn default_socket() -> PathBuf {
    super::Environment::current().default_socket()
}

/// Path that omnictl and omni-proxy talk to when no option names one: `$OMNI_SOCKET`; else [`default_socket`]; for an
/// ordinary user without a socket of his own there, the system's `/run/omni-inferd/omni.sock` if that exists.
pub fn client_socket() -> PathBuf {
    if let Some(path) = std::env::var_os("OMNI_SOCKET").filter(|path| !path.is_empty()) {
        return path.into();
    }
    let own = default_socket();
    let system = PathBuf::from("/run/omni-inferd/omni.sock");
    if !own.exists() && system.exists() { system } else { own }
}

/// Directory for short-lived private files (`$TMPDIR`, else `/tmp`).
pub fn temporary_dir() -> PathBuf {
    std::env::temp_dir()
}

/// Whether the user asked for output without colours (<https://no-color.org>).
pub fn no_color() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}
