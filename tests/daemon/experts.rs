//! How often each expert was chosen: counted by a real worker, shown by the control API, `omnictl` and the metrics.

use super::harness::{Daemon, wait_for};
use super::real::{SETTINGS, start};
use serde_json::{Value, json};
use std::process::Command;

/// Tokens that the model has evaluated: those of the prompt and all that it drew but the last.
const PROMPT: usize = 40;
const DRAWN: usize = 9;

fn unpacked(name: &str, directory: &std::path::Path) -> String {
    let packed = format!("{}/tests/data/tiny/{name}.gguf.zst", env!("CARGO_MANIFEST_DIR"));
    let out = directory.join(format!("{name}.gguf"));
    let packed = std::fs::File::open(packed).unwrap();
    zstd::stream::copy_decode(packed, std::fs::File::create(&out).unwrap()).unwrap();
    out.display().to_string()
}

fn daemon() -> Daemon {
    let directory = tempfile::tempdir().unwrap();
    let block = |id: &str, name: &str| {
        let path = unpacked(name, directory.path());
        format!("[[model]]\nid = \"{id}\"\npath = \"{path}\"\nthreads = 1\ncontext = 128\npreload = true\n")
    };
    let models = block("routed", "deepseek2-v3") + &block("dense", "qwen3");
    std::fs::write(directory.path().join("config.toml"), format!("{SETTINGS}{models}")).unwrap();
    start(&["--config", "config.toml"], directory)
}

fn omnictl(daemon: &Daemon, arguments: &[&str]) -> (bool, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_omnictl"));
    let output = command.args(arguments).arg("--socket").arg(&daemon.socket).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

#[test]
fn choices_of_experts_are_counted_and_shown() {
    let daemon = daemon();
    daemon.wait_state("routed", "ready");
    daemon.wait_state("dense", "ready");
    let prompt: Vec<usize> = (0..PROMPT).map(|i| 3 + i * 31 % 150).collect();
    let body = json!({"model": "routed", "prompt": prompt, "max_tokens": DRAWN, "temperature": 0, "ignore_eos": true});
    let answer = daemon.post("/v1/completions", &body);
    assert_eq!(answer.status, 200, "{answer:?}");

    // The second and third layer have eight experts, of which each token uses three.
    let choices = (3 * (PROMPT + DRAWN - 1)) as u64;
    let chosen = || daemon.get("/control/v1/models/routed/experts").json();
    let totals = |found: &Value| -> Vec<u64> {
        let layers = found["layers"].as_array().cloned().unwrap_or_default();
        let sum = |layer: &Value| layer["chosen"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).sum();
        layers.iter().map(sum).collect()
    };
    wait_for("all choices are told", || totals(&chosen()) == [choices, choices]);
    let found = chosen();
    assert_eq!(
        (&found["used"], &found["layers"][0]["layer"], &found["layers"][1]["layer"]),
        (&json!(3), &json!(1), &json!(2))
    );
    assert_eq!(found["layers"][0]["chosen"].as_array().unwrap().len(), 8);
    let most = found["layers"][1]["chosen"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).max().unwrap();

    let (well, text) = omnictl(&daemon, &["status", "--experts", "routed"]);
    assert!(well && text.contains("3 of 8 experts") && text.contains(&choices.to_string()), "{text}");
    let share = format!("{:.2}%", 100.0 * most as f64 / choices as f64);
    assert!(text.contains(&share), "{share} is not in\n{text}");
    let (well, text) = omnictl(&daemon, &["status", "--experts", "--json"]);
    let all: Value = serde_json::from_str(&text).unwrap();
    assert!(well && all.as_array().unwrap().len() == 1 && all[0]["model"] == "routed", "{text}");
    assert_eq!(all[0]["layers"], found["layers"]);
    let (well, text) = omnictl(&daemon, &["status", "--experts", "dense"]);
    assert!(!well && text.contains("it has no experts"), "{text}");

    let metrics = daemon.get("/metrics").body;
    for line in [
        format!("omni_model_expert_choices_total{{model=\"routed\",layer=\"2\"}} {choices}"),
        format!("omni_model_expert_share_max{{model=\"routed\",layer=\"2\"}} {}", most as f64 / choices as f64),
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} is not in\n{metrics}");
    }
    // Five series for each layer with experts, whatever their number.
    assert_eq!(metrics.lines().filter(|line| line.starts_with("omni_model_expert")).count(), 5 * 2, "{metrics}");
    assert!(!metrics.contains("expert_share_max{model=\"dense\""));
    daemon.post("/control/v1/models/routed/unload", &Value::Null);
    let gone = daemon.get("/control/v1/models/routed/experts");
    assert!(gone.status == 404 && gone.body.contains("it is not loaded"), "{gone:?}");
}

/// A loaded model is asked itself: of each kind of layer one.
#[test]
fn selftest_asks_loaded_models() {
    let daemon = daemon();
    for id in ["routed", "dense"] {
        daemon.wait_state(id, "ready");
        let (well, text) = omnictl(&daemon, &["selftest", id]);
        let lines: Vec<&str> = text.lines().collect();
        assert!(well && lines.len() == 4 && lines.iter().all(|line| line.starts_with("ok  ")), "{text}");
        assert!(lines[2].contains("second turn with cache") && lines[3].contains("4 requests"), "{text}");
    }
    let (_, text) = omnictl(&daemon, &["selftest", "dense", "--json"]);
    let report: Value = serde_json::from_str(&text).unwrap();
    assert!(report["ok"] == true && report["checks"].as_array().unwrap().len() == 4, "{text}");
    daemon.post("/control/v1/models/dense/unload", &Value::Null);
    let (well, text) = omnictl(&daemon, &["selftest", "dense"]);
    assert!(!well && text.contains("is unloaded; load it first"), "{text}");
    let (well, text) = omnictl(&daemon, &["selftest", "nobody"]);
    assert!(!well && text.contains("nobody"), "{text}");
}
