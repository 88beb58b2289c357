//! Plans of public models of their true shapes on the two hosts that ship as examples, from files that hold a header and
//! nothing else: as committed text in `tests/data/plans`, remade by `OMNI_UPDATE_PLANS=1 cargo test --lib ctl::plan`; and what
//! the operators of those hosts learned, as numbers.

use super::*;
use crate::ctl::bench::synth::Synthetic;
use clap::Parser;
use std::path::PathBuf;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: PlanArgs,
}

fn args(line: &str) -> PlanArgs {
    Line::try_parse_from(std::iter::once("plan").chain(line.split_whitespace())).unwrap().args
}

fn root(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn host(name: &str) -> Host {
    read_host(&root(&format!("packaging/hosts/host-{name}.toml"))).unwrap()
}

/// A file with the header of a model and no data.
fn header_only(shape: &str, quant: &str) -> tempfile::NamedTempFile {
    let made = Synthetic::new(&shape.parse().unwrap(), quant.parse().unwrap()).unwrap();
    let file = tempfile::NamedTempFile::with_suffix(".gguf").unwrap();
    std::fs::write(file.path(), made.header()).unwrap();
    file
}

/// What `omnictl plan OPTIONS FILE` makes of a model's header.
fn planned(host: &Host, shape: &str, quant: &str, options: &str) -> Result<Plan, NoPlan> {
    let file = header_only(shape, quant);
    let mut args = args(options);
    args.models = vec![file.path().display().to_string()];
    let mut all = wanted(&args).unwrap();
    let Wanted { model, request } = all.remove(0);
    let plan = plan_one(host, &model, request, &Held::default())?;
    let weights: u64 = plan.devices.iter().map(crate::plan::DeviceBytes::weights).sum();
    assert_eq!(weights, model.weight_bytes(), "{shape} {quant}: every byte has one place");
    for device in &plan.devices {
        assert!(device.taken() == 0 || device.left().is_some(), "{shape} {quant}: {device:?} is full");
    }
    Ok(plan)
}

/// Models, and how the operators run them.
const MODELS: [(&str, &str, &str); 6] = [
    ("deepseek-r1", "q4_k_m", "--parallel 1 -c 16384"),
    ("glm-4.7-flash", "q4_k_m", "--parallel 1 -c 131072 --kv q8_0"),
    ("glm-4.7-flash", "q8_0", "--parallel 1 -c 131072 --kv q8_0"),
    ("gpt-oss-120b", "mxfp4", "--parallel 1 -c 131072"),
    ("qwen3-next", "q5_k_m", "--parallel 1 -c 262144"),
    ("qwen3.5-122b-a10b", "q4_k_m", "--parallel 1 -c 131072"),
];

#[test]
fn plans_are_as_committed() {
    let update = std::env::var_os("OMNI_UPDATE_PLANS").is_some();
    for name in ["a", "b"] {
        let host = host(name);
        for (shape, quant, options) in MODELS {
            let text = match planned(&host, shape, quant, options) {
                Ok(plan) => text(&host, false, &[plan]),
                Err(why) => format!("{why}\n"),
            };
            let text =
                format!("$ omnictl plan --host host-{name}.toml --shape {shape} --quant {quant} {options}\n{text}");
            let path = root(&format!("tests/data/plans/{shape}-{quant}-host-{name}.txt"));
            if update {
                std::fs::write(&path, &text).unwrap();
            }
            let committed = std::fs::read_to_string(&path).unwrap_or_default();
            assert_eq!(text, committed, "{}: OMNI_UPDATE_PLANS=1 cargo test --lib ctl::plan", path.display());
        }
    }
}

/// PERFORMANCE.md: what the model of `plan::cost` must say of the largest model on Host A.
#[test]
fn deepseek_r1_is_as_fast_as_was_predicted() {
    let file = header_only("deepseek-r1", "q4_k_m");
    let model = bind(&inspect::header(&file.path().display().to_string()).unwrap()).unwrap();
    let parts = Parts::new(&model);
    let experts: Vec<u64> = parts.layers.iter().map(|layer| layer.expert.bytes).filter(|bytes| *bytes > 0).collect();
    let mb = |bytes: u64| bytes as f64 / 1e6;
    assert!(experts.iter().all(|bytes| (24.0..=30.0).contains(&mb(*bytes))), "one expert: {:?}", experts.first());
    let routed = parts.expert_bytes() as f64 / 1e9;
    assert!((385.0..=400.0).contains(&routed), "routed experts: {routed} GB");
    let base = (parts.bytes() - parts.expert_bytes() - parts.embedding.bytes) as f64 / 1e9;
    assert!((9.0..=12.0).contains(&base), "all but routed experts: {base} GB");
    for (read, least, most) in [(220.0, 18.7, 20.0), (300.0, 23.6, 25.6), (340.0, 25.8, 28.2)] {
        let mut host = host("a");
        host.cpu.read = read * 1e9;
        let plan = planned(&host, "deepseek-r1", "q4_k_m", "--parallel 1 -c 4096").unwrap();
        let rate = plan.decode[0].rate;
        assert!((least..=most).contains(&rate), "{read} GB/s: {rate:.2} tok/s instead of {least} to {most}\n{plan}");
    }
}

/// B-5, F-005 in numbers: each model alone fits on 128 GB of GPU memory, all four, 167 GB, do not, and the one that is
/// refused says so with the table.
#[test]
fn four_models_that_want_more_than_there_is_are_refused() {
    let host = host("a");
    let models =
        [("gpt-oss-120b", "mxfp4"), ("qwen3-next", "q5_k_m"), ("glm-4.7-flash", "q8_0"), ("llama-3.1-8b", "q8_0")];
    let files: Vec<_> = models.iter().map(|(shape, quant)| header_only(shape, quant)).collect();
    let mut args = args("--gpu-only --parallel 1 -c 16384");
    args.models = files.iter().map(|file| file.path().display().to_string()).collect();
    for file in &args.models {
        let alone = wanted(&PlanArgs { models: vec![file.clone()], ..args.clone() }).unwrap();
        assert!(plan_all(&host, alone).1.is_none(), "alone it fits");
    }
    let all = wanted(&args).unwrap();
    let weights: u64 = all.iter().map(|wanted| wanted.model.weight_bytes()).sum();
    assert!((155e9..175e9).contains(&(weights as f64)), "{weights} bytes of weights");
    let (plans, refused) = plan_all(&host, all);
    let Some(NoPlan::Short(shortage)) = refused else { panic!("all four fit: {}", text(&host, false, &plans)) };
    assert!((1..4).contains(&plans.len()) && shortage.gpu_only && shortage.missing > 0);
    let table = shortage.to_string();
    for part in
        ["on GPUs alone", "experts", "KV cache", "CUDA context", "headroom", "available", "held by others", "left"]
    {
        assert!(table.contains(part), "{part} is not in:\n{table}");
    }
    assert!(table.contains("the CPU takes its share") && table.contains("other models unloaded"), "{table}");
    // What they hold together stays below each GPU's memory without its reserve.
    let mut held = Held::default();
    plans.iter().for_each(|plan| plan.claim(&mut held));
    for (number, gpu) in host.gpus.iter().enumerate() {
        assert!(held.on(Device::Gpu(number)) + gpu.reserve <= gpu.free);
    }
    // With a share for the CPU all four run.
    let open = wanted(&PlanArgs { gpu_only: false, ..args }).unwrap();
    let (plans, refused) = plan_all(&host, open);
    assert!(refused.is_none() && plans.len() == 4, "{refused:?}");
    assert!(text(&host, false, &plans).contains("together they hold: cpu"));
}

/// B-4: parts add up to the directory's bytes for every shape and recipe.
#[test]
fn parts_are_the_files_bytes() {
    for (shape, quant) in [("qwen3-30b-a3b:6", "q4_k_m"), ("qwen2.5-0.5b", "q4_k_m"), ("gpt-oss-20b:4", "mxfp4")]
        .into_iter()
        .chain(MODELS.map(|(shape, quant, _)| (shape, quant)))
    {
        let file = header_only(shape, quant);
        let model = bind(&inspect::header(&file.path().display().to_string()).unwrap()).unwrap();
        let parts = Parts::new(&model);
        assert_eq!(parts.bytes(), model.weight_bytes(), "{shape} {quant}");
        assert_eq!(parts.tensors.len(), model.tensors().len());
        assert_eq!(parts.embedding.bytes == 0, model.output.is_none(), "a tied embedding is the head");
    }
}

/// B-2: a model that fits leaves no expert to the CPU; one that does not fills the GPUs first.
#[test]
fn experts_are_on_the_cpu_only_as_far_as_memory_is_short() {
    for name in ["a", "b"] {
        let host = host(name);
        for (shape, quant, options) in MODELS {
            let Ok(plan) = planned(&host, shape, quant, options) else { continue };
            let largest = plan.devices.iter().skip(1).filter(|gpu| gpu.taken() > 0).map(|gpu| gpu.left().unwrap());
            let (cpu, _) = plan.layout.cpu_experts();
            assert!(cpu == 0 || largest.clone().all(|left| left < 30_000_000), "{shape} on {name}: {plan}");
        }
    }
}

#[test]
fn configured_models_are_planned_with_their_settings() {
    let file = header_only("qwen3-30b-a3b:4", "q4_k_m");
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.toml");
    let path = file.path().display();
    let text = format!(
        "[[model]]\nid = \"oracle\"\npath = \"{path}\"\ncontext = 2048\nparallel = 2\nkv_type = \"q8_0\"\n\
         [[model.place]]\ntensors = \"_exps\"\ndevice = \"gpu1\"\n"
    );
    std::fs::write(&config, text).unwrap();
    for line in ["oracle", "", "oracle -c 1024 --kv f16 --place _exps=cpu"] {
        let mut args = args(&format!("{line} --config {}", config.display()));
        args.models.retain(|model| !model.is_empty());
        let Wanted { request, .. } = wanted(&args).unwrap().remove(0);
        let own = line.contains("--place");
        assert_eq!((request.context, request.parallel), (Some(if own { 1024 } else { 2048 }), 2));
        assert_eq!((request.kv, request.micro_batch), (if own { "f16" } else { "q8_0" }, None));
        assert_eq!(request.rules[0].device, if own { Device::Cpu } else { Device::Gpu(1) });
    }
    let unknown = args(&format!("nobody --config {}", config.display()));
    assert_eq!(wanted(&unknown).err().unwrap().code(), 4);
}

#[test]
fn options_are_checked() {
    let of = |line: &str| Line::try_parse_from(std::iter::once("plan").chain(line.split_whitespace()));
    let read = args("--device-limit gpu1=20GiB --device-limit cpu=64GiB f");
    assert_eq!(read.device_limit, [(Device::Gpu(1), 20 << 30), (Device::Cpu, 64 << 30)]);
    for line in [
        "--device-limit gpu1",
        "--device-limit x=1GiB",
        "--place a",
        "--place (=cpu",
        "--kv q3",
        "-c 0",
        "--ubatch 70000",
    ] {
        assert!(of(line).is_err(), "{line}");
    }
    let uneven = args("--shape qwen3-0.6b --quant q8_0 --quant q4_0 --quant f16");
    assert_eq!(wanted(&uneven).err().unwrap().code(), 2);
    let two = args("--shape qwen3-0.6b --shape qwen3-4b --quant q8_0 --quant q4_0");
    assert_eq!(wanted(&two).unwrap().len(), 2);
}
