//! The bar while a model loads, on standard error: bytes, bytes per second, time left. Without a terminal it draws
//! nothing, so that logs stay readable. Used by `load` and `demo`.

use super::output;
use crate::api::control::{ModelState, ModelStatus, Progress};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::time::Duration;

/// See the module.
pub struct Bar {
    bar: ProgressBar,
}

impl Bar {
    /// A bar for a model called `name`, waiting.
    pub fn new(name: &str) -> Self {
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
        bar.set_prefix(name.to_string());
        bar.set_message("waiting");
        bar.set_style(style("{prefix} {spinner} {msg}"));
        bar.enable_steady_tick(Duration::from_millis(120));
        Bar { bar }
    }

    /// Shows where a model is.
    pub fn show(&self, model: &ModelStatus) {
        match (model.state, model.progress) {
            (ModelState::Loading, Some(progress)) if progress.bytes_total > 0 => {
                self.bar.set_style(style("{prefix} {bar:30} {msg}"));
                self.bar.set_length(progress.bytes_total);
                self.bar.set_position(progress.bytes_done.min(progress.bytes_total));
                self.bar.set_message(describe(&progress));
            }
            (state, _) => self.bar.set_message(state.name()),
        }
    }

    /// Removes the bar.
    pub fn finish(self) {
        self.bar.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("█▉▊▋▌▍▎▏ ")
}

/// `1.20 of 4.70 GiB  25%  1.10 GiB/s  3s left`.
pub fn describe(progress: &Progress) -> String {
    let Progress { bytes_done, bytes_total, bytes_per_second } = *progress;
    let percent = bytes_done.min(bytes_total) as f64 * 100.0 / bytes_total.max(1) as f64;
    let mut text = format!("{} of {}  {percent:.0}%", output::bytes(bytes_done), output::bytes(bytes_total));
    if bytes_per_second > 0.0 {
        let left = bytes_total.saturating_sub(bytes_done) as f64 / bytes_per_second;
        text += &format!("  {}/s  {} left", output::bytes(bytes_per_second as u64), output::seconds(left));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_how_far_how_fast_how_long() {
        let progress = Progress { bytes_done: 1 << 30, bytes_total: 4 << 30, bytes_per_second: (512 << 20) as f64 };
        assert_eq!(describe(&progress), "1.00 GiB of 4.00 GiB  25%  512 MiB/s  6.0s left");
        assert_eq!(describe(&Progress { bytes_per_second: 0.0, ..progress }), "1.00 GiB of 4.00 GiB  25%");
        assert_eq!(describe(&Progress::default()), "0 B of 0 B  0%");
    }
}
