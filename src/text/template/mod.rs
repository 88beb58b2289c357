//! Chat templates as Hugging Face transformers renders them: Jinja with `trim_blocks`, `lstrip_blocks`, loop controls, the
//! `generation` tag, `tojson`, `raise_exception`, `strftime_now` and Python's methods on strings, lists and dicts.
//!
//! Templates come with model files and are not trusted: steps, recursion, loop ranges, output and memory are bounded. The
//! memory bound needs the program's allocator to be [`heap::Metered`].

mod convert;
mod filters;
mod json;
mod list;
mod methods;
mod python;
mod rewrite;

use super::{Error, metadata};
use crate::gguf::Metadata;
use crate::sys::heap;
use minijinja::{Environment, UndefinedBehavior, Value};
use serde_json::Map;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Steps of the template engine in one rendering: some seconds at most. A conversation of 1,000 messages takes some 200,000.
const MAX_STEPS: u64 = 20_000_000;
/// Bytes of a rendered prompt: more than any context holds.
const MAX_OUTPUT: usize = 64 << 20;
/// Bytes of one value printed or turned into JSON.
const MAX_VALUE: usize = 4 << 20;
/// Bytes of heap of one compilation or rendering; a fuzzer lives through many that exceed it.
const MAX_MEMORY: usize = if cfg!(fuzzing) { 16 << 20 } else { 256 << 20 };
/// Renderings of one template that may exceed it. What each held is lost to the process (see [`heap::within`]), so after
/// these the template is not rendered any more.
const MAX_EXCESSES: u32 = 4;
const NAME: &str = "chat";

/// What a chat template is rendered with.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatInput {
    /// Messages as in OpenAI's request.
    pub messages: serde_json::Value,
    /// Tools as in OpenAI's request; `None` is passed to the template as `none`.
    pub tools: Option<serde_json::Value>,
    /// Documents for retrieval templates; `None` is passed as `none`.
    pub documents: Option<serde_json::Value>,
    /// End with the opening of an assistant message.
    pub add_generation_prompt: bool,
    /// Further variables (`enable_thinking`, …); they win over the ones above.
    pub extra: Map<String, serde_json::Value>,
    /// The clock for `strftime_now`, local civil time.
    pub now: jiff::civil::DateTime,
}

/// A compiled chat template; cheap to clone, shared between threads.
#[derive(Clone)]
pub struct ChatTemplate {
    environment: Arc<Environment<'static>>,
    source: Arc<str>,
    bos: String,
    eos: String,
    /// Renderings that wanted too much memory.
    excesses: Arc<AtomicU32>,
}

impl ChatTemplate {
    /// Compiles a template; `bos` and `eos` are the literals it sees as `bos_token` and `eos_token`.
    ///
    /// # Errors
    /// [`Error::TemplateSyntax`] with the line, [`Error::TemplateLimit`] when constants make too much memory.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<Self, Error> {
        let source: Arc<str> = source.into();
        let text = source.clone();
        let compile = move || -> Result<Environment<'static>, minijinja::Error> {
            let mut environment = environment()?;
            environment.add_template_owned(NAME, rewrite::for_engine(&text))?;
            Ok(environment)
        };
        let environment = heap::within(MAX_MEMORY, compile).map_err(|error| unmet(&error))?;
        let environment = environment.map_err(|error| Error::TemplateSyntax { message: describe(&error) })?;
        let (bos, eos, excesses) = (bos.to_owned(), eos.to_owned(), Arc::default());
        Ok(Self { environment: Arc::new(environment), source, bos, eos, excesses })
    }

    /// The template in `tokenizer.chat_template`, or none when the file has none.
    ///
    /// # Errors
    /// As [`ChatTemplate::new`], and a key that is not a string.
    pub fn from_metadata(file: &Metadata) -> Result<Option<Self>, Error> {
        let Some(source) = metadata::string(file, "tokenizer.chat_template")? else {
            return Ok(None);
        };
        let literal = |key| literal_of(file, key).unwrap_or_default();
        Self::new(source, &literal("tokenizer.ggml.bos_token_id"), &literal("tokenizer.ggml.eos_token_id")).map(Some)
    }

    /// The template's source as the file has it.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Renders a prompt.
    ///
    /// # Errors
    /// [`Error::TemplateRaised`] when the template refuses the messages, [`Error::TemplateLimit`] when it does not end or
    /// takes too much memory, [`Error::TemplateFailed`] for everything else.
    pub fn render(&self, input: &ChatInput) -> Result<String, Error> {
        if self.excesses.load(Ordering::Relaxed) >= MAX_EXCESSES {
            return Err(unmet(&heap::Failure::Over { limit: MAX_MEMORY }));
        }
        let (template, input) = (self.clone(), input.clone());
        heap::within(MAX_MEMORY, move || template.render_here(&input)).unwrap_or_else(|error| {
            if matches!(error, heap::Failure::Over { .. }) {
                self.excesses.fetch_add(1, Ordering::Relaxed);
            }
            Err(unmet(&error))
        })
    }

    fn render_here(&self, input: &ChatInput) -> Result<String, Error> {
        let omittable = (input.tools.is_none() || input.documents.is_none())
            && !(input.extra.contains_key("tools") || input.extra.contains_key("documents"));
        match self.render_once(input, true) {
            // Some templates only ask whether `tools` is defined and then loop over `none`.
            Err(error @ Error::TemplateFailed { .. }) if omittable => self.render_once(input, false).map_err(|_| error),
            other => other,
        }
    }

    fn render_once(&self, input: &ChatInput, none_for_absent: bool) -> Result<String, Error> {
        let mut context: Vec<(&str, Value)> = vec![
            ("messages", convert::to_engine(&input.messages)),
            ("add_generation_prompt", Value::from(input.add_generation_prompt)),
            ("bos_token", Value::from(self.bos.as_str())),
            ("eos_token", Value::from(self.eos.as_str())),
            ("strftime_now", filters::strftime_at(input.now)),
        ];
        for (name, value) in [("tools", &input.tools), ("documents", &input.documents)] {
            match value {
                Some(value) => context.push((name, convert::to_engine(value))),
                None if none_for_absent => context.push((name, Value::from(()))),
                None => {}
            }
        }
        context.extend(input.extra.iter().map(|(name, value)| (name.as_str(), convert::to_engine(value))));
        // Later entries win.
        let context = Value::from_pairs(context);
        let template = self.environment.get_template(NAME).map_err(|error| classify(&error))?;
        let mut out = BoundedOutput { bytes: Vec::new(), overflowed: false };
        let result = template.render_captured_to(context, &mut out).map(drop);
        if out.overflowed {
            return Err(Error::TemplateLimit { limit: format!("{MAX_OUTPUT} bytes of output") });
        }
        result.map_err(|error| classify(&error))?;
        Ok(String::from_utf8_lossy(&out.bytes).into_owned())
    }
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatTemplate").field("bytes", &self.source.len()).finish_non_exhaustive()
    }
}

