//! What a measurement is and what comes out of it: typed once, shown as table, CSV, JSON or picture by others.

use super::profile::ProfileRow;
use serde::Serialize;

/// One thing to measure, of one sequence or several at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Case {
    /// Tokens of the prompt that is evaluated; 0 when decoding is measured.
    pub n_prompt: usize,
    /// Tokens decoded one by one; 0 when a prompt is measured.
    pub n_gen: usize,
    /// Tokens of context before them, not measured.
    pub depth: usize,
    /// Sequences at once.
    pub batch: usize,
}

impl Case {
    /// Tokens of each sequence at the end.
    pub fn context(self) -> usize {
        self.depth + self.n_prompt + self.n_gen
    }

    /// As llama-bench writes it, with the sequences: `tg64 @ d4096 x4`.
    pub fn label(self) -> String {
        let mut label = if self.n_gen == 0 { format!("pp{}", self.n_prompt) } else { format!("tg{}", self.n_gen) };
        if self.depth > 0 {
            label += &format!(" @ d{}", self.depth);
        }
        if self.batch > 1 {
            label += &format!(" x{}", self.batch);
        }
        label
    }
}

/// One row of results; fields are called as in llama-bench's JSON, some of them by its older and newer name.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Row {
    pub model: String,
    pub model_filename: String,
    /// Bytes of weights.
    pub model_size: u64,
    pub model_n_params: u64,
    pub threads: usize,
    pub n_threads: usize,
    pub isa: String,
    /// Tokens per step of a prompt.
    pub n_ubatch: usize,
    /// Element type of the KV cache.
    pub type_k: String,
    pub type_v: String,
    pub n_prompt: usize,
    pub n_gen: usize,
    pub depth: usize,
    pub n_depth: usize,
    /// Sequences at once; the speeds are of all of them together.
    pub batch: usize,
    /// Tokens per second: mean, standard deviation of the sample, median.
    pub avg_ts: f64,
    pub stddev_ts: f64,
    pub median_ts: f64,
    pub samples_ts: Vec<f64>,
    /// Weights and cache read per second at the median, GB/s; decoding only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gigabytes_per_second: Option<f64>,
    /// Products with weights per second at the median, GOP/s; prompts only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gigaoperations_per_second: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<PeerRow>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<Vec<ProfileRow>>,
}

/// The same by another engine, measured in turns with ours.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct PeerRow {
    pub name: String,
    pub avg_ts: f64,
    pub stddev_ts: f64,
    pub median_ts: f64,
    pub samples_ts: Vec<f64>,
    /// Median of ours over theirs, pair by pair.
    pub ratio: f64,
}

impl Row {
    /// What was measured.
    pub fn case(&self) -> Case {
        Case { n_prompt: self.n_prompt, n_gen: self.n_gen, depth: self.depth, batch: self.batch }
    }
}

impl PeerRow {
    /// From samples that were taken in turns with `ours`; `None` without any.
    pub fn new(name: &str, theirs: Vec<f64>, ours: &[f64]) -> Option<PeerRow> {
        if theirs.is_empty() {
            return None;
        }
        let (avg_ts, stddev_ts) = mean_and_deviation(&theirs);
        let pairs: Vec<f64> = ours.iter().zip(&theirs).map(|(ours, theirs)| ours / theirs).collect();
        let (median_ts, ratio) = (median(&theirs), median(&pairs));
        Some(PeerRow { name: name.into(), avg_ts, stddev_ts, median_ts, samples_ts: theirs, ratio })
    }
}

/// Mean, and standard deviation of the sample; 0 of nothing.
pub fn mean_and_deviation(samples: &[f64]) -> (f64, f64) {
    let n = samples.len().max(1) as f64;
    let mean = samples.iter().sum::<f64>() / n;
    let squares: f64 = samples.iter().map(|s| (s - mean).powi(2)).sum();
    (mean, (squares / (n - 1.0).max(1.0)).sqrt())
}

/// Middle, or mean of the two in the middle; 0 of nothing.
pub fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.get(sorted.len().saturating_sub(1) / 2), sorted.get(sorted.len() / 2)) {
        (Some(a), Some(b)) => (a + b) / 2.0,
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_by_hand() {
        assert_eq!((median(&[]), median(&[3.0]), median(&[4.0, 1.0]), median(&[9.0, 1.0, 2.0])), (0.0, 3.0, 2.5, 2.0));
        assert_eq!(mean_and_deviation(&[2.0, 4.0, 6.0]), (4.0, 2.0));
        assert_eq!(mean_and_deviation(&[5.0]), (5.0, 0.0));
        let peer = PeerRow::new("p", vec![1.0, 2.0, 4.0], &[2.0, 2.0, 2.0]).unwrap();
        assert_eq!((peer.ratio, peer.median_ts), (1.0, 2.0));
        assert!(PeerRow::new("p", vec![], &[]).is_none());
    }

    #[test]
    fn labels_are_llama_benchs() {
        let case = Case { n_prompt: 0, n_gen: 64, depth: 4096, batch: 4 };
        assert_eq!((case.label().as_str(), case.context()), ("tg64 @ d4096 x4", 4160));
        assert_eq!(Case { n_prompt: 512, n_gen: 0, depth: 0, batch: 1 }.label(), "pp512");
    }
}
