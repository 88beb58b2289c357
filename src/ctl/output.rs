//! How things look: sizes, times, tables and colours for people; JSON for programs. All output of commands goes through
//! [`Output`], so that a closed pipe is an error and not a panic.

use super::error::Error;
use crate::api::control::ModelState;
use anstyle::{AnsiColor, Style};
use comfy_table::{Cell, CellAlignment, Color, ContentArrangement, Table, presets};
use serde::Serialize;
use std::io::{self, IsTerminal, Write};

/// When to use colours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum ColorChoice {
    /// On a terminal, unless `NO_COLOR` is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// Where a command writes its results.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// Results as JSON instead of text.
    pub json: bool,
    /// Colours allowed.
    pub color: bool,
}

impl Output {
    /// For this process' standard output.
    pub fn new(json: bool, color: ColorChoice) -> Self {
        let color = match color {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => io::stdout().is_terminal() && !crate::config::paths::no_color(),
        };
        Output { json, color }
    }

    /// Writes text to standard output at once.
    pub fn write(self, text: &str) -> Result<(), Error> {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()?;
        Ok(())
    }

    /// Writes a line.
    pub fn line(self, text: &str) -> Result<(), Error> {
        self.write(&format!("{text}\n"))
    }

    /// Writes a value as indented JSON.
    pub fn value(self, value: &impl Serialize) -> Result<(), Error> {
        let text = serde_json::to_string_pretty(value).map_err(io::Error::from)?;
        self.line(&text)
    }

    /// Text in a style, when colours are allowed.
    pub fn paint(self, style: Style, text: &str) -> String {
        if self.color { format!("{style}{text}{style:#}") } else { text.to_string() }
    }

    /// Secondary text.
    pub fn dim(self, text: &str) -> String {
        self.paint(Style::new().dimmed(), text)
    }

    /// A heading.
    pub fn bold(self, text: &str) -> String {
        self.paint(Style::new().bold(), text)
    }

    /// Something wrong.
    pub fn red(self, text: &str) -> String {
        self.paint(AnsiColor::Red.on_default(), text)
    }

    /// A table: `columns` of name and whether they hold numbers, which stand to the right.
    pub fn table(self, columns: &[(&str, bool)], rows: impl IntoIterator<Item = Vec<Cell>>) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        if self.color {
            table.enforce_styling();
        } else {
            table.force_no_tty();
        }
        table.set_header(columns.iter().map(|(name, _)| Cell::new(name).fg(Color::DarkGrey)));
        table.add_rows(rows);
        let last = columns.len().saturating_sub(1);
        for (index, (column, (_, number))) in table.column_iter_mut().zip(columns).enumerate() {
            if *number {
                column.set_cell_alignment(CellAlignment::Right);
            }
            column.set_padding((0, if index == last { 0 } else { 2 }));
        }
        table.trim_fmt()
    }
}

/// A state with its colour.
pub fn state(state: ModelState) -> Cell {
    let color = match state {
        ModelState::Ready => Color::Green,
        ModelState::Loading | ModelState::Draining | ModelState::Restarting => Color::Yellow,
        ModelState::Failed => Color::Red,
        ModelState::Unloaded => Color::DarkGrey,
    };
    Cell::new(state.name()).fg(color)
}

/// Bytes in binary units, three digits.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut unit = 0;
    let mut value = count as f64;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{count} B"),
        _ if value < 9.995 => format!("{value:.2} {}", UNITS[unit]),
        _ if value < 99.95 => format!("{value:.1} {}", UNITS[unit]),
        _ => format!("{value:.0} {}", UNITS[unit]),
    }
}

/// Counts such as parameters: `2.9M`, `671B`.
pub fn count(number: u64) -> String {
    let scaled = [(1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")].iter().find(|(scale, _)| number as f64 >= *scale);
    match scaled {
        None => number.to_string(),
        Some((scale, suffix)) => {
            let value = number as f64 / scale;
            if value < 99.95 { format!("{value:.1}{suffix}") } else { format!("{value:.0}{suffix}") }
        }
    }
}

/// Seconds as their two largest units.
pub fn seconds(time: f64) -> String {
    if !time.is_finite() || time < 0.0 {
        return "-".into();
    }
    let whole = time as u64;
    match whole {
        0..10 => format!("{time:.1}s"),
        10..60 => format!("{whole}s"),
        60..3600 => format!("{}m {}s", whole / 60, whole % 60),
        3600..86_400 => format!("{}h {}m", whole / 3600, whole % 3600 / 60),
        _ => format!("{}d {}h", whole / 86_400, whole % 86_400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        assert_eq!([bytes(0), bytes(999), bytes(1024), bytes(1536)], ["0 B", "999 B", "1.00 KiB", "1.50 KiB"]);
        assert_eq!([bytes(10 << 20), bytes(377 << 30), bytes(u64::MAX)], ["10.0 MiB", "377 GiB", "16384 PiB"]);
        assert_eq!([count(12), count(2_900_000), count(671_000_000_000)], ["12", "2.9M", "671B"]);
        assert_eq!([seconds(0.25), seconds(59.9), seconds(61.0)], ["0.2s", "59s", "1m 1s"]);
        assert_eq!([seconds(7300.0), seconds(90_000.0), seconds(f64::NAN)], ["2h 1m", "1d 1h", "-"]);
    }

    #[test]
    fn tables_are_plain_without_colours() {
        let rows =
            || vec![vec![Cell::new("a").fg(Color::Red), Cell::new("1")], vec![Cell::new("bcd"), Cell::new("10")]];
        let columns = [("NAME", false), ("COUNT", true)];
        let plain = Output { json: false, color: false }.table(&columns, rows());
        assert_eq!(plain, "NAME  COUNT\na         1\nbcd      10");
        let colored = Output { json: false, color: true }.table(&columns, rows());
        assert!(colored.contains("\u{1b}["), "{colored:?}");
    }
}
