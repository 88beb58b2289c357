//! Tool calls whose arguments are JSON: Hermes, DeepSeek, Kimi, Mistral, Llama 3.
//!
//! Each reader takes text and gives the next call with the text after it, or nothing where it cannot read one.

use super::ToolCall;
use crate::text::template::dumps;
use serde_json::Value;

/// The JSON value that `text` begins with, and the text after it.
pub(super) fn json_prefix(text: &str) -> Option<(Value, &str)> {
    let mut stream = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    let value = stream.next()?.ok()?;
    Some((value, &text[stream.byte_offset()..]))
}

/// Text after the next `marker`.
pub(super) fn after<'t>(text: &'t str, marker: &str) -> Option<&'t str> {
    text.split_once(marker).map(|(_, after)| after)
}

/// Text after `marker`, if it begins with it; else the text.
fn skip<'t>(text: &'t str, marker: &str) -> &'t str {
    text.strip_prefix(marker).unwrap_or(text)
}

/// Arguments as text: an object as Python writes it; a string that holds an object already is one.
pub(super) fn arguments_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "{}".to_owned(),
        other => dumps(other),
    }
}

/// A call from an object with `name` and `arguments` or `parameters`.
fn from_object(value: &Value) -> Option<ToolCall> {
    let name = value.get("name")?.as_str()?.to_owned();
    let arguments = value.get("arguments").or_else(|| value.get("parameters")).unwrap_or(&Value::Null);
    let id = value.get("id").and_then(Value::as_str).unwrap_or_default().to_owned();
    Some(ToolCall { id, name, arguments: arguments_text(arguments) })
}

/// `<tool_call>{"name": …, "arguments": {…}}</tool_call>`
pub(super) fn hermes(text: &str) -> Option<(ToolCall, &str)> {
    let (value, rest) = json_prefix(after(text, "<tool_call>")?)?;
    Some((from_object(&value)?, skip(rest.trim_start(), "</tool_call>")))
}

/// `<｜tool▁call▁begin｜>function<｜tool▁sep｜>name`, a fenced JSON object, or `name<｜tool▁sep｜>{…}`.
pub(super) fn deepseek(text: &str) -> Option<(ToolCall, &str)> {
    let text = after(text, "<｜tool▁call▁begin｜>")?;
    let (kind, text) = text.split_once("<｜tool▁sep｜>")?;
    let (name, json) = if text.trim_start().starts_with('{') {
        (kind, text)
    } else {
        let (name, fenced) = text.split_once('\n')?;
        (name, skip(fenced.trim_start(), "```json"))
    };
    let (arguments, rest) = json_prefix(json)?;
    let rest = skip(skip(rest.trim_start(), "```").trim_start(), "<｜tool▁call▁end｜>");
    Some((ToolCall { id: String::new(), name: name.trim().to_owned(), arguments: arguments_text(&arguments) }, rest))
}

/// `<|tool_call_begin|>functions.name:0<|tool_call_argument_begin|>{…}<|tool_call_end|>`
pub(super) fn kimi(text: &str) -> Option<(ToolCall, &str)> {
    let (id, json) = after(text, "<|tool_call_begin|>")?.split_once("<|tool_call_argument_begin|>")?;
    let id = id.trim();
    let (arguments, rest) = json_prefix(json)?;
    let name = skip(id, "functions.");
    let name = name.rsplit_once(':').map_or(name, |(name, _)| name);
    let call = ToolCall { id: id.to_owned(), name: name.to_owned(), arguments: arguments_text(&arguments) };
    Some((call, skip(rest.trim_start(), "<|tool_call_end|>")))
}

/// `[TOOL_CALLS][{"name": …, "arguments": …, "id": …}]` or `[TOOL_CALLS]name[CALL_ID]id[ARGS]{…}`.
pub(super) fn mistral(text: &str) -> Option<(Vec<ToolCall>, &str)> {
    let text = after(text, "[TOOL_CALLS]")?;
    if text.trim_start().starts_with('[') {
        let (list, rest) = json_prefix(text)?;
        return Some((list.as_array()?.iter().map(from_object).collect::<Option<Vec<_>>>()?, rest));
    }
    let (head, json) = text.split_once("[ARGS]")?;
    let (name, id) = head.split_once("[CALL_ID]").unwrap_or((head, ""));
    let (arguments, rest) = json_prefix(json)?;
    let call = ToolCall { id: id.to_owned(), name: name.trim().to_owned(), arguments: arguments_text(&arguments) };
    Some((vec![call], rest))
}

/// An answer that is nothing but one call as a JSON object, as Llama 3 gives it.
pub(super) fn bare(text: &str) -> Option<ToolCall> {
    let text = skip(text.trim(), "<|python_tag|>");
    let (value, rest) = json_prefix(text)?;
    let has_arguments = value.get("parameters").or_else(|| value.get("arguments")).is_some();
    if has_arguments && rest.trim().is_empty() { from_object(&value) } else { None }
}
