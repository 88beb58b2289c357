//! The daemon's main loop: signals, reading the configuration again, draining, and what the service manager wants to
//! hear. Started by `server` when everything else runs.

use super::access::Access;
use super::log::Filter;
use super::router::{App, ReloadRequest};
use super::server::Source;
use super::supervisor;
use crate::api::control::{Event, ModelState, Reloaded};
use crate::api::error::ApiError;
use crate::config::{self, Config};
use crate::sys::notify;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

/// Who signals the process and then its group (`timeout`, a terminal's `kill %1`) gives one order, not two.
const ONE_ORDER: Duration = Duration::from_millis(100);

/// The signals that the daemon heeds.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    /// From here on they no longer kill the process.
    ///
    /// # Errors
    /// The kernel refuses a handler.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// What the next signal asks for.
    async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::End("SIGTERM"),
            _ = self.interrupt.recv() => Asked::End("SIGINT"),
            _ = self.hangup.recv() => Asked::Reload,
        }
    }

    /// The next signal that asks for the end.
    async fn end(&mut self) -> &'static str {
        loop {
            if let Asked::End(signal) = self.next().await {
                return signal;
            }
        }
    }
}

/// What a signal asks for.
enum Asked {
    End(&'static str),
    Reload,
}

/// The main loop.
pub struct Main {
    app: Arc<App>,
    source: Source,
    filter: Filter,
    signals: Signals,
    reloads: mpsc::Receiver<ReloadRequest>,
    /// The status line last told to the service manager.
    told: String,
}

impl Main {
    /// A loop that has not begun.
    pub fn new(
        app: Arc<App>,
        source: Source,
        filter: Filter,
        signals: Signals,
        reloads: mpsc::Receiver<ReloadRequest>,
    ) -> Self {
        Self { app, source, filter, signals, reloads, told: String::new() }
    }

    /// Until a signal to end; returns when everything is drained, or at once at a second one.
    pub async fn run(&mut self) {
        let app = self.app.clone();
        tokio::select! {
            () = self.turn() => {}
            () = watchdog(&app) => {}
        }
    }

    async fn turn(&mut self) {
        let mut second = tokio::time::interval(Duration::from_secs(1));
        loop {
            tokio::select! {
                asked = self.signals.next() => match asked {
                    Asked::End(signal) => return self.drain(signal).await,
                    Asked::Reload => drop(self.reload().await),
                },
                Some(answer) = self.reloads.recv() => drop(answer.send(self.reload().await)),
                _ = second.tick() => self.tell_status(),
            }
        }
    }

    async fn drain(&mut self, signal: &str) {
        let grace = self.app.registry.shared.settings().drain_timeout;
        let active: u64 = self.app.registry.models().iter().map(|model| model.active()).sum();
        tracing::info!("{signal}: stopping; {active} requests may finish within {:.0} s", grace.as_secs_f64());
        notify::stopping();
        notify::extend_timeout(grace + Duration::from_secs(15));
        notify::status("Finishing running requests");
        let shared = &self.app.registry.shared;
        shared.draining.store(true, Ordering::Release);
        let _ = shared.events.send(Event::Stopping);
        let close = self.app.registry.close(grace);
        let again = async {
            let begun = tokio::time::Instant::now();
            loop {
                let signal = self.signals.end().await;
                if begun.elapsed() >= ONE_ORDER {
                    return signal;
                }
            }
        };
        tokio::select! {
            () = close => {}
            signal = again => tracing::warn!("{signal}: stopping at once"),
        }
    }

    /// Reads the configuration again; a wrong one leaves everything as it is.
    async fn reload(&mut self) -> Result<Reloaded, ApiError> {
        notify::reloading();
        let result = self.reread().await;
        match &result {
            Ok(changes) => tracing::info!("configuration read again: {}", describe(changes)),
            Err(error) => tracing::error!("configuration not changed: {error}"),
        }
        notify::ready();
        result
    }

    async fn reread(&self) -> Result<Reloaded, ApiError> {
        let Source::Search(path) = &self.source else {
            return Err(ApiError::conflict("the daemon was started for one file; there is no configuration to read"));
        };
        let path = path.clone();
        let read = tokio::task::spawn_blocking(move || config::load(path.as_deref())).await;
        let read = read.map_err(|error| ApiError::internal(format!("reading the configuration: {error}")))?;
        let config = read.map_err(|error| ApiError::bad_request(error.to_string()).code("invalid_configuration"))?;
        let app = &self.app;
        self.filter.set(&config.daemon.log);
        app.registry.shared.program.write().unwrap_or_else(PoisonError::into_inner).log.clone_from(&config.daemon.log);
        *app.access.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(Access::new(&config.daemon));
        app.registry.shared.vault.switch(config.daemon.vault);
        let changes = app.registry.apply(config.clone()).await;
        *app.config.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(self.as_in_force(config));
        let _ = app.registry.shared.events.send(Event::Reloaded { changes: changes.clone() });
        Ok(changes)
    }

    /// The socket does not move before a restart.
    fn as_in_force(&self, mut config: Config) -> Config {
        config.daemon.socket.clone_from(&self.app.config().daemon.socket);
        config
    }

    /// One line for `systemctl status`, when it changed.
    fn tell_status(&mut self) {
        let line = status_line(&self.app);
        if line != self.told {
            notify::status(&line);
            self.told = line;
        }
    }
}

fn status_line(app: &App) -> String {
    let models: Vec<String> = app
        .registry
        .models()
        .iter()
        .map(|model| match model.state() {
            ModelState::Loading => {
                format!("{} loading {}%", model.id(), supervisor::percent(model.status().progress))
            }
            state => format!("{} {}", model.id(), state.name()),
        })
        .collect();
    if models.is_empty() { "No models".into() } else { models.join(", ") }
}

fn describe(changes: &Reloaded) -> String {
    let lists = [
        ("added", &changes.added),
        ("removed", &changes.removed),
        ("changed", &changes.changed),
        ("needs a restart", &changes.needs_restart),
    ];
    let parts: Vec<String> = lists
        .iter()
        .filter(|(_, ids)| !ids.is_empty())
        .map(|(what, ids)| format!("{what}: {}", ids.join(", ")))
        .collect();
    if parts.is_empty() { "nothing changed".into() } else { parts.join("; ") }
}

/// Tells the service manager that daemon and supervisors are alive, as often as it wants. Runs in the main loop's own
/// task, so it stands still when that does. Never ends.
async fn watchdog(app: &App) {
    let Some(interval) = notify::watchdog_interval() else { return std::future::pending().await };
    // Thrice per interval: one late beat is no reason to be killed.
    let mut ticks = tokio::time::interval(interval / 3);
    loop {
        ticks.tick().await;
        if app.registry.alive(interval / 3).await {
            notify::watchdog();
        } else {
            tracing::error!("a model's supervisor does not answer; the watchdog is not fed");
        }
    }
}
