//! Chat templates against what transformers renders, byte for byte.

use crate::support::{committed, decompressed, shared};
use omni_inferd::text::{ChatInput, ChatTemplate, Error};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::Path;

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
fn check_goldens(folder: &Path, golden: &Value) -> (usize, Vec<String>) {
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
            let tail =
                |text: &str| String::from_utf8_lossy(&text.as_bytes()[at..text.len().min(at + 200)]).into_owned();
            let (got, want) = (tail(&got), tail(want));
            wrong.push(format!(
                "{name} {} {}: from byte {at}\n got  {got:?}\n want {want:?}",
                case["case"], case["kwargs"]
            ));
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
        report("golden.json", check_goldens(&folder, &json(&folder.join("golden.json"))));
    }
}

#[test]
fn committed_goldens_render_equal() {
    let folder = committed("templates");
    let golden = serde_json::from_slice(&decompressed(&folder.join("golden.json.xz"))).unwrap();
    report("golden.json.xz", check_goldens(&folder, &golden));
}

/// Renders a template with free variables.
fn render_with(source: &str, variables: &Map<String, Value>) -> Result<String, Error> {
    ChatTemplate::new(source, "", "")?.render(&ChatInput { extra: variables.clone(), ..input(&Value::Null) })
}

/// Engine cases that no chat template was seen to need: Python's mixed-type dict keys, `a[]`, unary plus, bound methods as
/// values, and changing a list that the request brought (which transformers itself refuses).
const NOT_IN_THE_ENGINE: [&str; 14] = [
    "object comparison",
    "empty computed member defaults to undefined",
    "empty computed member is undefined",
    "array non-index access",
    "unary plus variable",
    "unary plus float",
    "set dict with mixed type keys",
    "print dict with mixed type keys",
    "is sameas undefined",
    "is callable",
    "env should not have object methods",
    "array.append()",
    "array.pop() last",
    "array.pop() with index",
];

#[test]
fn engine_cases_render_equal() {
    let Some(folder) = shared("templates") else { return };
    let (mut equal, mut wrong) = (0, Vec::new());
    for case in json(&folder.join("jinja_unit_cases.json")).as_array().unwrap() {
        let got = render_with(case["template"].as_str().unwrap(), case["vars"].as_object().unwrap());
        let same = got.as_deref() == Ok(case["expected"].as_str().unwrap());
        if same {
            equal += 1;
        } else if !NOT_IN_THE_ENGINE.contains(&case["name"].as_str().unwrap()) {
            wrong.push(format!(
                "{} / {}: {}\n got  {got:?}\n want {}",
                case["section"], case["name"], case["template"], case["expected"]
            ));
        }
    }
    println!("{} cases ask for what the engine has not", NOT_IN_THE_ENGINE.len());
    report("jinja_unit_cases.json", (equal, wrong));
}

#[test]
fn llama_cpp_cases_render_equal() {
    let Some(folder) = shared("templates") else { return };
    let (mut equal, mut wrong) = (0, Vec::new());
    for case in json(&folder.join("llamacpp_test_chat_template_cases.json")).as_array().unwrap() {
        let text = |key: &str| case[key].as_str().unwrap();
        let expected = match text("expected_jinja") {
            "" => text("expected_legacy"),
            expected => expected,
        };
        let python = text("python_jinja2");
        // Where Python itself renders something else, that counts.
        let expected =
            if python == "equal" { Ok(expected) } else { python.strip_prefix("ERR ").map_or(Ok(python), Err) };
        let template = ChatTemplate::new(text("template"), text("bos_token"), text("eos_token"));
        let input = ChatInput { add_generation_prompt: true, ..input(&case["messages"]) };
        let got = template.and_then(|template| template.render(&input));
        match (&got, expected) {
            (Ok(got), Ok(expected)) if got == expected => equal += 1,
            (Err(_), Err(_)) => equal += 1,
            _ => wrong.push(format!("{}:\n got  {got:?}\n want {expected:?}", case["name"])),
        }
    }
    report("llamacpp_test_chat_template_cases.json", (equal, wrong));
}

