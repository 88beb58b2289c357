//! All models of the daemon: finding one by name, adding and removing, admitting requests, ending them all. Knows no
//! HTTP beyond the errors that a refusal becomes.

use super::model::{Lease, Model, Order, Shared};
use crate::api::control::{LoadFile, ModelState, Reloaded};
use crate::api::error::ApiError;
use crate::config::{self, Config};
use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Most models at once, configured and added by hand.
const MAX_MODELS: usize = 512;
/// A waiting request looks again at least so often.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// What a client is told while the daemon stops: by then its successor should be there.
const AFTER_STOP: Duration = Duration::from_secs(10);

/// The models, in the configuration's order, then those added by hand.
pub struct Registry {
    /// What all models share.
    pub shared: Arc<Shared>,
    models: RwLock<Vec<Arc<Model>>>,
    tasks: Mutex<JoinSet<()>>,
}

impl Registry {
    /// Starts a task per configured model; loads none.
    pub fn new(shared: Arc<Shared>, models: Vec<config::Model>) -> Self {
        let registry = Self { shared, models: RwLock::default(), tasks: Mutex::default() };
        for settings in models {
            registry.add(settings, false);
        }
        registry
    }

    /// Adds a model, or finds the one that already answers to this id.
    fn add(&self, settings: config::Model, ad_hoc: bool) -> Arc<Model> {
        let mut models = self.models.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(model) = models.iter().find(|model| model.answers_to(&settings.id)) {
            return model.clone();
        }
        let (model, task) = Model::start(settings, ad_hoc, self.shared.clone());
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
        models.push(model.clone());
        model
    }

    /// Every model.
    pub fn models(&self) -> Vec<Arc<Model>> {
        self.models.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The model of this id or alias.
    pub fn find(&self, name: &str) -> Option<Arc<Model>> {
        self.models().into_iter().find(|model| model.answers_to(name))
    }

    /// The model that a request means. No name, an empty one and `auto` mean the first that is ready, else the first
    /// that is on its way, else the first that could be loaded.
    ///
    /// # Errors
    /// 404 when there is none of this name, or none at all.
    pub fn resolve(&self, name: Option<&str>) -> Result<Arc<Model>, ApiError> {
        let models = self.models();
        let found = match name.filter(|name| !name.is_empty() && *name != "auto") {
            Some(name) => models.iter().find(|model| model.answers_to(name)),
            None => models.iter().min_by_key(|model| match model.state() {
                ModelState::Ready => 0,
                ModelState::Loading => 1,
                ModelState::Restarting => 2,
                ModelState::Unloaded | ModelState::Draining => 3,
                ModelState::Failed => 4,
            }),
        };
        let known = || models.iter().map(|model| model.id()).collect::<Vec<_>>();
        found.cloned().ok_or_else(|| ApiError::model_not_found(name.unwrap_or("auto"), &known()))
    }

    /// Refuses new work while the daemon stops.
    pub fn check_open(&self) -> Result<(), ApiError> {
        if self.shared.draining.load(Ordering::Acquire) {
            return Err(ApiError::unavailable("the server is shutting down", AFTER_STOP).code("shutting_down"));
        }
        Ok(())
    }

    /// A place for a request at a model, which is loaded if need be.
    ///
    /// # Errors
    /// 503 when the model failed, or is not ready within `load_timeout`, or the daemon stops.
    pub async fn admit(&self, model: &Arc<Model>) -> Result<Lease, ApiError> {
        let patience = self.shared.settings().load_timeout;
        let deadline = Instant::now() + patience;
        let mut watch = model.watch();
        loop {
            self.check_open()?;
            // Seen before the attempt, so that no change after it is missed.
            let state = *watch.borrow_and_update();
            if let Some(lease) = model.lease() {
                return Ok(lease);
            }
            match state {
                ModelState::Failed if !model.may_retry() => return Err(failed(model)),
                ModelState::Failed | ModelState::Unloaded | ModelState::Draining => model.order(Order::Want).await,
                ModelState::Loading | ModelState::Restarting | ModelState::Ready => {}
            }
            let now = Instant::now();
            if now >= deadline {
                let message = format!(
                    "the model '{}' is {} and was not ready within {:.0} s",
                    model.id(),
                    model.state().name(),
                    patience.as_secs_f64()
                );
                return Err(ApiError::unavailable(message, model.retry_after()).code("model_loading"));
            }
            let _ = tokio::time::timeout((deadline - now).min(LOOK_AGAIN), watch.changed()).await;
        }
    }

    /// Adds a model that no configuration names and orders its load. A file that is known already is just loaded.
    ///
    /// # Errors
    /// 400 for a path or name that cannot be used, 409 for a name that is taken.
    pub async fn load_file(&self, wanted: LoadFile) -> Result<Arc<Model>, ApiError> {
        let settings = file_settings(wanted)?;
        let model = match self.find(&settings.id) {
            Some(model) if model.settings().path == settings.path => {
                if model.ad_hoc.load(Ordering::Relaxed) && *model.settings() != settings {
                    model.configure(settings).await;
                }
                model
            }
            Some(model) => {
                let message = format!(
                    "the name '{}' belongs to {}; choose another id",
                    settings.id,
                    model.settings().path.display()
                );
                return Err(ApiError::conflict(message).param("id"));
            }
            None if self.models().len() >= MAX_MODELS => {
                return Err(ApiError::conflict(format!("{MAX_MODELS} models are known already; restart the daemon")));
            }
            None => self.add(settings, true),
        };
        model.order(Order::Load).await;
        Ok(model)
    }

    /// Drops a model that no configuration names once it is unloaded or has failed: nothing would bring it back but
    /// loading its file again.
    pub async fn forget(&self, model: &Arc<Model>) {
        if !model.ad_hoc.load(Ordering::Relaxed) || !matches!(model.state(), ModelState::Unloaded | ModelState::Failed)
        {
            return;
        }
        self.models.write().unwrap_or_else(PoisonError::into_inner).retain(|known| !Arc::ptr_eq(known, model));
        model.order(Order::Retire).await;
    }

    /// Makes the models those of a new configuration. Removed ones finish their streams first.
    pub async fn apply(&self, new: Config) -> Reloaded {
        let mut changes = Reloaded::default();
        let old_settings = self.shared.settings();
        changes.needs_restart = needs_restart(&old_settings, &new.daemon);
        *self.shared.settings.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new.daemon);
        let names: HashSet<&str> =
            new.models.iter().flat_map(|m| std::iter::once(&m.id).chain(&m.aliases)).map(String::as_str).collect();
        for model in self.models() {
            let settings = model.settings();
            let kept = new.models.iter().find(|new| new.id == settings.id);
            match kept {
                Some(new) => {
                    model.ad_hoc.store(false, Ordering::Relaxed);
                    if *new != *settings {
                        changes.changed.push(settings.id.clone());
                    }
                    // Also without a change of its own: the daemon's settings may bear on it.
                    model.configure(new.clone()).await;
                }
                None if model.ad_hoc.load(Ordering::Relaxed) && !names.contains(settings.id.as_str()) => {
                    model.order(Order::Configure).await;
                }
                None => {
                    changes.removed.push(settings.id.clone());
                    self.models.write().unwrap_or_else(PoisonError::into_inner).retain(|m| !Arc::ptr_eq(m, &model));
                    model.order(Order::Retire).await;
                }
            }
        }
        for settings in &new.models {
            if self.models().iter().all(|model| model.id() != settings.id) {
                changes.added.push(settings.id.clone());
                let model = self.add(settings.clone(), false);
                if settings.preload {
                    model.order(Order::Load).await;
                }
            }
        }
        let place = |model: &Arc<Model>| {
            let id = model.id();
            new.models.iter().position(|settings| settings.id == id).unwrap_or(usize::MAX)
        };
        self.models.write().unwrap_or_else(PoisonError::into_inner).sort_by_key(place);
        changes
    }

