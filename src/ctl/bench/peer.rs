//! llama.cpp on the same file, for comparison: through llama-cpp-python (one process that keeps the model, and can decode
//! several sequences at once) or through `llama-bench` (a process per sample). Nothing of it is linked.

use super::Error;
use super::measure::Settings;
use super::row::Case;
use serde::Deserialize;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// The other side of the Python protocol, described in its head.
const SCRIPT: &str = include_str!("peer.py");

/// Where to find the peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Where {
    /// A Python that has llama-cpp-python.
    pub python: Option<PathBuf>,
    /// A `llama-bench`.
    pub program: Option<PathBuf>,
}

/// A way to measure llama.cpp that was found to work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// A Python that imports `llama_cpp`.
    Python(PathBuf),
    /// A `llama-bench` that starts.
    Program(PathBuf),
}

impl Where {
    /// Looks for it: what was named, else `python3` and `llama-bench` on the path.
    ///
    /// # Errors
    /// [`Error::NoPeer`] says what was tried.
    pub fn find(&self) -> Result<Found, Error> {
        let quiet = |mut command: Command| {
            let done = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
            done.is_ok_and(|status| status.success())
        };
        let imports = |python: &Path| {
            let mut command = Command::new(python);
            command.args(["-c", "import llama_cpp"]);
            quiet(command)
        };
        let starts = |program: &Path| {
            let mut command = Command::new(program);
            command.arg("--help");
            quiet(command)
        };
        let mut tried = Vec::new();
        if self.python.is_some() || self.program.is_none() {
            let python = self.python.clone().unwrap_or_else(|| "python3".into());
            if imports(&python) {
                return Ok(Found::Python(python));
            }
            tried.push(format!("{} does not import llama_cpp", python.display()));
        }
        if self.program.is_some() || self.python.is_none() {
            let program = self.program.clone().unwrap_or_else(|| "llama-bench".into());
            if starts(&program) {
                return Ok(Found::Program(program));
            }
            tried.push(format!("{} does not start", program.display()));
        }
        Err(Error::NoPeer { tried: tried.join("; ") })
    }
}

/// A peer with a file.
pub struct Peer {
    file: PathBuf,
    engine: Engine,
    name: String,
}

enum Engine {
    Program(PathBuf),
    Python { child: Child, ask: ChildStdin, answers: BufReader<ChildStdout> },
}

/// What llama-bench prints of a test; as much as is read here.
#[derive(Deserialize)]
struct Bench {
    avg_ts: f64,
    build_commit: Option<String>,
}

