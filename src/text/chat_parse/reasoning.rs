//! Splits what a model thought from what it says, by the tags around the thinking.

use super::{ParseOptions, find_first};

/// Opening and closing tags in use.
pub(super) const TAGS: [(&str, &str); 3] =
    [("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<seed:think>", "</seed:think>")];

/// What shows that the prompt went on to another message after a tag.
const TURN_MARKUP: [&str; 5] = ["<|", "<｜", "[/INST]", "<end_of_turn>", "</s>"];

/// Reasoning and answer. Thinking that the template opened in the prompt counts, with what the prompt already holds of it;
/// thinking that was never closed ends at the first tool call, or with the text.
pub(super) fn split(raw: &str, options: &ParseOptions<'_>, openers: &[&str]) -> (String, String) {
    let opened_by_prompt = opened_by(options.prompt);
    if !options.split_reasoning {
        let shown = opened_by_prompt.map_or("", |(at, ..)| &options.prompt[at..]);
        return (String::new(), format!("{shown}{raw}"));
    }
    let begin = raw.trim_start();
    let opened_by_output = TAGS.iter().find(|(open, _)| begin.starts_with(open));
    let (begun, thinking, close) = match (opened_by_output, opened_by_prompt) {
        (Some((open, close)), _) => ("", &begin[open.len()..], *close),
        (None, Some((_, begun, close))) => (begun, raw, close),
        // Some templates open the block in ways a prompt's end does not show; the closing tag tells.
        (None, None) => match TAGS.iter().find(|(open, close)| closes_first(raw, open, close)) {
            Some((_, close)) if !options.prompt.trim_end().ends_with(close) => ("", raw, *close),
            _ => return (String::new(), raw.to_owned()),
        },
    };
    let (thought, answer) = match thinking.split_once(close) {
        Some((thought, answer)) => (thought, answer.trim_start()),
        None => thinking.split_at(find_first(thinking, openers).unwrap_or(thinking.len())),
    };
    (format!("{begun}{thought}").trim().to_owned(), answer.to_owned())
}

/// Where the prompt opened a block that is still open, what it holds of it, and the tag that closes it.
fn opened_by(prompt: &str) -> Option<(usize, &str, &'static str)> {
    TAGS.iter().find_map(|&(open, close)| {
        let at = prompt.rfind(open)?;
        let begun = &prompt[at + open.len()..];
        let over = begun.contains(close) || TURN_MARKUP.iter().any(|markup| begun.contains(markup));
        (!over).then_some((at, begun, close))
    })
}

/// The closing tag occurs, and no opening one before it.
fn closes_first(raw: &str, open: &str, close: &str) -> bool {
    raw.find(close).is_some_and(|at| raw.find(open).is_none_or(|opened| opened > at))
}
