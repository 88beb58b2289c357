//! Where a step's time goes, by operation, weights and types: from what the backend's observer noted.

use crate::exec::ProfileEntry;
use serde::Serialize;
use std::time::Duration;

/// All calls of an operation with the same weights.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ProfileRow {
    /// Operation.
    pub op: String,
    /// Weights, as the file calls them.
    pub weights: String,
    /// Their types, or the cache's.
    pub types: String,
    /// Calls per step.
    pub calls: f64,
    /// Milliseconds per step.
    pub milliseconds: f64,
    /// Of the step's time, 0 to 1.
    pub share: f64,
    /// Bytes that the operation says it must move, per nanosecond.
    pub gigabytes_per_second: f64,
    /// Operations per nanosecond; 0 where nobody counts them.
    pub gigaoperations_per_second: f64,
}

/// Rows from the entries of `steps` steps that took `took` in all; the last one is what is left over between operations.
pub fn rows(entries: &[ProfileEntry], took: Duration, steps: usize) -> Vec<ProfileRow> {
    let (steps, whole) = (steps.max(1) as f64, took.as_secs_f64().max(1e-9));
    let row = |entry: &ProfileEntry| ProfileRow {
        op: entry.work.op.into(),
        weights: entry.work.weights.clone(),
        types: entry.work.types.clone(),
        calls: entry.calls as f64 / steps,
        milliseconds: entry.time.as_secs_f64() * 1e3 / steps,
        share: entry.time.as_secs_f64() / whole,
        gigabytes_per_second: entry.gigabytes_per_second(),
        gigaoperations_per_second: entry.gigaoperations_per_second(),
    };
    let mut rows: Vec<ProfileRow> = entries.iter().map(row).collect();
    let noted: f64 = entries.iter().map(|entry| entry.time.as_secs_f64()).sum();
    let rest = (whole - noted).max(0.0);
    rows.push(ProfileRow {
        op: "between operations".into(),
        weights: String::new(),
        types: String::new(),
        calls: 0.0,
        milliseconds: rest * 1e3 / steps,
        share: rest / whole,
        gigabytes_per_second: 0.0,
        gigaoperations_per_second: 0.0,
    });
    rows
}
