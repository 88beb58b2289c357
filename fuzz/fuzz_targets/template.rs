//! Any template with any messages: compiling and rendering end without a panic and within the limits.
//!
//! The input is a template, a zero byte, and JSON for the messages and further variables.

#![no_main]

use libfuzzer_sys::fuzz_target;
use omni_inferd::text::{ChatInput, ChatTemplate};

/// The limit on a template's memory is the allocator's.
#[global_allocator]
static HEAP: omni_inferd::sys::heap::Metered = omni_inferd::sys::heap::Metered;

fuzz_target!(|data: &[u8]| {
    let (source, json) = data.split_at(data.iter().position(|&byte| byte == 0).unwrap_or(data.len()));
    let Ok(source) = std::str::from_utf8(source) else { return };
    let Ok(template) = ChatTemplate::new(source, "<s>", "</s>") else { return };
    let Ok(now) = "2025-06-15T12:34:56".parse() else { return };
    let variables: serde_json::Value = serde_json::from_slice(json.get(1..).unwrap_or_default()).unwrap_or_default();
    let input = ChatInput {
        messages: variables.get("messages").cloned().unwrap_or_else(|| serde_json::json!([{"role": "user", "content": "Hi"}])),
        tools: variables.get("tools").cloned(),
        documents: None,
        add_generation_prompt: true,
        extra: variables.as_object().cloned().unwrap_or_default(),
        now,
    };
    let _ = template.render(&input);
});
