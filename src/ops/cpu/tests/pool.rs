//! The thread pool: every item once, panics, many tiny regions, more threads than CPUs.

use crate::ops::cpu::pool::Pool;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

#[test]
fn every_item_runs_once() {
    for threads in [1, 2, 3, 8] {
        let pool = Pool::new(threads, &[], true).unwrap();
        assert_eq!(pool.threads(), threads);
        for (items, grain) in [(0, 1), (1, 1), (7, 3), (1000, 1), (1000, 64), (1000, 5000), (513, 0)] {
            let counts: Vec<AtomicU32> = (0..items).map(|_| AtomicU32::new(0)).collect();
            pool.run(items, grain, &|range| {
                assert!(range.len() <= grain.max(1));
                range.for_each(|i| {
                    counts[i].fetch_add(1, Ordering::Relaxed);
                });
            });
            assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1), "{items} items, {grain} a chunk");
        }
    }
}

#[test]
fn many_tiny_regions() {
    for (threads, spin) in [(2, true), (8, true), (8, false)] {
        let pool = Pool::new(threads, &[], spin).unwrap();
        let sum = AtomicUsize::new(0);
        let mut expected = 0;
        for region in 0..20_000 {
            let items = region % 9;
            expected += items;
            pool.run(items, 1, &|range| {
                sum.fetch_add(range.len(), Ordering::Relaxed);
            });
        }
        assert_eq!(sum.load(Ordering::Relaxed), expected, "{threads} threads");
    }
}

#[test]
fn sleeping_threads_wake() {
    let pool = Pool::new(4, &[], true).unwrap();
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(2));
        let done = AtomicUsize::new(0);
        pool.run(64, 1, &|range| {
            done.fetch_add(range.len(), Ordering::Relaxed);
        });
        assert_eq!(done.load(Ordering::Relaxed), 64);
    }
}

#[test]
fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
    let pool = Pool::new(3, &[], true).unwrap();
    for bad in [0, 50, 99] {
        let result = catch_unwind(AssertUnwindSafe(|| {
            pool.run(100, 1, &|range| assert!(!range.contains(&bad), "item {bad}"));
        }));
        let message = *result.unwrap_err().downcast::<String>().unwrap();
        assert_eq!(message, format!("item {bad}"));
        let done = AtomicUsize::new(0);
        pool.run(100, 1, &|range| {
            done.fetch_add(range.len(), Ordering::Relaxed);
        });
        assert_eq!(done.load(Ordering::Relaxed), 100);
    }
}

/// A slow chunk holds up nobody else: the others take what its thread would have come to.
#[test]
fn work_is_stolen_from_a_stalled_thread() {
    let pool = Pool::new(4, &[], true).unwrap();
    let began = Instant::now();
    pool.run(400, 1, &|range| {
        let wait = if range.contains(&0) { 200 } else { 1 };
        std::thread::sleep(Duration::from_millis(wait));
    });
    // 400 ms of items over four threads beside one stall of 200 ms; without stealing the stalled share alone takes 300.
    assert!(began.elapsed() < Duration::from_millis(285), "{:?}", began.elapsed());
}

#[test]
fn callers_take_turns() {
    let pool = Pool::new(2, &[], true).unwrap();
    let inside = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..500 {
                    pool.run(8, 1, &|range| {
                        assert!(inside.fetch_add(range.len(), Ordering::SeqCst) < 8);
                        inside.fetch_sub(range.len(), Ordering::SeqCst);
                    });
                }
            });
        }
    });
}
