//! Chat templates against what transformers renders, byte for byte.

use crate::support::shared;
use omni_inferd::text::{ChatInput, ChatTemplate, Error};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn input(messages: &Value) -> ChatInput {
    ChatInput {
        messages: messages.clone(),
        tools: None,
        documents: None,
        add_generation_prompt: false,
        extra: Map::new(),
        now: "2025-06-15T12:34:56".parse().unwrap(),
    }
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// Renders every case of a golden file whose template lies beside it; returns how many were equal and what differed.
fn check_goldens(folder: &Path) -> (usize, Vec<String>) {
    let golden = json(&folder.join("golden.json"));
    let mut templates = BTreeMap::new();
    let (mut equal, mut wrong) = (0, Vec::new());
    for case in golden["renderings"].as_array().unwrap() {
        let name = case["template"].as_str().unwrap();
        let template = templates.entry(name.to_owned()).or_insert_with(|| {
            let source = std::fs::read_to_string(folder.join(format!("{name}.jinja"))).unwrap();
            let token = |key| golden["templates"][name][key].as_str().unwrap().to_owned();
            ChatTemplate::new(&source, &token("bos_token"), &token("eos_token"))
                .unwrap_or_else(|e| panic!("{name}: {e}"))
        });
        let conversation = &golden["cases"][case["case"].as_str().unwrap()];
        let input = ChatInput {
            tools: conversation.get("tools").cloned(),
            documents: conversation.get("documents").cloned(),
            add_generation_prompt: case["add_generation_prompt"].as_bool().unwrap(),
            extra: case["kwargs"].as_object().unwrap().clone(),
            ..input(&conversation["messages"])
        };
        let got = template.render(&input);
        let same = match (&got, case.get("expected").and_then(Value::as_str)) {
            (Ok(text), Some(expected)) => text == expected,
            (Err(_), None) => true,
            _ => false,
        };
        if same {
            equal += 1;
        } else {
            let want = case.get("expected").or(case.get("error")).and_then(Value::as_str).unwrap_or_default();
            let got = got.unwrap_or_else(|error| error.to_string());
            let at = got.bytes().zip(want.bytes()).take_while(|(got, want)| got == want).count();
            let tail = |text: &str| String::from_utf8_lossy(&text.as_bytes()[at..text.len().min(at + 200)]).into_owned();
            let (got, want) = (tail(&got), tail(want));
            wrong.push(format!("{name} {} {}: from byte {at}\n got  {got:?}\n want {want:?}", case["case"], case["kwargs"]));
        }
    }
    (equal, wrong)
}

fn report(what: &str, (equal, wrong): (usize, Vec<String>)) {
    println!("{what}: {equal} of {} equal", equal + wrong.len());
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn shared_goldens_render_equal() {
    if let Some(folder) = shared("templates") {
        report("golden.json", check_goldens(&folder));
    }
}

/// Renders a template with free variables.
fn render_with(source: &str, variables: &Map<String, Value>) -> Result<String, Error> {
    ChatTemplate::new(source, "", "")?.render(&ChatInput { extra: variables.clone(), ..input(&Value::Null) })
}

#[test]
fn engine_cases_render_equal() {
    let Some(folder) = shared("templates") else { return };
    let (mut equal, mut wrong) = (0, Vec::new());
    for case in json(&folder.join("jinja_unit_cases.json")).as_array().unwrap() {
        let got = render_with(case["template"].as_str().unwrap(), case["vars"].as_object().unwrap());
        if got.as_deref() == Ok(case["expected"].as_str().unwrap()) {
            equal += 1;
        } else {
            wrong.push(format!(
                "{} / {}: {}\n got  {got:?}\n want {}",
                case["section"], case["name"], case["template"], case["expected"]
            ));
        }
    }
    report("jinja_unit_cases.json", (equal, wrong));
}
