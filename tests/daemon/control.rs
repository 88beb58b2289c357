//! The control API: status, files by hand, reload, events, logs.

use super::harness::{QUICK, Setup, configure, daemon, send, wait_for};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

#[test]
fn status_tells_of_the_daemon_and_its_models() {
    let daemon = daemon(&[("oracle", "", "aliases = [\"o\"]\npinned = true")]);
    let status = daemon.get("/control/v1/status").json();
    assert_eq!(status["pid"], daemon.child.id());
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert!(status["memory_total"].as_u64() > status["memory_available"].as_u64());
    assert!(status["config"].as_str().unwrap().ends_with("config.toml"));
    assert_eq!(status["models"][0]["aliases"], json!(["o"]));
    assert_eq!(daemon.get("/control/v1/models").json()["models"][0]["state"], "unloaded");
    assert_eq!(daemon.status("o")["id"], "oracle");
    let answer = daemon.post("/control/v1/models/oracle/load", &Value::Null);
    assert_eq!(answer.status, 202);
    let loaded = daemon.load("oracle");
    assert_eq!((&loaded["state"], &loaded["info"]["context"]), (&json!("ready"), &json!(128)));
    assert!(loaded["load_seconds"].as_f64() > Some(0.0));
    assert_eq!(daemon.post("/control/v1/models/oracle/load", &Value::Null).status, 200);
    assert_eq!(daemon.post("/control/v1/models/none/load", &Value::Null).status, 404);
    assert_eq!(daemon.post("/control/v1/models/oracle/unload?force=perhaps", &Value::Null).status, 400);
    assert_eq!(daemon.get("/control/v1/models/oracle/unload").status, 405);
    assert_eq!(daemon.get("/control/v1/logs?lines=x").status, 400);
}

#[test]
fn a_file_can_be_loaded_by_hand() {
    let daemon = daemon(&[("oracle", "", "")]);
    let path = daemon.directory.path().join("Story-00001-of-00002.gguf");
    std::fs::write(&path, "").unwrap();
    let add = |body: Value| daemon.post("/control/v1/models?wait=true", &body);
    let answer = add(json!({"path": path, "context": 64, "parallel": 2}));
    let status = answer.json();
    assert_eq!((answer.status, &status["id"], &status["state"]), (200, &json!("Story"), &json!("ready")), "{status}");
    assert_eq!((&status["info"]["context"], &status["info"]["parallel"]), (&json!(64), &json!(2)));
    assert_eq!(daemon.post("/v1/completions", &json!({"model": "Story"})).status, 200);
    assert_eq!(add(json!({"path": path})).status, 200, "again is the same");
    for (body, status) in [
        (json!({"path": "relative.gguf"}), 400),
        (json!({"path": "/no/such.gguf"}), 400),
        (json!({"path": daemon.directory.path()}), 400),
        (json!({"path": path, "id": "auto"}), 400),
        (json!({"path": path, "id": "a b"}), 400),
        (json!({"path": path, "threads": 0}), 400),
        (json!({"path": path, "id": "oracle"}), 409),
        (json!({}), 400),
    ] {
        let answer = add(body.clone());
        assert_eq!(answer.status, status, "{body}: {answer:?}");
    }
    // A reload leaves it alone.
    assert_eq!(daemon.post("/control/v1/reload", &Value::Null).json()["removed"], json!([]));
    assert_eq!(daemon.state("Story"), "ready");
    // Unloaded, it is forgotten: no configuration would bring it back. So is one that cannot be loaded.
    let unload = || daemon.post("/control/v1/models/Story/unload", &Value::Null);
    assert_eq!(unload().json()["state"], "unloaded");
    assert_eq!((unload().status, daemon.get("/v1/models/Story").status), (404, 404));
    std::fs::write(&path, "refuse").unwrap();
    let failed = add(json!({"path": path}));
    assert_eq!((failed.status, &failed.json()["state"]), (200, &json!("failed")), "{failed:?}");
    assert!(failed.body.contains("take a serious one"), "{failed:?}");
    assert_eq!(daemon.get("/control/v1/models").json()["models"].as_array().unwrap().len(), 1);
}

