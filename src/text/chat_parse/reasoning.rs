//! Splits what a model thought from what it says, by the tags around the thinking.

use super::{ParseOptions, find_first};

/// Opening and closing tags in use.
pub(super) const TAGS: [(&str, &str); 3] =
    [("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<seed:think>", "</seed:think>")];

/// Reasoning and answer. Thinking that the template opened in the prompt counts; thinking that was never closed ends at
/// the first tool call, or with the text.
pub(super) fn split(raw: &str, options: &ParseOptions<'_>, openers: &[&str]) -> (String, String) {
    let prompt = options.prompt.trim_end();
    let opened_by_prompt = TAGS.iter().find(|(open, _)| prompt.ends_with(open));
    if !options.split_reasoning {
        let shown = opened_by_prompt.map_or("", |(open, _)| &options.prompt[prompt.len() - open.len()..]);
        return (String::new(), format!("{shown}{raw}"));
    }
    let begin = raw.trim_start();
    let opened_by_output = TAGS.iter().find(|(open, _)| begin.starts_with(open));
    let (thinking, close) = match (opened_by_output, opened_by_prompt) {
        (Some((open, close)), _) => (&begin[open.len()..], *close),
        (None, Some((_, close))) => (raw, *close),
        // Some templates open the block in ways a prompt's end does not show; the closing tag tells.
        (None, None) => match TAGS.iter().find(|(open, close)| closes_first(raw, open, close)) {
            Some((_, close)) if !prompt.ends_with(close) => (raw, *close),
            _ => return (String::new(), raw.to_owned()),
        },
    };
    let (thought, answer) = match thinking.split_once(close) {
        Some((thought, answer)) => (thought, answer.trim_start()),
        None => thinking.split_at(find_first(thinking, openers).unwrap_or(thinking.len())),
    };
    (thought.trim().to_owned(), answer.to_owned())
}

/// The closing tag occurs, and no opening one before it.
fn closes_first(raw: &str, open: &str, close: &str) -> bool {
    raw.find(close).is_some_and(|at| raw.find(open).is_none_or(|opened| opened > at))
}
