//! Readers that go away, engines that close: everything returns.

use crate::support::{collect, eventually, greedy, options, prompt, request, run, start_bundled};
use omni_inferd::engine::{EngineOptions, Event, SubmitError};
use omni_inferd::sample::{Params, uniform};

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

#[test]
fn two_hundred_requests_with_random_drops_leave_nothing_behind() {
    let before = threads();
    let handle = start_bundled(&EngineOptions { parallel: 6, queue: 300, prefill_chunk: 48, ..options() });
    let readers: Vec<_> = (0..200u64)
        .map(|i| {
            let ids = prompt(i % 5, 1 + (uniform(1, i) * 120.0) as usize);
            let sampling = Params { seed: i, ..Params::default() };
            let mut events = handle.submit(request(&ids, (uniform(2, i) * 40.0) as usize, sampling)).unwrap();
            let patience = (uniform(3, i) < 0.5).then(|| (uniform(4, i) * 12.0) as usize);
            std::thread::spawn(move || match patience {
                Some(events_read) => {
                    for _ in 0..events_read {
                        events.blocking_recv();
                    }
                    false
                }
                None => collect(events).end.unwrap().is_ok(),
            })
        })
        .collect();
    let finished = readers.into_iter().map(|r| r.join().unwrap()).filter(|ok| *ok).count();
    assert!((50..150).contains(&finished), "{finished} finished");
    eventually("everything returns", || {
        let stats = handle.stats();
        (stats.running, stats.waiting, stats.kv_blocks_used) == (0, 0, 0)
    });
    assert!(handle.stats().cancelled_total > 0);
    assert_eq!(run(&handle, request(&[1, 2], 4, greedy())).tokens.len(), 4, "it serves on");
    assert!(threads() > before);
    drop(handle);
    eventually("threads end", || threads() <= before);
}

#[test]
fn queued_requests_are_cancelled_without_running() {
    let handle = start_bundled(&EngineOptions { parallel: 1, ..options() });
    let running = handle.submit(request(&prompt(0, 10), 240, greedy())).unwrap();
    let queued = handle.submit(request(&prompt(1, 10), 240, greedy())).unwrap();
    eventually("one runs, one waits", || (handle.stats().running, handle.stats().waiting) == (1, 1));
    drop(queued);
    eventually("the queued one is gone", || handle.stats().waiting == 0);
    assert_eq!(handle.stats().cancelled_total, 1);
    drop(running);
    eventually("the running one is gone", || handle.stats().running == 0);
    eventually("its blocks return", || handle.stats().kv_blocks_used == 0);
}

#[test]
fn a_closed_engine_finishes_what_it_has_and_takes_no_more() {
    let handle = start_bundled(&EngineOptions { parallel: 1, ..options() });
    let running: Vec<_> = (0..3).map(|i| handle.submit(request(&[i], 30, greedy())).unwrap()).collect();
    handle.close();
    assert!(matches!(handle.submit(request(&[1], 1, greedy())), Err(SubmitError::Closing)));
    for events in running {
        assert_eq!(collect(events).tokens.len(), 30);
    }
    assert!(!handle.is_dead());
}

#[test]
fn dropping_the_last_handle_ends_streams_and_threads() {
    let before = threads();
    for _ in 0..5 {
        let handle = start_bundled(&options());
        let clone = handle.clone();
        drop(handle);
        let mut events = clone.submit(request(&prompt(0, 10), 240, greedy())).unwrap();
        assert!(matches!(events.blocking_recv(), Some(Event::Prefill { .. })));
        drop(clone);
        let mut last = None;
        while let Some(event) = events.blocking_recv() {
            last = Some(event);
        }
        assert!(matches!(last, Some(Event::Error(text)) if text.contains("shutting down")));
    }
    eventually("threads end", || threads() <= before);
    let handle = start_bundled(&options());
    handle.shutdown();
    assert!(matches!(handle.submit(request(&[1], 1, greedy())), Err(SubmitError::Closing)));
}