#[test]
fn hostile_templates_end_quickly_with_an_error() {
    let sources = [
        "{% for i in range(10**9) %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for i in range(99999) %}{{ 'x' * 10000 }}{% endfor %}",
        "{{ 'x' * 10**12 }}",
        "{% set l = [] %}{% for i in range(99999) %}{% for j in range(99) %}{{ l.append(i) }}{% endfor %}{% endfor %}",
        "{% set n = namespace(x=[1]) %}{% for i in range(99) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x|tojson }}",
        "{% set n = namespace(x=[1]) %}{% for i in range(99) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
        "{{ strftime_now('%Q') }}",
        "{{ raise_exception('no') }}",
        "{% include 'other' %}",
    ];
    for source in sources {
        let begin = std::time::Instant::now();
        let result = render_with(source, &Map::new());
        assert!(result.is_err(), "{source}: {result:?}");
        assert!(begin.elapsed().as_secs() < 60, "{source}: {:?}", begin.elapsed());
        println!("{:?}: {source}: {:?}", begin.elapsed(), result.map(|_| ()));
    }
    assert!(
        matches!(render_with("{{ raise_exception('no') }}", &Map::new()), Err(Error::TemplateRaised { message }) if message == "no")
    );
    assert!(matches!(render_with("{% if %}", &Map::new()), Err(Error::TemplateSyntax { .. })));
}

#[test]
fn what_a_template_may_hold_is_bounded() {
    let render =
        |template: &ChatTemplate| template.render(&input(&serde_json::json!([{"role": "user", "content": "Hi"}])));
    let hostile = [
        // Doubled in a loop, and through a namespace, by `+`, by a filter, in captured blocks, by a recursive macro.
        "{% set ns = namespace(s='x') %}{% for i in range(64) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{% set ns = namespace(s='x') %}{% for i in range(64) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{% set ns = namespace(s='xx') %}{% for i in range(9) %}{% set ns.s = ns.s|replace('x', ns.s) %}{% endfor %}",
        "{% set ns = namespace(s='xx') %}{% for i in range(64) %}{% set c %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = c %}{% endfor %}",
        "{% macro d(s, n) %}{% if n %}{{ d(s ~ s, n - 1) }}{% endif %}{% endmacro %}{{ d('x', 64) }}",
        // Much at once, and many that are kept.
        "{% set s = 'x' * 90000000 %}{{ [s, s, s, s, s, s]|join|length }}",
        "{% set l = [] %}{% for i in range(1000) %}{{ l.append('x' * (1000000 + i)) }}{% endfor %}",
        // A list of lists of lists of nothing, printed.
        "{% set ns = namespace(l=[1]) %}{% for i in range(40) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l|upper }}",
    ];
    for source in hostile {
        let template = ChatTemplate::new(source, "", "").unwrap();
        let error = render(&template).unwrap_err();
        assert!(matches!(&error, Error::TemplateLimit { limit } if limit.contains("memory")), "{source}: {error}");
    }
    // Constants are folded when the template is compiled.
    let constants = "{% set s = ['x' * 90000000, 'y' * 90000000, 'z' * 90000000] %}";
    let error = ChatTemplate::new(constants, "", "").map(drop).unwrap_err();
    assert!(matches!(error, Error::TemplateLimit { .. }), "{error}");
    // A template that keeps at it is not given more.
    let template = ChatTemplate::new(hostile[0], "", "").unwrap();
    assert!((0..100).all(|_| matches!(render(&template), Err(Error::TemplateLimit { .. }))));
    let modest = ChatTemplate::new("{{ ('x' * 1000000)|length }}", "", "").unwrap();
    assert_eq!(render(&modest).unwrap(), "1000000");
}
