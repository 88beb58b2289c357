//! The document as a [`Config`]: which keys exist, their bounds and defaults, and what must hold between them. Pure but
//! for [`Environment::readable`].

use super::document::{Document, Section};
use super::proxy::Proxy;
use super::{Config, Daemon, Environment, Error, INSTRUCTION_SETS, KV_TYPES, Model, Place};
use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;
use toml::de::DeTable;

/// The name that stands for "whichever model is ready"; no model may take it.
pub(super) const RESERVED_ID: &str = "auto";

/// Most models one file may configure.
const MAX_MODELS: usize = 256;

/// Bounds of `parallel` and `threads`.
const MAX_PARALLEL: usize = 4096;
const MAX_THREADS: usize = 4096;

/// Longest path of the socket, in bytes: the kernel takes 107, and those of the workers' sockets beside it are longer by 18.
const MAX_SOCKET: usize = 89;

/// Workers beat several times as often.
const LEAST_HEARTBEAT: Duration = Duration::from_millis(500);

/// The tables of what is placed by hand.
const PLACE: &str = "model.place";

/// What an id may consist of: it stands in URLs, file names, log fields and metric labels.
pub(super) fn id_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || "._-:@+".contains(c)
}

/// Reads the text of a configuration file.
///
/// # Errors
/// [`Error::Invalid`] with every problem found.
pub fn parse(text: &str, origin: &Path, environment: &Environment) -> Result<Config, Error> {
    Document::read(text, origin, |document, root| read_root(document, root, origin, environment))
}

