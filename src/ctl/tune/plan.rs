//! What should change on this host, and why. Reads only.

use super::PageSize;
use crate::ctl::output::bytes;
use crate::ctl::root::Root;
use crate::ctl::sysctl;
use crate::ctl::weights::Need;
use serde::Serialize;

/// The drop-in that puts the kernel settings into force at boot.
pub const DROP_IN: &str = "etc/sysctl.d/60-omni-inferd.conf";
const THP: &str = "sys/kernel/mm/transparent_hugepage/enabled";
const SHARED_THP: &str = "sys/kernel/mm/transparent_hugepage/shmem_enabled";
const THP_UNIT: &str = "usr/lib/systemd/system/omni-inferd-thp.service";
const THP_LINK: &str = "etc/systemd/system/multi-user.target.wants/omni-inferd-thp.service";
const HUGE: &str = "sys/kernel/mm/hugepages/hugepages";

const MIB2: u64 = 2 << 20;
const GIB: u64 = 1 << 30;

/// How a change is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Write the new value into a file of the kernel's.
    Set,
    /// Replace a file of the operator's.
    Write,
    /// Make a symbolic link.
    Link,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// What people call it.
    pub what: String,
    /// The file, from the root on.
    pub file: String,
    /// How.
    pub action: Action,
    /// What is there now, for people.
    pub from: String,
    /// What will be, for people.
    pub to: String,
    /// What is written: the value, the file's text, or the link's target.
    pub value: String,
    /// Why.
    pub why: String,
}

/// All changes, and what must be done by hand.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// In the order in which they are made.
    pub changes: Vec<Change>,
    /// What this program cannot or will not do.
    pub notes: Vec<String>,
}

impl Plan {
    /// For models of these needs.
    pub fn new(root: &Root, needs: &[Need], pages: PageSize) -> Plan {
        let mut plan = Plan::default();
        for setting in sysctl::settings() {
            if let Some(now) = root.text(setting.file()).filter(|now| *now != setting.value.to_string()) {
                plan.set(setting.key, &setting.file(), &now, &setting.value.to_string(), &setting.reason);
            }
        }
        plan.transparent(root);
        let reserved = plan.huge_pages(root, needs, pages);
        let text = drop_in(reserved.as_deref());
        let now = root.text(DROP_IN);
        if now.as_deref() != Some(text.trim()) {
            plan.changes.push(Change {
                what: format!("/{DROP_IN}"),
                file: DROP_IN.into(),
                action: Action::Write,
                from: now.map_or("absent", |_| "another text").into(),
                to: "these settings".into(),
                value: text,
                why: "the kernel forgets them at a reboot".into(),
            });
        }
        plan
    }

    fn set(&mut self, what: &str, file: &str, from: &str, to: &str, why: &str) {
        self.changes.push(Change {
            what: what.into(),
            file: file.into(),
            action: Action::Set,
            from: from.into(),
            to: to.into(),
            value: to.into(),
            why: why.into(),
        });
    }

    fn transparent(&mut self, root: &Root) {
        let Some(now) = root.chosen(THP) else { return };
        if now != "madvise" {
            let why = "caches ask for huge pages; for every other program the kernel need not stop to find some";
            self.set("transparent huge pages", THP, &now, "madvise", why);
        }
        if let Some(now) = root.chosen(SHARED_THP).filter(|now| now != "advise") {
            let why = "weights lie in shared memory, where they ask for huge pages, too";
            self.set("transparent huge pages of shared memory", SHARED_THP, &now, "advise", why);
        }
        if root.path(THP_LINK).symlink_metadata().is_ok() {
            return;
        }
        if !root.exists(THP_UNIT) {
            self.notes.push(
                "transparent huge pages: omni-inferd-thp.service is not installed; set at each boot by hand".into(),
            );
            return;
        }
        self.changes.push(Change {
            what: "omni-inferd-thp.service".into(),
            file: THP_LINK.into(),
            action: Action::Link,
            from: "disabled".into(),
            to: "enabled".into(),
            value: format!("/{THP_UNIT}"),
            why: "the kernel forgets transparent huge pages' mode at a reboot".into(),
        });
    }

