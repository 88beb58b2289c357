//! What plans keep to whatever the model and the host, and the decisions one by one.

use super::super::*;
use super::cost::parts;
use super::hosts::{GIB, host};
use proptest::prelude::*;

const MIB: u64 = 1 << 20;

/// A cache of 1 KiB per token and layer, buffers of 1 MiB and 256 KiB per row of a micro-batch.
fn count(layers: usize) -> impl Fn(&Setting) -> Counts {
    move |setting| Counts {
        kv: (setting.context as u64)
            .saturating_mul((setting.parallel * layers) as u64)
            .saturating_mul(if setting.kv == "q8_0" { 544 } else { 1024 }),
        state: 0,
        made: 0,
        cpu_buffers: MIB,
        gpu_buffers: MIB + setting.micro_batch as u64 * (MIB / 4),
        engine: MIB,
    }
}

fn request() -> Request {
    Request { context: Some(1024), parallel: 1, micro_batch: Some(64), smaller_kv: vec!["q8_0"], ..Request::default() }
}

fn planned(parts: &Parts, host: &Host, request: Request) -> Result<Plan, NoPlan> {
    let count = count(parts.layers.len());
    plan(&Ask { parts, host, count: &count, request, held: Held::default() })
}

/// A model with tensors of the names that files have.
fn named(mut parts: Parts) -> Parts {
    parts.tensors =
        vec![("token_embd.weight".into(), Component::Embedding, 0), ("output.weight".into(), Component::Head, 0)];
    for layer in 0..parts.layers.len() {
        let mut add = |name: &str, what| parts.tensors.push((format!("blk.{layer}.{name}.weight"), what, layer));
        add("attn_q", Component::Attention);
        add("attn_norm", Component::Attention);
        add("ffn_gate_inp", Component::Router);
        add("ffn_up_exps", Component::Experts);
        add("ffn_down_exps", Component::Experts);
        add("ffn_up_shexp", Component::Dense);
    }
    parts
}

/// Models of some megabytes a layer, so that bandwidth and not launches decides.
fn models() -> impl Strategy<Value = Parts> {
    let layer = (20u64..200, 0u64..100, 2u64..30);
    (proptest::collection::vec(layer, 2..7), 0usize..24, 1usize..5, 1u64..500).prop_map(
        |(layers, experts, used, head)| {
            let mut parts = parts(layers.len(), experts);
            for (layer, (attention, dense, expert)) in parts.layers.iter_mut().zip(layers) {
                let weights = |mb: u64| Weights { bytes: mb * 1_000_000, elements: mb * 2_000_000 };
                (layer.attention, layer.dense) = (weights(attention), weights(dense));
                layer.expert = if experts > 0 { weights(expert) } else { Weights::default() };
            }
            parts.used = used.min(experts);
            parts.head.bytes = head * 1_000_000;
            named(parts)
        },
    )
}

/// GPUs from ten times as fast as the CPU on: as on every host that this is for, faster by more than a token uses experts.
fn hosts() -> impl Strategy<Value = Host> {
    let gpu = (0u64..3000, 1000u64..3000, 5u64..60);
    (proptest::collection::vec(gpu, 0..4), 4000u64..20_000).prop_map(|(gpus, memory)| {
        let mut host = host(memory * MIB, &vec![0; gpus.len()]);
        for (gpu, (free, read, link)) in host.gpus.iter_mut().zip(gpus) {
            (gpu.free, gpu.rates.read, gpu.link) = (free * MIB, read as f64 * 1e9, link as f64 * 1e9);
            (gpu.reserve, gpu.overhead) = (20 * MIB, 10 * MIB);
        }
        host
    })
}