/// Every key there is, as `(section, key)`: documentation is checked against this list.
pub fn known_keys() -> Vec<(&'static str, &'static str)> {
    let environment = Environment::pure();
    let document = Document::new("", Path::new(""));
    let mut daemon = Section::new(&document, "daemon", None);
    let _ = read_daemon(&mut daemon, &environment);
    let mut model = Section::new(&document, "model", None);
    let _ = read_model(&mut model, &environment);
    let mut place = Section::new(&document, PLACE, None);
    let _ = read_place(&mut place);
    let mut proxy = Section::new(&document, "proxy", None);
    let _ = Proxy::read(&mut proxy);
    let sections = [("daemon", daemon), ("model", model), (PLACE, place), ("proxy", proxy)];
    let keys = |(name, section): (&'static str, Section)| section.finish().into_iter().map(move |key| (name, key));
    // A list of tables is known by their keys.
    sections.into_iter().flat_map(keys).filter(|key| *key != ("model", "place")).collect()
}

fn read_root(document: &Document<'_>, root: &DeTable<'_>, origin: &Path, environment: &Environment) -> Config {
    let mut top = Section::new(document, "", Some(root));
    let daemon_table = top.value("daemon").and_then(|value| document.table("daemon", value));
    let mut section = Section::new(document, "daemon", daemon_table);
    let daemon = read_daemon(&mut section, environment);
    section.finish();

    // `[proxy]` is omni-proxy's; it is checked here too, so that one --check covers a shared file.
    if let Some(table) = top.value("proxy").and_then(|value| document.table("proxy", value)) {
        let mut section = Section::new(document, "proxy", Some(table));
        Proxy::read(&mut section);
        section.finish();
    }

    let mut models = Vec::new();
    let mut names = HashMap::new();
    if let Some(value) = top.value("model") {
        match value.get_ref().as_array() {
            Some(array) if array.len() <= MAX_MODELS => {
                for (index, item) in array.iter().enumerate() {
                    let name = format!("model[{index}]");
                    let Some(table) = document.table(&name, item) else { continue };
                    let mut section = Section::new(document, &name, Some(table));
                    if let Some(model) = read_model(&mut section, environment) {
                        claim_names(document, &section, &model, item.span(), &mut names);
                        models.push(model);
                    }
                    section.finish();
                }
            }
            Some(_) => top.problem("model", "too many models", format!("keep to {MAX_MODELS}")),
            None => top.problem("model", "is not a list of tables", "start each model with [[model]]"),
        }
    }
    top.finish();
    Config { source: Some(origin.to_path_buf()), daemon, models }
}

/// Ids and aliases are one name space: each may stand for one model only.
fn claim_names(
    document: &Document<'_>,
    section: &Section<'_, '_>,
    model: &Model,
    item: std::ops::Range<usize>,
    names: &mut HashMap<String, usize>,
) {
    let line = document.line(item.start);
    let ids = std::iter::once(("id", &model.id));
    for (key, name) in ids.chain(model.aliases.iter().map(|alias| ("aliases", alias))) {
        if name == RESERVED_ID {
            let remedy = "choose another; \"auto\" stands for whichever model is ready";
            section.problem(key, "the name \"auto\" is reserved", remedy);
        } else if let Some(first) = names.get(name) {
            section.problem(
                key,
                format!("\"{name}\" already names the model of line {first}"),
                "give every model its own id and aliases",
            );
        } else {
            names.insert(name.clone(), line);
        }
    }
}

fn read_daemon(section: &mut Section<'_, '_>, environment: &Environment) -> Daemon {
    let defaults = Daemon::with_defaults(environment);
    let first = section.positive("restart_backoff", defaults.restart_backoff.0);
    let most = section.positive("restart_backoff_max", defaults.restart_backoff.1.max(first));
    if most < first {
        section.problem("restart_backoff_max", "is shorter than restart_backoff", "make it the longer of the two");
    }
    let socket = section.file_path("socket", "/run/omni-inferd/omni.sock");
    let bytes = socket.as_ref().map_or(0, |path| path.as_os_str().len());
    if bytes > MAX_SOCKET {
        section.problem("socket", format!("has {bytes} bytes"), format!("choose a path of at most {MAX_SOCKET} bytes"));
    }
    let heartbeat_timeout = section.positive("heartbeat_timeout", defaults.heartbeat_timeout);
    if heartbeat_timeout < LEAST_HEARTBEAT {
        let least = humantime::format_duration(LEAST_HEARTBEAT);
        section.problem(
            "heartbeat_timeout",
            "is shorter than workers can keep to",
            format!("write \"{least}\" or more"),
        );
    }
    Daemon {
        socket: socket.unwrap_or(defaults.socket),
        group: section.string("group", "omni").unwrap_or(defaults.group),
        admin_group: section.string("admin_group", "omni-admin").unwrap_or(defaults.admin_group),
        drain_timeout: section.duration("drain_timeout").unwrap_or(defaults.drain_timeout),
        heartbeat_timeout,
        load_timeout: section.positive("load_timeout", defaults.load_timeout),
        restart_backoff: (first, most.max(first)),
        restart_limit: section.count("restart_limit", 1..=1_000_000).map_or(defaults.restart_limit, |n| n as u32),
        max_body_bytes: section.size("max_body_bytes", 1 << 10..=1 << 30).unwrap_or(defaults.max_body_bytes),
        max_connections: section.count("max_connections", 1..=1_000_000).unwrap_or(defaults.max_connections),
        header_timeout: section.positive("header_timeout", defaults.header_timeout),
        vault: section.boolean("vault").unwrap_or(defaults.vault),
        vault_ttl: section.duration("vault_ttl").unwrap_or(defaults.vault_ttl),
        log: section.log_filter("log").unwrap_or(defaults.log),
    }
}

fn read_model(section: &mut Section<'_, '_>, environment: &Environment) -> Option<Model> {
    let path = section.file_path("path", "/srv/models/model.gguf");
    let id = section.string("id", "oracle");
    if path.is_none() && section.span("path").is_empty() {
        section.problem("path", "is missing", "name the GGUF file, for instance path = \"/srv/models/model.gguf\"");
    }
    let id = id.or_else(|| path.as_deref().map(Model::id_from_path)).unwrap_or_else(|| "model".into());
    let defaults = Model::new(id, path.clone().unwrap_or_default());
    let model = Model {
        aliases: section.strings("aliases").unwrap_or_default(),
        preload: section.boolean("preload").unwrap_or(defaults.preload),
        pinned: section.boolean("pinned").unwrap_or(defaults.pinned),
        idle_ttl: section.duration("idle_ttl"),
        context: section.count("context", 1..=1 << 30),
        parallel: section.count("parallel", 1..=MAX_PARALLEL).unwrap_or(defaults.parallel),
        queue: section.count("queue", 0..=65_536).unwrap_or(defaults.queue),
        threads: section.count("threads", 1..=MAX_THREADS),
        cpus: section.string("cpus", "0-7"),
        kv_type: section.choice("kv_type", &KV_TYPES).unwrap_or(defaults.kv_type),
        prefill_chunk: section.count("prefill_chunk", 1..=65_536).unwrap_or(defaults.prefill_chunk),
        numa: section.string("numa", "interleave").unwrap_or(defaults.numa),
        disable_isa: section.strings("disable_isa").unwrap_or_default(),
        chat_template: section.file_path("chat_template", "/srv/models/chat.jinja"),
        place: section.sections("place").into_iter().filter_map(read_places).collect(),
        id: defaults.id,
        path: defaults.path,
    };
    check_model(section, &model, environment);
    path.map(|_| model)
}

/// One `[[model.place]]`, with what is unknown in it reported.
fn read_places(mut section: Section<'_, '_>) -> Option<Place> {
    let place = read_place(&mut section);
    section.finish();
    place
}

fn read_place(section: &mut Section<'_, '_>) -> Option<Place> {
    let (tensors, device) = (section.string("tensors", "ffn_.*_exps"), section.string("device", "cpu"));
    for (key, value, example) in [("tensors", &tensors, "ffn_.*_exps"), ("device", &device, "cpu")] {
        if value.is_none() && section.span(key).is_empty() {
            section.problem(key, "is missing", format!("write {key} = \"{example}\""));
        }
    }
    let place = Place { tensors: tensors?, device: device? };
    if let Err(what) = super::units::check_pattern(&place.tensors) {
        section.problem(
            "tensors",
            what,
            "write a regular expression over names of tensors, as omnictl plan knows them",
        );
    }
    if !super::units::is_device(&place.device) {
        let what = format!("\"{}\" is no device", place.device.escape_debug());
        section.problem("device", what, "write \"cpu\", \"gpu0\", \"gpu1\", …");
    }
    Some(place)
}

/// What the types of the values do not say.
fn check_model(section: &Section<'_, '_>, model: &Model, environment: &Environment) {
    for (key, what) in model.problems() {
        section.problem(key, what, remedy(key));
    }
    let files = [("path", Some(&model.path)), ("chat_template", model.chat_template.as_ref())];
    for (key, path) in files {
        let Some(path) = path.filter(|path| !path.as_os_str().is_empty()) else { continue };
        if let Err(reason) = (environment.readable)(path) {
            let what = format!("{}: {reason}", path.display());
            section.problem(key, what, "correct the path, or its permissions for the daemon's user");
        }
    }
    if model.pinned && model.idle_ttl.is_some() {
        section.problem("idle_ttl", "a pinned model is never unloaded", "remove either pinned or idle_ttl");
    }
}

fn remedy(key: &str) -> String {
    match key {
        "disable_isa" => format!("known are: {}", INSTRUCTION_SETS.join(", ")),
        "numa" => "write \"interleave\", \"partition\", or \"bind:N\" with a node of omnictl status --topology".into(),
        "cpus" => "write a list as for taskset -c, for instance cpus = \"0-7,16-23\"".into(),
        _ => "use 1 to 128 of: letters, digits, . _ - : @ +  (aliases also /)".into(),
    }
}

impl Model {
    /// Checks the values that may also come from elsewhere than a file (a command line, the control API).
    ///
    /// # Errors
    /// The key at fault, and what is wrong with what to do.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        let bounds = [
            ("context", self.context, 1 << 30),
            ("parallel", Some(self.parallel), MAX_PARALLEL),
            ("threads", self.threads, MAX_THREADS),
        ];
        for (key, value, most) in bounds {
            if value.is_some_and(|value| !(1..=most).contains(&value)) {
                return Err((key, format!("write a whole number from 1 to {most}")));
            }
        }
        if self.id == RESERVED_ID {
            return Err(("id", "the name \"auto\" is reserved; choose another".into()));
        }
        match self.problems().into_iter().next() {
            Some((key, what)) => Err((key, format!("{what}; {}", remedy(key)))),
            None => Ok(()),
        }
    }

    fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        let names = std::iter::once(("id", &self.id)).chain(self.aliases.iter().map(|alias| ("aliases", alias)));
        for (key, name) in names {
            // An alias may look like a repository's name; an id is one segment of the control API's paths.
            let allowed = |c: char| id_char(c) || (key == "aliases" && c == '/');
            if name.is_empty() || name.len() > 128 || !name.chars().all(allowed) {
                problems.push((key, format!("\"{}\" cannot be a name", name.escape_debug())));
            }
        }
        for name in self.disable_isa.iter().filter(|name| !INSTRUCTION_SETS.contains(&name.as_str())) {
            problems.push(("disable_isa", format!("\"{}\" is not an instruction set", name.escape_debug())));
        }
        if let Err(what) = super::units::check_numa(&self.numa) {
            problems.push(("numa", what));
        }
        if let Some(Err(what)) = self.cpus.as_deref().map(super::parse_cpus) {
            problems.push(("cpus", what));
        }
        problems
    }
}
