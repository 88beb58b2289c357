//! Speed of a cold load against what `dd` reads from the same disk in the same minute, and the memory it takes at most.
//!
//! ```text
//! cargo bench --bench load -- FILE [--rounds N]
//! ```
//! Each round runs `dd if=FILE of=/dev/null bs=4M iflag=direct` for each part of the file, then a load in a process of its
//! own, both past the page cache, so that nothing needs to be dropped from it. Records: `benches/records/`.

#![allow(clippy::expect_used, reason = "a bench fails by panicking")]

use omni_inferd::exec::{CpuOptions, Layouts};
use omni_inferd::load::{Method, Source, huge_page_bytes};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let Some(file) = args.first().filter(|arg| !arg.starts_with('-')).map(PathBuf::from) else {
        println!("cargo bench --bench load -- FILE [--rounds N]");
        return;
    };
    if args.get(1).is_some_and(|arg| arg == "--once") {
        return once(&file);
    }
    let rounds = args.iter().position(|arg| arg == "--rounds").and_then(|i| args.get(i + 1)?.parse().ok()).unwrap_or(3);
    println!("{:>8} {:>8} {:>7}   load", "dd GB/s", "load", "ratio");
    let mut ratios: Vec<f64> = (0..rounds).map(|_| round(&file)).collect();
    ratios.sort_by(f64::total_cmp);
    println!("median ratio {:.3}", ratios[ratios.len() / 2]);
}

/// One comparison; yields load speed as a share of `dd`'s.
fn round(file: &Path) -> f64 {
    let disk = dd(file);
    let own = std::env::current_exe().expect("a process has a file");
    let output = Command::new(own).arg(file).arg("--once").output().expect("the bench starts itself");
    let line = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let load: f64 = line.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or_else(|| {
        panic!("the load failed: {}", String::from_utf8_lossy(&output.stderr));
    });
    println!("{disk:>8.3} {load:>8.3} {:>7.3}   {}", load / disk, line.split_once(' ').map_or("", |(_, rest)| rest));
    load / disk
}

/// GB/s of a plain sequential read.
fn dd(file: &Path) -> f64 {
    let source = Source::open(file).expect("a GGUF file");
    let (start, mut bytes) = (Instant::now(), 0);
    for part in source.paths() {
        let input = format!("if={}", part.display());
        let done = Command::new("dd").args([&input, "of=/dev/null", "bs=4M", "iflag=direct", "status=none"]).status();
        assert!(done.is_ok_and(|status| status.success()), "dd cannot read {}", part.display());
        bytes += std::fs::metadata(part).map_or(0, |meta| meta.len());
    }
    bytes as f64 / 1e9 / start.elapsed().as_secs_f64()
}

/// Loads the file and prints GB/s and what memory it took.
fn once(file: &Path) {
    let source = Source::open(file).expect("a GGUF file");
    let model = source.bind().expect("a model that this build runs");
    let bytes = model.weight_bytes();
    let layouts = Layouts::new(&CpuOptions::default()).expect("default options are valid");
    let mut method = Method::default();
    let start = Instant::now();
    let loaded = source.load(model, &|dtype, rows, cols| layouts.of(dtype, rows, cols), &mut |now| method = now.method);
    let seconds = start.elapsed().as_secs_f64();
    let loaded = loaded.expect("a file that can be read");
    let peak = peak_bytes();
    let (over, huge) = (peak.saturating_sub(bytes) >> 20, huge_page_bytes() as f64 / bytes as f64 * 100.0);
    let packed = loaded.tensors().iter().filter(|tensor| tensor.layout != Default::default()).count();
    println!(
        "{:.3} {method}; peak = {:.3} GB of weights + {over} MiB; {huge:.0}% on huge pages; {packed} tensors packed",
        bytes as f64 / 1e9 / seconds,
        bytes as f64 / 1e9
    );
}

/// Most bytes that this process has had resident.
fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc is mounted");
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).map_or(0, |kib| kib << 10)
}
