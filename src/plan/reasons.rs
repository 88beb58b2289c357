//! Why a plan is as it is, in words with the numbers of what it was weighed against.

use super::Device;
use super::cost::HOP;
use super::overrides::runs;
use super::search::{Fill, Found, better};
use super::setting::Ask;

/// The reasons of `best` among `all` that fit.
pub(super) fn reasons(ask: &Ask, best: &Found, all: &[Found]) -> Vec<String> {
    let mut said = vec![gpus(ask, best, all)];
    if best.gpus.len() > 1 {
        said.push(
            "no matrix is cut over GPUs (tensor parallelism): the slower card and its link would set the pace".into(),
        );
    }
    said.extend(experts(ask, best, all));
    said.extend(cpu_layers(best));
    if ask.parts.embedding.bytes > 0 && best.layout.embedding == Device::Cpu && !best.gpus.is_empty() {
        said.push("the embedding stays in host memory: of it one row per token is read".into());
    }
    said
}

/// GPUs by number: `gpu0 and gpu1`.
fn names(gpus: &[usize]) -> String {
    let names: Vec<String> = gpus.iter().map(|number| Device::Gpu(*number).to_string()).collect();
    match names.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
        _ => names.concat(),
    }
}

fn rate(found: &Found) -> String {
    tokens(1.0 / found.seconds)
}

/// Tokens per second, three digits or all of them.
pub(super) fn tokens(rate: f64) -> String {
    match rate {
        _ if rate < 9.995 => format!("{rate:.2}"),
        _ if rate < 99.95 => format!("{rate:.1}"),
        _ => format!("{rate:.0}"),
    }
}

/// Why so many GPUs.
fn gpus(ask: &Ask, best: &Found, all: &[Found]) -> String {
    let fastest = |wanted: &dyn Fn(usize) -> bool| {
        let others = all.iter().filter(|found| wanted(found.gpus.len()));
        others.fold(None, |best: Option<&Found>, next| match best {
            Some(best) if !better(next, best) => Some(best),
            _ => Some(next),
        })
    };
    let count = best.gpus.len();
    let hop = format!("each hop between devices takes {:.0} µs and its bytes", HOP * 1e6);
    match (count, ask.host.gpus.len()) {
        (0, 0) => "there is no GPU: the CPU computes all".into(),
        (0, _) => match fastest(&|gpus| gpus > 0) {
            Some(other) => {
                format!("the CPU alone, {} tok/s: with {} it would be {}", rate(best), names(&other.gpus), rate(other))
            }
            None => "the CPU computes all: no layer fits on a GPU beside its buffers and reserve".into(),
        },
        (1, 1) => format!("{} has what fits of it", names(&best.gpus)),
        (1, _) => match fastest(&|gpus| gpus > 1) {
            Some(other) => format!(
                "{} alone, {} tok/s: over {} it would be {}, for {hop}",
                names(&best.gpus),
                rate(best),
                names(&other.gpus),
                rate(other)
            ),
            None => {
                format!("{} alone: no other GPU has room for a layer beside its buffers and reserve", names(&best.gpus))
            }
        },
        _ => {
            let alone = fastest(&|gpus| gpus == 1);
            let against = alone.map_or("no single GPU has the room".into(), |alone| {
                format!("{} alone would give {}", names(&alone.gpus), rate(alone))
            });
            let all = names(&best.gpus);
            format!("{all} one after the other, whole layers each, {} tok/s although {hop}: {against}", rate(best))
        }
    }
}

/// Why experts are where they are.
fn experts(ask: &Ask, best: &Found, all: &[Found]) -> Option<String> {
    let (cpu, count) = best.layout.cpu_experts();
    if count == 0 || best.gpus.is_empty() {
        return (!best.gpus.is_empty() && !best.layout.uses_cpu()).then(|| "all weights fit on GPUs".into());
    }
    if cpu == 0 {
        return Some("all weights fit on GPUs, experts included: none is on the CPU".into());
    }
    let bytes = best.bytes.first().map_or(0, |cpu| cpu.experts);
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    let full = best.gpus.iter().map(|number| {
        let left = best.bytes.get(number + 1).and_then(super::layout::DeviceBytes::left).unwrap_or(0);
        format!("{} has {} MiB left", Device::Gpu(*number), left >> 20)
    });
    let mut text = format!(
        "{cpu} of {count} experts ({:.1} of {:.1} GiB) are on the CPU for want of GPU memory alone: above its reserve {}",
        gib(bytes),
        gib(ask.parts.expert_bytes()),
        full.collect::<Vec<_>>().join(", ")
    );
    let other = all.iter().find(|found| found.gpus.len() == best.gpus.len() && found.fill != best.fill);
    if let Some(other) = other.filter(|other| other.layout != best.layout) {
        let (own, alternative) = match best.fill {
            Fill::Spread => ("spread over layers", "by whole layers"),
            Fill::Layers => ("by whole layers", "spread over layers"),
        };
        text.push_str(&format!("; {own} {} tok/s, {alternative} {}", rate(best), rate(other)));
    }
    Some(text)
}

/// Which layers the CPU computes, and why.
fn cpu_layers(best: &Found) -> Option<String> {
    let on_cpu = best.layout.layers.iter().enumerate().filter(|(_, place)| place.attention == Device::Cpu);
    let layers: Vec<usize> = on_cpu.map(|(layer, _)| layer).collect();
    (!layers.is_empty() && !best.gpus.is_empty()).then(|| {
        format!("layers {} are on the CPU: GPUs have no room for their attention and dense parts", runs(&layers))
    })
}
