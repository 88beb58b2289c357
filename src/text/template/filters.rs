//! Functions and filters that transformers adds to the engine, or that Jinja has and the engine has not.

use super::list::GrowingList;
use super::{Raised, convert, json, python, rewrite};
use minijinja::value::{Kwargs, Rest, StringInput, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, Value, filters};

/// Adds them all.
pub(super) fn install(environment: &mut Environment<'static>) {
    environment.add_filter("tojson", json::tojson);
    environment.add_filter("from_json", from_json);
    environment.add_filter("fromjson", from_json);
    environment.add_filter("string", python::text);
    environment.add_filter("length", length);
    environment.add_filter("count", length);
    environment.add_filter(
        "first",
        |value: &Value| if value.is_undefined() { Ok(Value::UNDEFINED) } else { filters::first(value) },
    );
    environment.add_filter("last", |value: Value| if value.is_undefined() { Ok(value) } else { filters::last(value) });
    environment.add_filter("items", |value: &Value| {
        if value.is_undefined() { Ok(Value::from(Vec::<Value>::new())) } else { filters::items(value) }
    });
    environment.add_filter("sort", sort);
    environment.add_filter("join", join);
    environment.add_filter("indent", indent);
    environment
        .add_filter("wordcount", |value: &Value| value.as_str().map_or(0, |text| text.split_whitespace().count()));
    environment.add_filter("truncate", truncate);
    environment.add_test("iterable", is_iterable);
    environment.add_function("dict", dict);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function(rewrite::NEW_LIST, || Value::from_object(GrowingList::default()));
}