fn rate(plan: &Result<Plan, NoPlan>) -> f64 {
    plan.as_ref().map_or(0.0, |plan| plan.decode[0].rate)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_byte_has_one_place_and_no_device_is_overfull(parts in models(), host in hosts()) {
        if let Ok(plan) = planned(&parts, &host, request()) {
            let sum = |of: fn(&DeviceBytes) -> u64| plan.devices.iter().map(of).sum::<u64>();
            prop_assert_eq!(sum(DeviceBytes::weights), parts.bytes());
            prop_assert_eq!(sum(|bytes| bytes.experts), parts.expert_bytes());
            prop_assert_eq!(sum(|bytes| bytes.kv), count(parts.layers.len())(&plan.setting).kv);
            for bytes in &plan.devices {
                prop_assert!(bytes.taken() == 0 || bytes.left().is_some(), "{bytes:?}");
            }
            for (place, layer) in plan.layout.layers.iter().zip(&parts.layers) {
                prop_assert_eq!(place.attention, place.dense, "a layer is not cut but by hand");
                prop_assert_eq!(place.experts.iter().map(|share| share.experts).sum::<usize>(), layer.experts);
                prop_assert!(place.experts.iter().all(|share| [Device::Cpu, place.dense].contains(&share.device)));
            }
        }
    }

    #[test]
    fn more_memory_never_makes_it_slower(parts in models(), host in hosts(), which in 0usize..4, more in 1u64..2000) {
        let mut larger = host.clone();
        match larger.gpus.get_mut(which) {
            Some(gpu) => gpu.free += more * MIB,
            None => larger.memory += more * MIB,
        }
        let (before, after) = (planned(&parts, &host, request()), planned(&parts, &larger, request()));
        prop_assert!(rate(&after) >= rate(&before) * (1.0 - 1e-9), "{} after {}", rate(&after), rate(&before));
    }

    #[test]
    fn one_gpu_less_never_makes_it_faster(parts in models(), host in hosts(), which in 0usize..4) {
        let mut smaller = host.clone();
        if !host.gpus.is_empty() {
            smaller.gpus.remove(which % host.gpus.len());
        }
        let (before, after) = (planned(&parts, &host, request()), planned(&parts, &smaller, request()));
        prop_assert!(rate(&after) <= rate(&before) * (1.0 + 1e-9), "{} after {}", rate(&after), rate(&before));
    }

    #[test]
    fn placements_by_hand_are_kept(parts in models(), host in hosts(), layer in 0usize..6, which in 0usize..4, what in 0usize..3) {
        let layer = layer % parts.layers.len();
        let devices = [Device::Cpu, Device::Gpu(0), Device::Gpu(1), Device::Gpu(2)];
        let device = devices[which.min(host.gpus.len())];
        let pattern = ["attn_q", "_exps", "shexp"][what];
        let rule = Rule { tensors: format!(r"blk\.{layer}\..*{pattern}"), device };
        if let Ok(plan) = planned(&parts, &host, Request { rules: vec![rule], ..request() }) {
            let place = &plan.layout.layers[layer];
            match what {
                0 => prop_assert_eq!(place.attention, device),
                1 => prop_assert!(place.experts.iter().all(|share| share.device == device)),
                _ => prop_assert_eq!(place.dense, device),
            }
            prop_assert_eq!(plan.devices.iter().map(DeviceBytes::weights).sum::<u64>(), parts.bytes());
            prop_assert!(plan.manual.unwrap().said[0].contains("by hand"));
        }
    }
}

#[test]
fn what_fits_one_gpu_goes_there_alone() {
    let plan = planned(&parts(8, 16), &host(64 * GIB, &[8 * GIB, 8 * GIB]), request()).unwrap();
    assert!(plan.layout.layers.iter().all(|layer| layer.attention == plan.layout.head && layer.experts.len() == 1));
    assert_eq!((plan.layout.hops(), plan.layout.uses_cpu()), (0, false));
    assert!(plan.reasons[0].contains("alone") && plan.reasons[0].contains("each hop"), "{:?}", plan.reasons);
}

/// S-003, S-021: two GPUs have the memory, one is faster.
#[test]
fn a_second_gpu_that_slows_it_down_is_left_out() {
    let mut host = host(64 * GIB, &[400 * MIB, 8 * GIB]);
    // A slow card: its layers cost more than experts on the CPU do.
    (host.gpus[1].rates.read, host.gpus[1].link) = (50e9, 1e9);
    let plan = planned(&parts(8, 64), &host, request()).unwrap();
    assert!(plan.layout.layers.iter().all(|layer| layer.attention == Device::Gpu(0)), "{plan}");
    let reason = &plan.reasons[0];
    assert!(
        reason.starts_with("gpu0 alone") && reason.contains("over gpu") && reason.contains("it would be"),
        "{reason}"
    );
}

#[test]
fn two_gpus_are_a_pipeline_of_whole_layers() {
    let parts = parts(8, 128);
    let plan = planned(&parts, &host(64 * GIB, &[600 * MIB, 600 * MIB]), request()).unwrap();
    assert_eq!(plan.layout.hops(), 1, "{plan}");
    assert!(plan.reasons.iter().any(|reason| reason.contains("tensor parallelism")), "{:?}", plan.reasons);
    // Experts fill both up to less than one expert.
    for gpu in &plan.devices[1..] {
        assert!(gpu.left().unwrap() < 2_000_000, "{plan}");
    }
    let (cpu, all) = plan.layout.cpu_experts();
    assert_eq!(all, 8 * 128);
    assert!(
        plan.reasons.iter().any(|reason| reason.contains(&format!("{cpu} of {all} experts"))),
        "{:?}",
        plan.reasons
    );
}

