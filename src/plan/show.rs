//! A plan as people read it: where every layer is, a table of bytes, the prediction with its shares, the reasons.

use super::Device;
use super::cost::Terms;
use super::layout::{DeviceBytes, LayerPlace};
use super::planner::Plan;
use super::reasons::tokens;
use super::setting::Setting;
use std::fmt;

/// Terms below this share of a token are not shown.
const LEAST_SHARE: f64 = 0.005;

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Setting { context, parallel, micro_batch, kv } = self;
        let sequences = if *parallel == 1 { "sequence" } else { "sequences" };
        write!(f, "{parallel} {sequences} of {context} tokens, KV cache {kv}, micro-batch {micro_batch}")
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n  {}\n", self.model, self.setting)?;
        self.placement(f)?;
        writeln!(f, "\n{}\n", table(&self.devices, &|device| device.to_string()))?;
        self.prediction(f)?;
        if let Some(manual) = &self.manual {
            writeln!(f)?;
            manual.said.iter().try_for_each(|said| writeln!(f, "{said}"))?;
            let against = manual.automatic.map_or("nothing fits without it".into(), |automatic| {
                let change = (manual.rate / automatic - 1.0) * 100.0;
                format!("the planner's own placement has {} ({change:+.1}% by hand)", tokens(automatic))
            });
            writeln!(f, "by hand {} tok/s predicted; {against}", tokens(manual.rate))?;
        }
        writeln!(f)?;
        self.reasons.iter().try_for_each(|reason| writeln!(f, "why: {reason}"))?;
        self.notes.iter().try_for_each(|note| writeln!(f, "note: {note}"))
    }
}

impl Plan {
    /// Runs of layers that live alike.
    fn placement(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let layers = &self.layout.layers;
        let mut first = 0;
        while first < layers.len() {
            let run = layers[first..].iter().take_while(|layer| **layer == layers[first]).count();
            let last = first + run - 1;
            let name = if run == 1 { format!("layer {first}") } else { format!("layers {first}-{last}") };
            writeln!(f, "{name:<14} {}", describe(&layers[first]))?;
            first += run;
        }
        if self.devices.iter().any(|device| device.embedding > 0) {
            writeln!(f, "{:<14} {}", "embedding", self.layout.embedding)?;
        }
        writeln!(f, "{:<14} {}", "head", self.layout.head)
    }

    fn prediction(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for decode in &self.decode {
            let at = if decode.depth == 0 { "empty".into() } else { format!("at {}", decode.depth) };
            writeln!(f, "decode  {at:<10} {:>6} tok/s   {}", tokens(decode.rate), shares(&decode.terms))?;
        }
        for prefill in &self.prefill {
            let mut words = Vec::new();
            if prefill.experts > 0.0 {
                words.push(format!("experts {:.0}%", prefill.experts / prefill.seconds * 100.0));
            }
            if prefill.streamed > 0.0 {
                words.push(format!("{:.0}% of the CPU's experts streamed", prefill.streamed * 100.0));
            }
            let line =
                format!("prefill of {:<7} {:>6} tok/s   {}", prefill.tokens, tokens(prefill.rate()), words.join(", "));
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// Where a layer is.
fn describe(layer: &LayerPlace) -> String {
    let mut text = layer.attention.to_string();
    if layer.dense != layer.attention {
        text.push_str(&format!(", dense part on {}", layer.dense));
    }
    let all: usize = layer.experts.iter().map(|share| share.experts).sum();
    match layer.experts.as_slice() {
        [] => {}
        [share] if share.device == layer.dense => text.push_str(&format!("; all {all} experts there")),
        [share] => text.push_str(&format!("; all {all} experts on {}", share.device)),
        shares => {
            let one = |share: &super::layout::Share| format!("{} on {}", share.experts, share.device);
            text.push_str(&format!("; of {all} experts {}", shares.iter().map(one).collect::<Vec<_>>().join(", ")));
        }
    }
    text
}

/// The terms of a token, the largest first.
fn shares(terms: &Terms) -> String {
    let total = terms.total();
    let mut named = terms.named().to_vec();
    named.retain(|(_, seconds)| *seconds / total >= LEAST_SHARE);
    named.sort_by(|a, b| b.1.total_cmp(&a.1));
    let one = |(name, seconds): &(&str, f64)| format!("{name} {:.0}%", seconds / total * 100.0);
    named.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// Mebibytes with one decimal.
pub(super) fn mib(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / f64::from(1 << 20))
}

/// Bytes of one row of the table.
type Bytes = fn(&DeviceBytes) -> u64;

/// Bytes per device and category in MiB; devices that are not used are left out.
pub(super) fn table(devices: &[DeviceBytes], name: &dyn Fn(Device) -> String) -> String {
    let rows: [(&str, Bytes); 11] = [
        ("attention", |b| b.attention),
        ("dense and shared", |b| b.dense),
        ("router", |b| b.router),
        ("experts", |b| b.experts),
        ("head", |b| b.head),
        ("embedding", |b| b.embedding),
        ("KV cache", |b| b.kv),
        ("recurrent state", |b| b.state),
        ("buffers", |b| b.buffers),
        ("CUDA context", |b| b.overhead),
        ("headroom", |b| b.reserve),
    ];
    let sums: [(&str, Bytes); 3] =
        [("total", DeviceBytes::total), ("available", |b| b.available), ("held by others", |b| b.held)];
    let used: Vec<&DeviceBytes> = devices.iter().filter(|b| b.device == Device::Cpu || b.taken() > 0).collect();
    let line = |what: &str, cells: Vec<String>| {
        let cells: String = cells.iter().map(|cell| format!("{cell:>12}")).collect();
        format!("{what:<18}{cells}")
    };
    let of = |(what, bytes): &(&str, Bytes)| {
        let values: Vec<u64> = used.iter().map(|device| bytes(device)).collect();
        let shown = values.iter().any(|value| *value > 0) || *what == "available";
        shown
            .then(|| line(what, values.iter().map(|value| if *value > 0 { mib(*value) } else { "-".into() }).collect()))
    };
    let left = used.iter().map(|device| match device.left() {
        Some(left) => mib(left),
        None => format!("-{}", mib(device.total().saturating_sub(device.available))),
    });
    let mut lines = vec![line("MiB", used.iter().map(|device| name(device.device)).collect())];
    lines.extend(rows.iter().chain(&sums).filter_map(of));
    lines.push(line("left", left.collect()));
    lines.join("\n")
}
