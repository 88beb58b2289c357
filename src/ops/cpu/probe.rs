//! What this host can do at most, with the backend's own threads and places: the limits that measured speeds are compared
//! with. Reading: several independent streams of vector loads per thread, nothing computed but what keeps the loads from
//! being dropped. Multiplying: chains of the tier's int8 instruction that depend on nothing but themselves, all in
//! registers.

use super::Cpu;
use super::acts::Parts;
use super::isa::Isa;
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Bytes of one item of the read probe: long enough for the prefetchers, short enough to even out the threads.
const SLICE: usize = 4 << 20;
/// Turns of an item of the multiplication probe, some 30 µs.
const TURNS: u64 = 4096;
/// Independent chains: the latency of the instruction times how many start per cycle, and some.
const CHAINS: usize = 16;

/// A rate per second and how it was got.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Int8Rate {
    /// Multiplications and additions per nanosecond: GOP/s.
    pub gops: f64,
    /// The instruction.
    pub instruction: &'static str,
}

impl Cpu {
    /// Writes to each page of `memory`, with the threads that will read it: pages come to lie on their nodes.
    pub fn touch(&self, memory: &mut [u8]) {
        let (len, parts) = (memory.len(), Parts::new(memory));
        self.pool.run(len.div_ceil(SLICE), 1, &|range| {
            let (start, end) = (range.start * SLICE, len.min(range.end * SLICE));
            // SAFETY: each slice belongs to one range.
            unsafe { parts.part(start, end - start) }.fill(1);
        });
    }

    /// Reads `memory` once with all threads, each its own contiguous part: GB/s. The memory should be larger than all caches,
    /// and its pages written to before.
    pub fn probe_read(&self, memory: &[u8]) -> f64 {
        let read = read_function(self.table.isa);
        let slices: Vec<&[u8]> = memory.chunks(SLICE).collect();
        let began = Instant::now();
        self.pool.run(slices.len(), 1, &|range| {
            // SAFETY: the function suits this host.
            slices[range].iter().for_each(|slice| _ = black_box(unsafe { read(slice) }));
        });
        memory.len() as f64 / began.elapsed().as_nanos().max(1) as f64
    }

    /// Multiplies int8 numbers with all threads for about `time`.
    pub fn probe_int8(&self, time: Duration) -> Int8Rate {
        let (multiply, per_turn, instruction) = int8_function(self.table.isa);
        let once = |items: usize| {
            let began = Instant::now();
            // SAFETY: the function suits this host.
            self.pool.run(items, 1, &|range| range.for_each(|_| _ = black_box(unsafe { multiply(TURNS) })));
            began.elapsed()
        };
        let trial = 8 * self.threads();
        let items = (time.as_nanos() * trial as u128 / once(trial).as_nanos().max(1)).clamp(1, 1 << 24) as usize;
        let items = items.next_multiple_of(trial);
        let took = once(items).as_nanos().max(1);
        Int8Rate { gops: (items as u64 * TURNS * per_turn) as f64 / took as f64, instruction }
    }
}

/// Reads every cache line of its argument.
type Read = unsafe fn(&[u8]) -> u64;
/// Multiplies for a number of turns.
type Multiply = unsafe fn(u64) -> i32;

fn read_function(isa: Isa) -> Read {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx512Vnni | Isa::Avx512Bf16 => x86::read_avx512,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => x86::read_avx2,
        _ => read_scalar,
    }
}

/// The function, its multiplications and additions per turn, and the instruction.
fn int8_function(isa: Isa) -> (Multiply, u64, &'static str) {
    const LANE: u64 = 2 * CHAINS as u64;
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni | Isa::Avx512Bf16 => (x86::multiply_vnni, 64 * LANE, "vpdpbusd zmm"),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => (x86::multiply_avx512, 64 * LANE, "vpmaddubsw zmm"),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => (x86::multiply_avx2, 32 * LANE, "vpmaddubsw ymm"),
        _ => (multiply_scalar, LANE, "scalar"),
    }
}

fn read_scalar(bytes: &[u8]) -> u64 {
    let (words, _) = bytes.as_chunks::<8>();
    words.iter().fold(0, |sum, word| sum ^ u64::from_ne_bytes(*word))
}

