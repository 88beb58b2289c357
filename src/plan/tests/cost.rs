//! The terms of the cost model against numbers computed by hand.

use super::super::cost::{CPU_LAYER, Cost, GPU_LAYER, HANDOVER, HOP, SAMPLE, expected_slowest};
use super::super::*;
use super::hosts::{GIB, host};
use proptest::prelude::*;

const GPU: Device = Device::Gpu(0);
const CPU: Device = Device::Cpu;

fn weights(bytes: u64) -> Weights {
    Weights { bytes, elements: 2 * bytes }
}

/// `layers` layers with 8 MB of attention, 4 MB of dense part, and `experts` experts of 2 MB of which 2 are used.
pub(super) fn parts(layers: usize, experts: usize) -> Parts {
    let layer = LayerParts {
        attention: weights(8_000_000),
        dense: weights(4_000_000),
        router: Weights::default(),
        expert: if experts > 0 { weights(2_000_000) } else { Weights::default() },
        experts,
        scores: 1000,
        cached: true,
        window: None,
        state: 0,
    };
    Parts {
        name: "test".into(),
        embedding: weights(16_000_000),
        head: weights(16_000_000),
        layers: vec![layer; layers],
        used: if experts > 0 { 2 } else { 0 },
        d_model: 1000,
        trained: 4096,
        tensors: Vec::new(),
    }
}

fn layout(places: Vec<LayerPlace>, head: Device) -> Layout {
    Layout { layers: places, head, embedding: CPU }
}

fn at(device: Device, shares: &[(Device, usize)]) -> LayerPlace {
    let mut first = 0;
    let share = |(device, experts): &(Device, usize)| {
        let share = Share { device: *device, first, experts: *experts };
        first += experts;
        share
    };
    LayerPlace { attention: device, dense: device, experts: shares.iter().map(share).collect() }
}

fn close(found: f64, wanted: f64) {
    assert!((found / wanted - 1.0).abs() < 1e-9, "{found} instead of {wanted}");
}

#[test]
fn the_slowest_of_two_devices_by_hand() {
    // Of 4 experts 2 are drawn; 2 sit on each device: none, one or both from the first with 1/6, 4/6, 1/6.
    close(expected_slowest(2, &[(2, 3.0), (2, 1.0)]), (2.0 + 4.0 * 3.0 + 6.0) / 6.0);
    close(expected_slowest(2, &[(4, 3.0)]), 6.0);
    close(expected_slowest(2, &[(4, 3.0), (0, 1.0)]), 6.0);
    close(expected_slowest(1, &[(1, 10.0), (3, 1.0)]), (10.0 + 3.0) / 4.0);
}

proptest! {
    #[test]
    fn the_slowest_is_the_mean_over_all_draws(
        sizes in proptest::collection::vec(0usize..5, 1..4),
        seconds in proptest::collection::vec(0.1f64..9.0, 3),
        chosen in 1usize..5,
    ) {
        let devices: Vec<(usize, f64)> = sizes.iter().copied().zip(seconds).collect();
        let owner: Vec<usize> = sizes.iter().enumerate().flat_map(|(i, n)| std::iter::repeat_n(i, *n)).collect();
        prop_assume!(owner.len() >= chosen);
        let (mut sum, mut draws) = (0.0, 0.0);
        for mask in (0u32..1 << owner.len()).filter(|mask| mask.count_ones() as usize == chosen) {
            let mut drawn = vec![0.0; devices.len()];
            (0..owner.len()).filter(|i| mask >> i & 1 == 1).for_each(|i| drawn[owner[i]] += 1.0);
            sum += drawn.iter().zip(&devices).map(|(n, (_, seconds))| n * seconds).fold(0.0, f64::max);
            draws += 1.0;
        }
        let found = expected_slowest(chosen, &devices);
        prop_assert!((found - sum / draws).abs() < 1e-9, "{found} instead of {}", sum / draws);
    }
}

#[test]
fn a_token_on_one_gpu_by_hand() {
    let (host, parts) = (host(64 * GIB, &[24 * GIB]), parts(2, 0));
    let terms = Cost::new(&host, &parts, 1000.0).decode(&layout(vec![at(GPU, &[]), at(GPU, &[])], GPU), 4000);
    // 1 TB/s, of which 80% count.
    close(terms.attention, 2.0 * 8e6 / 0.8e12);
    close(terms.dense, 2.0 * 4e6 / 0.8e12);
    close(terms.cache, 2.0 * 1000.0 * 4000.0 / 0.8e12);
    close(terms.head, 16e6 / 0.8e12);
    close(terms.layers, 2.0 * GPU_LAYER);
    assert_eq!((terms.hops, terms.handover, terms.experts), (0.0, 0.0, 0.0));
    close(terms.total(), terms.named().iter().map(|(_, seconds)| seconds).sum::<f64>());
    close(terms.sample, SAMPLE);
}

