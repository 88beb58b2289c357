//! One model's process: engine thread, tokenizer, HTTP on a private Unix socket. Started by the daemon as
//! `omni-inferd worker`, with descriptor 3 the listening socket, descriptor 4 the control channel ([`protocol`]) and
//! descriptor 5 the channel to the daemon's vault ([`crate::vault`]).
//!
//! It ends when told to, when the daemon is gone (end of file on the control channel), or when its model cannot be
//! loaded; a file or setting that makes loading impossible is reported as refused, so that nobody starts it again.

mod control;
mod load;
pub mod protocol;
mod vault;

use crate::api::control::{ExpertChoices, LayerChoices};
use crate::api::http::{Limits, serve};
use crate::api::{self, Served};
use crate::engine::Handle;
use crate::sys::memory::limit_growth;
use control::{Control, Reporter};
use protocol::{Report, Spec};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use vault::Vault;

/// Exit status: drained or stopped as told.
pub const EXIT_OK: i32 = 0;
/// Exit status: the model was refused, the reason reported.
pub const EXIT_REFUSED: i32 = 78;
/// Exit status: something failed that may go better next time.
pub const EXIT_FAILED: i32 = 70;

/// Bytes of memory that a worker may take beyond what it has when its model is loaded: requests and their prompts. At least
/// so many, and as many times `max_body_bytes` as they are of its default: eight bodies may be in memory, each of which
/// becomes text, tokens and templates' values.
const GROWTH: u64 = 4 << 30;
const GROWTH_BY_BODY: u64 = 128;

/// Well below the shortest `heartbeat_timeout` that a configuration may ask for.
const HEARTBEAT: Duration = Duration::from_millis(200);
/// Heartbeats between two reports of experts, which are long for models with many.
const EXPERTS_EVERY: u32 = 25;
/// Threads that serve HTTP; the engine has its own.
const HTTP_THREADS: usize = 2;
/// Threads that tokenize and render large requests; more would take cores from the engine.
const PREPARE_THREADS: usize = 2;

/// Runs a worker on its inherited descriptors until it is to end; returns its exit status. Must be called before the
/// process opens any descriptor of its own.
pub fn run() -> i32 {
    let [listener, control, vault] = match crate::sys::inherit::take() {
        Ok(descriptors) => descriptors,
        Err(error) => {
            tracing::error!(%error, "a worker is started by the daemon, with its socket and channels open");
            return EXIT_FAILED;
        }
    };
    if let Err(error) = crate::sys::process::prefer_for_oom_kill() {
        tracing::debug!(%error, "this worker is not offered to the kernel first when memory runs out");
    }
    serve_model(listener.into(), control.into(), Some(vault), true)
}

/// Runs a worker on a listening socket and a control channel, without a vault; returns its exit status. The process's
/// memory is not limited: it may have other work to do.
pub fn run_on(listener: UnixListener, control: UnixStream) -> i32 {
    serve_model(listener, control, None, false)
}

fn serve_model(listener: UnixListener, control: UnixStream, vault: Option<OwnedFd>, limited: bool) -> i32 {
    let (spec, reporter, control) = match control::begin(control) {
        Ok(begun) => begun,
        Err(error) => {
            tracing::error!(%error, "the control channel gave no model to load");
            return EXIT_FAILED;
        }
    };
    let reporter = Arc::new(reporter);
    let vault = Vault::new(vault.filter(|_| spec.vault));
    let growth = limited.then(|| growth(spec.max_body_bytes));
    let reason = match work(listener, (spec, vault), &reporter, control, growth) {
        Ok(()) => return EXIT_OK,
        Err(reason) => reason,
    };
    match reason {
        Failure::Refused(error) => {
            tracing::error!("{error}");
            reporter.send(&Report::Refused { error, for_now: false });
            EXIT_REFUSED
        }
        Failure::Short(error) => {
            tracing::error!("{error}");
            reporter.send(&Report::Refused { error, for_now: true });
            EXIT_REFUSED
        }
        Failure::Failed(error) => {
            tracing::error!("{error}");
            EXIT_FAILED
        }
    }
}

