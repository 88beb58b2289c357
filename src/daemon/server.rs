//! The daemon's start and end: logging, sockets, the HTTP server, exit codes. In between runs `main_loop`.

use super::access::{Access, Door};
use super::exit;
use super::log::{self, Filter};
use super::logs::Logs;
use super::main_loop::{Main, Signals};
use super::model::{Order, Shared};
use super::process::{Program, Spawner};
use super::registry::Registry;
use super::router::{App, handle};
use super::vault::{self, Vault};
use crate::api::http::{Limits, serve};
use crate::config::{self, Config};
use crate::sys::listen;
use crate::sys::net::{BindError, Bound, MAX_SOCKET_PATH};
use crate::sys::notify;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};
use tokio::net::UnixListener;
use tokio::sync::{broadcast, mpsc, oneshot};

/// After the last stream: how long connections may take to hand over what is written.
const FLUSH: Duration = Duration::from_secs(2);
/// A connection that asks nothing is closed after.
const IDLE: Duration = Duration::from_secs(120);
/// A client that takes nothing of its answer for so long is cut, so that it does not hold up the unloading of a model.
const STALL: Duration = Duration::from_secs(60);
/// How often the socket's file is looked after.
const SOCKET_CHECK: Duration = Duration::from_millis(500);
/// Events that a slow reader may lag behind.
const EVENTS: usize = 256;
/// Bytes that a worker's socket adds to the path of its directory.
const WORKER_SOCKET: usize = 16;

/// Where the configuration came from, to be read again.
pub enum Source {
    /// This file, or whatever is found.
    Search(Option<PathBuf>),
    /// Nowhere: it was made from the command line.
    Fixed,
}

/// What to run.
pub struct Options {
    /// Checked.
    pub config: Config,
    /// Its origin.
    pub source: Source,
    /// Worker instead of this program.
    pub program: Option<PathBuf>,
}

/// Why the daemon could not start.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error("the sockets passed by the service manager cannot be used: {0}")]
    Inherited(std::io::Error),
    #[error("{what}: {source}")]
    Io { what: String, source: std::io::Error },
}

impl StartError {
    fn exit_code(&self) -> u8 {
        let denied = |error: &std::io::Error| error.kind() == std::io::ErrorKind::PermissionDenied;
        match self {
            Self::Bind(BindError::InUse { .. }) => exit::TEMPFAIL,
            Self::Bind(BindError::ForeignDirectory { .. }) => exit::NOPERM,
            Self::Bind(BindError::NotASocket { .. } | BindError::TooLong { .. }) | Self::Inherited(_) => exit::CONFIG,
            Self::Bind(BindError::Io { source, .. }) | Self::Io { source, .. } if denied(source) => exit::NOPERM,
            Self::Bind(BindError::Io { .. }) | Self::Io { .. } => exit::SOFTWARE,
        }
    }
}

fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> StartError {
    let what = what.into();
    |source| StartError::Io { what, source }
}

