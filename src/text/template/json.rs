//! `tojson` as Python's `json.dumps` writes it, by transformers' defaults (`ensure_ascii=False`).

use super::MAX_VALUE;
use super::python;
use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Error, ErrorKind, Value};
use std::fmt::Write;

/// Deeper nesting is refused; Python refuses at about 1,000.
const MAX_DEPTH: usize = 200;

struct Style {
    ensure_ascii: bool,
    sort_keys: bool,
    /// One level of indentation; none keeps everything on one line.
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
}

/// `tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
pub(super) fn tojson(value: &Value, positional: Rest<Value>, named: Kwargs) -> Result<Value, Error> {
    let argument = |at: usize, name: &str| -> Result<Option<Value>, Error> {
        let given = match positional.get(at) {
            Some(value) => Some(value.clone()),
            None => named.get::<Option<Value>>(name)?,
        };
        Ok(given.filter(|value| !value.is_none() && !value.is_undefined()))
    };
    let flag = |value: Option<Value>| value.is_some_and(|value| value.is_true());
    let ensure_ascii = flag(argument(0, "ensure_ascii")?);
    let indent = match argument(1, "indent")? {
        None => None,
        Some(text) if text.as_str().is_some() => text.as_str().map(str::to_owned),
        Some(count) => Some(" ".repeat(usize::try_from(count)?.min(64))),
    };
    let (item, key) = match argument(2, "separators")? {
        None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
        Some(pair) => (pair.get_item_by_index(0)?.to_string(), pair.get_item_by_index(1)?.to_string()),
    };
    let sort_keys = flag(argument(3, "sort_keys")?);
    named.assert_all_used()?;
    let style = Style { ensure_ascii, sort_keys, indent, item_separator: item, key_separator: key };
    let mut out = String::new();
    style.write(&mut out, value, 0)?;
    Ok(Value::from(out))
}

/// The value on one line with transformers' defaults.
pub(super) fn dumps(value: &Value) -> Result<String, Error> {
    let (item_separator, key_separator) = (", ".to_owned(), ": ".to_owned());
    let style = Style { ensure_ascii: false, sort_keys: false, indent: None, item_separator, key_separator };
    let mut out = String::new();
    style.write(&mut out, value, 0)?;
    Ok(out)
}

fn refuse(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::BadSerialization, what.into())
}

impl Style {
    fn write(&self, out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH || out.len() > MAX_VALUE {
            return Err(refuse("the value is too deep or too large for JSON"));
        }
        match value.kind() {
            ValueKind::Undefined => return Err(refuse("an undefined value is not JSON serializable")),
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&number(value)),
            ValueKind::String => self.write_string(out, value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter()?.map(|item| (None, item)).collect::<Vec<_>>();
                self.write_container(out, ['[', ']'], &items, depth)?;
            }
            ValueKind::Map => {
                let mut items = Vec::new();
                for key in value.try_iter()? {
                    items.push((Some(key_text(&key)?), value.get_item(&key)?));
                }
                if self.sort_keys {
                    items.sort_by(|left, right| left.0.cmp(&right.0));
                }
                self.write_container(out, ['{', '}'], &items, depth)?;
            }
            other => return Err(refuse(format!("a value of type {other} is not JSON serializable"))),
        }
        Ok(())
    }

    fn write_container(
        &self,
        out: &mut String,
        [open, close]: [char; 2],
        items: &[(Option<String>, Value)],
        depth: usize,
    ) -> Result<(), Error> {
        out.push(open);
        for (at, (key, value)) in items.iter().enumerate() {
            if at > 0 {
                out.push_str(&self.item_separator);
            }
            self.new_line(out, depth + 1);
            if let Some(key) = key {
                self.write_string(out, key);
                out.push_str(&self.key_separator);
            }
            self.write(out, value, depth + 1)?;
        }
        if !items.is_empty() {
            self.new_line(out, depth);
        }
        out.push(close);
        Ok(())
    }

    fn new_line(&self, out: &mut String, depth: usize) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            (0..depth).for_each(|_| out.push_str(indent));
        }
    }

    fn write_string(&self, out: &mut String, text: &str) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if (c as u32) < 0x20 || (self.ensure_ascii && c as u32 > 0x7E) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        // Writing to a string cannot fail.
                        let _ = write!(out, "\\u{unit:04x}");
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

/// A number as Python's `json` writes it, with its names for what JSON has none for.
fn number(value: &Value) -> String {
    match python::as_float(value) {
        None => value.to_string(),
        Some(number) if number.is_nan() => "NaN".to_owned(),
        Some(number) if number.is_infinite() => if number > 0.0 { "Infinity" } else { "-Infinity" }.to_owned(),
        Some(number) => python::float(number),
    }
}

/// A dict key as Python's `json` writes it: strings, and numbers, booleans and none as strings.
fn key_text(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String => Ok(key.as_str().unwrap_or_default().to_owned()),
        ValueKind::None => Ok("null".to_owned()),
        ValueKind::Bool => Ok(if key.is_true() { "true" } else { "false" }.to_owned()),
        ValueKind::Number => Ok(number(key)),
        other => Err(refuse(format!("keys must be strings or numbers, not {other}"))),
    }
}