    /// Ends all models: streams may finish for `grace`, then they are cut.
    pub async fn close(&self, grace: Duration) {
        let models = self.models();
        for model in &models {
            model.order(Order::Retire).await;
        }
        let mut tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        let finish = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(grace, finish).await.is_ok() {
            return;
        }
        let cut: u64 = models.iter().map(|model| model.active()).sum();
        tracing::warn!("drain_timeout ({:.1} s) is over; {cut} requests are cut", grace.as_secs_f64());
        for model in &models {
            model.order(Order::Unload { force: true }).await;
        }
        let finish = async { while tasks.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(Duration::from_secs(5), finish).await;
    }

    /// Whether every model's task comes round its loop.
    pub async fn alive(&self, within: Duration) -> bool {
        // While the daemon stops, tasks end one after the other, as they should.
        if self.shared.draining.load(Ordering::Acquire) {
            return true;
        }
        let pulses = self.models().into_iter().map(|model| async move {
            let (answer, heard) = tokio::sync::oneshot::channel();
            model.order(Order::Pulse(answer)).await;
            heard.await.is_ok()
        });
        let all = futures_util::future::join_all(pulses);
        tokio::time::timeout(within, all).await.is_ok_and(|answers| answers.into_iter().all(|alive| alive))
    }
}

fn failed(model: &Model) -> ApiError {
    let reason = model.error().unwrap_or_else(|| "unknown".into());
    let message = format!("the model '{}' failed: {reason}", model.id());
    let again = if model.is_failed_for_now() { model.retry_after() } else { Duration::from_secs(60) };
    ApiError::unavailable(message, again).code("model_failed")
}

/// Settings that are bound to the listening socket.
fn needs_restart(old: &config::Daemon, new: &config::Daemon) -> Vec<String> {
    let bound = [
        ("socket", old.socket != new.socket),
        ("group", old.group != new.group),
        ("max_connections", old.max_connections != new.max_connections),
        ("header_timeout", old.header_timeout != new.header_timeout),
    ];
    bound.into_iter().filter(|(_, changed)| *changed).map(|(key, _)| key.to_owned()).collect()
}

fn file_settings(wanted: LoadFile) -> Result<config::Model, ApiError> {
    let path = Path::new(&wanted.path);
    if !path.is_absolute() {
        let why = format!("\"{}\" is not an absolute path; the daemon has a working directory of its own", wanted.path);
        return Err(ApiError::invalid("path", why));
    }
    if let Err(reason) = (config::Environment::current().readable)(path) {
        return Err(ApiError::invalid("path", format!("{}: {reason} (for the daemon's user)", wanted.path)));
    }
    let id = wanted.id.unwrap_or_else(|| config::Model::id_from_path(path));
    let defaults = config::Model::new(id, path);
    let settings = config::Model {
        context: wanted.context,
        parallel: wanted.parallel.unwrap_or(defaults.parallel),
        threads: wanted.threads,
        ..defaults
    };
    settings.check().map_err(|(key, what)| ApiError::invalid(key, what))?;
    Ok(settings)
}
