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
