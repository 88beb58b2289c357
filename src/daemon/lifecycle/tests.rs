//! The state machine: each path a model can take, and what must hold whatever happens in whatever order.

use super::*;
use proptest::prelude::*;

const SECOND: Duration = Duration::from_secs(1);

fn policy() -> Policy {
    Policy { backoff: (SECOND, 8 * SECOND), restart_limit: 4, heartbeat_timeout: 10 * SECOND, idle_ttl: None }
}

fn exited() -> Input {
    Input::Exited("exit status 1".into())
}

/// A model whose worker is ready at `now`.
fn ready(policy: Policy, now: Instant) -> Lifecycle {
    let mut life = Lifecycle::new(policy);
    assert_eq!(life.step(now, Input::Want, 0), Some(Effect::Spawn));
    assert_eq!(life.step(now, Input::Ready, 0), None);
    assert_eq!(life.state(), ModelState::Ready);
    life
}

#[test]
fn pauses_double_up_to_the_limit_then_the_model_fails() {
    let mut now = Instant::now();
    let mut life = Lifecycle::new(Policy { restart_limit: 6, ..policy() });
    life.step(now, Input::Load, 0);
    for pause in [1, 2, 4, 8, 8] {
        assert_eq!(life.step(now, exited(), 0), None);
        assert_eq!((life.state(), life.pause(now)), (ModelState::Restarting, Some(pause * SECOND)));
        assert_eq!(life.step(now, Input::Want, 0), None, "a request waits the pause out");
        assert_eq!(life.step(now + pause * SECOND / 2, Input::Tick, 0), None, "too early");
        now += pause * SECOND;
        assert_eq!(life.step(now, Input::Tick, 0), Some(Effect::Spawn));
    }
    assert_eq!(life.restarts(), 5);
    life.step(now, exited(), 0);
    assert_eq!(life.state(), ModelState::Failed);
    assert!(life.error().unwrap().contains("death 6 in a row"), "{:?}", life.error());
    assert_eq!(life.step(now, Input::Want, 0), None, "a request does not revive it");
    assert_eq!(life.step(now, Input::Load, 0), Some(Effect::Spawn));
    assert_eq!((life.state(), life.error()), (ModelState::Loading, None));
}

#[test]
fn a_quiet_time_forgives_earlier_deaths() {
    let mut now = Instant::now();
    let mut life = ready(policy(), now);
    for _ in 0..20 {
        now += 8 * SECOND;
        life.step(now, exited(), 0);
        assert_eq!(life.pause(now), Some(SECOND));
        now += SECOND;
        assert_eq!(life.step(now, Input::Tick, 0), Some(Effect::Spawn));
        life.step(now, Input::Ready, 0);
    }
    life.step(now + SECOND, exited(), 0);
    assert_eq!(life.pause(now + SECOND), Some(2 * SECOND));
}

#[test]
fn silence_and_a_standing_engine_kill_and_restart() {
    let now = Instant::now();
    let mut life = ready(policy(), now);
    let late = now + 10 * SECOND;
    assert_eq!(life.step(late, Input::Tick, 3), Some(Effect::Kill));
    assert_eq!(life.state(), ModelState::Restarting);
    assert!(life.error().unwrap().contains("no heartbeat for 10.0 s"));
    life.step(late, exited(), 0);
    assert_eq!(life.state(), ModelState::Restarting);
    assert!(life.pause(late).is_some());

    let mut life = ready(policy(), now);
    assert_eq!(life.step(now + 9 * SECOND, Input::Heartbeat { engine_age: SECOND }, 0), None);
    assert_eq!(life.step(late, Input::Tick, 0), None, "a heartbeat moves the deadline");
    assert_eq!(life.step(late, Input::Heartbeat { engine_age: 11 * SECOND }, 0), Some(Effect::Kill));
    assert!(life.error().unwrap().contains("engine stood still for 11.0 s"));
}

#[test]
fn a_refusal_fails_without_restart() {
    let now = Instant::now();
    let mut life = Lifecycle::new(policy());
    life.step(now, Input::Want, 0);
    assert_eq!(life.step(now, Input::Refused { reason: "no such file".into(), for_now: false }, 0), Some(Effect::Kill));
    assert_eq!(life.state(), ModelState::Failed);
    life.step(now, exited(), 0);
    assert_eq!((life.state(), life.error()), (ModelState::Failed, Some("no such file")));
    assert_eq!(life.deadline(0), None);
}

#[test]
fn a_refusal_for_now_is_tried_again_by_a_later_request() {
    let now = Instant::now();
    let refused = || {
        let mut life = Lifecycle::new(policy());
        life.step(now, Input::Want, 0);
        let short = Input::Refused { reason: "no memory".into(), for_now: true };
        assert_eq!((life.step(now, short, 0), life.state()), (Some(Effect::Kill), ModelState::Failed));
        assert_eq!(life.step(now, exited(), 0), None);
        assert_eq!((life.state(), life.error()), (ModelState::Failed, Some("no memory")));
        life
    };
    let pause = policy().backoff.1;
    let mut life = refused();
    assert_eq!((life.pause(now), life.deadline(0)), (Some(pause), None), "nobody asks: nothing happens");
    assert_eq!(life.step(now + pause / 2, Input::Want, 0), None);
    assert_eq!(life.step(now + pause, Input::Want, 0), Some(Effect::Spawn));
    assert_eq!((life.state(), life.error()), (ModelState::Loading, None));
    assert_eq!(refused().step(now, Input::Load, 0), Some(Effect::Spawn), "who is in charge need not wait");
}

