//! Chat templates.

use super::Error;
use crate::gguf;
use serde_json::{Map, Value};

/// What a chat template is rendered with.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatInput {
    /// Messages as in OpenAI's request.
    pub messages: Value,
    /// Tools as in OpenAI's request; none is passed to the template as `none`.
    pub tools: Option<Value>,
    /// Documents for retrieval templates.
    pub documents: Option<Value>,
    /// End with the opening of an assistant message.
    pub add_generation_prompt: bool,
    /// Further variables (`enable_thinking`, …); they win over the ones above.
    pub extra: Map<String, Value>,
    /// The clock for `strftime_now`, local civil time.
    pub now: jiff::civil::DateTime,
}

/// A compiled chat template.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    source: String,
}

impl ChatTemplate {
    /// Compiles a template; `bos` and `eos` are the literals it sees as `bos_token` and `eos_token`.
    pub fn new(source: &str, _bos: &str, _eos: &str) -> Result<Self, Error> {
        Ok(Self { source: source.to_owned() })
    }

    /// The file's own template, or none when it has none.
    pub fn from_metadata(_metadata: &gguf::Metadata) -> Result<Option<Self>, Error> {
        Ok(None)
    }

    /// The template's source.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Renders a prompt.
    pub fn render(&self, _input: &ChatInput) -> Result<String, Error> {
        Ok(String::new())
    }
}
