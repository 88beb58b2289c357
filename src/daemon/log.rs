//! Where log lines go: the journal when this process was started by systemd with one, else standard error. Also the form
//! in which workers hand theirs to the daemon: a syslog priority in angle brackets, as sd-daemon(3) has it.

use super::logs::Logs;
use crate::config;
use crate::sys::notify;
use std::fmt::{self, Write as _};
use std::io::IsTerminal;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, reload};

/// Changes the filter of a running process.
#[derive(Clone)]
pub struct Filter(Option<reload::Handle<EnvFilter, tracing_subscriber::Registry>>);

impl Filter {
    /// Takes a new filter; one that cannot be read changes nothing.
    pub fn set(&self, directives: &str) {
        if let (Some(handle), Ok(filter)) = (&self.0, EnvFilter::try_new(directives)) {
            let _ = handle.reload(filter);
        }
    }
}

/// Sets up the daemon's log; `own` also receives every line. Does nothing when the process has a log already (tests).
pub fn start_daemon(directives: &str, own: &Logs) -> Filter {
    let filter = EnvFilter::try_new(directives).unwrap_or_else(|_| EnvFilter::new("info"));
    let (filter, handle) = reload::Layer::new(filter);
    // The journal's own socket may be out of reach even so (a sandbox); its stream on stderr then serves.
    let journal = notify::stderr_is_journal().then(tracing_journald::layer).and_then(Result::ok);
    let terminal = std::io::stderr().is_terminal();
    let colours = terminal && !config::paths::no_color();
    let stderr = journal.is_none().then(|| {
        let format = Line { time: if terminal { Time::Clock } else { Time::Full } };
        tracing_subscriber::fmt::layer().with_ansi(colours).with_writer(std::io::stderr).event_format(format)
    });
    let registry = tracing_subscriber::registry().with(filter).with(journal).with(stderr).with(Ring(own.clone()));
    Filter(registry.try_init().ok().map(|()| handle))
}

/// Sets up a worker's log: standard error with priorities, for the daemon to read.
pub fn start_worker(directives: &str) {
    let filter = EnvFilter::try_new(directives).unwrap_or_else(|_| EnvFilter::new("info"));
    let format = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .event_format(Line { time: Time::Priority });
    let _ = tracing_subscriber::registry().with(filter).with(format).try_init();
}

/// Level and text of a worker's line; lines without a priority, from libraries or a panic, count as warnings.
pub fn split_priority(line: &str) -> (Level, &str) {
    let known = |digit: &str| match digit {
        "0" | "1" | "2" | "3" => Some(Level::ERROR),
        "4" => Some(Level::WARN),
        "5" | "6" => Some(Level::INFO),
        "7" => Some(Level::DEBUG),
        _ => None,
    };
    let split = line.strip_prefix('<').and_then(|rest| rest.split_once('>'));
    split.and_then(|(digit, text)| Some((known(digit)?, text))).unwrap_or((Level::WARN, line))
}

macro_rules! line_about {
    ($target:literal, $level:expr, $model:expr, $text:expr) => {{
        let (model, text) = ($model, $text);
        match $level {
            Level::ERROR => tracing::error!(target: $target, model, "{text}"),
            Level::WARN => tracing::warn!(target: $target, model, "{text}"),
            Level::INFO => tracing::info!(target: $target, model, "{text}"),
            _ => tracing::debug!(target: $target, model, "{text}"),
        }
    }};
}

/// Logs a worker's line as the daemon's own, and keeps it with the model's.
pub fn worker_line(level: Level, model: &str, text: &str, logs: &Logs) {
    line_about!("omni_inferd::worker", level, model, text);
    logs.push(stamped(level, text));
}

/// Logs what the daemon has to say of a model, and keeps it with the model's own lines.
pub fn model_line(level: Level, model: &str, text: &str, logs: &Logs) {
    line_about!("omni_inferd::daemon", level, model, text);
    logs.push(stamped(level, text));
}

/// A line as the rings keep it: time, level, text.
fn stamped(level: Level, text: &str) -> String {
    format!("{} {level:<5} {text}", jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.3fZ"))
}

#[derive(Clone, Copy)]
enum Time {
    /// Time of day: for a person who watches.
    Clock,
    /// Date and time, UTC: for files.
    Full,
    /// None, but the priority: the reader adds the time.
    Priority,
}

/// `03:45:43 INFO  the model is ready  model=oracle seconds=1.2`
struct Line {
    time: Time,
}

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let level = *event.metadata().level();
        let text = Text::of(event);
        let (colour, dim, reset) = match (writer.has_ansi_escapes(), level) {
            (false, _) => ("", "", ""),
            (true, Level::ERROR) => ("\x1b[31m", "\x1b[2m", "\x1b[0m"),
            (true, Level::WARN) => ("\x1b[33m", "\x1b[2m", "\x1b[0m"),
            (true, Level::INFO) => ("\x1b[32m", "\x1b[2m", "\x1b[0m"),
            (true, _) => ("\x1b[34m", "\x1b[2m", "\x1b[0m"),
        };
        match self.time {
            Time::Clock => {
                let now = jiff::Zoned::now();
                write!(writer, "{dim}{}{reset} {colour}{level:<5}{reset} ", now.strftime("%H:%M:%S"))?;
            }
            Time::Full => {
                let now = jiff::Timestamp::now();
                write!(writer, "{} {level:<5} ", now.strftime("%Y-%m-%dT%H:%M:%S%.3fZ"))?;
            }
            Time::Priority => {
                let priority = match level {
                    Level::ERROR => 3,
                    Level::WARN => 4,
                    Level::INFO => 6,
                    _ => 7,
                };
                write!(writer, "<{priority}>")?;
            }
        }
        let fields = if text.fields.is_empty() { String::new() } else { format!("  {dim}{}{reset}", text.fields) };
        writeln!(writer, "{}{fields}", text.message)
    }
}

/// An event's message and its fields as ` name=value`, on one line.
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Text {
    fn of(event: &Event<'_>) -> Self {
        let mut text = Self::default();
        event.record(&mut text);
        text
    }

    fn add(&mut self, name: &str, value: &str) {
        // A line break within a value, in an error message for instance, must not look like a line of its own.
        let value = value.replace('\n', " ⏎ ");
        if name == "message" {
            self.message = value;
        } else if !name.starts_with("log.") {
            let space = if self.fields.is_empty() { "" } else { " " };
            let quote = if value.contains(' ') { "\"" } else { "" };
            let _ = write!(self.fields, "{space}{name}={quote}{value}{quote}");
        }
    }
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field.name(), &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field.name(), value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field.name(), &format!("{value:.3}"));
    }
}

/// Keeps the daemon's own last lines for `/control/v1/logs` without a model.
struct Ring(Logs);

impl<S: Subscriber> Layer<S> for Ring {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let text = Text::of(event);
        let space = if text.fields.is_empty() { "" } else { "  " };
        self.0.push(stamped(*event.metadata().level(), &format!("{}{space}{}", text.message, text.fields)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn priorities_are_those_of_syslog() {
        assert_eq!(split_priority("<6>ready"), (Level::INFO, "ready"));
        assert_eq!(split_priority("<3>lost"), (Level::ERROR, "lost"));
        assert_eq!(split_priority("thread panicked"), (Level::WARN, "thread panicked"));
        assert_eq!(split_priority("<html>"), (Level::WARN, "<html>"));
    }
}
