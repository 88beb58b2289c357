//! One task per model: feeds the state machine with orders, reports and the clock, carries out its effects, publishes
//! what is new. Everything about one worker happens here, so nothing needs a lock over a decision.

use super::lifecycle::{Effect, Input, Lifecycle, Policy};
use super::model::{Model, Order, Shared, add_counters};
use super::process::{self, Worker, WorkerEvent};
use crate::api::control::{Event, ModelInfo, ModelState, Progress, Stats};
use crate::config;
use crate::worker::protocol::{Command, Report, Spec};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::Level;

/// Drives a model until it is retired and its worker is gone.
pub(super) async fn run(model: Arc<Model>, shared: Arc<Shared>, orders: mpsc::Receiver<Order>) {
    let lifecycle = Lifecycle::new(policy(&shared.settings(), &model.settings()));
    let mut task = Task { model, shared, lifecycle, worker: None, retired: false, published: None };
    task.run(orders).await;
}

fn policy(daemon: &config::Daemon, model: &config::Model) -> Policy {
    Policy {
        backoff: daemon.restart_backoff,
        restart_limit: daemon.restart_limit,
        heartbeat_timeout: daemon.heartbeat_timeout,
        idle_ttl: model.idle_ttl.filter(|_| !model.pinned),
    }
}

struct Task {
    model: Arc<Model>,
    shared: Arc<Shared>,
    lifecycle: Lifecycle,
    worker: Option<Worker>,
    retired: bool,
    /// What was last shown to the outside.
    published: Option<(ModelState, Option<String>)>,
}

impl Task {
    async fn run(&mut self, mut orders: mpsc::Receiver<Order>) {
        self.publish();
        loop {
            if self.retired && self.lifecycle.state() == ModelState::Unloaded {
                return;
            }
            let input = tokio::select! {
                order = orders.recv() => match order {
                    Some(order) => self.order(order),
                    None => return,
                },
                event = next_event(&mut self.worker) => self.event(event),
                () = self.model.idle.notified() => (self.model.active() == 0).then_some(Input::Idle),
                late = tick(self.lifecycle.deadline(self.model.active())) => {
                    if late >= self.shared.settings().heartbeat_timeout / 4 {
                        self.step(Input::Late).await;
                    }
                    Some(Input::Tick)
                }
            };
            if let Some(input) = input {
                self.step(input).await;
            }
        }
    }

    fn order(&mut self, order: Order) -> Option<Input> {
        match order {
            Order::Load | Order::Want if self.retired || self.shared.draining.load(Ordering::Acquire) => None,
            Order::Load => Some(Input::Load),
            Order::Want => Some(Input::Want),
            Order::Unload { force } => Some(Input::Unload { force }),
            Order::Retire => {
                self.retired = true;
                Some(Input::Unload { force: false })
            }
            Order::Configure => {
                self.lifecycle.set_policy(policy(&self.shared.settings(), &self.model.settings()));
                // What failed with the old settings may work with the new ones at the next request.
                (self.lifecycle.state() == ModelState::Failed).then_some(Input::Unload { force: false })
            }
            Order::Pulse(answer) => {
                let _ = answer.send(());
                None
            }
        }
    }

