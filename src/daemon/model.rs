//! One model as the rest of the daemon sees it: its settings, its state, the requests in flight. Shared by the router,
//! the control API and the supervisor's task, which alone changes the state.

use super::logs::Logs;
use super::process::Program;
use super::supervisor;
use crate::api::control::{Event, ExpertChoices, ModelInfo, ModelState, ModelStatus, Progress, Stats};
use crate::config;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, broadcast, mpsc, oneshot, watch};
use tracing::Level;

/// Orders that wait for a supervisor's task.
const QUEUE: usize = 64;

/// What all models share.
pub struct Shared {
    /// The daemon's settings; replaced at a reload.
    pub settings: RwLock<Arc<config::Daemon>>,
    /// What is started for a worker.
    pub program: RwLock<Program>,
    /// The thread that starts it.
    pub spawner: super::process::Spawner,
    /// Where workers' private sockets lie.
    pub run_directory: PathBuf,
    /// Numbers these sockets.
    pub next_socket: AtomicU64,
    /// Weights that outlive workers.
    pub vault: Arc<super::vault::Vault>,
    /// For `/control/v1/events`.
    pub events: broadcast::Sender<Event>,
    /// No model is loaded any more.
    pub draining: AtomicBool,
}

impl Shared {
    /// The settings that apply now.
    pub fn settings(&self) -> Arc<config::Daemon> {
        self.settings.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What to start for a worker, now.
    pub fn program(&self) -> Program {
        self.program.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// An order for a model's task.
#[derive(Debug)]
pub enum Order {
    /// See [`super::lifecycle::Input::Load`].
    Load,
    /// See [`super::lifecycle::Input::Want`].
    Want,
    /// See [`super::lifecycle::Input::Unload`].
    Unload {
        /// Cut streams.
        force: bool,
    },
    /// The settings changed.
    Configure,
    /// Unload, then end the task.
    Retire,
    /// Prove to be alive.
    Pulse(oneshot::Sender<()>),
}

/// What the supervisor's task knows.
#[derive(Debug, Default)]
pub(super) struct Facts {
    pub error: Option<String>,
    pub progress: Option<Progress>,
    pub pid: Option<u32>,
    pub restarts: u64,
    pub spawned: Option<Instant>,
    pub ready: Option<Instant>,
    pub load_time: Option<Duration>,
    pub retry_at: Option<Instant>,
    pub info: Option<ModelInfo>,
    pub stats: Option<Stats>,
    /// The living worker's last report of them.
    pub experts: Option<ExpertChoices>,
    /// Counters of workers that are gone.
    pub past: Stats,
    /// Where the ready worker serves.
    endpoint: Option<PathBuf>,
    active: u64,
}

/// A model. Always behind an [`Arc`].
pub struct Model {
    settings: RwLock<Arc<config::Model>>,
    facts: Mutex<Facts>,
    state: watch::Sender<ModelState>,
    orders: mpsc::Sender<Order>,
    /// Wakes the task when the last request ended.
    pub(super) idle: Notify,
    /// Named by no configuration file.
    pub ad_hoc: AtomicBool,
    /// Requests routed to it since the daemon started.
    pub routed: AtomicU64,
    /// Answers cut off by its worker's death.
    pub cut: AtomicU64,
    /// The last log lines: its life as the daemon saw it, and its workers' own.
    pub logs: Logs,
}

impl Model {
    /// A model without a worker, and its task, which ends after [`Order::Retire`].
    pub fn start(
        settings: config::Model,
        ad_hoc: bool,
        shared: Arc<Shared>,
    ) -> (Arc<Self>, impl Future<Output = ()> + Send) {
        let (orders, queued) = mpsc::channel(QUEUE);
        let model = Arc::new(Self {
            settings: RwLock::new(Arc::new(settings)),
            facts: Mutex::default(),
            state: watch::channel(ModelState::Unloaded).0,
            orders,
            idle: Notify::new(),
            ad_hoc: ad_hoc.into(),
            routed: AtomicU64::new(0),
            cut: AtomicU64::new(0),
            logs: Logs::default(),
        });
        (model.clone(), supervisor::run(model, shared, queued))
    }

    /// Settings that apply at the next load (names and idle time: at once).
    pub fn settings(&self) -> Arc<config::Model> {
        self.settings.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces the settings.
    pub async fn configure(&self, settings: config::Model) {
        *self.settings.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(settings);
        self.order(Order::Configure).await;
    }

    /// Id.
    pub fn id(&self) -> String {
        self.settings().id.clone()
    }

    /// Whether clients may mean this model by `name`.
    pub fn answers_to(&self, name: &str) -> bool {
        let settings = self.settings();
        settings.id == name || settings.aliases.iter().any(|alias| alias == name)
    }

    /// State.
    pub fn state(&self) -> ModelState {
        *self.state.borrow()
    }

    /// The state, to be waited for.
    pub fn watch(&self) -> watch::Receiver<ModelState> {
        self.state.subscribe()
    }

    /// Gives an order; waits for room in the queue.
    pub async fn order(&self, order: Order) {
        // The task ends only after `Retire`; orders to a retired model are void.
        let _ = self.orders.send(order).await;
    }

    pub(super) fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes what the supervisor found: state, endpoint (ready only) and facts in one step. Answers the number of
    /// requests in flight, to which none is added while there is no endpoint.
    pub(super) fn publish(&self, state: ModelState, endpoint: Option<PathBuf>, set: impl FnOnce(&mut Facts)) -> u64 {
        let mut facts = self.facts();
        set(&mut facts);
        facts.endpoint = endpoint;
        let active = facts.active;
        self.state.send_if_modified(|old| std::mem::replace(old, state) != state);
        active
    }

    /// A place for one request, when the model is ready. The worker is not drained before it is dropped.
    pub fn lease(self: &Arc<Self>) -> Option<Lease> {
        let mut facts = self.facts();
        let endpoint = facts.endpoint.clone()?;
        facts.active += 1;
        drop(facts);
        self.routed.fetch_add(1, Ordering::Relaxed);
        Some(Lease { model: self.clone(), endpoint })
    }

    /// A worker's connection broke: it is probably dead, and the supervisor will hear of it in a moment. Until then no
    /// request is sent there. Should it live, its next heartbeat opens the door again.
    pub fn suspect(&self, endpoint: &Path) {
        let mut facts = self.facts();
        if facts.endpoint.as_deref() == Some(endpoint) {
            facts.endpoint = None;
        }
    }

    /// Logs something about this model, also among its own lines.
    pub fn say(&self, level: Level, text: &str) {
        super::log::model_line(level, &self.id(), text, &self.logs);
    }

    /// Whether it is ready and the file of its worker's socket is gone: running answers go on, new ones cannot begin.
    pub fn is_cut_off(&self) -> bool {
        let endpoint = self.facts().endpoint.clone();
        endpoint.is_some_and(|endpoint| !endpoint.exists())
    }

    /// Requests in flight.
    pub fn active(&self) -> u64 {
        self.facts().active
    }

    /// Why it is failed or restarting.
    pub fn error(&self) -> Option<String> {
        self.facts().error.clone()
    }

    /// When a client should ask again.
    pub fn retry_after(&self) -> Duration {
        let facts = self.facts();
        let pause = facts.retry_at.map(|at| at.saturating_duration_since(Instant::now()));
        // A restart takes about as long as the last load did.
        (pause.unwrap_or_default() + facts.load_time.unwrap_or_default()).max(Duration::from_secs(1))
    }

    /// Whether it failed, but a later request may try it again.
    pub fn is_failed_for_now(&self) -> bool {
        self.state() == ModelState::Failed && self.facts().retry_at.is_some()
    }

    /// Whether it failed for now, and the time has come for a request to try it again.
    pub fn may_retry(&self) -> bool {
        self.facts().retry_at.is_some_and(|at| at <= Instant::now())
    }

    /// Counters over all workers of this model, with the present figures of the last one.
    pub fn totals(&self) -> Stats {
        let facts = self.facts();
        add_counters(&facts.past, facts.stats.as_ref().unwrap_or(&Stats::default()))
    }

    /// How often its worker chose each expert; `None` for a model without experts, and before the worker has told.
    pub fn experts(&self) -> Option<ExpertChoices> {
        self.facts().experts.clone()
    }

    /// The model as the control API shows it.
    pub fn status(&self) -> ModelStatus {
        let settings = self.settings();
        let facts = self.facts();
        ModelStatus {
            id: settings.id.clone(),
            aliases: settings.aliases.clone(),
            path: settings.path.display().to_string(),
            state: self.state(),
            pinned: settings.pinned,
            error: facts.error.clone(),
            progress: facts.progress,
            pid: facts.pid,
            restarts: facts.restarts,
            uptime_seconds: facts.ready.map(|at| at.elapsed().as_secs_f64()),
            load_seconds: facts.load_time.map(|time| time.as_secs_f64()),
            active_requests: facts.active,
            info: facts.info.clone(),
            stats: facts.stats.clone(),
        }
    }
}

/// The sum of two sets of counters; figures of the moment are those of `now`.
pub(super) fn add_counters(past: &Stats, now: &Stats) -> Stats {
    Stats {
        prompt_tokens_total: past.prompt_tokens_total + now.prompt_tokens_total,
        cached_tokens_total: past.cached_tokens_total + now.cached_tokens_total,
        completion_tokens_total: past.completion_tokens_total + now.completion_tokens_total,
        requests_total: past.requests_total + now.requests_total,
        cancelled_total: past.cancelled_total + now.cancelled_total,
        steps_total: past.steps_total + now.steps_total,
        prefill_seconds_total: past.prefill_seconds_total + now.prefill_seconds_total,
        decode_seconds_total: past.decode_seconds_total + now.decode_seconds_total,
        ..now.clone()
    }
}

/// One request's hold on a ready model.
pub struct Lease {
    /// The model.
    pub model: Arc<Model>,
    /// The worker's socket.
    pub endpoint: PathBuf,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut facts = self.model.facts();
        facts.active -= 1;
        if facts.active == 0 {
            self.model.idle.notify_one();
        }
    }
}
