//! Tokens per second as a picture: against context depth and against threads, a line per series, as one SVG that is
//! readable on light and dark ground. Written by hand: a drawing library cannot follow the reader's colours.

use super::row::Row;
use std::collections::BTreeMap;
use std::fmt::Write;

/// Size of a panel with its axes, in pixels.
const PANEL: (f64, f64) = (460.0, 340.0);
/// Room around the lines: left, right, top, bottom.
const MARGIN: (f64, f64, f64, f64) = (64.0, 16.0, 40.0, 48.0);
/// Height of the title, and of a line of the legend.
const TITLE: f64 = 44.0;
const LEGEND_LINE: f64 = 20.0;

/// Colours that people with any kind of sight tell apart (Okabe and Ito), lightened for dark ground.
const COLORS: [(&str, &str); 7] = [
    ("#0072b2", "#56b4e9"),
    ("#d55e00", "#ff8c42"),
    ("#009e73", "#2bd4a4"),
    ("#a0458a", "#e69fd4"),
    ("#8a6d00", "#f0e442"),
    ("#444444", "#c8c8c8"),
    ("#b01030", "#ff7a90"),
];

/// One line: its points by x, and whether it is the peer's.
#[derive(Clone, Debug, Default, PartialEq)]
struct Series {
    name: String,
    points: Vec<(f64, f64)>,
    peer: bool,
}

/// A panel and what is on it.
struct Panel {
    title: String,
    x_label: &'static str,
    y_label: &'static str,
    series: Vec<Series>,
}

/// The picture of these rows: prompts and decoding against depth, and against threads where several were measured.
pub fn svg(rows: &[Row]) -> String {
    let mut panels = Vec::new();
    for (decode, what) in [(false, "Prompt"), (true, "Decoding")] {
        let of_kind = || rows.iter().filter(move |row| (row.n_gen > 0) == decode);
        if of_kind().next().is_none() {
            continue;
        }
        let panel = |against: &str, x_label, series| Panel {
            title: format!("{what} against {against}"),
            x_label,
            y_label: "tokens per second",
            series,
        };
        let by_depth = series(of_kind(), |row| row.depth, |row| format!("{}{}", test(row), threads(row)));
        panels.push(panel("depth", "tokens of context before", by_depth));
        if distinct(rows, |row| row.threads) > 1 {
            let by_threads = series(of_kind(), |row| row.threads, |row| format!("{}{}", test(row), depth(row)));
            panels.push(panel("threads", "threads", by_threads));
        }
    }
    let title = rows.first().map_or("omnictl bench", |row| row.model.as_str());
    draw(title, &panels)
}

fn distinct(rows: &[Row], key: impl Fn(&Row) -> usize) -> usize {
    rows.iter().map(key).collect::<std::collections::BTreeSet<_>>().len()
}

fn test(row: &Row) -> String {
    let test = if row.n_gen > 0 { format!("tg{}", row.n_gen) } else { format!("pp{}", row.n_prompt) };
    if row.batch > 1 { format!("{test} x{}", row.batch) } else { test }
}

fn threads(row: &Row) -> String {
    format!(", {} thread{}", row.threads, if row.threads == 1 { "" } else { "s" })
}

fn depth(row: &Row) -> String {
    format!(" @ d{}", row.depth)
}

/// Rows of one name make one line, and the peer's speeds another one.
fn series<'a>(
    rows: impl Iterator<Item = &'a Row>,
    x: impl Fn(&Row) -> usize,
    name: impl Fn(&Row) -> String,
) -> Vec<Series> {
    let mut lines: BTreeMap<(String, bool), Vec<(f64, f64)>> = BTreeMap::new();
    for row in rows {
        let at = x(row) as f64;
        lines.entry((name(row), false)).or_default().push((at, row.median_ts));
        if let Some(peer) = &row.peer {
            lines.entry((format!("{}, {}", name(row), peer.name), true)).or_default().push((at, peer.median_ts));
        }
    }
    let line = |((name, peer), mut points): ((String, bool), Vec<(f64, f64)>)| {
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        Series { name, points, peer }
    };
    lines.into_iter().map(line).collect()
}