fn multiply_scalar(turns: u64) -> i32 {
    let mut sums = [1i32; CHAINS];
    for turn in 0..turns {
        let factor = black_box(turn as i8);
        sums.iter_mut().for_each(|sum| *sum = sum.wrapping_add(i32::from(*sum as i8) * i32::from(factor)));
    }
    sums.iter().fold(0, |all, sum| all ^ sum)
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::CHAINS;
    use std::arch::x86_64::*;
    use std::hint::black_box;

    /// Streams of a thread: as many as a kernel over a few rows has.
    const STREAMS: usize = 4;

    /// # Safety
    /// The host has AVX-512F.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn read_avx512(bytes: &[u8]) -> u64 {
        let part = bytes.len() / STREAMS / 128 * 128;
        let mut sums = [_mm512_setzero_si512(); 2 * STREAMS];
        for at in (0..part).step_by(128) {
            for stream in 0..STREAMS {
                let from = bytes[stream * part + at..][..128].as_ptr();
                // SAFETY: 128 bytes from `from` on lie within the slice.
                let (a, b) = unsafe { (_mm512_loadu_si512(from.cast()), _mm512_loadu_si512(from.add(64).cast())) };
                sums[2 * stream] = _mm512_xor_si512(sums[2 * stream], a);
                sums[2 * stream + 1] = _mm512_xor_si512(sums[2 * stream + 1], b);
            }
        }
        let sum = sums.into_iter().fold(_mm512_setzero_si512(), |all, sum| _mm512_xor_si512(all, sum));
        _mm512_reduce_or_epi64(sum) as u64
    }

    /// # Safety
    /// The host has AVX2.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn read_avx2(bytes: &[u8]) -> u64 {
        let part = bytes.len() / STREAMS / 64 * 64;
        let mut sums = [_mm256_setzero_si256(); 2 * STREAMS];
        for at in (0..part).step_by(64) {
            for stream in 0..STREAMS {
                let from = bytes[stream * part + at..][..64].as_ptr();
                // SAFETY: 64 bytes from `from` on lie within the slice.
                let (a, b) = unsafe { (_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(32).cast())) };
                sums[2 * stream] = _mm256_xor_si256(sums[2 * stream], a);
                sums[2 * stream + 1] = _mm256_xor_si256(sums[2 * stream + 1], b);
            }
        }
        let sum = sums.into_iter().fold(_mm256_setzero_si256(), |all, sum| _mm256_xor_si256(all, sum));
        _mm256_movemask_epi8(sum) as u64
    }

    /// # Safety
    /// The host has AVX-512F and VNNI.
    #[target_feature(enable = "avx512f,avx512vnni")]
    pub(super) unsafe fn multiply_vnni(turns: u64) -> i32 {
        let (a, b) = (_mm512_set1_epi8(black_box(3)), _mm512_set1_epi8(black_box(-2)));
        let mut sums = [_mm512_setzero_si512(); CHAINS];
        for _ in 0..turns {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, a, b);
            }
            // Keeps the chains from being folded to one multiplication.
            sums = opaque(sums);
        }
        sums.into_iter().fold(0, |all, sum| all ^ _mm512_reduce_add_epi32(sum))
    }

    /// The product that AVX-512 without VNNI is left with: bytes to words, words to double words, a sum.
    ///
    /// # Safety
    /// The host has AVX-512 F and BW.
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) unsafe fn multiply_avx512(turns: u64) -> i32 {
        let (a, b, one) = (_mm512_set1_epi8(black_box(3)), _mm512_set1_epi8(black_box(-2)), _mm512_set1_epi16(1));
        let mut sums = [_mm512_setzero_si512(); CHAINS];
        for _ in 0..turns {
            for sum in &mut sums {
                let words = _mm512_maddubs_epi16(_mm512_xor_si512(a, *sum), b);
                *sum = _mm512_add_epi32(*sum, _mm512_madd_epi16(words, one));
            }
        }
        sums.into_iter().fold(0, |all, sum| all ^ _mm512_reduce_add_epi32(sum))
    }

    /// As [`multiply_avx512`], half as wide.
    ///
    /// # Safety
    /// The host has AVX2.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn multiply_avx2(turns: u64) -> i32 {
        let (a, b, one) = (_mm256_set1_epi8(black_box(3)), _mm256_set1_epi8(black_box(-2)), _mm256_set1_epi16(1));
        let mut sums = [_mm256_setzero_si256(); CHAINS];
        for _ in 0..turns {
            for sum in &mut sums {
                let words = _mm256_maddubs_epi16(_mm256_xor_si256(a, *sum), b);
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(words, one));
            }
        }
        let sum = sums.into_iter().fold(_mm256_setzero_si256(), |all, sum| _mm256_xor_si256(all, sum));
        _mm256_extract_epi32::<0>(sum)
    }

    /// The same registers, of which the compiler knows nothing any more.
    #[target_feature(enable = "avx512f")]
    fn opaque(mut sums: [__m512i; CHAINS]) -> [__m512i; CHAINS] {
        for sum in &mut sums {
            // SAFETY: an empty instruction that names a register.
            unsafe {
                std::arch::asm!("/* {0} */", inout(zmm_reg) * sum, options(pure, nomem, nostack, preserves_flags))
            };
        }
        sums
    }
}
