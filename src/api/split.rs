//! One choice's raw text to deltas of content and reasoning, and to tool calls at its end.
//!
//! The parser reads the text from its beginning each time; that is only done until it is clear that the rest is content.

use super::backend::fresh_id;
use super::wire::chat::{Delta, FunctionCall, ToolCall};
use crate::text::{OutputFormat, ParseOptions, ParsedOutput, parse_output_for_tools};
use serde_json::Value;
use std::sync::Arc;

/// Longest piece of text after a `<` that may still become a tag.
const TAG_BYTES: usize = 48;

/// How to split the answers of one request.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The model's markup.
    pub format: OutputFormat,
    /// The rendered prompt.
    pub prompt: Arc<str>,
    /// Reasoning apart from content.
    pub split_reasoning: bool,
    /// The tools offered: their schemas tell numbers from text where the markup does not.
    pub tools: Option<Arc<Value>>,
    /// At most one call.
    pub single_call: bool,
}

/// The text of one choice on its way.
#[derive(Clone, Debug)]
pub struct Splitter {
    rules: Rules,
    raw: String,
    /// Bytes of content and of reasoning that were sent.
    sent: (usize, usize),
    /// All further text is content.
    settled: bool,
}

impl Splitter {
    /// A choice's text, empty so far.
    pub fn new(rules: Rules) -> Self {
        Splitter { rules, raw: String::new(), sent: (0, 0), settled: false }
    }

    /// Takes more text and says what of it may be sent.
    pub fn push(&mut self, text: &str) -> Delta {
        if self.settled {
            return content(text.to_owned());
        }
        self.raw.push_str(text);
        let certain = certain(&self.raw);
        let parsed = self.parse(&self.raw[..certain], true);
        let mut delta = self.unsent(&parsed);
        let whole = self.raw[..certain].ends_with(&parsed.content);
        // In harmony's format another message may follow any message.
        let last = self.rules.tools.is_none() && self.rules.format != OutputFormat::Harmony;
        if last && !parsed.content.is_empty() && whole {
            self.settled = true;
            let rest = self.raw.split_off(certain);
            delta.content = Some(delta.content.unwrap_or_default() + &rest).filter(|text| !text.is_empty());
            self.raw = String::new();
        }
        delta
    }

    /// The text is complete, or was `cut` by a limit: what was held back, and the calls.
    pub fn finish(&mut self, cut: bool) -> Delta {
        if self.settled {
            return Delta::default();
        }
        let mut parsed = self.parse(&self.raw, cut);
        let mut delta = self.unsent(&parsed);
        if self.rules.single_call {
            parsed.tool_calls.truncate(1);
        }
        let calls = parsed.tool_calls.into_iter().enumerate().map(|(index, call)| ToolCall {
            index: Some(index),
            id: if call.id.is_empty() { fresh_id("call_") } else { call.id },
            kind: "function".into(),
            function: FunctionCall { name: call.name, arguments: call.arguments },
        });
        delta.tool_calls = calls.collect();
        delta
    }

    fn parse(&self, raw: &str, partial: bool) -> ParsedOutput {
        let Rules { format, split_reasoning, .. } = self.rules;
        let tools = self.rules.tools.as_deref();
        let prompt = &self.rules.prompt;
        let options = ParseOptions { format, prompt, split_reasoning, tools: tools.is_some(), partial };
        parse_output_for_tools(raw, &options, tools)
    }

    fn unsent(&mut self, parsed: &ParsedOutput) -> Delta {
        let new = |all: &str, sent: &mut usize| {
            let new = all.get(*sent..).filter(|text| !text.is_empty())?.to_owned();
            *sent = all.len();
            Some(new)
        };
        let reasoning_content = new(&parsed.reasoning_content, &mut self.sent.1);
        Delta { content: new(&parsed.content, &mut self.sent.0), reasoning_content, ..Delta::default() }
    }
}

fn content(text: String) -> Delta {
    Delta { content: Some(text).filter(|text| !text.is_empty()), ..Delta::default() }
}

/// Bytes of the text before an unfinished tag at its end, and before white space, which may belong to one.
fn certain(raw: &str) -> usize {
    let open = raw.rfind('<').filter(|at| {
        let tail = &raw[*at..];
        tail.len() <= TAG_BYTES && !tail.contains('>') && !tail.contains('\n')
    });
    let end = open.unwrap_or(raw.len());
    raw[..end].trim_end().len()
}
