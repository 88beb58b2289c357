//! The answer when a model does not fit: every number, and what would.

use super::Placement;
use std::fmt;

/// A model that does not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Its name.
    pub model: String,
    /// What was asked for, in bytes.
    pub placement: Placement,
    /// Longest context that fits with as many sequences.
    pub context_that_fits: Option<usize>,
    /// Most sequences that fit with this context.
    pub parallel_that_fits: Option<usize>,
    /// Longest context that fits with one sequence.
    pub context_alone_that_fits: Option<usize>,
}

impl std::error::Error for Refusal {}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let p = &self.placement;
        writeln!(f, "{} does not fit into memory:", self.model)?;
        let kv = format!("KV cache, {} x {} tokens", p.parallel, p.context);
        let rows = [
            ("weights", p.weight_bytes),
            (kv.as_str(), p.kv_bytes),
            ("recurrent state and snapshots", p.state_bytes),
            ("step buffers", p.scratch_bytes),
            ("headroom (512 MiB and 2%)", p.reserve_bytes),
            ("needed", p.total_bytes()),
            ("available", p.available_bytes),
            ("missing", p.total_bytes().saturating_sub(p.available_bytes)),
        ];
        // Most models have no such state.
        for (what, bytes) in rows.into_iter().filter(|row| row.1 > 0 || row.0 != rows[2].0) {
            writeln!(f, "  {what:<32} {:>12} MiB", mib(bytes))?;
        }
        let mut ways = Vec::new();
        if let Some(context) = self.context_that_fits {
            ways.push(format!("a context of at most {context} tokens"));
        }
        if let Some(parallel) = self.parallel_that_fits {
            ways.push(format!("at most {parallel} sequences at once"));
        }
        if let Some(context) = self.context_alone_that_fits.filter(|c| Some(*c) != self.context_that_fits) {
            ways.push(format!("one sequence with at most {context} tokens"));
        }
        match ways.is_empty() {
            true => write!(f, "no context fits: free memory, or take a smaller model or a smaller quantisation"),
            false => write!(f, "what fits: {}; or free memory", ways.join(", or ")),
        }
    }
}

/// Mebibytes with one decimal.
fn mib(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / f64::from(1 << 20))
}
