//! Raw model output -> content, reasoning and tool calls, by the markup of the model's family.
//!
//! Never fails: what is not understood stays content. Knows nothing of tokens; control tokens must have been decoded to
//! their literals. Called by the API when an answer is complete, or on what there is of it while streaming.

mod harmony;
mod json_calls;
mod reasoning;
mod tagged_calls;

use serde_json::Value;

/// One call the model wants made.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct ToolCall {
    /// Identifier the model gave; empty when its format has none (the API then makes one).
    pub id: String,
    /// Function name.
    pub name: String,
    /// Arguments as JSON text, as OpenAI's `function.arguments`.
    pub arguments: String,
}

/// A model's answer taken apart.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct ParsedOutput {
    /// What the user should read.
    pub content: String,
    /// What the model thought before; empty when it did not, or when splitting was not asked for.
    pub reasoning_content: String,
    /// Calls in the model's order.
    pub tool_calls: Vec<ToolCall>,
}

/// The family of markup a model answers in, found from its chat template.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OutputFormat {
    /// No known tool-call markup: reasoning tags only.
    #[default]
    Plain,
    /// `<tool_call>{"name": …, "arguments": …}</tool_call>` (Hermes, Qwen 2.5 and 3).
    Hermes,
    /// `<function=name><parameter=key>value</parameter></function>` (Qwen3-Coder, Qwen 3.5, Seed-OSS).
    FunctionTags,
    /// `<invoke name="…"><parameter name="…">value</parameter></invoke>` (MiniMax-M2, DeepSeek V3.2 with its DSML prefix).
    InvokeTags,
    /// `<tool_call>name<arg_key>key</arg_key><arg_value>value</arg_value></tool_call>` (GLM 4.5 and later).
    Glm,
    /// `<｜tool▁call▁begin｜>…<｜tool▁sep｜>…` (DeepSeek V3, R1, V3.1).
    DeepSeek,
    /// `<|tool_call_begin|>functions.name:0<|tool_call_argument_begin|>{…}` (Kimi K2).
    Kimi,
    /// `[TOOL_CALLS]` before a JSON list or `name[ARGS]{…}` (Mistral).
    Mistral,
    /// An answer that is one JSON object with `name` and `parameters` (Llama 3).
    Llama3,
    /// Channels (gpt-oss).
    Harmony,
}

impl OutputFormat {
    /// Finds the format by the markup that a chat template's source mentions.
    pub fn detect(template: &str) -> Self {
        let mentions = |markup: &str| template.contains(markup);
        match () {
            () if mentions("<|channel|>") => Self::Harmony,
            () if mentions("tool▁call▁begin") => Self::DeepSeek,
            () if mentions("<|tool_call_argument_begin|>") => Self::Kimi,
            () if mentions("[TOOL_CALLS]") => Self::Mistral,
            () if mentions("<arg_key>") => Self::Glm,
            () if mentions("<function=") && mentions("<parameter=") => Self::FunctionTags,
            () if mentions("invoke name=") => Self::InvokeTags,
            () if mentions("<tool_call>") => Self::Hermes,
            () if mentions("<|start_header_id|>") && mentions("tools") => Self::Llama3,
            () => Self::Plain,
        }
    }

    /// Literals that reading an answer depends on and that vocabularies hold as control tokens, which readers do not see
    /// otherwise. Those of tool calls only where `tools` were offered.
    pub fn markup(self, tools: bool) -> impl Iterator<Item = &'static str> {
        let calls: &[&str] = match self {
            Self::Plain | Self::Harmony => &[],
            Self::Llama3 => &["<|python_tag|>"],
            Self::Hermes => &["<tool_call>", "</tool_call>"],
            Self::FunctionTags => &["<tool_call>", "</tool_call>", "<seed:tool_call>", "</seed:tool_call>"],
            Self::InvokeTags => &["<minimax:tool_call>", "</minimax:tool_call>", "｜DSML｜"],
            Self::Glm => &["<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"],
            Self::DeepSeek => &[
                "<｜tool▁calls▁begin｜>",
                "<｜tool▁call▁begin｜>",
                "<｜tool▁sep｜>",
                "<｜tool▁call▁end｜>",
                "<｜tool▁calls▁end｜>",
            ],
            Self::Kimi => &[
                "<|tool_calls_section_begin|>",
                "<|tool_call_begin|>",
                "<|tool_call_argument_begin|>",
                "<|tool_call_end|>",
                "<|tool_calls_section_end|>",
            ],
            Self::Mistral => &["[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"],
        };
        let channels: &[&str] = if self == Self::Harmony { &harmony::CONTROL } else { &[] };
        let reasoning = reasoning::TAGS.iter().flat_map(|(open, close)| [*open, *close]);
        reasoning.chain(channels.iter().copied()).chain(calls.iter().copied().filter(move |_| tools))
    }

    /// Markup that opens the first tool call; also ends reasoning that was not closed.
    fn openers(self) -> &'static [&'static str] {
        match self {
            Self::Plain | Self::Llama3 | Self::Harmony => &[],
            Self::Hermes | Self::Glm => &["<tool_call>"],
            Self::FunctionTags => &["<tool_call>", "<seed:tool_call>", "<function="],
            Self::InvokeTags => &[
                "<minimax:tool_call>",
                "<｜DSML｜function_calls>",
                "<｜DSML｜tool_calls>",
                "<｜DSML｜invoke",
                "<invoke ",
            ],
            Self::DeepSeek => &["<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>"],
            Self::Kimi => &["<|tool_calls_section_begin|>", "<|tool_call_begin|>"],
            Self::Mistral => &["[TOOL_CALLS]"],
        }
    }
}