#[test]
fn layers_stay_on_the_cpu_where_their_base_does_not_fit() {
    let parts = parts(8, 0);
    let plan = planned(&parts, &host(64 * GIB, &[90 * MIB]), request()).unwrap();
    let on_cpu: Vec<bool> = plan.layout.layers.iter().map(|layer| layer.attention == Device::Cpu).collect();
    assert!(on_cpu.is_sorted() && on_cpu[7] && !on_cpu[0], "the last ones: {plan}");
    assert!(plan.reasons.iter().any(|reason| reason.contains("no room for their attention")), "{:?}", plan.reasons);
}

/// B-5: a micro-batch of 512 takes 129 MiB here, one of 64 takes 17.
#[test]
fn the_micro_batch_is_lowered_only_where_that_makes_it_fit() {
    let (parts, free) = (parts(8, 0), Request { micro_batch: None, ..request() });
    let roomy = planned(&parts, &host(64 * GIB, &[GIB]), free.clone()).unwrap();
    assert_eq!((roomy.setting.micro_batch, roomy.notes.len()), (512, 0));
    let tight = planned(&parts, &host(64 * GIB, &[160 * MIB]), free.clone()).unwrap();
    assert_eq!(tight.setting.micro_batch, 128, "{tight}");
    assert!(!tight.layout.uses_cpu() && tight.notes[0].contains("128 instead of 512"), "{:?}", tight.notes);
    let asked = planned(&parts, &host(64 * GIB, &[160 * MIB]), Request { micro_batch: Some(512), ..free }).unwrap();
    assert!(asked.layout.uses_cpu(), "what was asked for is kept");
}

#[test]
fn refusals_tell_what_is_missing_and_what_would_fit() {
    let parts = parts(8, 64);
    let wish = Request { context: Some(65_536), parallel: 2, gpu_only: true, ..request() };
    let Err(NoPlan::Short(shortage)) = planned(&parts, &host(64 * GIB, &[1300 * MIB]), wish) else { panic!("it fits") };
    let text = shortage.to_string();
    assert!(shortage.missing > 0 && shortage.gpu_only);
    for part in
        ["does not fit on GPUs alone", "KV cache", "experts", "available", "what fits:", "the CPU takes its share"]
    {
        assert!(text.contains(part), "{part} is not in:\n{text}");
    }
    for way in &shortage.ways {
        assert!(way.rate > 0.0, "{way:?}");
    }
    assert!(shortage.ways.iter().any(|way| way.what.contains("a context of at most")), "{text}");
    let Err(NoPlan::Short(none)) = planned(&parts, &host(600 * MIB, &[100 * MIB]), request()) else {
        panic!("it fits")
    };
    assert!(none.ways.is_empty() && none.to_string().contains("smaller quantisation"), "{none}");
}

#[test]
fn each_way_of_a_refusal_does_fit() {
    let parts = parts(8, 0);
    let wish = Request { context: Some(1 << 20), parallel: 2, ..request() };
    let host = host(9 * GIB, &[]);
    let Err(NoPlan::Short(shortage)) = planned(&parts, &host, wish.clone()) else { panic!("it fits") };
    let ways: Vec<&str> = shortage.ways.iter().map(|way| way.what.as_str()).collect();
    assert!(
        ways.contains(&"1 sequence at once") == planned(&parts, &host, Request { parallel: 1, ..wish.clone() }).is_ok()
    );
    let context = ways.iter().find_map(|way| way.strip_prefix("a context of at most ")).unwrap();
    let context: usize = context.split(' ').next().unwrap().parse().unwrap();
    assert!(planned(&parts, &host, Request { context: Some(context), ..wish.clone() }).is_ok());
    assert!(planned(&parts, &host, Request { context: Some(context + 256), ..wish }).is_err());
}

#[test]
fn a_context_nobody_asked_for_shrinks_to_memory() {
    let parts = parts(64, 0);
    let wish = Request { context: None, parallel: 64, ..request() };
    let plan = planned(&parts, &host(8 * GIB, &[]), wish).unwrap();
    assert!((512..4096).contains(&plan.setting.context), "{plan}");
    assert!(plan.notes[0].contains("instead of 4096"), "{:?}", plan.notes);
}

