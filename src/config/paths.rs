//! Where things lie when nobody said otherwise: the one rule for the socket's default path, shared by daemon, proxy and
//! omnictl, and the few other places that come from the environment. Reads variables, never a file.

use std::ffi::OsString;
use std::path::PathBuf;

/// File name of the daemon's socket in its runtime directory.
const SOCKET: &str = "omni.sock";

/// Default path of the daemon's Unix socket: `$RUNTIME_DIRECTORY/omni.sock` under systemd, `/run/omni-inferd/omni.sock`
/// for root, `$XDG_RUNTIME_DIR/omni-inferd/omni.sock` for a user, `/tmp/omni-inferd-$UID/omni.sock` where that is unset.
pub fn default_socket() -> PathBuf {
    socket_for(nix::unistd::geteuid().as_raw(), |name| std::env::var_os(name))
}

/// Path that omnictl and omni-proxy talk to when no option names one: `$OMNI_SOCKET`; else [`default_socket`]; for an
/// ordinary user without a socket of his own there, the system's `/run/omni-inferd/omni.sock` if that exists.
pub fn client_socket() -> PathBuf {
    if let Some(path) = std::env::var_os("OMNI_SOCKET").filter(|path| !path.is_empty()) {
        return path.into();
    }
    let own = default_socket();
    let system = PathBuf::from("/run/omni-inferd").join(SOCKET);
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

/// The rule of [`default_socket`] over a given user and environment.
fn socket_for(uid: u32, variable: impl Fn(&str) -> Option<OsString>) -> PathBuf {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty());
    // systemd lists several directories separated by colons when a unit has several; the first is ours.
    if let Some(dirs) = set("RUNTIME_DIRECTORY") {
        let dirs = dirs.to_string_lossy().into_owned();
        return PathBuf::from(dirs.split(':').next().unwrap_or(&dirs)).join(SOCKET);
    }
    if uid == 0 {
        return PathBuf::from("/run/omni-inferd").join(SOCKET);
    }
    match set("XDG_RUNTIME_DIR") {
        Some(dir) => PathBuf::from(dir).join("omni-inferd").join(SOCKET),
        None => PathBuf::from(format!("/tmp/omni-inferd-{uid}")).join(SOCKET),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(uid: u32, set: &[(&str, &str)]) -> String {
        let variable = |name: &str| set.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value));
        socket_for(uid, variable).display().to_string()
    }

    #[test]
    fn follows_the_order_of_the_rule() {
        assert_eq!(path(0, &[]), "/run/omni-inferd/omni.sock");
        assert_eq!(path(0, &[("XDG_RUNTIME_DIR", "/run/user/0")]), "/run/omni-inferd/omni.sock");
        assert_eq!(path(7, &[("RUNTIME_DIRECTORY", "/run/a:/run/b")]), "/run/a/omni.sock");
        assert_eq!(path(7, &[("XDG_RUNTIME_DIR", "/run/user/7")]), "/run/user/7/omni-inferd/omni.sock");
        assert_eq!(path(7, &[("XDG_RUNTIME_DIR", "")]), "/tmp/omni-inferd-7/omni.sock");
    }
}