    /// Notes what a worker tells and translates it for the state machine.
    fn event(&mut self, event: WorkerEvent) -> Option<Input> {
        Some(match event {
            WorkerEvent::Report(Report::Loading { progress }) => {
                self.model.facts().progress = Some(progress);
                self.announce();
                Input::Progress
            }
            WorkerEvent::Report(Report::Ready { info }) => {
                self.ready(*info);
                Input::Ready
            }
            WorkerEvent::Report(Report::Pages { huge_page_bytes, pages }) => {
                if let Some(info) = &mut self.model.facts().info {
                    (info.huge_page_bytes, info.pages) = (huge_page_bytes, pages);
                }
                return None;
            }
            WorkerEvent::Report(Report::Refused { error, for_now }) => Input::Refused { reason: error, for_now },
            WorkerEvent::Report(Report::Heartbeat { stats }) => {
                let engine_age = Duration::from_millis(stats.beat_age_ms);
                self.model.facts().stats = Some(stats);
                Input::Heartbeat { engine_age }
            }
            WorkerEvent::Report(Report::Experts { choices }) => {
                self.model.facts().experts = Some(choices);
                return None;
            }
            WorkerEvent::Exited(how) => {
                if let Some(worker) = self.worker.take() {
                    // The vault hears of it by itself, but perhaps only after whoever waits for this end.
                    self.shared.vault.leave(worker.number);
                }
                let mut facts = self.model.facts();
                let last = facts.stats.take().unwrap_or_default();
                // Twice, the second time with nothing: the counters stay, the figures of the moment do not.
                facts.past = add_counters(&add_counters(&facts.past, &last), &Stats::default());
                facts.pid = None;
                facts.experts = None;
                Input::Exited(how)
            }
        })
    }

    fn ready(&mut self, info: ModelInfo) {
        let mut facts = self.model.facts();
        let load_time = facts.spawned.map(|at| at.elapsed()).unwrap_or_default();
        let line = format!(
            "ready after {:.1} s: {} with {:.1} M parameters, {:.1} MiB of weights, context {} x {}, {} threads, {}",
            load_time.as_secs_f64(),
            info.architecture,
            info.parameters as f64 / 1e6,
            info.weight_bytes as f64 / f64::from(1 << 20),
            info.parallel,
            info.context,
            info.threads,
            info.isa,
        );
        facts.load_time = Some(load_time);
        facts.info = Some(info);
        drop(facts);
        self.model.say(Level::INFO, &line);
    }

    /// Steps the state machine and carries out what it asks for; a spawn that fails is a further step.
    async fn step(&mut self, input: Input) {
        let mut next = Some(input);
        while let Some(input) = next.take() {
            let now = Instant::now();
            // While the state is ready, requests may come in between; so the door is shut before they are counted.
            if matches!(input, Input::Unload { .. } | Input::Tick) {
                self.shut_door_if_leaving(now, &input);
            }
            let effect = self.lifecycle.step(now, input, self.model.active());
            self.publish();
            match effect {
                Some(Effect::Spawn) => next = self.spawn().await.err().map(Input::Exited),
                Some(Effect::Drain) => self.tell(Command::Drain),
                Some(Effect::Kill) => self.kill(),
                None => {}
            }
        }
    }

    /// A copy of the machine tells whether the step leaves `Ready`; if so, no request is admitted from here on.
    fn shut_door_if_leaving(&self, now: Instant, input: &Input) {
        let mut copy = self.lifecycle.clone();
        copy.step(now, input.clone(), self.model.active());
        if copy.state() != ModelState::Ready {
            self.model.publish(self.model.state(), None, |_| {});
        }
    }

    async fn spawn(&mut self) -> Result<(), String> {
        let settings = self.model.settings();
        let spec = spec(&settings, &self.shared.settings());
        let number = self.shared.next_socket.fetch_add(1, Ordering::Relaxed);
        self.model.say(Level::INFO, &format!("loading {}", settings.path.display()));
        let program = self.shared.program();
        let started = process::start(&self.shared, &program, &spec, number, &self.model.logs).await;
        let worker = started.map_err(|error| format!("it could not be started: {error}"))?;
        let mut facts = self.model.facts();
        facts.pid = Some(worker.pid);
        facts.spawned = Some(Instant::now());
        drop(facts);
        self.worker = Some(worker);
        self.announce();
        Ok(())
    }

    fn tell(&self, command: Command) {
        if let Some(worker) = &self.worker {
            worker.tell(command);
        }
    }

    fn kill(&self) {
        if let Some(worker) = &self.worker {
            worker.kill();
        }
    }