#[test]
fn wrong_placements_by_hand_are_refused() {
    let parts = named(parts(2, 8));
    let host = host(64 * GIB, &[8 * GIB]);
    for (tensors, device, part) in [
        ("blk.9", Device::Cpu, "matches no tensor"),
        ("_exps", Device::Gpu(1), "there is gpu0 to gpu0"),
        ("a(", Device::Cpu, "no regular expression"),
    ] {
        let rules = vec![Rule { tensors: tensors.into(), device }];
        let error = planned(&parts, &host, Request { rules, ..request() }).unwrap_err().to_string();
        assert!(error.contains(part), "{part} is not in: {error}");
    }
}

#[test]
fn absurd_wishes_do_not_overflow() {
    let parts = parts(2, 8);
    for (context, gpu_only) in [(usize::MAX / 2, false), (usize::MAX / 2, true)] {
        let wish = Request { context: Some(context), parallel: 4096, gpu_only, ..request() };
        let Err(NoPlan::Short(shortage)) = planned(&parts, &host(64 * GIB, &[8 * GIB]), wish) else {
            panic!("it fits")
        };
        assert!(shortage.missing > 1 << 50, "{shortage}");
    }
}

/// B-7: by hand against the planner's own.
#[test]
fn placements_by_hand_are_shown_with_what_they_cost() {
    let parts = named(parts(4, 8));
    let rules = vec![
        Rule { tensors: r"blk\.[01]\.ffn_up_exps".into(), device: Device::Cpu },
        Rule { tensors: "_exps".into(), device: Device::Gpu(0) },
    ];
    let plan = planned(&parts, &host(64 * GIB, &[8 * GIB]), Request { rules, ..request() }).unwrap();
    let on_cpu: Vec<bool> = plan.layout.layers.iter().map(|l| l.experts[0].device == Device::Cpu).collect();
    assert_eq!(on_cpu, [true, true, false, false], "the first pattern that matches counts");
    let manual = plan.manual.as_ref().unwrap();
    assert!(manual.rate < manual.automatic.unwrap());
    assert!(manual.said[0].contains("experts of layers 0-1 on cpu; it matches only a part"), "{:?}", manual.said);
    assert!(manual.said[1].contains("an earlier pattern"), "{:?}", manual.said);
    assert!(plan.to_string().contains("% by hand)"), "{plan}");
}

#[test]
fn limits_and_other_models_leave_less() {
    let (parts, host) = (parts(8, 16), host(64 * GIB, &[8 * GIB]));
    let limits = vec![(Device::Gpu(0), 200 * MIB)];
    let limited = planned(&parts, &host, Request { limits, ..request() }).unwrap();
    assert!(limited.devices[1].total() <= 200 * MIB && limited.layout.uses_cpu(), "{limited}");
    let count = count(8);
    let mut ask = Ask { parts: &parts, host: &host, count: &count, request: request(), held: Held::default() };
    let first = plan(&ask).unwrap();
    first.claim(&mut ask.held);
    assert_eq!(ask.held.on(Device::Gpu(0)), first.devices[1].taken());
    ask.held.add(Device::Gpu(0), 7 * GIB + 600 * MIB);
    let second = plan(&ask).unwrap();
    assert!(second.layout.uses_cpu() && second.devices[1].held > 7 * GIB, "{second}");
    let nowhere = planned(&parts, &host, Request { limits: vec![(Device::Gpu(3), GIB)], ..request() });
    assert!(nowhere.unwrap_err().to_string().contains("no gpu3"));
}

#[test]
fn without_gpus_a_plan_is_what_the_engine_reserves() {
    let parts = parts(8, 0);
    let plan = planned(&parts, &host(GIB, &[]), request()).unwrap();
    let cpu = &plan.devices[0];
    let taken = parts.bytes() + cpu.kv + 2 * MIB;
    assert_eq!((cpu.taken(), cpu.reserve), (taken, (512 << 20) + taken / 50));
    assert!(plan.reasons[0].contains("no GPU"));
}

/// More GPUs than are tried in all orders.
#[test]
fn many_gpus_are_taken_by_their_bandwidth() {
    let mut host = host(64 * GIB, &[400 * MIB; 6]);
    host.gpus[4].rates.read = 2e12;
    let parts = parts(12, 64);
    let plan = planned(&parts, &host, request()).unwrap();
    assert!(plan.layout.layers.iter().any(|layer| layer.attention == Device::Gpu(4)), "{plan}");
    assert_eq!(plan.devices.iter().map(DeviceBytes::weights).sum::<u64>(), parts.bytes());
}
