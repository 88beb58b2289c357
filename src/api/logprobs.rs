//! Log-probabilities in the two shapes clients know.

use super::backend::Served;
use super::wire::chat::{ChatLogprobs, TokenLogprob, TopLogprob};
use super::wire::completions::TextLogprobs;
use crate::sample::Logprobs;
use std::collections::BTreeMap;

/// JSON has no infinity; OpenAI writes this for "impossible".
const LEAST: f32 = -9999.0;

fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { LEAST }
}

/// The chat endpoint's shape: appends one token.
pub fn push_chat(served: &Served, to: &mut ChatLogprobs, id: u32, logprobs: &Logprobs) {
    let show = |id: u32| {
        let bytes = served.tokenizer.token_bytes(id).unwrap_or_default();
        (String::from_utf8_lossy(bytes).into_owned(), bytes.to_vec())
    };
    let (token, bytes) = show(id);
    let top = logprobs.top.iter().map(|(id, logprob)| {
        let (token, bytes) = show(*id);
        TopLogprob { token, logprob: finite(*logprob), bytes }
    });
    let top_logprobs = top.collect();
    to.content.push(TokenLogprob { token, logprob: finite(logprobs.chosen), bytes, top_logprobs });
}

/// The older endpoint's shape: appends one token that begins at character `offset`.
pub fn push_text(served: &Served, to: &mut TextLogprobs, id: u32, logprobs: Option<&Logprobs>, offset: usize) {
    let token = key(served, id);
    to.token_logprobs.push(logprobs.map(|logprobs| finite(logprobs.chosen)));
    to.top_logprobs.push(logprobs.map(|logprobs| {
        let best = logprobs.top.iter().map(|(id, logprob)| (key(served, *id), *logprob));
        // Two ids may have one text: the better one, which comes first, stays.
        let mut map = BTreeMap::new();
        for (text, logprob) in best.chain([(token.clone(), logprobs.chosen)]) {
            map.entry(text).or_insert(finite(logprob));
        }
        map
    }));
    to.tokens.push(token);
    to.text_offset.push(offset);
}

/// A token's text, or `bytes:` with its bytes in hexadecimal when they are no text by themselves.
fn key(served: &Served, id: u32) -> String {
    match served.piece(id) {
        Ok(text) => text.to_owned(),
        Err(bytes) => bytes.iter().fold("bytes:".to_owned(), |text, byte| format!("{text}\\x{byte:02x}")),
    }
}
