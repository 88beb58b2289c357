//! An allocator that counts what the current thread holds, to show that parsing allocates no more than a file justifies.

use omni_inferd::gguf::{Array, File, Value, write::Builder};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::Instant;

struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn add(bytes: isize) {
    // The thread's last frees come after its locals are gone: nobody reads the count then.
    let _ = HELD.try_with(|held| {
        held.set(held.get() + bytes);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(held.get())));
    });
}

// SAFETY: every call is passed on to the system's allocator unchanged; counting touches no allocated memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size() as isize);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        add(-(layout.size() as isize));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Runs `f` and says how many bytes this thread held at most beyond what it held before.
pub fn peak<T>(f: impl FnOnce() -> T) -> (T, usize) {
    let before = HELD.get();
    PEAK.set(before);
    let result = f();
    (result, (PEAK.get() - before) as usize)
}

/// A large vocabulary is parsed into no more memory than it takes in the file, strings and all.
#[test]
fn a_vocabulary_costs_no_more_than_its_bytes() {
    let strings = |count: u32| Array::String((0..count).map(|i| format!("token {i}")).collect());
    let bytes = Builder::new()
        .key("tokenizer.ggml.tokens", Value::Array(strings(151_936)))
        .key("tokenizer.ggml.token_type", Value::Array(Array::I32(vec![1; 151_936])))
        .key("tokenizer.ggml.merges", Value::Array(strings(151_387)))
        .build();
    let mut fastest = f64::MAX;
    for _ in 0..5 {
        let begin = Instant::now();
        let (file, held) = peak(|| File::parse(&bytes, bytes.len() as u64).unwrap());
        fastest = fastest.min(begin.elapsed().as_secs_f64());
        assert_eq!(file.metadata.get_strings("tokenizer.ggml.merges").unwrap().unwrap().len(), 151_387);
        assert!(held < bytes.len() + 4096, "{held} bytes for {}", bytes.len());
    }
    println!("{} bytes of header in {:.1} ms", bytes.len(), fastest * 1e3);
}

#[test]
fn the_counter_counts() {
    let (len, bytes) = peak(|| vec![0u8; 100_000].len());
    assert!((100_000..110_000).contains(&bytes), "{len}: {bytes}");
}
