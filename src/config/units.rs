//! Small grammars of the configuration: sizes (`64MiB`), durations (`1m 30s`), CPU lists (`0-7,16`), log filters, and the
//! nearest known name for a misspelt one. Pure.

use std::time::Duration;

/// Longest duration a setting may hold: far beyond any use, far below what clocks can add.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 86_400);

/// Highest CPU number understood.
const MAX_CPU: usize = 65_535;

/// Bytes of `65536`, `64KiB`, `64 MiB`, `1G`, `10MB` (binary with `i` or a bare letter, decimal with `KB`, `MB`, `GB`).
///
/// # Errors
/// What is wrong with the text.
pub fn parse_size(text: &str) -> Result<usize, String> {
    let text = text.trim();
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: usize = number.parse().map_err(|_| format!("\"{text}\" is not a size"))?;
    let factor = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        other => return Err(format!("\"{other}\" is not a unit of size")),
    };
    number.checked_mul(factor).ok_or_else(|| format!("\"{text}\" is too large"))
}

/// `33554432` → `32MiB`: the shortest exact spelling in binary units.
pub fn format_size(bytes: usize) -> String {
    for (unit, shift) in [("GiB", 30), ("MiB", 20), ("KiB", 10)] {
        if bytes != 0 && bytes.is_multiple_of(1 << shift) {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    format!("{bytes}")
}

/// A duration with unit; `0s` is allowed.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text.trim()).map_err(|error| format!("\"{text}\": {error}"))?;
    if duration > LONGEST { Err(format!("\"{text}\" is longer than ten years")) } else { Ok(duration) }
}

/// Checks a tracing filter such as `info` or `omni_inferd=debug`.
///
/// # Errors
/// What is wrong with the text.
pub fn log_filter(text: &str) -> Result<String, String> {
    match tracing_subscriber::EnvFilter::try_new(text) {
        Ok(_) => Ok(text.to_string()),
        Err(error) => Err(format!("\"{}\" is no log filter: {error}", text.escape_debug())),
    }
}

/// CPUs of a list as `taskset -c` takes it, sorted, without doubles: `0-3,8` → `[0, 1, 2, 3, 8]`.
///
/// # Errors
/// What is wrong with the text.
pub fn parse_cpus(text: &str) -> Result<Vec<usize>, String> {
    let number = |part: &str| match part.trim().parse::<usize>() {
        Ok(cpu) if cpu <= MAX_CPU => Ok(cpu),
        _ => Err(format!("\"{part}\" is not a CPU number")),
    };
    let mut cpus = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(format!("\"{part}\" runs backwards"));
        }
        cpus.extend(first..=last);
        // Overlapping ranges must not add up without bound.
        if cpus.len() > MAX_CPU + 1 {
            cpus.sort_unstable();
            cpus.dedup();
        }
    }
    cpus.sort_unstable();
    cpus.dedup();
    Ok(cpus)
}

/// Whether a text is a memory policy: `interleave`, `partition`, or `bind:N` with a node's number.
///
/// # Errors
/// What is wrong with the text.
pub(super) fn check_numa(text: &str) -> Result<(), String> {
    // As many nodes as the kernel knows of, at most.
    match text.strip_prefix("bind:").map(|node| node.parse::<u16>()) {
        Some(Ok(0..1024)) => Ok(()),
        None if text == "interleave" || text == "partition" => Ok(()),
        _ => Err(format!("\"{}\" is no memory policy", text.escape_debug())),
    }
}

/// The known name that a misspelt one most likely meant: at most two edits, or a third of its length, away.
pub(super) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if name.len() > 64 {
        return None;
    }
    let allowed = (name.chars().count() / 3).max(2);
    known
        .into_iter()
        .map(|candidate| (edit_distance(name, candidate), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Levenshtein distance, one row at a time.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// That a pattern over names of tensors is a regular expression.
///
/// # Errors
/// What is wrong with it.
pub(super) fn check_pattern(pattern: &str) -> Result<(), String> {
    let why = |error: regex_automata::meta::BuildError| {
        let what = error.syntax_error().map_or_else(|| error.to_string(), ToString::to_string);
        format!("is no regular expression: {}", what.replace('\n', " "))
    };
    regex_automata::meta::Regex::new(pattern).map(drop).map_err(why)
}

/// Whether it names a device: `cpu`, or `gpu` and a number.
pub(super) fn is_device(name: &str) -> bool {
    let number = name.strip_prefix("gpu").unwrap_or("none");
    name == "cpu" || (number.len() <= 3 && !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_have_binary_and_decimal_units() {
        assert_eq!(parse_size("64MiB"), Ok(64 << 20));
        assert_eq!(parse_size(" 10 MB "), Ok(10_000_000));
        assert_eq!(parse_size("123"), Ok(123));
        assert!(parse_size("MiB").is_err() && parse_size("1.5G").is_err() && parse_size("99999999999999G").is_err());
    }

    #[test]
    fn cpu_lists_are_those_of_taskset() {
        assert_eq!(parse_cpus("0-3,8, 2"), Ok(vec![0, 1, 2, 3, 8]));
        assert!(parse_cpus("").is_err() && parse_cpus("3-1").is_err() && parse_cpus("0-99999999").is_err());
    }

    #[test]
    fn misspelt_names_find_their_neighbour() {
        assert_eq!(nearest("drain_timout", ["socket", "drain_timeout"]), Some("drain_timeout"));
        assert_eq!(nearest("quantum", ["socket", "drain_timeout"]), None);
    }

    proptest! {
        #[test]
        fn formatted_sizes_read_back(bytes in 0usize..1 << 50) {
            prop_assert_eq!(parse_size(&format_size(bytes)), Ok(bytes));
        }

        #[test]
        fn no_text_panics(text in ".{0,40}") {
            let _ = (parse_size(&text), parse_duration(&text), parse_cpus(&text), nearest(&text, ["socket"]));
        }
    }
}