#[test]
fn unloading_waits_for_streams_unless_forced() {
    let now = Instant::now();
    let mut life = ready(policy(), now);
    assert_eq!(life.step(now, Input::Unload { force: false }, 2), None);
    assert_eq!(life.state(), ModelState::Draining);
    assert_eq!(life.step(now, Input::Idle, 0), Some(Effect::Drain));
    assert_eq!(life.step(now + EXIT_GRACE, Input::Tick, 0), Some(Effect::Kill), "it does not end by itself");
    assert_eq!(life.step(now + EXIT_GRACE, exited(), 0), None);
    assert_eq!((life.state(), life.error()), (ModelState::Unloaded, None));

    let mut life = ready(policy(), now);
    life.step(now, Input::Unload { force: false }, 2);
    assert_eq!(life.step(now, Input::Unload { force: true }, 2), Some(Effect::Kill));

    let mut life = ready(policy(), now);
    life.step(now, Input::Unload { force: false }, 2);
    assert_eq!(life.step(now, Input::Want, 2), None);
    life.step(now, Input::Idle, 0);
    assert_eq!(life.step(now, exited(), 0), Some(Effect::Spawn), "wanted again while it drained");
}

#[test]
fn idle_models_go_unless_they_serve() {
    let now = Instant::now();
    let policy = Policy { idle_ttl: Some(5 * SECOND), ..policy() };
    let mut life = ready(policy, now);
    assert_eq!(life.deadline(0), Some(now + 5 * SECOND));
    assert_eq!(life.deadline(1), Some(now + 10 * SECOND));
    assert_eq!(life.step(now + 5 * SECOND, Input::Tick, 1), None);
    assert_eq!(life.step(now + 6 * SECOND, Input::Idle, 0), None);
    assert_eq!(life.step(now + 10 * SECOND, Input::Heartbeat { engine_age: SECOND }, 0), None);
    assert_eq!(life.step(now + 10 * SECOND, Input::Tick, 0), None);
    assert_eq!(life.step(now + 11 * SECOND, Input::Tick, 0), Some(Effect::Drain));
}

fn input() -> impl Strategy<Value = Input> {
    prop_oneof![
        Just(Input::Load),
        Just(Input::Want),
        any::<bool>().prop_map(|force| Input::Unload { force }),
        Just(Input::Progress),
        Just(Input::Ready),
        any::<bool>().prop_map(|for_now| Input::Refused { reason: "because".into(), for_now }),
        (0u64..20).prop_map(|s| Input::Heartbeat { engine_age: Duration::from_secs(s) }),
        Just(exited()),
        Just(Input::Idle),
        Just(Input::Tick),
    ]
}

proptest! {
    /// Whatever happens: at most one worker at a time, effects only for a worker that is there, a reason whenever the
    /// model is failed or restarting, and no state in which nothing can ever happen again while a worker is wanted.
    #[test]
    fn invariants_hold(steps in prop::collection::vec((input(), 0u64..12, 0u64..3), 1..200), ttl in prop::option::of(0u64..20)) {
        let mut now = Instant::now();
        let mut life = Lifecycle::new(Policy { idle_ttl: ttl.map(Duration::from_secs), ..policy() });
        let (mut alive, mut killed) = (false, false);
        for (input, seconds, active) in steps {
            now += Duration::from_secs(seconds);
            // The supervisor reports only what can happen to a worker that exists.
            let about_worker = matches!(input, Input::Progress | Input::Ready | Input::Refused { .. } | Input::Heartbeat { .. } | Input::Exited(_));
            if about_worker && !alive {
                continue;
            }
            let active = if matches!(input, Input::Idle) || !alive { 0 } else { active };
            if matches!(input, Input::Exited(_)) {
                (alive, killed) = (false, false);
            }
            match life.step(now, input, active) {
                Some(Effect::Spawn) => {
                    prop_assert!(!alive, "a second worker");
                    alive = true;
                }
                Some(Effect::Kill) => {
                    prop_assert!(alive && !killed, "killed twice, or nobody");
                    killed = true;
                }
                Some(Effect::Drain) => prop_assert!(alive && !killed && active == 0),
                None => {}
            }
            let state = life.state();
            prop_assert_eq!(state == ModelState::Unloaded, !alive && !matches!(state, ModelState::Restarting | ModelState::Failed));
            if matches!(state, ModelState::Failed | ModelState::Restarting) {
                prop_assert!(life.error().is_some());
            }
            if matches!(state, ModelState::Loading | ModelState::Ready) {
                prop_assert!(alive && !killed);
            }
            // Something is always due, except in rest and while a killed process is awaited.
            if !matches!(state, ModelState::Unloaded | ModelState::Failed) && !killed {
                prop_assert!(life.deadline(active).is_some());
            }
        }
    }
}
