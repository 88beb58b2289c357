//! `omnictl tune`: shows which settings of the host would change and why; changes them when asked to, remembering what
//! was; takes them back when asked to. `plan` decides, `state` writes and remembers.

mod plan;
mod state;
#[cfg(test)]
mod tests;

use super::error::Error;
use super::output::Output;
use super::root::Root;
use super::weights;
use plan::Plan;
use serde::Serialize;
use std::path::PathBuf;

const NOTES: &str = "\
Nothing changes without --apply. What was there before is kept in /var/lib/omni-inferd/tune.json until --rollback, over
any number of --apply in between; removing the package rolls back, too.

Exit status:
    0  done, also when there is nothing to change
    1  something could not be read or written
    2  wrong usage";

/// Options of `tune`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = NOTES)]
pub struct Tune {
    /// Make the changes, now and for the next boot
    #[arg(long, conflicts_with = "rollback")]
    pub apply: bool,
    /// Take back what was changed
    #[arg(long)]
    pub rollback: bool,
    /// Huge pages to reserve for the weights of the configured models
    #[arg(long, value_name = "SIZE", value_enum, default_value_t)]
    pub huge_pages: PageSize,
    /// Configuration to go by [default: /etc/omni-inferd/config.toml if it is there]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Work on the files below this directory instead of the host's own
    #[arg(long, value_name = "DIR", default_value = "/", hide = true)]
    pub root: PathBuf,
}

/// Sizes of pages that can be reserved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, clap::ValueEnum)]
pub enum PageSize {
    /// Reserve none: weights take transparent ones
    #[value(name = "none")]
    None,
    /// 2 MiB, reserved while the host runs
    #[default]
    #[value(name = "2M")]
    Mega2,
    /// 1 GiB by the kernel's command line, and 2 MiB for the rest
    #[value(name = "1G")]
    Giga1,
}

/// Shows, applies or rolls back.
///
/// # Errors
/// The configuration is wrong, or a file cannot be written.
pub fn run(args: &Tune, out: Output) -> Result<(), Error> {
    let root = Root::new(&args.root);
    if args.rollback {
        return rollback(&root, out);
    }
    let config =
        weights::configuration(&root, args.config.clone()).map_err(|error| Error::Failed(error.to_string()))?;
    let plan = Plan::new(&root, &weights::needs(&config), args.huge_pages);
    let failed = if args.apply { state::apply(&root, &plan)? } else { Vec::new() };
    if out.json {
        out.value(&serde_json::json!({"applied": args.apply, "failed": failed, "plan": plan}))?;
    } else {
        out.write(&text(&plan, args.apply, &failed, out))?;
    }
    if failed.is_empty() { Ok(()) } else { Err(Error::Failed(format!("not everything was changed; {ROLLBACK}"))) }
}

const ROLLBACK: &str = "omnictl tune --rollback takes back what was";

fn rollback(root: &Root, out: Output) -> Result<(), Error> {
    let undone = state::rollback(root)?;
    if out.json {
        return out.value(&serde_json::json!({"restored": undone}));
    }
    match undone.as_slice() {
        [] => out.line("nothing was changed, nothing to take back"),
        undone => out.line(&undone.iter().map(|what| format!("restored {what}")).collect::<Vec<_>>().join("\n")),
    }
}

fn text(plan: &Plan, applied: bool, failed: &[String], out: Output) -> String {
    let mut text = String::new();
    for change in &plan.changes {
        text += &format!("{}: {} -> {}", out.bold(&change.what), change.from, change.to);
        text += &out.dim(&format!("  ({})\n", change.why));
    }
    for note in &plan.notes {
        text += &format!("{note}\n");
    }
    for failure in failed {
        text += &format!("{}\n", out.red(failure));
    }
    text += match (plan.changes.is_empty(), applied) {
        (true, _) => "nothing to change\n",
        (false, true) => "changed, now and for the next boot; omnictl tune --rollback takes it back\n",
        (false, false) => "nothing was changed; omnictl tune --apply does it\n",
    };
    text
}
