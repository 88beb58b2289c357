//! Listening and draining: takes connections off its listeners until it is told to stop, then waits for the running
//! answers. Called by `cli` and by tests; signals are `cli`'s.

use super::connection;
use super::forward::Shared;
use super::keys;
use crate::config::proxy::Proxy;
use futures_util::future::join_all;
use nix::sys::socket::{setsockopt, sockopt};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Connections the kernel may hold before they are accepted.
const BACKLOG: u32 = 4096;
/// Pause after an accept that failed for lack of descriptors or memory.
const BREATH: Duration = Duration::from_millis(50);
/// How often idle connections and memory are looked through.
const PRUNE: Duration = Duration::from_secs(1);

/// Connections that leave memory worth returning: each costs about 50 KiB while it streams (tests/proxy/crowd.rs).
const CROWD: usize = 128;

/// Why the proxy cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {source}; is the address right, and the port free and allowed?")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's reason.
        source: io::Error,
    },
    /// An inherited socket cannot be used.
    #[error("cannot use a socket passed by the service manager: {0}")]
    Inherited(io::Error),
    /// The key file is wrong.
    #[error(transparent)]
    Keys(#[from] keys::Error),
}

/// A proxy that listens.
pub struct Server {
    listeners: Vec<TcpListener>,
    handle: Handle,
}

/// Reaches into a running [`Server`].
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
    stop: Arc<watch::Sender<bool>>,
    addresses: Vec<SocketAddr>,
}

impl Server {
    /// Takes the `inherited` listeners, or binds the configured addresses when there are none.
    pub fn bind(config: Proxy, inherited: Vec<std::net::TcpListener>) -> Result<Self, Error> {
        let shared = Shared::new(config)?;
        let mut listeners = Vec::new();
        for listener in inherited {
            listener.set_nonblocking(true).map_err(Error::Inherited)?;
            listeners.push(TcpListener::from_std(listener).map_err(Error::Inherited)?);
        }
        if listeners.is_empty() {
            for &address in &shared.config.listen {
                listeners.push(listen(address).map_err(|source| Error::Listen { address, source })?);
            }
        }
        let addresses = listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect();
        let handle = Handle { shared, stop: Arc::new(watch::Sender::new(false)), addresses };
        Ok(Server { listeners, handle })
    }

    /// See [`Handle`].
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Serves until [`Handle::stop`], then until the running answers are over. Returns how many connections were cut
    /// because that took longer than `drain_timeout`.
    pub async fn run(self) -> usize {
        let Server { listeners, handle } = self;
        let pruning = tokio::spawn(prune(handle.shared.clone()));
        let cut = join_all(listeners.into_iter().map(|listener| accept(listener, handle.clone()))).await;
        pruning.abort();
        cut.into_iter().sum()
    }
}

impl Handle {
    /// Where the proxy listens.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Client connections now.
    pub fn connections(&self) -> usize {
        self.shared.gate.connections()
    }

    /// Takes no further connection or request; running answers finish.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Reads the key file again and returns the number of keys. A wrong file changes nothing.
    pub fn reload_keys(&self) -> Result<usize, keys::Error> {
        self.shared.reload_keys()
    }
}

/// Tidies up now and then: closes idle connections to the daemon, and returns the memory of a crowd that left.
async fn prune(shared: Arc<Shared>) {
    let mut peak = 0;
    loop {
        tokio::time::sleep(PRUNE).await;
        shared.prune();
        let now = shared.gate.connections();
        peak = peak.max(now);
        if peak >= CROWD && now <= peak / 4 {
            _ = tokio::task::spawn_blocking(crate::sys::heap::trim).await;
            peak = now;
        }
    }
}

/// Resolves once the proxy is told to stop, or is gone.
pub(super) async fn stopped(stop: &mut watch::Receiver<bool>) {
    _ = stop.wait_for(|stop| *stop).await;
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// One listener's life. Returns how many of its connections were cut.
async fn accept(listener: TcpListener, handle: Handle) -> usize {
    let mut connections = JoinSet::new();
    let mut stop = handle.stop.subscribe();
    loop {
        tokio::select! {
            () = stopped(&mut stop) => break,
            Some(ended) = connections.join_next() => report_panic(ended),
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => admit(&handle, stream, peer, &mut connections),
                Err(error) => {
                    tracing::warn!("cannot accept a connection: {error}");
                    tokio::time::sleep(BREATH).await;
                }
            },
        }
    }
    drop(listener);
    let all = async { while connections.join_next().await.is_some() {} };
    match tokio::time::timeout(handle.shared.config.drain_timeout, all).await {
        Ok(()) => 0,
        Err(_) => {
            let cut = connections.len();
            connections.shutdown().await;
            cut
        }
    }
}

/// Starts serving a connection, or closes it.
fn admit(handle: &Handle, stream: TcpStream, peer: SocketAddr, connections: &mut JoinSet<()>) {
    match handle.shared.gate.admit(peer.ip()) {
        Ok(pass) => {
            prepare(&stream, handle.shared.config.write_timeout);
            let serving = connection::serve(stream, peer, handle.shared.clone(), handle.stop.subscribe());
            connections.spawn(async move {
                serving.await;
                drop(pass);
            });
        }
        Err(refusal) => {
            tracing::debug!(%peer, "refused: {refusal:?}");
            // As much as fits without waiting; the connection is closed either way.
            _ = stream.try_write(&refusal.raw());
        }
    }
}

/// Tokens leave at once; a client whose network died is noticed.
fn prepare(stream: &TcpStream, write_timeout: Duration) {
    let milliseconds = u32::try_from(write_timeout.as_millis()).unwrap_or(u32::MAX);
    let set = stream.set_nodelay(true).is_ok()
        & setsockopt(stream, sockopt::KeepAlive, &true).is_ok()
        & setsockopt(stream, sockopt::TcpKeepIdle, &60).is_ok()
        & setsockopt(stream, sockopt::TcpUserTimeout, &milliseconds).is_ok();
    if !set {
        tracing::debug!("a socket option could not be set");
    }
}

fn report_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!("a connection's task failed: {error}");
    }
}