/// The engine as transformers configures its own.
fn environment() -> Result<Environment<'static>, minijinja::Error> {
    let mut environment = Environment::new();
    let syntax = minijinja::syntax::SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?;
    environment.set_syntax(syntax);
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_fuel(Some(MAX_STEPS));
    environment.set_unknown_method_callback(methods::call);
    environment.set_formatter(python::format);
    filters::install(&mut environment);
    Ok(environment)
}

/// The literal of the token a key names, for templates that print `bos_token`.
fn literal_of(file: &Metadata, key: &'static str) -> Option<String> {
    let tokens = metadata::strings(file, "tokenizer.ggml.tokens").ok()??;
    let id = metadata::token_id(file, key, tokens.len())?;
    Some(String::from_utf8_lossy(&tokens[id as usize]).into_owned())
}

/// A JSON value as Python's `json.dumps(ensure_ascii=False)` writes it.
pub(super) fn dumps(value: &serde_json::Value) -> String {
    json::dumps(&convert::to_engine(value)).unwrap_or_else(|_| value.to_string())
}

/// What could not be given to the work on a template.
fn unmet(error: &heap::Failure) -> Error {
    match error {
        heap::Failure::Over { limit } => Error::TemplateLimit { limit: format!("{} MiB of memory", limit >> 20) },
        heap::Failure::Thread(_) => Error::TemplateFailed { message: error.to_string() },
    }
}

/// What the template itself said by `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn classify(error: &minijinja::Error) -> Error {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = cause {
        if let Some(raised) = current.downcast_ref::<Raised>() {
            return Error::TemplateRaised { message: raised.0.clone() };
        }
        if let Some(engine) = current.downcast_ref::<minijinja::Error>()
            && engine.kind() == minijinja::ErrorKind::OutOfFuel
        {
            return Error::TemplateLimit { limit: format!("{MAX_STEPS} steps") };
        }
        cause = current.source();
    }
    Error::TemplateFailed { message: describe(error) }
}

/// The engine's message with its line, on one line.
fn describe(error: &minijinja::Error) -> String {
    let what = error.detail().map_or_else(|| error.kind().to_string(), |detail| format!("{}: {detail}", error.kind()));
    match error.line() {
        Some(line) => format!("line {line}: {what}"),
        None => what,
    }
}

/// A sink that refuses to grow beyond the limit.
struct BoundedOutput {
    bytes: Vec<u8>,
    overflowed: bool,
}

impl std::io::Write for BoundedOutput {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.bytes.len() + bytes.len() > MAX_OUTPUT {
            self.overflowed = true;
            return Err(std::io::Error::other("the rendered prompt is too long"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
