//! What a user meets: defaults, the documented example, and every kind of mistake with its line and remedy.

use super::*;
use proptest::prelude::*;

const EXAMPLE: &str = include_str!("../../config.example.toml");

fn read(text: &str) -> Result<Config, Error> {
    parse(text, Path::new("/etc/omni-inferd/config.toml"), &Environment::pure())
}

fn problems(text: &str) -> Vec<String> {
    match read(text) {
        Err(Error::Invalid { problems, .. }) => problems.iter().map(ToString::to_string).collect(),
        other => panic!("expected problems, got {other:?}"),
    }
}

#[test]
fn an_empty_file_is_the_defaults() {
    let config = read("").unwrap();
    assert_eq!(config.daemon, Daemon::with_defaults(&Environment::pure()));
    assert!(config.models.is_empty());
}

#[test]
fn the_example_as_shipped_is_the_defaults() {
    let config = read(EXAMPLE).unwrap();
    assert_eq!(config.daemon, Daemon::with_defaults(&Environment::pure()));
    assert!(config.models.is_empty());
}

#[test]
fn the_example_documents_every_key_with_its_default() {
    let uncommented: String = EXAMPLE
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(setting) if setting.starts_with(|c: char| c.is_ascii_lowercase() || c == '[') => setting,
            _ => line,
        })
        .flat_map(|line| [line, "\n"])
        .collect();
    for (section, key) in known_keys() {
        assert!(uncommented.contains(&format!("\n{key} = ")), "config.example.toml does not document {section}.{key}");
    }
    let config = read(&uncommented).unwrap();
    assert_eq!(config.daemon, Daemon::with_defaults(&Environment::pure()));
    let shown = &config.models[0];
    let defaults = Model {
        idle_ttl: shown.idle_ttl,
        context: shown.context,
        threads: shown.threads,
        cpus: shown.cpus.clone(),
        chat_template: shown.chat_template.clone(),
        place: shown.place.clone(),
        ..Model::new("oracle", "/srv/models/model.gguf")
    };
    assert_eq!(*shown, defaults);
    let proxy = proxy::Proxy::parse(&uncommented, Path::new("/c.toml")).unwrap();
    let defaults = proxy::Proxy {
        socket: "/run/omni-inferd/omni.sock".into(),
        keys: Some("/etc/omni-inferd/keys".into()),
        allow: proxy.allow.clone(),
        ..proxy::Proxy::default()
    };
    assert_eq!(proxy, defaults);
}

#[test]
fn every_field_of_the_config_has_a_key() {
    // Destructured without `..`: a new field does not compile until it is thought of here and in the example.
    let Daemon {
        socket: _,
        group: _,
        admin_group: _,
        drain_timeout: _,
        heartbeat_timeout: _,
        load_timeout: _,
        restart_backoff: _,
        restart_limit: _,
        max_body_bytes: _,
        max_connections: _,
        header_timeout: _,
        vault: _,
        vault_ttl: _,
        log: _,
    } = Daemon::with_defaults(&Environment::pure());
    let Model {
        id: _,
        aliases: _,
        path: _,
        preload: _,
        pinned: _,
        idle_ttl: _,
        context: _,
        parallel: _,
        queue: _,
        threads: _,
        cpus: _,
        kv_type: _,
        prefill_chunk: _,
        numa: _,
        disable_isa: _,
        chat_template: _,
        place: _,
    } = Model::new("a", "b");
    let count = |wanted| known_keys().into_iter().filter(|(section, _)| *section == wanted).count();
    // restart_backoff is two keys.
    assert_eq!((count("daemon"), count("model"), count("model.place")), (15, 16, 2));
}

