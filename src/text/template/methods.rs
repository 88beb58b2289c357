//! Python's methods on strings, lists and dicts that templates call and `minijinja-contrib` does not have.

use minijinja::value::{Kwargs, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};

/// Called for a method the value's own type does not know.
pub(super) fn call(state: &mut State<'_, '_>, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let known = match value.kind() {
        ValueKind::String => string(value.as_str().unwrap_or_default(), method, args),
        ValueKind::Seq => list(value, method, args),
        ValueKind::Map => dict(value, method, args),
        _ => return Err(Error::from(ErrorKind::UnknownMethod)),
    };
    match known {
        Some(result) => result,
        None => minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args),
    }
}

fn invalid(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, what.into())
}

fn string(text: &str, method: &str, args: &[Value]) -> Option<Result<Value, Error>> {
    Some(match method {
        "removeprefix" => from_args(args).map(|(p,): (&str,)| Value::from(text.strip_prefix(p).unwrap_or(text))),
        "removesuffix" => from_args(args).map(|(p,): (&str,)| Value::from(text.strip_suffix(p).unwrap_or(text))),
        "split" | "rsplit" => split(text, args, method == "rsplit"),
        "partition" => from_args(args).map(|(by,): (&str,)| match text.split_once(by) {
            Some((before, after)) => three(before, by, after),
            None => three(text, "", ""),
        }),
        "rpartition" => from_args(args).map(|(by,): (&str,)| match text.rsplit_once(by) {
            Some((before, after)) => three(before, by, after),
            None => three("", "", text),
        }),
        "index" | "rindex" => from_args(args).and_then(|(what,): (&str,)| {
            let at = if method == "index" { text.find(what) } else { text.rfind(what) };
            at.map(|at| Value::from(text[..at].chars().count())).ok_or_else(|| invalid("substring not found"))
        }),
        "isspace" => Ok(Value::from(!text.is_empty() && text.chars().all(char::is_whitespace))),
        "isdecimal" => Ok(Value::from(!text.is_empty() && text.chars().all(|c| c.is_ascii_digit()))),
        "casefold" => Ok(Value::from(text.to_lowercase())),
        "swapcase" => Ok(Value::from(text.chars().flat_map(swap_case).collect::<String>())),
        "zfill" => from_args(args).map(|(width,): (usize,)| Value::from(zero_fill(text, width))),
        "ljust" | "rjust" | "center" => {
            from_args(args).map(|(width, fill): (usize, Option<&str>)| Value::from(justify(text, method, width, fill)))
        }
        _ => return None,
    })
}

/// Wider padding than any prompt needs is cut.
const MAX_PADDING: usize = 10_000;

fn padding(text: &str, width: usize) -> usize {
    width.saturating_sub(text.chars().count()).min(MAX_PADDING)
}

fn zero_fill(text: &str, width: usize) -> String {
    let digits = text.trim_start_matches(['-', '+']);
    let sign = &text[..text.len() - digits.len()];
    format!("{sign}{}{digits}", "0".repeat(padding(text, width)))
}

fn justify(text: &str, method: &str, width: usize, fill: Option<&str>) -> String {
    let fill = fill.unwrap_or(" ");
    let space = padding(text, width);
    let left = match method {
        "ljust" => 0,
        "rjust" => space,
        // As CPython: the odd one goes left when both the padding and the width are odd.
        _ => space / 2 + (space & width & 1),
    };
    format!("{}{text}{}", fill.repeat(left), fill.repeat(space - left))
}

fn swap_case(c: char) -> Vec<char> {
    if c.is_uppercase() { c.to_lowercase().collect() } else { c.to_uppercase().collect() }
}

fn three(before: &str, by: &str, after: &str) -> Value {
    Value::from(minijinja::value::Tuple::from([Value::from(before), Value::from(by), Value::from(after)]))
}

/// `split(sep=None, maxsplit=-1)`, `rsplit` likewise.
fn split(text: &str, args: &[Value], from_right: bool) -> Result<Value, Error> {
    let (separator, most, named): (Option<Value>, Option<i64>, Kwargs) = from_args(args)?;
    let separator = match separator {
        Some(value) => Some(value),
        None => named.get::<Option<Value>>("sep")?,
    };
    let most = match most {
        Some(most) => most,
        None => named.get::<Option<i64>>("maxsplit")?.unwrap_or(-1),
    };
    named.assert_all_used()?;
    let parts = usize::try_from(most).map_or(usize::MAX, |most| most.saturating_add(1));
    let separator = separator.filter(|value| !value.is_none());
    let Some(separator) = separator else {
        return Ok(Value::from(split_whitespace(text, parts, from_right)));
    };
    let by = separator.as_str().ok_or_else(|| invalid("split: the separator must be a string"))?;
    if by.is_empty() {
        return Err(invalid("split: the separator must not be empty"));
    }
    if from_right {
        let mut list: Vec<Value> = text.rsplitn(parts, by).map(Value::from).collect();
        list.reverse();
        return Ok(Value::from(list));
    }
    Ok(Value::from(text.splitn(parts, by).map(Value::from).collect::<Vec<_>>()))
}

fn split_whitespace(text: &str, parts: usize, from_right: bool) -> Vec<Value> {
    let mut list = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        if list.len() + 1 >= parts {
            // The remainder keeps its outer whitespace on the far side, as in Python.
            let tail =
                if from_right { &text[..end_in(text, rest)] } else { &text[text.len() - tail_len(text, rest)..] };
            list.push(Value::from(if from_right { tail.trim_end() } else { tail.trim_start() }));
            break;
        }
        let cut = if from_right { rest.rfind(char::is_whitespace) } else { rest.find(char::is_whitespace) };
        let Some(at) = cut else {
            list.push(Value::from(rest));
            break;
        };
        let (word, remaining) = if from_right {
            (rest[at..].trim_start(), rest[..at].trim_end())
        } else {
            (&rest[..at], rest[at..].trim_start())
        };
        list.push(Value::from(word));
        rest = remaining;
    }
    if from_right {
        list.reverse();
    }
    list
}

/// Where `rest`, a beginning of the trimmed text, ends in `text`.
fn end_in(text: &str, rest: &str) -> usize {
    text.len() - text.trim_start().len() + rest.len()
}

/// Bytes from the start of `rest`, an end of the trimmed text, to the end of `text`.
fn tail_len(text: &str, rest: &str) -> usize {
    rest.len() + text.len() - text.trim_end().len()
}

fn list(value: &Value, method: &str, args: &[Value]) -> Option<Result<Value, Error>> {
    Some(match method {
        "index" => from_args(args).and_then(|(what,): (&Value,)| {
            let at = value.try_iter()?.position(|item| item == *what);
            at.map(Value::from).ok_or_else(|| invalid("the value is not in the list"))
        }),
        "copy" => value.try_iter().map(|items| Value::from(items.collect::<Vec<_>>())),
        _ => return None,
    })
}

fn dict(value: &Value, method: &str, args: &[Value]) -> Option<Result<Value, Error>> {
    Some(match method {
        "copy" => from_args(args).map(|()| value.clone()),
        _ => return None,
    })
}