#[test]
fn a_reload_adds_removes_and_changes() {
    let daemon = daemon(&[("gone", "", "preload = true"), ("kept", "", ""), ("changed", "", "context = 100")]);
    daemon.wait_state("gone", "ready");
    daemon.load("changed");
    let stream = daemon.complete(json!({"model": "gone", "stream": true, "tokens": 60, "delay_ms": 10}));
    let models = [("new", "", "preload = true"), ("kept", "", ""), ("changed", "", "context = 200\naliases = [\"c\"]")];
    configure(daemon.directory.path(), &QUICK.replace("1000", "7\nmax_connections = 7"), &models);
    let changes = daemon.post("/control/v1/reload", &Value::Null).json();
    let expected =
        json!({"added": ["new"], "removed": ["gone"], "changed": ["changed"], "needs_restart": ["max_connections"]});
    assert_eq!(changes, expected);
    assert_eq!(daemon.post("/v1/completions", &json!({"model": "gone"})).status, 404);
    assert!(stream.finish().body.ends_with("[DONE]\n\n"), "a removed model finishes its streams");
    daemon.wait_state("new", "ready");
    assert_eq!(daemon.status("c")["info"]["context"], 100, "settings apply at the next load");
    daemon.post("/control/v1/models/changed/unload", &Value::Null);
    assert_eq!(daemon.load("changed")["info"]["context"], 200);
    let ids: Vec<Value> =
        daemon.get("/v1/models").json()["data"].as_array().unwrap().iter().map(|m| m["id"].clone()).collect();
    assert_eq!(ids, ["new", "kept", "changed"]);

    std::fs::write(daemon.directory.path().join("config.toml"), "[daemon]\nsockt = 1\n").unwrap();
    let answer = daemon.post("/control/v1/reload", &Value::Null);
    assert_eq!((answer.status, answer.json()["error"]["code"].as_str()), (400, Some("invalid_configuration")));
    assert!(answer.body.contains("line 2: daemon.sockt: unknown key; did you mean `socket`?"), "{answer:?}");
    assert_eq!(daemon.state("new"), "ready", "nothing changed");

    configure(daemon.directory.path(), QUICK, &[("kept", "", "")]);
    daemon.signal(Signal::SIGHUP);
    wait_for("the reload", || daemon.get("/v1/models").json()["data"].as_array().unwrap().len() == 1);
}

#[test]
fn events_begin_with_every_model_and_follow_changes() {
    let daemon = daemon(&[("oracle", "", ""), ("other", "", "")]);
    let mut events = send(&daemon.socket, "GET", "/control/v1/events", None);
    let mut next = || {
        let event = events.chunk().unwrap();
        let (name, data) = event.trim_end().split_once("\ndata: ").unwrap_or_else(|| panic!("{event:?}"));
        (name.to_owned(), serde_json::from_str::<Value>(data).unwrap())
    };
    for id in ["oracle", "other"] {
        let (name, data) = next();
        assert_eq!(
            (name.as_str(), &data["model"]["id"], &data["kind"]),
            ("event: status", &json!(id), &json!("status"))
        );
    }
    daemon.load("other");
    let mut seen = Vec::new();
    while seen.last() != Some(&json!("ready")) {
        let model = next().1["model"].take();
        assert_eq!(model["id"], "other");
        seen.push(model["state"].clone());
    }
    assert!(seen.iter().filter(|state| **state == "loading").count() >= 4, "progress is announced: {seen:?}");
    daemon.post("/control/v1/reload", &Value::Null);
    while next().0 != "event: reloaded" {}
    daemon.signal(Signal::SIGTERM);
    while next().0 != "event: stopping" {}
}

#[test]
fn logs_can_be_followed() {
    let daemon = Setup::new(QUICK, &[("oracle", "", "")]).start();
    assert!(daemon.get("/control/v1/logs?lines=50").body.contains("listens on"));
    let mut follow = send(&daemon.socket, "GET", "/control/v1/logs?model=oracle&follow=true", None);
    daemon.load("oracle");
    daemon.post("/control/v1/models/oracle/unload", &Value::Null);
    let mut logs = String::new();
    // Whatever the worker itself says, the model's life is told.
    for line in ["INFO  loading /", "INFO  fake worker of oracle", "INFO  ready after ", "INFO  unloaded"] {
        while !logs.contains(line) {
            logs += &follow.chunk().unwrap_or_else(|| panic!("no {line} in {logs}"));
        }
    }
    assert_eq!(daemon.get("/control/v1/logs?model=oracle").body, logs);
}
