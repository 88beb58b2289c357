//! What a parallel region costs, and what is left of the speed when other processes want the same CPUs.
//!
//! ```text
//! cargo bench --bench pool [-- --rounds N]
//! ```
//! First the latency of a region whose items do nothing, for several numbers of threads, those beyond the CPUs included.
//! Then regions of 1 to 9 MiB of memory to read, as a token has them, undisturbed and beside one busy process per CPU or
//! one in all; 50% is the fair share beside one per CPU. Records: `benches/records/`.

use omni_inferd::ops::cpu::Pool;
use omni_inferd::sys::topology::Topology;
use std::hint::black_box;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Bytes that a thread takes at a time.
const CHUNK: usize = 96 << 10;
/// How long each speed is measured.
const SPAN: Duration = Duration::from_secs(2);

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if args.iter().any(|arg| arg == "--burn") {
        burn();
    }
    let rounds = args.iter().position(|arg| arg == "--rounds").and_then(|i| args.get(i + 1)?.parse().ok()).unwrap_or(3);
    let places = Topology::detect().placement();
    println!("{} CPUs; a region without work, µs, best and mean of 20 runs of 1000", places.len());
    for threads in [1, 2, 8, 64] {
        let (best, mean) = latency(threads, &places);
        println!("{threads:>4} threads {best:>9.2} {mean:>9.2}");
    }
    println!("reading memory, GB/s: undisturbed, beside one busy process, beside one per CPU");
    for _ in 0..rounds {
        let speeds = [0, 1, places.len()].map(|count| {
            let burners: Vec<Burner> = (0..count).map(|_| Burner::start()).collect();
            let speed = stream(&places);
            drop(burners);
            speed
        });
        let share = |speed: f64| speed / speeds[0] * 100.0;
        println!(
            "{:>6.2} {:>6.2} ({:.0}%) {:>6.2} ({:.0}%)",
            speeds[0],
            speeds[1],
            share(speeds[1]),
            speeds[2],
            share(speeds[2])
        );
    }
}

fn pool(threads: usize, places: &[usize]) -> Pool {
    let cpus = if threads <= places.len() { places } else { &[] };
    Pool::new(threads, cpus, threads <= places.len()).unwrap_or_else(|error| panic!("{error}"))
}

fn latency(threads: usize, places: &[usize]) -> (f64, f64) {
    let pool = pool(threads, places);
    let run = || {
        let start = Instant::now();
        (0..1000).for_each(|_| pool.run(4 * threads, 1, &|range| assert!(black_box(range).start < 4 * threads)));
        start.elapsed().as_secs_f64() * 1e3
    };
    let runs: Vec<f64> = (0..20).map(|_| run()).collect();
    (runs.iter().copied().fold(f64::INFINITY, f64::min), runs.iter().sum::<f64>() / runs.len() as f64)
}

/// GB/s of regions that read memory, with a thread per CPU.
fn stream(places: &[usize]) -> f64 {
    let data = vec![1u64; 32 << 20];
    let pool = pool(places.len(), places);
    let (start, sum) = (Instant::now(), AtomicU64::new(0));
    let (mut at, mut bytes) = (0, 0);
    while start.elapsed() < SPAN {
        for mib in [3, 1, 9, 9, 5] {
            let len = (mib << 20) / 8;
            at = if at + len > data.len() { 0 } else { at };
            let part = &data[at..at + len];
            pool.run(len / (CHUNK / 8), 1, &|range| {
                let words = &part[range.start * (CHUNK / 8)..range.end * (CHUNK / 8)];
                sum.fetch_add(words.iter().fold(0, |sum, word| sum.wrapping_add(*word)), Ordering::Relaxed);
            });
            (at, bytes) = (at + len, bytes + 8 * len);
        }
    }
    black_box(sum);
    bytes as f64 / 1e9 / start.elapsed().as_secs_f64()
}

/// A process that computes until it is dropped.
struct Burner(Child);

impl Burner {
    fn start() -> Burner {
        let own = std::env::current_exe().unwrap_or_else(|error| panic!("{error}"));
        Burner(Command::new(own).arg("--burn").spawn().unwrap_or_else(|error| panic!("{error}")))
    }
}

impl Drop for Burner {
    fn drop(&mut self) {
        // It cannot have ended by itself.
        let _ = (self.0.kill(), self.0.wait());
    }
}

fn burn() -> ! {
    loop {
        black_box(0);
    }
}