impl Peer {
    /// Gives the peer a file.
    ///
    /// # Errors
    /// [`Error::Peer`] with its own words when it does not take it.
    pub fn start(found: &Found, file: &Path) -> Result<Peer, Error> {
        let file = file.to_path_buf();
        let python = match found {
            Found::Program(program) => {
                let engine = Engine::Program(program.clone());
                return Ok(Peer { file, engine, name: "llama.cpp".into() });
            }
            Found::Python(python) => python,
        };
        let failed = |what: String| Error::Peer { what };
        let mut child = Command::new(python)
            .args(["-c", SCRIPT])
            .arg(&file)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| failed(format!("{}: {error}", python.display())))?;
        let (Some(ask), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(failed("it has no pipes".into()));
        };
        let engine = Engine::Python { child, ask, answers: BufReader::new(answers) };
        let mut peer = Peer { file, engine, name: "llama.cpp".into() };
        let ready = peer.answer()?;
        peer.name = ready["ready"].as_str().unwrap_or("llama.cpp").to_owned();
        Ok(peer)
    }

    /// What it calls itself.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Tokens per second of a case; `None` where it cannot measure that.
    ///
    /// # Errors
    /// [`Error::Peer`] with its own words.
    pub fn measure(&mut self, case: Case, threads: usize, settings: &Settings) -> Result<Option<f64>, Error> {
        match &self.engine {
            // llama-bench knows one sequence only.
            Engine::Program(_) if case.batch > 1 => Ok(None),
            Engine::Program(program) => {
                let mut command = arguments(program, &self.file, case, threads, settings);
                let rate = run(&mut command, &mut self.name)?;
                Ok(Some(rate))
            }
            Engine::Python { .. } => {
                let ask = json!({
                    "n_prompt": case.n_prompt, "n_gen": case.n_gen, "depth": case.depth, "batch": case.batch, "threads": threads,
                    // Room for the token that warms up.
                    "context": case.context() + 1, "ubatch": settings.ubatch, "kv": settings.kv.name(),
                });
                let seconds = self.ask(&ask)?["seconds"].as_f64().unwrap_or(f64::INFINITY);
                Ok(Some((case.batch * (case.n_prompt + case.n_gen)) as f64 / seconds.max(1e-9)))
            }
        }
    }

    fn ask(&mut self, question: &Value) -> Result<Value, Error> {
        if let Engine::Python { ask, .. } = &mut self.engine {
            let sent = writeln!(ask, "{question}").and_then(|()| ask.flush());
            sent.map_err(|error| Error::Peer { what: format!("it does not listen: {error}") })?;
        }
        self.answer()
    }

    /// The next line, unless it tells of an error.
    fn answer(&mut self) -> Result<Value, Error> {
        let failed = |what: String| Error::Peer { what };
        let Engine::Python { answers, .. } = &mut self.engine else { return Ok(Value::Null) };
        let mut line = String::new();
        let read = answers.read_line(&mut line).map_err(|error| failed(error.to_string()))?;
        if read == 0 {
            return Err(failed(format!("it ended without an answer; try it alone on {}", self.file.display())));
        }
        let answer: Value = serde_json::from_str(&line).map_err(|_| failed(format!("it said {:?}", line.trim())))?;
        match answer["error"].as_str() {
            Some(error) => Err(failed(error.to_owned())),
            None => Ok(answer),
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if let Engine::Python { child, .. } = &mut self.engine {
            // It holds the model; a peer that is gone already is as good.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn arguments(program: &Path, file: &Path, case: Case, threads: usize, settings: &Settings) -> Command {
    let mut command = Command::new(program);
    let kv = settings.kv.name();
    let numbers = [
        ("-t", threads),
        ("-p", case.n_prompt),
        ("-n", case.n_gen),
        ("-d", case.depth),
        ("-ub", settings.ubatch),
        ("-r", 1),
        ("-ngl", 0),
    ];
    command.arg("-m").arg(file);
    for (flag, number) in numbers {
        command.args([flag, &number.to_string()]);
    }
    command.args(["-ctk", kv, "-ctv", kv, "-o", "json"]).stdin(Stdio::null());
    if !kv.starts_with('f') {
        // A quantised cache of values needs it there.
        command.args(["-fa", "1"]);
    }
    command
}

fn run(command: &mut Command, name: &mut String) -> Result<f64, Error> {
    let failed = |what: String| Error::Peer { what };
    let done = command.output().map_err(|error| failed(format!("llama-bench does not start: {error}")))?;
    if !done.status.success() {
        let words = String::from_utf8_lossy(&done.stderr);
        let last: Vec<&str> = words.lines().rev().take(3).collect();
        return Err(failed(format!(
            "llama-bench: {}: {}",
            done.status,
            last.into_iter().rev().collect::<Vec<_>>().join(" ")
        )));
    }
    let rows: Vec<Bench> = serde_json::from_slice(&done.stdout)
        .map_err(|error| failed(format!("llama-bench's JSON is not understood: {error}")))?;
    let row = rows.first().ok_or_else(|| failed("llama-bench printed no row".into()))?;
    if let Some(commit) = &row.build_commit {
        *name = format!("llama.cpp {commit}");
    }
    Ok(row.avg_ts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::KvType;

    #[test]
    fn an_absent_peer_says_what_was_tried() {
        let nowhere = Some(PathBuf::from("/nonexistent/tool"));
        let error = Where { python: nowhere.clone(), program: None }.find().unwrap_err().to_string();
        assert!(
            error.contains("/nonexistent/tool does not import llama_cpp") && error.contains("pip install"),
            "{error}"
        );
        let error = Where { python: None, program: nowhere }.find().unwrap_err().to_string();
        assert!(error.contains("/nonexistent/tool does not start") && error.contains("--peer-bin"), "{error}");
    }

    /// A peer made of a shell script: what it is told, what it says, how it fails.
    #[test]
    fn llama_bench_is_told_the_same_work_and_believed() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("llama-bench");
        let script = "#!/bin/sh\n[ \"$1\" = --help ] && exit 0\necho \"$@\" > \"$0.args\"\n\
                      case \"$*\" in *'-d 666'*) echo broken >&2; exit 3;; esac\n\
                      echo '[{\"avg_ts\": 12.5, \"build_commit\": \"abc\", \"n_gen\": 4}]'\n";
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let found = Where { program: Some(program.clone()), python: None }.find().unwrap();
        assert_eq!(found, Found::Program(program));
        let mut peer = Peer::start(&found, Path::new("/m.gguf")).unwrap();
        let settings = Settings { backends: vec![], kv: KvType::F16, ubatch: 512, repetitions: 1, profile: false };
        let case = Case { n_prompt: 0, n_gen: 4, depth: 32, batch: 1 };
        assert_eq!(peer.measure(case, 2, &settings).unwrap(), Some(12.5));
        assert_eq!(peer.name(), "llama.cpp abc");
        let told = std::fs::read_to_string(dir.path().join("llama-bench.args")).unwrap();
        assert!(told.contains("-m /m.gguf -t 2 -p 0 -n 4 -d 32") && told.contains("-ctk f16"), "{told}");
        assert_eq!(peer.measure(Case { batch: 4, ..case }, 2, &settings).unwrap(), None);
        let error = peer.measure(Case { depth: 666, ..case }, 2, &settings).unwrap_err().to_string();
        assert!(error.contains("broken"), "{error}");
    }
}
