//! The kernel settings of `sysctl/60-omni-inferd.conf`, each with its reason: the one list that `doctor` checks and
//! `tune` applies.

/// The file as the package ships it.
pub const FILE: &str = include_str!("../../sysctl/60-omni-inferd.conf");

/// One setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// `vm.swappiness`.
    pub key: &'static str,
    /// What it should be.
    pub value: u64,
    /// Why: the comment above it.
    pub reason: String,
}

impl Setting {
    /// The reason in short: its first sentence.
    pub fn reason_in_short(&self) -> &str {
        self.reason.split(". ").next().unwrap_or_default().trim_end_matches('.')
    }

    /// Its file, from the root on.
    pub fn file(&self) -> String {
        format!("proc/sys/{}", self.key.replace('.', "/"))
    }
}

/// All of them, in the file's order.
pub fn settings() -> Vec<Setting> {
    let mut settings = Vec::new();
    let mut comment: Vec<&str> = Vec::new();
    for line in FILE.lines().map(str::trim) {
        if let Some(text) = line.strip_prefix('#') {
            comment.push(text.trim());
        } else if let Some((key, value)) = line.split_once('=') {
            let reason = std::mem::take(&mut comment).join(" ");
            settings.extend(value.trim().parse().ok().map(|value| Setting { key: key.trim(), value, reason }));
        } else {
            comment.clear();
        }
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_has_its_reason() {
        let settings = settings();
        let pairs: Vec<(&str, u64)> = settings.iter().map(|setting| (setting.key, setting.value)).collect();
        let wanted = [
            ("vm.swappiness", 1),
            ("vm.dirty_ratio", 40),
            ("vm.dirty_background_ratio", 10),
            ("kernel.numa_balancing", 0),
            ("kernel.sched_autogroup_enabled", 0),
        ];
        assert_eq!(pairs, wanted);
        assert!(settings.iter().all(|setting| setting.reason.len() > 40 && setting.reason.ends_with('.')));
        assert_eq!(FILE.lines().filter(|line| line.contains(" = ")).count(), wanted.len(), "every line is understood");
        let short = "Weights are read for every token: one swapped-out page costs a disk access per token";
        assert_eq!(settings[0].reason_in_short(), short);
        assert_eq!(settings[0].file(), "proc/sys/vm/swappiness");
    }
}
