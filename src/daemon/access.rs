//! Who may do what: the kernel says who is on the other side of the socket, the groups say what that user may do.
//! Members of `group` complete, members of `admin_group` control too; root and the daemon's own user may do both.

use crate::api::error::ApiError;
use crate::api::http::Listener;
use crate::config;
use crate::sys::net;
use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::task::Poll;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

/// The process on the other side, as it was when it connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// User.
    pub uid: u32,
    /// Its groups, primary and supplementary.
    pub groups: Arc<[u32]>,
}

/// What a request needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// Ask for completions, see models and metrics.
    Complete,
    /// Load, unload, reload; read logs.
    Control,
}

/// The rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    own: u32,
    complete: Option<u32>,
    control: Option<u32>,
    names: (String, String),
}

impl Access {
    /// The rules of a configuration; a group that does not exist has no members.
    pub fn new(settings: &config::Daemon) -> Self {
        Self {
            own: nix::unistd::geteuid().as_raw(),
            complete: net::group_id(&settings.group),
            control: net::group_id(&settings.admin_group),
            names: (settings.group.clone(), settings.admin_group.clone()),
        }
    }

    /// The number of the group that owns the socket.
    pub fn socket_group(&self) -> Option<u32> {
        self.complete
    }

    /// Checks a caller; asks the user database only when the process's own groups do not suffice, so that a user who was
    /// added to a group need not log in again.
    ///
    /// # Errors
    /// 403 that names the missing group.
    pub async fn check(&self, caller: &Caller, right: Right) -> Result<(), ApiError> {
        if self.allows(caller.uid, &caller.groups, right) {
            return Ok(());
        }
        let uid = caller.uid;
        let groups = tokio::task::spawn_blocking(move || net::groups_of_user(uid)).await.unwrap_or_default();
        if self.allows(uid, &groups, right) {
            return Ok(());
        }
        let (verb, group) = match right {
            Right::Complete => ("use", &self.names.0),
            Right::Control => ("control", &self.names.1),
        };
        let message = format!("user {uid} may not {verb} this server; add the user to the group '{group}'");
        Err(ApiError::forbidden(message).code("forbidden"))
    }

    fn allows(&self, uid: u32, groups: &[u32], right: Right) -> bool {
        let member = |group: Option<u32>| group.is_some_and(|group| groups.contains(&group));
        let control = uid == 0 || uid == self.own || member(self.control);
        control || right == Right::Complete && member(self.complete)
    }
}

/// The daemon's listening sockets, one or several, and those that replace lost ones.
pub struct Door {
    listeners: VecDeque<UnixListener>,
    coming: mpsc::Receiver<UnixListener>,
    most: usize,
}

impl Door {
    /// Takes connections from all of `listeners`, and from what comes through the channel.
    pub fn new(listeners: Vec<UnixListener>, coming: mpsc::Receiver<UnixListener>) -> Self {
        // One that nobody can reach any more may still hold connections: it goes when the next one comes.
        let most = listeners.len() + 1;
        Self { listeners: listeners.into(), coming, most }
    }
}

impl Listener for Door {
    type Io = UnixStream;
    type Peer = Caller;

    async fn accept(&mut self) -> std::io::Result<(UnixStream, Caller)> {
        let (stream, _) = std::future::poll_fn(|context| {
            while let Poll::Ready(Some(new)) = self.coming.poll_recv(context) {
                if self.listeners.len() == self.most {
                    self.listeners.pop_front();
                }
                self.listeners.push_back(new);
            }
            for listener in &self.listeners {
                if let Poll::Ready(accepted) = listener.poll_accept(context) {
                    return Poll::Ready(accepted);
                }
            }
            Poll::Pending
        })
        .await?;
        let credentials = stream.peer_cred()?;
        let mut groups = net::peer_groups(stream.as_fd()).unwrap_or_default();
        groups.push(credentials.gid());
        Ok((stream, Caller { uid: credentials.uid(), groups: groups.into() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(complete: Option<u32>, control: Option<u32>) -> Access {
        Access { own: 500, complete, control, names: ("omni".into(), "omni-admin".into()) }
    }

    #[test]
    fn groups_give_rights() {
        let rules = rules(Some(10), Some(20));
        for (uid, groups, complete, control) in [
            (0, vec![], true, true),
            (500, vec![], true, true),
            (1000, vec![10], true, false),
            (1000, vec![20], true, true),
            (1000, vec![30, 10, 20], true, true),
            (1000, vec![30], false, false),
        ] {
            assert_eq!(rules.allows(uid, &groups, Right::Complete), complete, "{uid} {groups:?}");
            assert_eq!(rules.allows(uid, &groups, Right::Control), control, "{uid} {groups:?}");
        }
    }

    #[tokio::test]
    async fn without_the_groups_only_the_own_user_and_root_may() {
        let rules = rules(None, None);
        assert!(!rules.allows(1000, &[10], Right::Complete));
        assert!(rules.allows(500, &[], Right::Control));
        let stranger = Caller { uid: 4_000_000, groups: [10].into() };
        let error = rules.check(&stranger, Right::Control).await.unwrap_err();
        assert_eq!(error.status, 403);
        assert!(error.message.contains("omni-admin"), "{error}");
    }
}