/// `strftime_now(format)` at a fixed time.
pub(super) fn strftime_at(now: jiff::civil::DateTime) -> Value {
    Value::from_function(move |format: &str| -> Result<String, Error> {
        jiff::fmt::strtime::format(format, now)
            .map_err(|error| Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {error}")))
    })
}

fn raise_exception(message: &Value) -> Result<Value, Error> {
    let raised = Raised(message.to_string());
    Err(Error::new(ErrorKind::InvalidOperation, raised.0.clone()).with_source(raised))
}

fn from_json(text: &str) -> Result<Value, Error> {
    let parsed: serde_json::Value = serde_json::from_str(text)
        .map_err(|error| Error::new(ErrorKind::InvalidOperation, format!("from_json: {error}")))?;
    Ok(convert::to_engine(&parsed))
}

/// Undefined has no elements; `none` and numbers have no length.
fn length(value: &Value) -> Result<usize, Error> {
    if value.is_undefined() { Ok(0) } else { filters::length(value) }
}

/// Strings are iterable in Python, and so is undefined.
fn is_iterable(value: &Value) -> bool {
    !matches!(value.kind(), ValueKind::None | ValueKind::Bool | ValueKind::Number | ValueKind::Plain)
}

/// `sort(reverse=False, case_sensitive=False, attribute=None)`, by position too.
fn sort(state: &State<'_, '_>, value: Value, positional: Rest<Value>, named: Kwargs) -> Result<Value, Error> {
    let mut arguments: Vec<(String, Value)> = Vec::new();
    for (at, name) in ["reverse", "case_sensitive", "attribute"].into_iter().enumerate() {
        let given = match positional.get(at) {
            Some(given) => given.clone(),
            None => named.get::<Option<Value>>(name)?.unwrap_or(Value::UNDEFINED),
        };
        if !given.is_undefined() && !given.is_none() {
            // Attributes may be numbers: positions in the items.
            let given = if name == "attribute" { Value::from(given.to_string()) } else { given };
            arguments.push((name.to_owned(), given));
        }
    }
    named.assert_all_used()?;
    filters::sort(state, value, arguments.into_iter().collect::<Kwargs>())
}

/// `join(d='', attribute=None)`; attributes may be numbers: positions in the items.
fn join(
    state: &mut State<'_, '_>,
    value: &Value,
    joiner: Option<StringInput<'_>>,
    named: Kwargs,
) -> Result<Value, Error> {
    let attribute = named.get::<Option<Value>>("attribute")?.filter(|given| !given.is_none());
    let Some(attribute) = attribute.filter(|given| given.as_str().is_none()) else {
        return filters::join(state, value, joiner, None, named);
    };
    let items: Vec<Value> = value.try_iter()?.map(|item| item.get_item(&attribute)).collect::<Result<_, _>>()?;
    filters::join(state, &Value::from(items), joiner, None, std::iter::empty::<(String, Value)>().collect())
}

/// `indent(width=4, first=False, blank=False)`; the width may be the indentation itself.
fn indent(
    text: &str,
    width: Option<Value>,
    first: Option<bool>,
    blank: Option<bool>,
    named: Kwargs,
) -> Result<String, Error> {
    let width = match width {
        Some(width) => Some(width),
        None => named.get::<Option<Value>>("width")?,
    };
    let flag = |given: Option<bool>, name| match given {
        Some(flag) => Ok(flag),
        None => named.get::<Option<bool>>(name).map(Option::unwrap_or_default),
    };
    let (first, blank) = (flag(first, "first")?, flag(blank, "blank")?);
    named.assert_all_used()?;
    let indentation = match width {
        None => "    ".to_owned(),
        Some(width) if width.as_str().is_some() => width.to_string(),
        Some(width) => " ".repeat(usize::try_from(width)?.min(1000)),
    };
    let mut out = String::with_capacity(text.len() + 64);
    for (at, line) in text.split('\n').enumerate() {
        if at > 0 {
            out.push('\n');
        }
        if (at > 0 || first) && (blank || !line.is_empty()) {
            out.push_str(&indentation);
        }
        out.push_str(line);
    }
    Ok(out)
}

/// `truncate(length=255, killwords=False, end='...', leeway=5)`.
fn truncate(value: &Value, positional: Rest<Value>, named: Kwargs) -> Result<String, Error> {
    let argument = |at: usize, name: &str| -> Result<Option<Value>, Error> {
        match positional.get(at) {
            Some(value) => Ok(Some(value.clone())),
            None => named.get::<Option<Value>>(name),
        }
    };
    let number = |value: Option<Value>, default: usize| value.map_or(Ok(default), usize::try_from);
    let length = number(argument(0, "length")?, 255)?;
    let kill_words = argument(1, "killwords")?.is_some_and(|value| value.is_true());
    let end = argument(2, "end")?.map_or_else(|| "...".to_owned(), |value| value.to_string());
    let leeway = number(argument(3, "leeway")?, 5)?;
    named.assert_all_used()?;
    let text = if value.is_undefined() { String::new() } else { value.to_string() };
    if text.chars().count() <= length.saturating_add(leeway) {
        return Ok(text);
    }
    let kept: String = text.chars().take(length.saturating_sub(end.chars().count())).collect();
    let kept = if kill_words { &kept } else { kept.rsplit_once(' ').map_or(kept.as_str(), |(words, _)| words) };
    Ok(format!("{kept}{end}"))
}

/// `dict(pairs_or_dict, **more)`.
fn dict(from: Option<Value>, named: Kwargs) -> Result<Value, Error> {
    let mut pairs: Vec<(Value, Value)> = Vec::new();
    match &from {
        None => {}
        Some(map) if map.kind() == ValueKind::Map => {
            for key in map.try_iter()? {
                pairs.push((key.clone(), map.get_item(&key)?));
            }
        }
        Some(list) => {
            for pair in list.try_iter()? {
                pairs.push((pair.get_item_by_index(0)?, pair.get_item_by_index(1)?));
            }
        }
    }
    for name in named.args() {
        pairs.push((Value::from(name), named.peek::<Value>(name)?));
    }
    Ok(Value::from_pairs(pairs))
}
