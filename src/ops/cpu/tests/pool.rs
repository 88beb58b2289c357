//! The thread pool: every item once, panics, many tiny regions, more threads than CPUs.

use crate::ops::cpu::deal::Piece;
use crate::ops::cpu::pool::Pool;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

#[test]
fn every_item_runs_once() {
    for threads in [1, 2, 3, 8, 17, 64] {
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
fn every_item_of_pieces_runs_once() {
    // As many and as long as the matrices of a layer, and experts' among them; then more chunks than a share counts.
    let piece = |start, len, of| Piece { items: start..start + len, first: 0, of };
    let many = (0..300).map(|i| piece(i * 7, 7, 7)).collect();
    for pieces in
        [vec![piece(0, 256, 256), piece(256, 64, 64), piece(320, 65, 65)], many, vec![piece(0, 300_000, 300_000)]]
    {
        let items = pieces.last().map_or(0, |piece| piece.items.end);
        for (threads, grain) in [(1, 3), (2, 1), (3, 5), (17, 8)] {
            let pool = Pool::new(threads, &[], true).unwrap().dealing_apart(true);
            assert!(pool.deals_apart());
            let counts: Vec<AtomicU32> = (0..items).map(|_| AtomicU32::new(0)).collect();
            pool.run_pieces(&pieces, grain, &|range| range.for_each(|i| _ = counts[i].fetch_add(1, Ordering::Relaxed)));
            assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1), "{items} items, {threads} threads");
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

/// Many groups, most of whose threads come late or not at all: no item is lost or done twice, and the last region's
/// counters are not taken for this one's.
#[test]
fn hundreds_of_threads_lose_nothing() {
    for (threads, spin, regions) in [(64, true, 300), (256, false, 150), (250, true, 50)] {
        let pool = Pool::new(threads, &[], spin).unwrap();
        let mut expected = vec![0u32; 5000];
        let counts: Vec<AtomicU32> = expected.iter().map(|_| AtomicU32::new(0)).collect();
        let mut random = 7u32;
        for region in 0..regions {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let (items, grain) = ((random >> 8) as usize % expected.len(), (random >> 24) as usize % 20);
            pool.run(items, grain, &|range| {
                if region % 16 == 0 {
                    // Lets the sleepers come, so that they steal from each other.
                    std::thread::yield_now();
                }
                range.for_each(|i| {
                    counts[i].fetch_add(1, Ordering::Relaxed);
                });
            });
            expected[..items].iter_mut().for_each(|count| *count += 1);
            let wrong = counts.iter().zip(&expected).position(|(count, e)| count.load(Ordering::Relaxed) != *e);
            assert_eq!(wrong, None, "region {region} of {threads} threads: {items} items, {grain} a chunk");
            if region % 50 == 49 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

#[test]
fn more_chunks_than_a_share_counts() {
    let pool = Pool::new(2, &[], true).unwrap();
    let (sum, calls) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let items = 300_001;
    pool.run(items, 1, &|range| {
        assert_eq!(range.len(), 1);
        sum.fetch_add(range.start, Ordering::Relaxed);
        calls.fetch_add(1, Ordering::Relaxed);
    });
    assert_eq!((calls.into_inner(), sum.into_inner()), (items, items * (items - 1) / 2));
}

#[test]
fn a_region_within_a_region_is_refused() {
    let (outer, other) = (Pool::new(3, &[], true).unwrap(), Pool::new(2, &[], true).unwrap());
    let result = catch_unwind(AssertUnwindSafe(|| outer.run(50, 1, &|_| outer.run(50, 1, &|_| ()))));
    let message = *result.unwrap_err().downcast::<&str>().unwrap();
    assert!(message.contains("region within a region"), "{message}");
    let done = AtomicUsize::new(0);
    outer.run(9, 1, &|range| {
        other.run(10 * range.len(), 1, &|range| {
            done.fetch_add(range.len(), Ordering::Relaxed);
        });
    });
    assert_eq!(done.into_inner(), 90, "another pool's region is fine, and both pools live on");
}

#[test]
fn sleeping_threads_wake() {
    for threads in [4, 40] {
        let pool = Pool::new(threads, &[], true).unwrap();
        std::thread::sleep(Duration::from_millis(5));
        let (came, began) = (std::sync::Mutex::new(std::collections::HashSet::new()), Instant::now());
        while came.lock().unwrap().len() < threads {
            assert!(began.elapsed() < Duration::from_secs(10), "{} of {threads} came", came.lock().unwrap().len());
            pool.run(4 * threads, 1, &|_| {
                came.lock().unwrap().insert(std::thread::current().id());
                std::thread::sleep(Duration::from_millis(1));
            });
        }
    }
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