/// All panels side by side, two a row, each with its legend below.
fn draw(title: &str, panels: &[Panel]) -> String {
    let across = panels.len().clamp(1, 2);
    let most = panels.iter().map(|panel| panel.series.len()).max().unwrap_or(0) as f64;
    let cell = (PANEL.0, PANEL.1 + most * LEGEND_LINE + 16.0);
    let (width, height) = (across as f64 * cell.0, TITLE + panels.len().div_ceil(across).max(1) as f64 * cell.1);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" height=\"{height:.0}\" \
         role=\"img\" aria-label=\"Tokens per second of {}\">\n{}\n<rect class=\"ground\" width=\"100%\" height=\"100%\"/>\n",
        escape(title),
        style()
    );
    _ = writeln!(out, "<text class=\"title\" x=\"20\" y=\"28\">{}</text>", escape(title));
    for (i, panel) in panels.iter().enumerate() {
        let at = ((i % across) as f64 * cell.0, TITLE + (i / across) as f64 * cell.1);
        _ = writeln!(out, "<g transform=\"translate({:.0} {:.0})\">", at.0, at.1);
        panel.draw(&mut out);
        out += "</g>\n";
    }
    out += "</svg>\n";
    out
}

fn style() -> String {
    let mut light = String::new();
    let mut dark = String::new();
    for (i, (on_light, on_dark)) in COLORS.iter().enumerate() {
        _ = write!(light, ".s{i}{{stroke:{on_light}}}.f{i}{{fill:{on_light}}}");
        _ = write!(dark, ".s{i}{{stroke:{on_dark}}}.f{i}{{fill:{on_dark}}}");
    }
    format!(
        "<style>text{{font:12px system-ui,sans-serif;fill:#333}}.title{{font-size:17px;font-weight:600}}.head{{font-size:13px;font-weight:600}}\
         .ground{{fill:#fff}}.axis{{stroke:#555}}.grid{{stroke:#ddd}}.line{{fill:none;stroke-width:2}}.peer{{stroke-dasharray:6 4}}{light}\
         @media(prefers-color-scheme:dark){{text{{fill:#ddd}}.ground{{fill:#16181d}}.axis{{stroke:#aaa}}.grid{{stroke:#333842}}{dark}}}</style>"
    )
}

impl Panel {
    fn draw(&self, out: &mut String) {
        let (left, right, top, bottom) = MARGIN;
        let (x_end, y_end) = (PANEL.0 - right, PANEL.1 - bottom);
        let all = || self.series.iter().flat_map(|series| &series.points);
        let x_ticks = ticks(0.0, all().map(|point| point.0).fold(1.0, f64::max), true);
        let y_ticks = ticks(0.0, all().map(|point| point.1).fold(1e-9, f64::max), false);
        let last = |ticks: &[f64]| ticks.last().copied().unwrap_or(1.0);
        let x = |value: f64| left + (x_end - left) * value / last(&x_ticks);
        let y = |value: f64| y_end - (y_end - top) * value / last(&y_ticks);
        _ = writeln!(out, "<text class=\"head\" x=\"{left}\" y=\"22\">{}</text>", escape(&self.title));
        for &tick in &y_ticks {
            let at = y(tick);
            _ = writeln!(out, "<line class=\"grid\" x1=\"{left}\" y1=\"{at:.1}\" x2=\"{x_end}\" y2=\"{at:.1}\"/>");
            let (x, y) = (left - 8.0, at + 4.0);
            _ = writeln!(out, "<text x=\"{x}\" y=\"{y:.1}\" text-anchor=\"end\">{}</text>", number(tick));
        }
        for &tick in &x_ticks {
            let (at, end) = (x(tick), y_end + 5.0);
            _ = writeln!(out, "<line class=\"axis\" x1=\"{at:.1}\" y1=\"{y_end}\" x2=\"{at:.1}\" y2=\"{end}\"/>");
            let y = y_end + 18.0;
            _ = writeln!(out, "<text x=\"{at:.1}\" y=\"{y}\" text-anchor=\"middle\">{}</text>", number(tick));
        }
        _ = writeln!(out, "<path class=\"axis\" fill=\"none\" d=\"M{left} {top}V{y_end}H{x_end}\"/>");
        let (middle, below) = ((left + x_end) / 2.0, y_end + 38.0);
        _ = writeln!(out, "<text x=\"{middle}\" y=\"{below}\" text-anchor=\"middle\">{}</text>", self.x_label);
        let middle = (top + y_end) / 2.0;
        _ = writeln!(
            out,
            "<text transform=\"translate(16 {middle}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            self.y_label
        );
        for (i, series) in self.series.iter().enumerate() {
            series.draw(i, &x, &y, out);
        }
    }
}

