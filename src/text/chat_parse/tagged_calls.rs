//! Tool calls whose arguments are tags, one per parameter: Qwen3-Coder and Seed-OSS, MiniMax and DeepSeek's DSML, GLM.
//!
//! A value is a string where the tool's schema, or the tag itself, says so; else what it is as JSON; else a string.

use super::ToolCall;
use super::json_calls::after;
use crate::text::template::dumps;
use serde_json::{Map, Value};

/// The schema of one parameter of one tool.
fn schema<'v>(tools: Option<&'v Value>, function: &str, parameter: &str) -> Option<&'v Value> {
    let tools = tools?.as_array()?;
    let described = tools.iter().map(|tool| tool.get("function").unwrap_or(tool));
    let tool = described.into_iter().find(|tool| tool.get("name").and_then(Value::as_str) == Some(function))?;
    tool.get("parameters")?.get("properties")?.get(parameter)
}

/// Whether a schema allows nothing but strings (and null): then text stays text, whatever it looks like.
fn is_string(schema: &Value) -> bool {
    match schema.get("type") {
        Some(Value::String(name)) => name == "string",
        Some(Value::Array(names)) => {
            names.iter().any(|name| name == "string") && names.iter().all(|name| name == "string" || name == "null")
        }
        _ => {
            let list = ["anyOf", "oneOf"].iter().find_map(|key| schema.get(*key)?.as_array());
            let is_null = |schema: &Value| schema.get("type").is_some_and(|name| name == "null");
            let enumerated = schema.get("enum").and_then(Value::as_array);
            list.is_some_and(|list| list.iter().any(is_string) && list.iter().all(|one| is_string(one) || is_null(one)))
                || enumerated.is_some_and(|list| list.iter().all(Value::is_string))
        }
    }
}

/// Whether a schema allows null beside strings.
fn is_nullable(schema: &Value) -> bool {
    schema.get("type").and_then(Value::as_array).is_some_and(|names| names.iter().any(|name| name == "null"))
        || schema.get("nullable") == Some(&Value::Bool(true))
}

fn typed(text: &str, schema: Option<&Value>) -> Value {
    let text_schema = schema.filter(|schema| is_string(schema));
    match text_schema {
        Some(schema) if text == "null" && is_nullable(schema) => Value::Null,
        Some(_) => Value::String(text.to_owned()),
        None => serde_json::from_str(text.trim()).unwrap_or_else(|_| Value::String(text.to_owned())),
    }
}

/// A value's own newlines: one after the opening tag and one before the closing tag are layout.
fn without_layout(text: &str) -> &str {
    let text = text.strip_prefix('\n').unwrap_or(text);
    text.strip_suffix('\n').unwrap_or(text)
}

fn call(name: &str, arguments: Map<String, Value>) -> ToolCall {
    ToolCall { id: String::new(), name: name.to_owned(), arguments: dumps(&Value::Object(arguments)) }
}

/// Text up to the first of `ends` that occurs, and the text after that end.
fn until<'t>(text: &'t str, ends: &[&str]) -> Option<(&'t str, &'t str)> {
    let (at, end) = ends.iter().filter_map(|end| text.find(end).map(|at| (at, end))).min_by_key(|(at, _)| *at)?;
    Some((&text[..at], &text[at + end.len()..]))
}

/// `<function=name><parameter=key>value</parameter></function>`
pub(super) fn function_tags<'t>(text: &'t str, tools: Option<&Value>) -> Option<(ToolCall, &'t str)> {
    let (name, mut rest) = after(text, "<function=")?.split_once('>')?;
    let mut arguments = Map::new();
    loop {
        rest = rest.trim_start();
        let Some(parameter) = rest.strip_prefix("<parameter=") else {
            break;
        };
        let (key, value) = parameter.split_once('>')?;
        let (value, after_value) = until(value, &["</parameter>"])?;
        arguments.insert(key.to_owned(), typed(without_layout(value), schema(tools, name, key)));
        rest = after_value;
    }
    let rest = rest.strip_prefix("</function>")?.trim_start();
    let closers = ["</tool_call>", "</seed:tool_call>"];
    let rest = closers.iter().find_map(|closer| rest.strip_prefix(closer)).unwrap_or(rest);
    Some((call(name, arguments), rest))
}

/// The quoted value of an attribute.
fn attribute<'t>(tag: &'t str, name: &str) -> Option<&'t str> {
    let value = after(tag, &format!("{name}=\""))?;
    value.split_once('"').map(|(value, _)| value)
}

/// `<invoke name="…"><parameter name="…">value</parameter></invoke>`, with or without DeepSeek's prefix.
pub(super) fn invoke_tags<'t>(text: &'t str, tools: Option<&Value>) -> Option<(ToolCall, &'t str)> {
    let prefix = if text.contains("<｜DSML｜invoke") { "｜DSML｜" } else { "" };
    let (tag, mut rest) = after(text, &format!("<{prefix}invoke"))?.split_once('>')?;
    let name = attribute(tag, "name")?;
    let (open, close) = (format!("<{prefix}parameter"), format!("</{prefix}parameter>"));
    let mut arguments = Map::new();
    loop {
        rest = rest.trim_start();
        let Some(parameter) = rest.strip_prefix(open.as_str()) else {
            break;
        };
        let (tag, value) = parameter.split_once('>')?;
        let key = attribute(tag, "name")?;
        let (value, after_value) = until(value, &[&close])?;
        let value = match attribute(tag, "string") {
            Some("true") => Value::String(value.to_owned()),
            Some(_) => typed(value, None),
            None => typed(value, schema(tools, name, key)),
        };
        arguments.insert(key.to_owned(), value);
        rest = after_value;
    }
    let rest = rest.strip_prefix(format!("</{prefix}invoke>").as_str())?;
    Some((call(name, arguments), rest))
}

/// `<tool_call>name<arg_key>key</arg_key><arg_value>value</arg_value></tool_call>`
pub(super) fn glm<'t>(text: &'t str, tools: Option<&Value>) -> Option<(ToolCall, &'t str)> {
    let text = after(text, "<tool_call>")?;
    let end = super::find_first(text, &["<arg_key>", "</tool_call>"])?;
    let name = text[..end].trim();
    let mut rest = &text[end..];
    let mut arguments = Map::new();
    loop {
        rest = rest.trim_start();
        let Some(key) = rest.strip_prefix("<arg_key>") else {
            break;
        };
        let (key, value) = until(key, &["</arg_key>"])?;
        let (value, after_value) = until(value.trim_start().strip_prefix("<arg_value>")?, &["</arg_value>"])?;
        arguments.insert(key.trim().to_owned(), typed(value, schema(tools, name, key.trim())));
        rest = after_value;
    }
    Some((call(name, arguments), rest.strip_prefix("</tool_call>")?))
}
