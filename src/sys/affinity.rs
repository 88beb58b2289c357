//! CPU lists as Linux writes them (`0-3,8`), the CPUs this process may use, and binding a thread to some of them.
//!
//! Decides nothing: which CPUs to take is `topology`'s and the caller's choice.

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use std::sync::OnceLock;

/// Why a CPU list or a binding was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// A part of a list is neither a number nor a range.
    #[error("`{part}` in the CPU list `{list}` is neither a CPU number nor a range; write it like 0-3,8")]
    Syntax {
        /// The whole list.
        list: String,
        /// The part that was not understood.
        part: String,
    },
    /// A number beyond what the kernel's masks hold.
    #[error("CPU {cpu} is beyond the {limit} CPUs that can be named")]
    TooLarge {
        /// The number.
        cpu: usize,
        /// First number that is too large.
        limit: usize,
    },
    /// The list names no CPU.
    #[error("the CPU list is empty; write it like 0-3,8")]
    Empty,
    /// The kernel refused.
    #[error("cannot bind a thread to CPUs {cpus}: {errno}; allowed are {allowed}")]
    Bind {
        /// The CPUs asked for.
        cpus: String,
        /// The kernel's reason.
        errno: nix::Error,
        /// The CPUs this process may use.
        allowed: String,
    },
}

/// Parses `0-3,8` to sorted, distinct CPU numbers.
///
/// # Errors
/// [`Error::Syntax`], [`Error::TooLarge`], or [`Error::Empty`].
pub fn parse_list(list: &str) -> Result<Vec<usize>, Error> {
    let mut cpus = Vec::new();
    for part in list.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        let syntax = || Error::Syntax { list: list.to_owned(), part: part.to_owned() };
        let number = |text: &str| text.trim().parse::<usize>().map_err(|_| syntax());
        let (first, last) = match part.split_once('-') {
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(part)?, number(part)?),
        };
        if first > last {
            return Err(syntax());
        }
        if last >= CpuSet::count() {
            return Err(Error::TooLarge { cpu: last, limit: CpuSet::count() });
        }
        cpus.extend(first..=last);
    }
    cpus.sort_unstable();
    cpus.dedup();
    if cpus.is_empty() { Err(Error::Empty) } else { Ok(cpus) }
}

/// Writes sorted CPU numbers as a list, ranges folded: `0-3,8`.
pub fn format_list(cpus: &[usize]) -> String {
    let mut parts = Vec::new();
    for run in cpus.chunk_by(|a, b| a + 1 == *b) {
        match (run.first(), run.last()) {
            (Some(first), Some(last)) if first != last => parts.push(format!("{first}-{last}")),
            (Some(first), _) => parts.push(first.to_string()),
            (None, _) => {}
        }
    }
    parts.join(",")
}

/// The CPUs the calling thread may run on, sorted. Empty when the kernel does not say.
pub fn allowed() -> Vec<usize> {
    let Ok(set) = sched_getaffinity(Pid::from_raw(0)) else { return Vec::new() };
    (0..CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap_or(false)).collect()
}

/// What [`allowed`] said before a thread of this process was first bound: a bound thread would see its own CPUs only.
static UNBOUND: OnceLock<Vec<usize>> = OnceLock::new();

/// The CPUs this process may use, sorted, whichever of its threads asks. Empty when the kernel does not say.
pub fn available() -> Vec<usize> {
    UNBOUND.get().cloned().unwrap_or_else(allowed)
}

/// Binds the calling thread to `cpus`.
///
/// # Errors
/// [`Error::Bind`] when the kernel refuses, e.g. a CPU that does not exist or that the cgroup withholds.
pub fn bind_current_thread(cpus: &[usize]) -> Result<(), Error> {
    UNBOUND.get_or_init(allowed);
    let bind = |errno| Error::Bind { cpus: format_list(cpus), errno, allowed: format_list(&allowed()) };
    let mut set = CpuSet::new();
    for &cpu in cpus {
        set.set(cpu).map_err(bind)?;
    }
    sched_setaffinity(Pid::from_raw(0), &set).map_err(bind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_round_trip() {
        assert_eq!(parse_list("0-3,8"), Ok(vec![0, 1, 2, 3, 8]));
        assert_eq!(parse_list(" 5 , 1-2,2 "), Ok(vec![1, 2, 5]));
        assert_eq!(format_list(&[0, 1, 2, 3, 8, 10, 11]), "0-3,8,10-11");
        assert_eq!(format_list(&[]), "");
    }

    #[test]
    fn bad_lists_name_the_part() {
        for (list, part) in [("0-", "0-"), ("a", "a"), ("3-1", "3-1"), ("1,x-2", "x-2"), ("-1", "-1"), ("1--2", "1--2")]
        {
            assert_eq!(parse_list(list), Err(Error::Syntax { list: list.into(), part: part.into() }), "{list}");
        }
        assert_eq!(parse_list(" , "), Err(Error::Empty));
        assert!(matches!(parse_list("0-99999999"), Err(Error::TooLarge { .. })));
        assert!(matches!(parse_list("99999999999999999999999"), Err(Error::Syntax { .. })));
    }

    #[test]
    fn a_thread_binds_to_an_allowed_cpu() {
        let cpus = allowed();
        std::thread::spawn(move || {
            bind_current_thread(&cpus[..1]).unwrap();
            assert_eq!(allowed(), &cpus[..1]);
            assert_eq!(available(), cpus, "a bound thread still knows what others may use");
            assert!(matches!(bind_current_thread(&[CpuSet::count() - 1]), Err(Error::Bind { .. })));
        })
        .join()
        .unwrap();
    }
}
