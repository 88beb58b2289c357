//! A model's life as a pure state machine: inputs and the clock go in, effects come out. It knows no process, no socket
//! and no runtime; `supervisor` feeds it and carries out what it asks for.
//!
//! ```text
//!              Load/Want            Ready                 Unload, idle          no request left
//! Unloaded ─────────────▶ Loading ────────▶ Ready ─────────────────▶ Draining ─────────────────▶ Ending ──▶ Unloaded
//!                            │                │  silent: kill                                      ▲  │
//!                            │ died           │ died                                               │  ▼
//!                            └──▶ Restarting ◀┘ ──(limit)──▶ Failed ◀── Refused ───────────────────┘  (next)
//! ```

use crate::api::control::ModelState;
use std::time::{Duration, Instant};

/// After its last request a worker is told to end; one that has not by then is killed.
const EXIT_GRACE: Duration = Duration::from_secs(5);

/// While it reads weights a worker may be busy in the kernel, so silence is allowed for so many times longer.
const LOADING_PATIENCE: u32 = 4;

/// Settings that the state machine goes by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Policy {
    /// First and longest pause before a restart.
    pub backoff: (Duration, Duration),
    /// Deaths in a row after which the model is failed.
    pub restart_limit: u32,
    /// Longest silence.
    pub heartbeat_timeout: Duration,
    /// Unload after so long without a request.
    pub idle_ttl: Option<Duration>,
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// Somebody in charge wants the model: also ends a pause or a failure.
    Load,
    /// A request wants the model: waits out a pause, and does not revive a failed one unless it failed for now.
    Want,
    /// Somebody in charge wants it gone; `force` cuts its streams.
    Unload {
        /// Do not wait for streams.
        force: bool,
    },
    /// The worker is reading weights.
    Progress,
    /// The worker answers.
    Ready,
    /// The worker says that loading is impossible.
    Refused {
        /// Why.
        reason: String,
        /// Others may give the memory back that is missing: after the longest pause the next request tries again.
        for_now: bool,
    },
    /// A heartbeat, with the age of the engine's own.
    Heartbeat {
        /// Since the engine thread last came round its loop.
        engine_age: Duration,
    },
    /// The worker's process ended (or did not start): why.
    Exited(String),
    /// The number of active requests became zero.
    Idle,
    /// The daemon itself stood still (stopped, suspended, starved): what a worker sent meanwhile was not read, so its
    /// silence proves nothing.
    Late,
    /// [`Lifecycle::deadline`] has passed.
    Tick,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Start a worker.
    Spawn,
    /// Tell the worker to finish and exit.
    Drain,
    /// Kill the worker.
    Kill,
}

/// What comes after the worker's end.
#[derive(Clone, Debug, PartialEq)]
enum Next {
    Unloaded,
    Restart(String),
    Failed(String),
    FailedForNow(String),
}

#[derive(Clone, Debug, PartialEq)]
enum Phase {
    Unloaded,
    Loading {
        heard: Instant,
    },
    Ready {
        since: Instant,
        heard: Instant,
        used: Instant,
    },
    Draining {
        heard: Instant,
        load_after: bool,
    },
    Ending {
        next: Next,
        kill_at: Option<Instant>,
        load_after: bool,
    },
    Restarting {
        at: Instant,
    },
    /// Requests revive it from then on, if ever.
    Failed {
        until: Option<Instant>,
    },
}

/// One model's state.
#[derive(Clone, Debug)]
pub struct Lifecycle {
    phase: Phase,
    policy: Policy,
    /// Deaths in a row.
    deaths: u32,
    restarts: u64,
    error: Option<String>,
}

impl Lifecycle {
    /// A model without a worker.
    pub fn new(policy: Policy) -> Self {
        Self { phase: Phase::Unloaded, policy, deaths: 0, restarts: 0, error: None }
    }