/// How to take an answer apart.
#[derive(Clone, Copy, Debug)]
pub struct ParseOptions<'a> {
    /// The model's markup.
    pub format: OutputFormat,
    /// End of the rendered prompt (or all of it): tells whether a reasoning block is already open.
    pub prompt: &'a str,
    /// Put reasoning into `reasoning_content`; otherwise it stays in the content, tags included.
    pub split_reasoning: bool,
    /// The request offered tools; otherwise tool-call markup is content.
    pub tools: bool,
    /// The answer is not complete yet (streaming) or was cut: an unfinished call is left out instead of shown.
    pub partial: bool,
}

/// Takes a raw answer apart. Never fails: what it does not understand stays content.
pub fn parse_output(raw: &str, options: &ParseOptions<'_>) -> ParsedOutput {
    parse_output_for_tools(raw, options, None)
}

/// The same with the request's `tools`: their schemas tell strings from numbers where the markup does not (Qwen3-Coder,
/// GLM, MiniMax).
pub fn parse_output_for_tools(raw: &str, options: &ParseOptions<'_>, tools: Option<&Value>) -> ParsedOutput {
    let raw = if options.partial { &raw[..raw.len() - unfinished_markup(raw, options.format)] } else { raw };
    if options.format == OutputFormat::Harmony {
        return harmony::parse(raw, options);
    }
    let openers = if options.tools { options.format.openers() } else { &[] };
    let (reasoning, answer) = reasoning::split(raw, options, openers);
    let (content, tool_calls) = if options.tools { split_calls(&answer, options, tools) } else { (answer, Vec::new()) };
    ParsedOutput { content, reasoning_content: reasoning, tool_calls }
}

/// Bytes at the end of an unfinished answer that may be the beginning of markup: not to be shown yet.
fn unfinished_markup(raw: &str, format: OutputFormat) -> usize {
    let tags = reasoning::TAGS.iter().flat_map(|(open, close)| [*open, *close]);
    let markers = tags.chain(format.openers().iter().copied()).chain(harmony::MARKUP);
    let begins =
        |marker: &str| (1..marker.len()).rev().find(|&n| marker.is_char_boundary(n) && raw.ends_with(&marker[..n]));
    markers.filter_map(begins).max().unwrap_or(0)
}

/// Position of the first of several markers.
fn find_first(text: &str, markers: &[&str]) -> Option<usize> {
    markers.iter().filter_map(|marker| text.find(marker)).min()
}

/// Content before the calls, and the calls. If none can be read, all of it is content.
fn split_calls(answer: &str, options: &ParseOptions<'_>, tools: Option<&Value>) -> (String, Vec<ToolCall>) {
    if options.format == OutputFormat::Llama3 {
        return json_calls::bare(answer)
            .map_or_else(|| (answer.to_owned(), Vec::new()), |call| (String::new(), vec![call]));
    }
    let Some(begin) = find_first(answer, options.format.openers()) else {
        return (answer.to_owned(), Vec::new());
    };
    let (before, mut rest) = answer.split_at(begin);
    let mut calls = Vec::new();
    while let Some((found, after)) = next_calls(rest, options.format, tools) {
        calls.extend(found);
        rest = after;
    }
    if calls.is_empty() && !options.partial {
        return (answer.to_owned(), Vec::new());
    }
    // Qwen's templates put a call on a line of its own without making the line break part of the call.
    let keeps_newline = options.format == OutputFormat::FunctionTags && !before.trim().is_empty();
    (if keeps_newline { before } else { before.trim_end() }.to_owned(), calls)
}

/// The next call (Mistral: list of calls) in the markup, and what follows it.
fn next_calls<'t>(rest: &'t str, format: OutputFormat, tools: Option<&Value>) -> Option<(Vec<ToolCall>, &'t str)> {
    let one = |(call, after)| (vec![call], after);
    match format {
        OutputFormat::Hermes => json_calls::hermes(rest).map(one),
        OutputFormat::DeepSeek => json_calls::deepseek(rest).map(one),
        OutputFormat::Kimi => json_calls::kimi(rest).map(one),
        OutputFormat::Mistral => json_calls::mistral(rest),
        OutputFormat::FunctionTags => tagged_calls::function_tags(rest, tools).map(one),
        OutputFormat::InvokeTags => tagged_calls::invoke_tags(rest, tools).map(one),
        OutputFormat::Glm => tagged_calls::glm(rest, tools).map(one),
        OutputFormat::Plain | OutputFormat::Llama3 | OutputFormat::Harmony => None,
    }
}