#[test]
fn a_full_file_is_read() {
    let config = read(
        "[daemon]\nsocket = \"run/omni.sock\"\nrestart_backoff = \"50ms\"\nrestart_backoff_max = \"2s\"\nmax_body_bytes = 4096\n\
         [[model]]\nid = \"oracle\"\npath = \"m/oracle.gguf\"\naliases = [\"gpt-4o\", \"org/big\"]\nidle_ttl = \"1h 30m\"\n\
         [[model]]\npath = \"/m/Qwen2.5-Coder-7B-Q4_K_M-00001-of-00009.gguf\"\npinned = true\npreload = true\n",
    )
    .unwrap();
    assert_eq!(config.daemon.socket, Path::new("/etc/omni-inferd/run/omni.sock"));
    assert_eq!(config.daemon.restart_backoff, (Duration::from_millis(50), Duration::from_secs(2)));
    assert_eq!(config.daemon.max_body_bytes, 4096);
    assert_eq!(config.models[0].path, Path::new("/etc/omni-inferd/m/oracle.gguf"));
    assert_eq!(config.models[0].idle_ttl, Some(Duration::from_secs(5400)));
    assert_eq!(config.models[1].id, "Qwen2.5-Coder-7B-Q4_K_M");
    assert!(config.models[1].pinned && config.models[1].preload);
}

#[test]
fn mistakes_name_line_key_and_remedy() {
    let long_socket = format!("[daemon]\nsocket = \"/{}\"", "a".repeat(90));
    let cases = [
        (
            "[[model]]\npath = \"/x\"\nnuma = \"partitions\"",
            "line 3: model[0].numa: \"partitions\" is no memory policy; write \"interleave\", \"partition\"",
        ),
        ("[daemon]\ndrain_timout = \"1s\"", "line 2: daemon.drain_timout: unknown key; did you mean `drain_timeout`?"),
        ("[deamon]\n", "line 1: deamon: unknown key; did you mean `daemon`?"),
        ("[[models]]\npath = \"x\"", "line 1: models: unknown key; did you mean `model`?"),
        ("[model]\npath = \"x\"", "line 1: model: is not a list of tables; start each model with [[model]]"),
        ("\n[[model]]\nid = \"a\"", "line 3: model[0].path: is missing; name the GGUF file"),
        (
            "[daemon]\ndrain_timeout = 30",
            "line 2: daemon.drain_timeout: is of type integer; write a number with its unit",
        ),
        ("[daemon]\nheartbeat_timeout = \"0s\"", "line 2: daemon.heartbeat_timeout: must not be zero"),
        (
            "[daemon]\nheartbeat_timeout = \"400ms\"",
            "line 2: daemon.heartbeat_timeout: is shorter than workers can keep to; write \"500ms\" or more",
        ),
        (long_socket.as_str(), "line 2: daemon.socket: has 91 bytes; choose a path of at most 89 bytes"),
        ("[daemon]\nmax_body_bytes = \"64 Mib/s\"", "\"mib/s\" is not a unit of size; write a size from"),
        ("[daemon]\nlog = \"a=b=c\"", "line 2: daemon.log:"),
        (
            "[daemon]\nrestart_limit = 0",
            "line 2: daemon.restart_limit: 0 is out of bounds; write a whole number from 1",
        ),
        ("[[model]]\npath = \"x\"\nid = \"auto\"", "line 3: model[0].id: the name \"auto\" is reserved"),
        ("[[model]]\npath = \"x\"\nid = \"a/b\"", "\"a/b\" cannot be a name"),
        (
            "[[model]]\npath = \"x\"\nkv_type = \"q4\"",
            "\"q4\" is not known; write one of: f16, bf16, q8_0, q4_1, q4_0, f32",
        ),
        ("[[model]]\npath = \"x\"\ndisable_isa = [\"mmx\"]", "\"mmx\" is not an instruction set; known are: avx2"),
        ("[[model]]\npath = \"x\"\ncpus = \"4-2\"", "\"4-2\" runs backwards"),
        ("[[model]]\npath = \"x\"\npinned = true\nidle_ttl = \"1s\"", "line 4: model[0].idle_ttl: a pinned model"),
        ("[daemon\n", "line 1: "),
        ("[proxy]\n\nlistn = 1", "line 3: proxy.listn: unknown key; did you mean `listen`?"),
    ];
    for (text, expected) in cases {
        let found = problems(text);
        assert!(found.iter().any(|problem| problem.contains(expected)), "{text:?}: {expected:?} not in {found:?}");
    }
}