    /// Shows the state to the outside; logs and announces it when it changed.
    fn publish(&mut self) {
        let now = Instant::now();
        let (state, error) = (self.lifecycle.state(), self.lifecycle.error().map(str::to_owned));
        let serving = self.worker.as_ref().filter(|_| state == ModelState::Ready);
        let endpoint = serving.map(|worker| worker.socket.clone());
        let active = self.model.publish(state, endpoint, |facts| {
            facts.error.clone_from(&error);
            facts.restarts = self.lifecycle.restarts();
            facts.retry_at = self.lifecycle.pause(now).map(|pause| now + pause);
            if state != ModelState::Loading {
                facts.progress = None;
            }
            match state {
                ModelState::Ready => facts.ready = facts.ready.or(Some(now)),
                ModelState::Draining => {}
                _ => {
                    facts.ready = None;
                    facts.info = None;
                }
            }
        });
        let new = Some((state, error.clone()));
        if self.published == new {
            return;
        }
        if self.published.is_some() {
            self.log(state, error.as_deref(), active, now);
        }
        self.published = new;
        self.announce();
    }

    fn log(&self, state: ModelState, error: Option<&str>, active: u64, now: Instant) {
        let reason = error.unwrap_or("unknown");
        let (level, line) = match state {
            ModelState::Unloaded => (Level::INFO, "unloaded".into()),
            ModelState::Draining if active > 0 => (Level::INFO, format!("unloading after {active} requests")),
            ModelState::Failed => (Level::ERROR, format!("failed: {reason}")),
            ModelState::Restarting => match self.lifecycle.pause(now) {
                Some(pause) => (Level::WARN, format!("{reason}; starting again in {:.1} s", pause.as_secs_f64())),
                None => (Level::WARN, format!("killing the worker: {reason}")),
            },
            // Loading and ready have lines of their own.
            ModelState::Loading | ModelState::Ready | ModelState::Draining => return,
        };
        self.model.say(level, &line);
    }

    fn announce(&self) {
        let _ = self.shared.events.send(Event::Status { model: Box::new(self.model.status()) });
    }
}

fn spec(model: &config::Model, daemon: &config::Daemon) -> Spec {
    Spec {
        id: model.id.clone(),
        aliases: model.aliases.clone(),
        path: model.path.clone(),
        context: model.context,
        parallel: model.parallel,
        queue: model.queue,
        threads: model.threads,
        cpus: model.cpus.clone(),
        kv_type: model.kv_type.clone(),
        prefill_chunk: model.prefill_chunk,
        disable_isa: model.disable_isa.clone(),
        chat_template: model.chat_template.clone(),
        max_body_bytes: daemon.max_body_bytes,
        numa: model.numa.clone(),
        place: model.place.iter().map(|place| (place.tensors.clone(), place.device.clone())).collect(),
        vault: daemon.vault,
    }
}

async fn next_event(worker: &mut Option<Worker>) -> WorkerEvent {
    match worker {
        Some(worker) => worker.next().await,
        None => std::future::pending().await,
    }
}

/// Waits for the deadline; answers how long ago it was then.
async fn tick(deadline: Option<Instant>) -> Duration {
    match deadline {
        Some(deadline) => {
            tokio::time::sleep_until(deadline.into()).await;
            deadline.elapsed()
        }
        None => std::future::pending().await,
    }
}

/// Waits until the model's task has carried out every order given so far; then the state is that after them.
pub(super) async fn settle(model: &Model) -> watch::Receiver<ModelState> {
    let (answer, heard) = oneshot::channel();
    model.order(Order::Pulse(answer)).await;
    let _ = heard.await;
    model.watch()
}

/// Bytes done as a percentage, for one-line summaries.
pub(super) fn percent(progress: Option<Progress>) -> u64 {
    let progress = progress.unwrap_or_default();
    (progress.bytes_done * 100).checked_div(progress.bytes_total).unwrap_or(0)
}
