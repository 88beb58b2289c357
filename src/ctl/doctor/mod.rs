//! `omnictl doctor`: is this host fit for what it is to do? One line per check: what was found and, where it is not well,
//! why that matters and what to do. It reads files (and asks the GPU driver's own program) and changes nothing; checks work
//! on a tree of files or on text, so that tests can show them any host. One file per area.

mod configuration;
mod container;
mod cpu;
mod driver;
mod gpu;
mod iommu;
mod memory;
mod storage;

use super::error::Error;
use super::output::Output;
use super::root::Root;
use super::weights::{Need, needs};
use crate::config::{self, Config};
use crate::sys::topology::Topology;
use anstyle::AnsiColor;
use serde::Serialize;
use std::path::PathBuf;

/// Exit statuses, as `omnictl doctor --help` documents them.
const EXIT_STATUS: &str = "\
Exit status:
    0  nothing fails; warnings are possible (with --strict: no warnings either)
    1  something fails: the daemon will not start, or not serve, as it is configured
    2  wrong usage";

/// Options of `doctor`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXIT_STATUS)]
pub struct Doctor {
    /// Configuration to go by [default: /etc/omni-inferd/config.toml if it is there]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Let warnings count as failures
    #[arg(long)]
    pub strict: bool,
    /// Look at the files below this directory instead of the host's own
    #[arg(long, value_name = "DIR", default_value = "/", hide = true)]
    pub root: PathBuf,
}

/// How well something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be, or of no concern here.
    Ok,
    /// Works, but slower or less safely than it could.
    Warn,
    /// Does not work.
    Fail,
}

/// What one check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Its name, stable: an interface for scripts.
    pub id: String,
    /// How well it is.
    pub level: Level,
    /// What there is.
    pub found: String,
    /// Why it matters; empty when all is well.
    pub why: String,
    /// What to do, usually a command; empty when all is well.
    pub remedy: String,
}

impl Check {
    fn ok(id: impl Into<String>, found: impl Into<String>) -> Check {
        let (id, found) = (id.into(), found.into());
        Check { id, level: Level::Ok, found, why: String::new(), remedy: String::new() }
    }

    fn warn(
        id: impl Into<String>,
        found: impl Into<String>,
        why: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Check {
        Check { level: Level::Warn, why: why.into(), remedy: remedy.into(), ..Check::ok(id, found) }
    }

    fn fail(
        id: impl Into<String>,
        found: impl Into<String>,
        why: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Check {
        Check { level: Level::Fail, ..Check::warn(id, found, why, remedy) }
    }
}

/// What the checks look at.
struct Facts {
    root: Root,
    topology: Topology,
    /// The configuration, or what is wrong with it.
    config: Result<Config, config::Error>,
    /// What the configured models need.
    needs: Vec<Need>,
}

impl Facts {
    fn gather(root: Root, explicit: Option<PathBuf>) -> Facts {
        let config = super::weights::configuration(&root, explicit);
        let needs = config.as_ref().map(needs).unwrap_or_default();
        Facts { topology: root.topology(), config, needs, root }
    }

    fn models(&self) -> &[config::Model] {
        self.config.as_ref().map_or(&[], |config| &config.models)
    }
}

/// All checks, in the order in which they are shown.
fn examine(facts: &Facts) -> Vec<Check> {
    let groups: [fn(&Facts) -> Vec<Check>; 8] = [
        configuration::checks,
        container::checks,
        cpu::checks,
        memory::checks,
        storage::checks,
        gpu::checks,
        driver::checks,
        iommu::checks,
    ];
    groups.iter().flat_map(|group| group(facts)).collect()
}

/// Examines the host and shows the result.
///
/// # Errors
/// [`Error::Failed`] without text when something fails; the checks were shown then.
pub fn run(args: &Doctor, out: Output) -> Result<(), Error> {
    let checks = examine(&Facts::gather(Root::new(&args.root), args.config.clone()));
    let worst = checks.iter().map(|check| check.level).max().unwrap_or(Level::Ok);
    if out.json {
        out.value(&serde_json::json!({"level": worst, "checks": checks}))?;
    } else {
        out.write(&lines(&checks, out))?;
    }
    let limit = if args.strict { Level::Warn } else { Level::Fail };
    if worst >= limit { Err(Error::Failed(String::new())) } else { Ok(()) }
}

/// A line per check, and a line of counts.
fn lines(checks: &[Check], out: Output) -> String {
    let width = checks.iter().map(|check| check.id.len()).max().unwrap_or(0);
    let line = |check: &Check| {
        let (word, color) = match check.level {
            Level::Ok => ("ok  ", AnsiColor::Green),
            Level::Warn => ("warn", AnsiColor::Yellow),
            Level::Fail => ("fail", AnsiColor::Red),
        };
        let word = out.paint(color.on_default(), word);
        let mut line = format!("{word}  {:width$}  {}", check.id, check.found);
        if !check.why.is_empty() {
            line += &out.dim(&format!("; {}", check.why));
        }
        if !check.remedy.is_empty() {
            line += &format!("; do: {}", check.remedy);
        }
        line + "\n"
    };
    let count = |level| checks.iter().filter(|check| check.level == level).count();
    let (ok, warn, fail) = (count(Level::Ok), count(Level::Warn), count(Level::Fail));
    let plural = if warn == 1 { "" } else { "s" };
    checks.iter().map(line).collect::<String>() + &format!("{ok} ok, {warn} warning{plural}, {fail} failed\n")
}

#[cfg(test)]
mod tests;