#[test]
fn names_are_unique_over_ids_and_aliases() {
    let found =
        problems("[[model]]\nid = \"a\"\npath = \"x\"\n\n[[model]]\nid = \"b\"\naliases = [\"a\"]\npath = \"y\"\n");
    assert_eq!(found.len(), 1);
    assert!(found[0].starts_with("line 7: model[1].aliases: \"a\" already names the model of line 1"), "{found:?}");
}

#[test]
fn all_problems_are_reported_at_once_with_the_file() {
    let error = read("[daemon]\nsockt = 1\nqueue = 2\n").unwrap_err().to_string();
    assert_eq!(error.lines().count(), 2);
    assert!(error.lines().all(|line| line.starts_with("/etc/omni-inferd/config.toml: line ")), "{error}");
}

#[test]
fn missing_files_are_named() {
    let environment = Environment { readable: |_| Err("No such file or directory".into()), ..Environment::pure() };
    let error = parse("[[model]]\npath = \"gone.gguf\"", Path::new("/c.toml"), &environment).unwrap_err().to_string();
    assert!(
        error.contains("/c.toml: line 2: model[0].path: /gone.gguf: No such file or directory; correct"),
        "{error}"
    );
    assert!(matches!(load(Some(Path::new("/no/such/file.toml"))), Err(Error::Read { .. })));
}

#[test]
fn ids_come_from_file_names() {
    for (path, id) in [
        ("/m/omni-stories-q8_0.gguf", "omni-stories-q8_0"),
        ("/m/R1-Q4-00001-of-00009.gguf", "R1-Q4"),
        ("/m/one-of-many.gguf", "one-of-many"),
        ("/m/a b/ü.gguf", "-"),
        ("/m/auto.gguf", "model"),
        ("/", "model"),
    ] {
        assert_eq!(Model::id_from_path(Path::new(path)), id, "{path}");
    }
}

proptest! {
    #[test]
    fn no_text_panics(text in ".{0,200}") {
        let _ = read(&text);
    }

    #[test]
    fn no_toml_like_text_panics(lines in prop::collection::vec(
        ("(\\[daemon\\]|\\[\\[model\\]\\]|\\[proxy\\]|socket|path|id|aliases|restart_limit|max_body_bytes|idle_ttl|cpus|context)",
         "( = )?", "(\"[a-z0-9 -]{0,8}\"|-?[0-9]{1,22}|0x[0-9a-f]{1,18}|\\[\"a\", 1\\]|true|1e9|\\{ a = 1 \\})?"), 0..12)) {
        let text: String = lines.iter().map(|(key, is, value)| format!("{key}{is}{value}\n")).collect();
        if let Err(error) = read(&text) {
            prop_assert!(error.to_string().contains("line "));
        }
    }
}

#[test]
fn placements_by_hand_are_read_and_checked() {
    let model = "[[model]]\npath = \"/m/a.gguf\"\n[[model.place]]\n";
    let config = read(&format!("{model}tensors = 'blk\\.1\\..*_exps'\ndevice = \"gpu1\"\n")).unwrap();
    assert_eq!(config.models[0].place, [Place { tensors: r"blk\.1\..*_exps".into(), device: "gpu1".into() }]);
    for (text, part) in [
        ("device = \"cpu\"\n", "model[0].place[0].tensors"),
        ("tensors = \"a\"\n", "write device = \"cpu\""),
        ("tensors = \"a(\"\ndevice = \"cpu\"\n", "no regular expression"),
        ("tensors = \"a\"\ndevice = \"cuda:0\"\n", "\"gpu0\""),
        ("tensors = \"a\"\ndevice = \"cpu\"\nlayers = 3\n", "unknown key"),
    ] {
        let found = problems(&format!("{model}{text}"));
        assert!(found.iter().any(|problem| problem.contains(part)), "{text}: {found:?}");
    }
    let found = problems("[[model]]\npath = \"/m/a.gguf\"\nplace = 3\n");
    assert!(found[0].contains("[[model.place]]"), "{found:?}");
}