    /// Takes new settings; pauses that have begun keep their length.
    pub fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
    }

    /// The state as clients see it.
    pub fn state(&self) -> ModelState {
        match &self.phase {
            Phase::Unloaded => ModelState::Unloaded,
            Phase::Loading { .. } => ModelState::Loading,
            Phase::Ready { .. } => ModelState::Ready,
            Phase::Draining { .. } | Phase::Ending { next: Next::Unloaded, .. } => ModelState::Draining,
            Phase::Restarting { .. } | Phase::Ending { next: Next::Restart(_), .. } => ModelState::Restarting,
            Phase::Failed { .. } | Phase::Ending { next: Next::Failed(_) | Next::FailedForNow(_), .. } => {
                ModelState::Failed
            }
        }
    }

    /// Why it is restarting or failed.
    pub fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }

    /// Workers started after a death.
    pub fn restarts(&self) -> u64 {
        self.restarts
    }

    /// How long the present pause lasts from `now`.
    pub fn pause(&self, now: Instant) -> Option<Duration> {
        match self.phase {
            Phase::Restarting { at } | Phase::Failed { until: Some(at) } => Some(at.saturating_duration_since(now)),
            _ => None,
        }
    }

    /// When [`Input::Tick`] is due, given the number of requests in flight.
    pub fn deadline(&self, active: u64) -> Option<Instant> {
        let silence = self.policy.heartbeat_timeout;
        match &self.phase {
            Phase::Loading { heard } => Some(*heard + silence * LOADING_PATIENCE),
            Phase::Ready { heard, used, .. } => {
                let idle = self.policy.idle_ttl.filter(|_| active == 0).map(|ttl| *used + ttl);
                Some(idle.map_or(*heard + silence, |idle| idle.min(*heard + silence)))
            }
            Phase::Draining { heard, .. } => Some(*heard + silence),
            Phase::Ending { kill_at, .. } => *kill_at,
            Phase::Restarting { at } => Some(*at),
            Phase::Unloaded | Phase::Failed { .. } => None,
        }
    }

    /// One step. `active` is the number of requests in flight; none is admitted unless the state is ready.
    pub fn step(&mut self, now: Instant, input: Input, active: u64) -> Option<Effect> {
        match input {
            Input::Load => self.load(now, true),
            Input::Want => self.load(now, false),
            Input::Unload { force } => self.unload(now, force, active),
            Input::Progress | Input::Late => self.hear(now, None),
            Input::Heartbeat { engine_age } => self.hear(now, Some(engine_age)),
            Input::Ready => self.ready(now),
            Input::Refused { reason, for_now } => self.refused(reason, for_now),
            Input::Exited(reason) => self.exited(now, reason),
            Input::Idle => self.idle(now, active),
            Input::Tick => self.tick(now, active),
        }
    }

    fn load(&mut self, now: Instant, in_charge: bool) -> Option<Effect> {
        match &mut self.phase {
            Phase::Unloaded => self.spawn(now),
            Phase::Failed { until } if in_charge || until.is_some_and(|until| now >= until) => {
                self.deaths = 0;
                self.spawn(now)
            }
            Phase::Restarting { .. } if in_charge => self.respawn(now),
            Phase::Draining { load_after, .. } | Phase::Ending { next: Next::Unloaded, load_after, .. } => {
                *load_after = true;
                None
            }
            Phase::Ending { load_after, .. } if in_charge => {
                *load_after = true;
                None
            }
            _ => None,
        }
    }

    fn spawn(&mut self, now: Instant) -> Option<Effect> {
        self.error = None;
        self.phase = Phase::Loading { heard: now };
        Some(Effect::Spawn)
    }

    fn respawn(&mut self, now: Instant) -> Option<Effect> {
        self.restarts += 1;
        self.phase = Phase::Loading { heard: now };
        Some(Effect::Spawn)
    }

    fn unload(&mut self, now: Instant, force: bool, active: u64) -> Option<Effect> {
        match &mut self.phase {
            Phase::Unloaded => None,
            Phase::Restarting { .. } | Phase::Failed { .. } => {
                self.phase = Phase::Unloaded;
                self.error = None;
                self.deaths = 0;
                None
            }
            Phase::Loading { .. } => self.kill(Next::Unloaded),
            Phase::Ready { .. } | Phase::Draining { .. } if force => self.kill(Next::Unloaded),
            Phase::Ready { heard, .. } => {
                self.phase = Phase::Draining { heard: *heard, load_after: false };
                self.finish_drain(now, active)
            }
            Phase::Draining { load_after, .. } => {
                *load_after = false;
                None
            }
            Phase::Ending { next, kill_at, load_after } => {
                *next = Next::Unloaded;
                *load_after = false;
                self.error = None;
                (force && kill_at.take().is_some()).then_some(Effect::Kill)
            }
        }
    }

    fn kill(&mut self, next: Next) -> Option<Effect> {
        if let Next::Restart(reason) | Next::Failed(reason) | Next::FailedForNow(reason) = &next {
            self.error = Some(reason.clone());
        }
        self.phase = Phase::Ending { next, kill_at: None, load_after: false };
        Some(Effect::Kill)
    }

    /// With no request left, a draining worker is told to exit.
    fn finish_drain(&mut self, now: Instant, active: u64) -> Option<Effect> {
        let Phase::Draining { load_after, .. } = self.phase else { return None };
        if active > 0 {
            return None;
        }
        self.phase = Phase::Ending { next: Next::Unloaded, kill_at: Some(now + EXIT_GRACE), load_after };
        Some(Effect::Drain)
    }

    fn hear(&mut self, now: Instant, engine_age: Option<Duration>) -> Option<Effect> {
        let serving = matches!(self.phase, Phase::Ready { .. } | Phase::Draining { .. });
        let limit = self.policy.heartbeat_timeout;
        if let Some(age) = engine_age.filter(|age| serving && *age > limit) {
            return self.frozen(format!(
                "its engine stood still for {:.1} s (heartbeat_timeout is {:.1} s)",
                age.as_secs_f64(),
                limit.as_secs_f64()
            ));
        }
        match &mut self.phase {
            Phase::Loading { heard } | Phase::Ready { heard, .. } | Phase::Draining { heard, .. } => *heard = now,
            _ => {}
        }
        None
    }

    /// A worker that does not answer is killed; one that was on its way out does not come back.
    fn frozen(&mut self, reason: String) -> Option<Effect> {
        let next = match self.phase {
            Phase::Draining { .. } => Next::Unloaded,
            _ => Next::Restart(reason),
        };
        self.kill(next)
    }

    fn ready(&mut self, now: Instant) -> Option<Effect> {
        if let Phase::Loading { .. } = self.phase {
            self.phase = Phase::Ready { since: now, heard: now, used: now };
            self.error = None;
        }
        None
    }

    fn refused(&mut self, reason: String, for_now: bool) -> Option<Effect> {
        match self.phase {
            Phase::Loading { .. } if for_now => self.kill(Next::FailedForNow(reason)),
            Phase::Loading { .. } | Phase::Ready { .. } => self.kill(Next::Failed(reason)),
            _ => None,
        }
    }

    fn exited(&mut self, now: Instant, reason: String) -> Option<Effect> {
        match std::mem::replace(&mut self.phase, Phase::Unloaded) {
            // Without a worker nothing can exit.
            phase @ (Phase::Unloaded | Phase::Restarting { .. } | Phase::Failed { .. }) => {
                self.phase = phase;
                None
            }
            Phase::Loading { .. } => self.died(now, format!("the worker died while loading: {reason}")),
            Phase::Ready { since, .. } => {
                self.forgive(now, since);
                self.died(now, format!("the worker died: {reason}"))
            }
            Phase::Draining { load_after, .. } => load_after.then(|| self.spawn(now)).flatten(),
            Phase::Ending { load_after: true, .. } => {
                self.deaths = 0;
                self.spawn(now)
            }
            Phase::Ending { next, .. } => match next {
                Next::Unloaded => None,
                Next::Restart(reason) => self.died(now, format!("the worker was killed: {reason}")),
                Next::Failed(reason) => self.failed(reason, None),
                Next::FailedForNow(reason) => self.failed(reason, Some(now + self.policy.backoff.1)),
            },
        }
    }

    /// A worker that was ready for as long as the longest pause starts the count of deaths afresh.
    fn forgive(&mut self, now: Instant, since: Instant) {
        if now.saturating_duration_since(since) >= self.policy.backoff.1 {
            self.deaths = 0;
        }
    }

    fn died(&mut self, now: Instant, reason: String) -> Option<Effect> {
        self.deaths += 1;
        if self.deaths >= self.policy.restart_limit {
            let times = self.deaths;
            let what = "restart_limit reached); see `omnictl logs`, then `omnictl load`";
            return self.failed(format!("{reason} (death {times} in a row, {what}"), None);
        }
        let (first, most) = self.policy.backoff;
        let pause = first.saturating_mul(1u32 << (self.deaths - 1).min(20)).min(most);
        self.error = Some(reason);
        self.phase = Phase::Restarting { at: now + pause };
        None
    }

    fn failed(&mut self, reason: String, until: Option<Instant>) -> Option<Effect> {
        self.phase = Phase::Failed { until };
        self.error = Some(reason);
        None
    }

    fn idle(&mut self, now: Instant, active: u64) -> Option<Effect> {
        if let Phase::Ready { used, .. } = &mut self.phase {
            *used = now;
        }
        self.finish_drain(now, active)
    }

    fn tick(&mut self, now: Instant, active: u64) -> Option<Effect> {
        if self.deadline(active).is_none_or(|deadline| now < deadline) {
            return None;
        }
        let silence = self.policy.heartbeat_timeout;
        match self.phase {
            Phase::Loading { .. } => self.frozen(silent(silence * LOADING_PATIENCE)),
            Phase::Ready { since, heard, .. } if now >= heard + silence => {
                self.forgive(now, since);
                self.frozen(silent(silence))
            }
            Phase::Ready { heard, .. } => {
                self.phase = Phase::Draining { heard, load_after: false };
                self.finish_drain(now, active)
            }
            Phase::Draining { .. } => self.frozen(silent(silence)),
            Phase::Ending { ref mut kill_at, .. } => kill_at.take().map(|_| Effect::Kill),
            Phase::Restarting { .. } => self.respawn(now),
            Phase::Unloaded | Phase::Failed { .. } => None,
        }
    }
}

fn silent(limit: Duration) -> String {
    format!("it sent no heartbeat for {:.1} s", limit.as_secs_f64())
}

#[cfg(test)]
mod tests;
