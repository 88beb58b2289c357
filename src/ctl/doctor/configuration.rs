//! The configuration: is it valid, and can its models be bound?

use super::{Check, Facts};
use crate::ctl::output::bytes;

pub(super) fn checks(facts: &Facts) -> Vec<Check> {
    let config = match &facts.config {
        Ok(config) => config,
        Err(error) => return vec![invalid(&error.to_string())],
    };
    let models = match config.models.len() {
        1 => "1 model".into(),
        count => format!("{count} models"),
    };
    let source = config.source.as_ref().map_or("no file, defaults".into(), |path| path.display().to_string());
    let mut checks = vec![Check::ok("configuration", format!("{source}: valid, {models}"))];
    for need in &facts.needs {
        let id = format!("model {}", need.id);
        checks.push(match &need.bytes {
            Ok(size) => {
                let when = if need.preload { "loaded at start" } else { "loaded on demand" };
                Check::ok(id, format!("{} of weights, {when}", bytes(*size)))
            }
            Err(reason) => {
                let remedy = format!("omnictl inspect {}", need.path.display());
                Check::fail(id, reason, "it cannot be loaded", remedy)
            }
        });
    }
    checks
}

/// Everything wrong, on one line.
fn invalid(text: &str) -> Check {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let why = "the daemon ends with status 78 and is not started again";
    Check::fail("configuration", lines.join(" | "), why, "correct the file, then: omni-inferd --check")
}