/// Runs the daemon until it is told to end.
pub fn run(options: Options) -> ExitCode {
    let logs = Logs::default();
    let filter = log::start_daemon(&options.config.daemon.log, &logs);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let result = runtime.map_err(io("the asynchronous runtime cannot be started")).and_then(|runtime| {
        let result = runtime.block_on(start(options, filter, logs));
        runtime.shutdown_timeout(FLUSH);
        result
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("cannot start: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

/// Sockets and the directory of the workers' ones; the files vanish with it.
struct Place {
    listeners: Vec<UnixListener>,
    socket: PathBuf,
    run_directory: PathBuf,
    bound: Option<Bound>,
    /// What an earlier daemon left with the service manager.
    stored: Vec<(String, OwnedFd)>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.run_directory);
    }
}

fn open(config: &Config, access: &Access) -> Result<Place, StartError> {
    let inherited = listen::inherited_unix(vault::STORED).map_err(StartError::Inherited)?;
    let (mut inherited, stored) = (inherited.listeners, inherited.stored);
    let mut socket = config.daemon.socket.clone();
    let mut bound = None;
    if inherited.is_empty() {
        let (own, listener) = Bound::bind(&socket)?;
        if let Err(error) = own.share(access.socket_group()) {
            tracing::warn!(%error, "the socket cannot be given to group '{}'; only this user can connect", config.daemon.group);
        }
        bound = Some(own);
        inherited.push(listener);
    } else if let Some(path) = inherited[0].local_addr().ok().as_ref().and_then(|address| address.as_pathname()) {
        socket = path.into();
    }
    // Only one daemon serves a socket, so what lies beside it is left over from an earlier one.
    let run_directory = socket.with_added_extension("d");
    let length = run_directory.as_os_str().len() + WORKER_SOCKET;
    if length > MAX_SOCKET_PATH {
        return Err(BindError::TooLong { path: run_directory.join("0.sock"), length }.into());
    }
    let _ = std::fs::remove_dir_all(&run_directory);
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&run_directory)
        .map_err(io(format!("cannot make {}", run_directory.display())))?;
    let listeners = inherited
        .into_iter()
        .map(|listener| {
            listener.set_nonblocking(true)?;
            UnixListener::from_std(listener)
        })
        .collect::<Result<_, _>>()
        .map_err(io("the socket cannot be listened on"))?;
    Ok(Place { listeners, socket, run_directory, bound, stored })
}

async fn start(options: Options, filter: Filter, logs: Logs) -> Result<(), StartError> {
    let Options { mut config, source, program } = options;
    // Before anything that takes time: a signal that comes meanwhile must not kill the process half-way.
    let signals = Signals::new().map_err(io("signals cannot be handled"))?;
    let access = Access::new(&config.daemon);
    let mut place = open(&config, &access)?;
    config.daemon.socket.clone_from(&place.socket);
    let mut program_of = Program::this(&config.daemon.log);
    program_of.path = program.unwrap_or(program_of.path);
    let kept = Arc::new(Vault::default());
    kept.switch(config.daemon.vault);
    kept.restore(std::mem::take(&mut place.stored));
    let shared = Arc::new(Shared {
        settings: RwLock::new(Arc::new(config.daemon.clone())),
        program: RwLock::new(program_of),
        spawner: Spawner::start().map_err(io("the spawning thread cannot be started"))?,
        run_directory: place.run_directory.clone(),
        next_socket: AtomicU64::new(0),
        vault: kept,
        events: broadcast::channel(EVENTS).0,
        draining: false.into(),
    });
    let (reload, reloads) = mpsc::channel(4);
    let app = Arc::new(App {
        registry: Registry::new(shared, config.models.clone()),
        config: RwLock::new(Arc::new(config)),
        access: RwLock::new(Arc::new(access)),
        logs,
        started: Instant::now(),
        requests: AtomicU64::new(0),
        bodies: Arc::default(),
        reload,
    });
    let (stop, stopped) = oneshot::channel::<()>();
    let (renewed, coming) = mpsc::channel(1);
    let keeper = place.bound.take().map(|bound| tokio::spawn(keep_bound(bound, app.clone(), renewed)));
    let server = tokio::spawn(serve(
        Door::new(std::mem::take(&mut place.listeners), coming),
        {
            let app = app.clone();
            move |request| handle(app.clone(), request)
        },
        limits(&app.config().daemon),
        async move { drop(stopped.await) },
    ));
    tokio::spawn(vault::look_after(app.clone()));
    greet(&app);
    notify::ready();
    for model in app.registry.models().into_iter().filter(|model| model.settings().preload) {
        model.order(Order::Load).await;
    }
    Main::new(app, source, filter, signals, reloads).run().await;
    let _ = stop.send(());
    let _ = server.await;
    if let Some(keeper) = keeper {
        // The socket's file goes with it.
        keeper.abort();
        let _ = keeper.await;
    }
    tracing::info!("stopped");
    Ok(())
}

/// Looks after the socket's file: where it is deleted or replaced, nobody could connect any more, so it is bound again.
/// Another daemon that answers there is left alone. Never ends.
async fn keep_bound(mut bound: Bound, app: Arc<App>, renewed: mpsc::Sender<UnixListener>) {
    let mut failed = false;
    let mut ticks = tokio::time::interval(SOCKET_CHECK);
    loop {
        ticks.tick().await;
        for model in app.registry.models().into_iter().filter(|model| model.is_cut_off()) {
            model.say(tracing::Level::WARN, "its worker's socket was deleted; starting it again after its requests");
            model.order(Order::Unload { force: false }).await;
            model.order(Order::Load).await;
        }
        if !bound.is_lost() {
            failed = false;
            continue;
        }
        let socket = app.config().daemon.socket.display().to_string();
        let listener = bound.rebind().map_err(|error| error.to_string()).and_then(|listener| {
            let _ = listener.set_nonblocking(true);
            UnixListener::from_std(listener).map_err(|error| error.to_string())
        });
        match listener {
            Ok(listener) => {
                if let Err(error) = bound.share(app.access().socket_group()) {
                    tracing::warn!(%error, "the socket cannot be given to its group; only this user can connect");
                }
                tracing::warn!("{socket} was deleted or replaced; it is bound again");
                let _ = renewed.send(listener).await;
            }
            Err(error) if !failed => {
                failed = true;
                tracing::error!("{socket} was deleted or replaced and cannot be bound again: {error}");
            }
            Err(_) => {}
        }
    }
}

fn limits(daemon: &config::Daemon) -> Limits {
    Limits {
        max_connections: daemon.max_connections,
        header_timeout: daemon.header_timeout,
        idle_timeout: IDLE,
        write_timeout: STALL,
        drain_timeout: Some(FLUSH),
    }
}

fn greet(app: &App) {
    let config = app.config();
    let origin = config.source.as_ref().map_or("no configuration file".into(), |path| path.display().to_string());
    let models: Vec<&str> = config.models.iter().map(|model| model.id.as_str()).collect();
    let models = if models.is_empty() { "no models yet".into() } else { format!("models: {}", models.join(", ")) };
    tracing::info!(
        "omni-inferd {} listens on {} ({origin}; {models})",
        env!("CARGO_PKG_VERSION"),
        config.daemon.socket.display()
    );
}