#[test]
fn hops_and_hand_overs_by_hand() {
    let (host, parts) = (host(64 * GIB, &[24 * GIB, 24 * GIB]), parts(2, 8));
    let cost = Cost::new(&host, &parts, 0.0);
    // 1000 activations of 4 bytes at 50 GB/s.
    let transfer = 4000.0 / 50e9;
    let pipeline = layout(vec![at(GPU, &[(GPU, 8)]), at(Device::Gpu(1), &[(Device::Gpu(1), 8)])], Device::Gpu(1));
    close(cost.decode(&pipeline, 0).hops, HOP + transfer);
    assert_eq!(pipeline.hops(), 1);
    let split = layout(vec![at(GPU, &[(GPU, 6), (CPU, 2)]), at(CPU, &[(CPU, 8)])], GPU);
    let terms = cost.decode(&split, 0);
    close(terms.handover, HANDOVER + 2.0 * transfer);
    close(terms.hops, 2.0 * (HOP + transfer));
    close(terms.layers, GPU_LAYER + CPU_LAYER);
    // One expert: 2 MB at 80 % of 1 TB/s or 95% of 100 GB/s. Of 8, two drawn: 15/28 both on the GPU, 12/28 one, 1/28 none.
    let (gpu, cpu) = (2e6 / 0.8e12, 2e6 / 95e9);
    close(terms.experts, (15.0 * 2.0 * gpu + 12.0 * cpu + 2.0 * cpu) / 28.0 + 2.0 * cpu);
}

#[test]
fn windows_and_states_bound_what_is_read() {
    let (host, mut parts) = (host(64 * GIB, &[24 * GIB]), parts(2, 0));
    parts.layers[0].window = Some(100);
    parts.layers[1] = LayerParts { cached: false, state: 1_000_000, ..parts.layers[1] };
    let terms = Cost::new(&host, &parts, 1000.0).decode(&layout(vec![at(GPU, &[]), at(GPU, &[])], GPU), 4000);
    close(terms.cache, (1000.0 * 100.0 + 2e6) / 0.8e12);
}

#[test]
fn prompts_by_hand() {
    let (host, mut parts) = (host(64 * GIB, &[24 * GIB]), parts(1, 0));
    parts.layers[0].scores = 0;
    let cost = Cost::new(&host, &parts, 0.0);
    let prefill = cost.prefill(&layout(vec![at(GPU, &[])], GPU), 512, 512);
    // 12 MB have 24M elements: two operations each for 512 rows, at 40% of 100 TOP/s; the head is read once.
    close(prefill.seconds, 2.0 * 24e6 * 512.0 / 40e12 + 16e6 / 0.8e12);
    // One row is bound by reading.
    let one = cost.prefill(&layout(vec![at(GPU, &[])], GPU), 1, 512);
    close(one.seconds, 12e6 / 0.8e12 + 16e6 / 0.8e12);
    close(prefill.rate(), 512.0 / prefill.seconds);
}

/// Short prompts leave experts where they are; of longer ones as many are streamed as makes the slowest part fastest.
#[test]
fn experts_are_streamed_where_that_pays() {
    let (mut host, mut parts) = (host(64 * GIB, &[24 * GIB]), parts(1, 8));
    // Arithmetic bounds the CPU, not reading.
    host.cpu = Rates { read: 1e12, ops: 1e12 };
    parts.layers[0].scores = 0;
    let (cost, layout) = (Cost::new(&host, &parts, 0.0), layout(vec![at(GPU, &[(CPU, 8)])], GPU));
    assert_eq!(cost.prefill(&layout, 999, 4096).streamed, 0.0);
    let long = cost.prefill(&layout, 4096, 4096);
    assert!((0.1..1.0).contains(&long.streamed), "{long:?}");
    let (compute, link) = (8.0 * 2.0 * 4096.0 / 4.0 * 4e6 / 0.5e12, 8.0 * 2e6 / 45e9);
    let gpu = 8.0 * 2.0 * 4096.0 / 4.0 * 4e6 / 40e12;
    let slowest = |x: f64| ((1.0 - x) * compute).max(x * link).max(x * gpu);
    let least = (0..=10_000).map(|x| slowest(f64::from(x) / 10_000.0)).fold(f64::INFINITY, f64::min);
    let transfers = 2.0 * 4096.0 * 4000.0 / 50e9 + HANDOVER;
    assert!(((long.experts - transfers) / least - 1.0).abs() < 1e-3, "{} instead of {least}", long.experts - transfers);
    // Where reading bounds the CPU, streaming, which reads as much, gains nothing.
    host.cpu = Rates { read: 10e9, ops: 1e15 };
    assert_eq!(Cost::new(&host, &parts, 0.0).prefill(&layout, 4096, 4096).streamed, 0.0);
}
