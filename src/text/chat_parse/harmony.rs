//! gpt-oss's harmony format: an answer is a list of messages, each in a channel, some addressed to a function.
//!
//! `<|start|>assistant<|channel|>analysis<|message|>…<|end|>` is reasoning, channel `final` is content, and
//! `commentary to=functions.name` is a call.

use super::json_calls::{arguments_text, json_prefix};
use super::{ParseOptions, ParsedOutput, ToolCall};

/// All markup, for answers that are cut within it.
pub(super) const MARKUP: [&str; 6] = ["<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>"];

/// Control tokens of the format, all but those that end an answer.
pub(super) const CONTROL: [&str; 5] = ["<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>"];

const ENDS: [&str; 4] = ["<|end|>", "<|return|>", "<|call|>", "<|start|>"];

/// Takes an answer apart.
pub(super) fn parse(raw: &str, options: &ParseOptions<'_>) -> ParsedOutput {
    let mut parsed = ParsedOutput::default();
    let mut rest = raw;
    while !rest.is_empty() {
        let Some((header, body)) = rest.split_once("<|message|>") else {
            // No markup: plain text. A header that has not reached its message yet says nothing.
            if !options.partial && !rest.contains("<|channel|>") {
                parsed.content.push_str(rest.trim_start_matches("<|start|>assistant"));
            }
            break;
        };
        let end = ENDS.iter().filter_map(|end| body.find(end).map(|at| (at, *end))).min_by_key(|(at, _)| *at);
        let (text, after) = match end {
            Some((at, "<|start|>")) => (&body[..at], &body[at..]),
            Some((at, end)) => (&body[..at], &body[at + end.len()..]),
            None => (body, ""),
        };
        take_message(header, text, options, &mut parsed);
        rest = after;
    }
    parsed
}

fn take_message(header: &str, text: &str, options: &ParseOptions<'_>, parsed: &mut ParsedOutput) {
    let recipient = header.split_once("to=").map(|(_, to)| to.split(['<', ' ']).next().unwrap_or_default());
    if let Some(recipient) = recipient.filter(|_| options.tools) {
        let name = recipient.strip_prefix("functions.").unwrap_or(recipient).to_owned();
        match json_prefix(text) {
            Some((arguments, _)) => {
                parsed.tool_calls.push(ToolCall { id: String::new(), name, arguments: arguments_text(&arguments) });
            }
            None if options.partial => {}
            None => parsed.tool_calls.push(ToolCall { id: String::new(), name, arguments: text.to_owned() }),
        }
        return;
    }
    let analysis = header.contains("analysis");
    let into = if analysis && options.split_reasoning { &mut parsed.reasoning_content } else { &mut parsed.content };
    if !into.is_empty() {
        into.push('\n');
    }
    into.push_str(text);
}