    /// Lines for the drop-in, when pages are to be reserved.
    fn huge_pages(&mut self, root: &Root, needs: &[Need], pages: PageSize) -> Option<String> {
        if pages == PageSize::None {
            return None;
        }
        for need in needs {
            if let Err(reason) = &need.bytes {
                self.notes.push(format!("huge pages: {} is not counted: {reason}", need.id));
            }
        }
        let (sizes, note) = residents(needs, root.meminfo("MemTotal").unwrap_or(0));
        self.notes.extend(note);
        if sizes.is_empty() {
            // Nothing to reserve for; what others reserved is theirs.
            return None;
        }
        let large = pages == PageSize::Giga1 && root.exists(format!("{HUGE}-1048576kB"));
        if pages == PageSize::Giga1 && !large {
            self.notes.push("huge pages: this CPU has none of 1 GiB; 2 MiB ones serve".into());
        }
        let giant: u64 = if large { sizes.iter().map(|size| size / GIB).sum() } else { 0 };
        let rest = |size: &u64| if large { size % GIB } else { *size };
        let wanted: u64 = sizes.iter().map(|size| rest(size).div_ceil(MIB2)).sum();
        let total: u64 = sizes.iter().sum();
        let there = root.number(format!("{HUGE}-1048576kB/nr_hugepages")).unwrap_or(0);
        if giant > 0 && there != giant {
            self.notes.push(format!(
                "needs a reboot: {giant} pages of 1 GiB ({there} now) are found reliably only at boot; put \
                 \"hugepagesz=1G hugepages={giant}\" into GRUB_CMDLINE_LINUX of /etc/default/grub, then: update-grub && reboot"
            ));
        }
        let file = format!("{HUGE}-2048kB/nr_hugepages");
        match root.text(&file) {
            None => self.notes.push("huge pages: this kernel has none of 2 MiB".into()),
            Some(now) if now != wanted.to_string() => {
                let why = format!(
                    "{} of weights in {} model{}, each rounded up to whole pages",
                    bytes(total),
                    sizes.len(),
                    if sizes.len() == 1 { "" } else { "s" }
                );
                self.set("huge pages of 2 MiB", &file, &now, &wanted.to_string(), &why);
            }
            Some(_) => {}
        }
        let comment = format!("# Huge pages of 2 MiB for {} of weights of the configured models.", bytes(total));
        Some(format!("{comment}\nvm.nr_hugepages = {wanted}\n"))
    }
}

/// Bytes of each model that shall find its pages: all, or those loaded at start when all are too many for nine tenths
/// of the memory, or none; and a note where it is not all.
fn residents(needs: &[Need], memory: u64) -> (Vec<u64>, Option<String>) {
    let sizes = |only: bool| -> Vec<u64> {
        needs.iter().filter(|need| need.preload || !only).filter_map(|need| need.bytes.clone().ok()).collect()
    };
    let most = memory - memory / 10;
    let fits =
        |sizes: &[u64]| sizes.iter().try_fold(0u64, |sum, size| sum.checked_add(*size)).is_some_and(|sum| sum <= most);
    let all = sizes(false);
    if fits(&all) {
        return (all, None);
    }
    let at_start = sizes(true);
    if fits(&at_start) {
        let note = "huge pages: only for the models loaded at start; all models together do not fit into memory";
        return (at_start, Some(note.into()));
    }
    let note = format!("huge pages: none, the models loaded at start do not fit into nine tenths of {}", bytes(memory));
    (Vec::new(), Some(note))
}

/// The drop-in's text: the shipped lines, and the reserved pages.
fn drop_in(reserved: Option<&str>) -> String {
    let head = "# Written by omnictl tune --apply; omnictl tune --rollback removes it.\n\n";
    // The shipped file begins with a comment about itself, up to its first empty line.
    let (_, settings) = sysctl::FILE.split_once("\n\n").unwrap_or(("", sysctl::FILE));
    let reserved = reserved.map_or(String::new(), |lines| format!("\n{lines}"));
    format!("{head}{settings}{reserved}")
}