impl Series {
    fn draw(&self, index: usize, x: &dyn Fn(f64) -> f64, y: &dyn Fn(f64) -> f64, out: &mut String) {
        let (color, dashed) = (index % COLORS.len(), if self.peer { " peer" } else { "" });
        let path = self.points.iter().enumerate().fold(String::new(), |mut path, (i, &(at, value))| {
            _ = write!(path, "{}{:.1} {:.1}", if i == 0 { "M" } else { "L" }, x(at), y(value));
            path
        });
        if self.points.len() > 1 {
            _ = writeln!(out, "<path class=\"line s{color}{dashed}\" d=\"{path}\"/>");
        }
        for &(at, value) in &self.points {
            let label = format!("{}: {value:.2} tokens/s at {}", self.name, number(at));
            _ = writeln!(
                out,
                "<circle class=\"f{color}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"3.5\"><title>{}</title></circle>",
                x(at),
                y(value),
                escape(&label)
            );
        }
        let (left, line) = (MARGIN.0, PANEL.1 + 12.0 + index as f64 * LEGEND_LINE);
        _ = writeln!(out, "<path class=\"line s{color}{dashed}\" d=\"M{left} {:.1}h28\"/>", line - 4.0);
        _ = writeln!(out, "<text x=\"{}\" y=\"{line}\">{}</text>", left + 36.0, escape(&self.name));
    }
}

/// Round numbers from `low` to the first at or beyond `high`, four to seven of them.
fn ticks(low: f64, high: f64, whole: bool) -> Vec<f64> {
    let rough = ((high - low) / 5.0).max(1e-12);
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0].map(|m| m * power).into_iter().find(|step| *step >= rough).unwrap_or(rough);
    let step = if whole { step.ceil().max(1.0) } else { step };
    let count = ((high - low) / step - 1e-9).ceil().max(1.0) as usize;
    (0..=count).map(|i| low + i as f64 * step).collect()
}

/// Without digits that say nothing.
fn number(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::super::render::tests::row;
    use super::super::row::PeerRow;
    use super::*;

    /// Tags nest and close, attributes are quoted, no bare `&` or `<`: as much of well-formedness as this file can break.
    fn assert_well_formed(svg: &str) {
        let mut open = Vec::new();
        let mut rest = svg;
        while let Some(at) = rest.find('<') {
            assert!(!rest[..at].contains('>'), "a bare > in {:?}", &rest[..at]);
            let end = at + rest[at..].find('>').expect("a tag ends");
            let tag = &rest[at + 1..end];
            assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
            let name = tag.trim_start_matches('/').split([' ', '/']).next().unwrap();
            if tag.starts_with('/') {
                assert_eq!(open.pop(), Some(name), "{tag}");
            } else if !tag.ends_with('/') {
                open.push(name);
            }
            rest = &rest[end + 1..];
        }
        assert!(open.is_empty(), "{open:?} stay open");
        for (at, _) in svg.match_indices('&') {
            assert!(["&amp;", "&lt;", "&gt;", "&quot;"].iter().any(|entity| svg[at..].starts_with(entity)));
        }
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }

    #[test]
    fn a_picture_is_well_formed_and_shows_every_series() {
        let mut rows: Vec<Row> = [(0, 1), (4096, 1), (0, 2), (4096, 2)]
            .into_iter()
            .flat_map(|(depth, threads)| {
                [row(64, depth, threads, 10.0 * threads as f64), row(0, depth, threads, 100.0)]
            })
            .collect();
        rows[0].peer = PeerRow::new("llama.cpp <x&y>", vec![7.0], &[10.0]);
        rows[0].model = "Tom & \"Jerry\" <7B>".into();
        let picture = svg(&rows);
        assert_well_formed(&picture);
        for text in [
            "Decoding against depth",
            "Prompt against threads",
            "tg64, 2 threads",
            "tg64 @ d4096",
            "&lt;x&amp;y&gt;",
            "prefers-color-scheme:dark",
        ] {
            assert!(picture.contains(text), "{text} is missing");
        }
        assert_eq!(picture.matches("<g ").count(), 4, "two panels against depth, two against threads");
        assert_well_formed(&svg(&[]));
        assert_well_formed(&svg(&[row(64, 0, 1, 0.0)]));
    }

    #[test]
    fn ticks_are_round_and_cover_the_range() {
        assert_eq!(ticks(0.0, 47.3, false), [0.0, 10.0, 20.0, 30.0, 40.0, 50.0]);
        assert_eq!(ticks(0.0, 2.0, true), [0.0, 1.0, 2.0]);
        assert_eq!(ticks(0.0, 16384.0, true), [0.0, 5000.0, 10000.0, 15000.0, 20000.0]);
        assert_eq!(number(2.5) + &number(10.0), "2.510");
    }
}