fn growth(max_body_bytes: usize) -> u64 {
    GROWTH.max(GROWTH_BY_BODY.saturating_mul(max_body_bytes as u64))
}

/// Why a worker ends without having been told to.
#[derive(Debug)]
enum Failure {
    /// Trying again cannot help.
    Refused(String),
    /// There is too little memory now.
    Short(String),
    /// Trying again may.
    Failed(String),
}

impl Failure {
    fn failed(what: &str, error: impl std::fmt::Display) -> Self {
        Failure::Failed(format!("{what}: {error}"))
    }
}

fn work(
    listener: UnixListener,
    (spec, mut vault): (Spec, Vault),
    reporter: &Arc<Reporter>,
    control: Control,
    growth: Option<u64>,
) -> Result<(), Failure> {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(HTTP_THREADS).max_blocking_threads(PREPARE_THREADS).thread_name("http").enable_all();
    let runtime = runtime.build();
    let runtime = runtime.map_err(|error| Failure::failed("cannot start the threads that serve HTTP", error))?;
    runtime.block_on(async { ignore_signals() }).map_err(|error| Failure::failed("cannot handle signals", error))?;
    let (handle, served) = load::load(spec, &mut vault, reporter)?;
    // All that the model needs is reserved by now; what grows beyond this is a bug or a hostile chat template.
    if let Some(Err(error)) = growth.map(limit_growth) {
        tracing::warn!(%error, "the worker's memory cannot be limited");
    }
    let info = Box::new(served.info.clone());
    let result = runtime.block_on(async {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::UnixListener::from_std(listener)?;
        reporter.send(&Report::Ready { info });
        vault.tell_pages(reporter);
        std::io::Result::Ok(tokio::select! {
            () = answer(listener, Arc::new(served), control) => Ok(()),
            () = heartbeat(&handle, reporter) => Err(Failure::Failed("the engine thread died; see the log".into())),
        })
    });
    // Ends the heartbeat before the engine, which would look dead.
    drop(runtime);
    handle.shutdown();
    result.map_err(|error| Failure::failed("cannot listen on the socket", error))?
}

/// Serves until told to drain, then until the running answers are complete.
async fn answer(listener: tokio::net::UnixListener, served: Arc<Served>, control: Control) {
    let limits = Limits {
        // Only the daemon connects; it has limits of its own, and keeps connections for later.
        max_connections: 16384,
        header_timeout: Duration::from_secs(30),
        idle_timeout: Duration::from_secs(600),
        write_timeout: Duration::from_secs(600),
        drain_timeout: None,
    };
    let handler = move |request| api::router::handle(served.clone(), request);
    serve(listener, handler, limits, control.drained()).await;
}

/// Sends figures; ends when the engine has died. Its streams got their error event then, and a fresh process is better
/// than this one.
async fn heartbeat(handle: &Handle, reporter: &Reporter) {
    let mut ticks = tokio::time::interval(HEARTBEAT);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut told, mut pause) = (None, 0);
    loop {
        ticks.tick().await;
        if handle.is_dead() {
            return;
        }
        let stats = handle.stats();
        let steps = Some(stats.steps_total);
        reporter.send(&Report::Heartbeat { stats });
        if pause == 0
            && steps != told
            && let Some(choices) = experts(handle)
        {
            reporter.send(&Report::Experts { choices });
            (told, pause) = (steps, EXPERTS_EVERY);
        }
        pause = pause.saturating_sub(1);
    }
}

/// What the engine has counted.
fn experts(handle: &Handle) -> Option<ExpertChoices> {
    let routing = handle.routing()?;
    let layers = routing.layers().map(|(layer, chosen)| LayerChoices { layer, chosen }).collect();
    Some(ExpertChoices { used: routing.used(), layers })
}

/// A service manager signals all processes of a unit at once; it is the daemon that decides when a worker ends.
fn ignore_signals() -> std::io::Result<()> {
    for kind in [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()] {
        let mut signals = signal(kind)?;
        tokio::spawn(async move { while signals.recv().await.is_some() {} });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
