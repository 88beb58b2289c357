//! `omnictl tokenize`, `detokenize`, `render` and `parse-chat`: the text module on a file, without a daemon.
//!
//! Files may be vocabulary-only; only their header is read. Input comes from a reader and output goes to a writer, so that
//! tests run without a process. Called by `omnictl`.

use crate::gguf;
use crate::text::{self, ChatInput, ChatTemplate, OutputFormat, ParseOptions, Tokenizer, parse_output_for_tools};
use serde_json::{Map, Value, json};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// Bytes read before knowing how long the header is.
const FIRST_READ: u64 = 1 << 20;

/// Why a text command failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// Standard input could not be read, or standard output not be written.
    #[error("standard input or output: {0}")]
    Stream(#[from] std::io::Error),
    /// Not a usable GGUF file.
    #[error("{}: {source}", path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What the parser found.
        source: gguf::Error,
    },
    /// The vocabulary or the template is not usable, or the template refused.
    #[error("{}: {source}", path.display())]
    Text {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: text::Error,
    },
    /// The file has no `tokenizer.chat_template`.
    #[error("{} has no chat template; give a TEMPLATE.jinja instead", path.display())]
    NoTemplate {
        /// The file.
        path: PathBuf,
    },
    /// Standard input is not what the command reads.
    #[error("standard input is not {expected}: {reason}")]
    Input {
        /// What it should be.
        expected: &'static str,
        /// Where and why not.
        reason: String,
    },
}

/// Reads text from standard input and prints its token ids as a JSON array.
#[derive(Clone, Debug, clap::Args)]
pub struct Tokenize {
    /// GGUF file; one with only a vocabulary is enough.
    file: PathBuf,
    /// Turn the literals of control tokens in the text into those tokens.
    #[arg(long)]
    special: bool,
    /// Add the tokens that the file wants around a text (BOS, EOS).
    #[arg(long)]
    add_special: bool,
}

/// Prints the text of token ids.
#[derive(Clone, Debug, clap::Args)]
pub struct Detokenize {
    /// GGUF file; one with only a vocabulary is enough.
    file: PathBuf,
    /// Token ids; without, a JSON array is read from standard input.
    ids: Vec<u32>,
    /// Leave control tokens out.
    #[arg(long)]
    skip_special: bool,
    /// Print JSON instead of the text.
    #[arg(long)]
    json: bool,
}

/// Reads a chat request (JSON) from standard input and prints the prompt its template makes.
///
/// Keys: `messages`, `tools`, `documents`, `add_generation_prompt` (true unless given), `chat_template_kwargs`,
/// `bos_token`, `eos_token`, `now` (e.g. "2025-06-15T12:34:56").
#[derive(Clone, Debug, clap::Args)]
pub struct Render {
    /// GGUF file with a chat template, or a template's source (*.jinja).
    file: PathBuf,
    /// Print JSON instead of the prompt.
    #[arg(long)]
    json: bool,
}

/// Reads a raw answer (JSON) from standard input and prints content, reasoning and tool calls as JSON.
///
/// Keys: `output`, `prompt` or `generation_prompt`, `tools`, `reasoning_format` ("none" keeps reasoning in the content),
/// `is_partial`.
#[derive(Clone, Debug, clap::Args)]
pub struct ParseChat {
    /// The template the answer was made with: its source (*.jinja), or a GGUF file.
    template: PathBuf,
}

impl Tokenize {
    /// Runs the command.
    ///
    /// # Errors
    /// Unreadable files and input, unusable vocabularies.
    pub fn run(&self, input: impl Read, mut output: impl Write) -> Result<(), Error> {
        let tokenizer = open_tokenizer(&self.file)?;
        let ids = tokenizer.encode(&read_text(input)?, self.add_special, self.special);
        Ok(writeln!(output, "{}", Value::from(ids))?)
    }
}

impl Detokenize {
    /// Runs the command.
    ///
    /// # Errors
    /// Unreadable files and input, unusable vocabularies.
    pub fn run(&self, input: impl Read, mut output: impl Write) -> Result<(), Error> {
        let tokenizer = open_tokenizer(&self.file)?;
        let ids = if self.ids.is_empty() { read_json(input, "a JSON array of token ids")? } else { self.ids.clone() };
        let bytes = tokenizer.decode(&ids, !self.skip_special);
        if self.json {
            return Ok(writeln!(output, "{}", json!({"content": String::from_utf8_lossy(&bytes)}))?);
        }
        Ok(output.write_all(&bytes)?)
    }
}

impl Render {
    /// Runs the command.
    ///
    /// # Errors
    /// Unreadable files and input, files without a template, and templates that refuse the request.
    pub fn run(&self, input: impl Read, mut output: impl Write) -> Result<(), Error> {
        let mut request: Map<String, Value> = read_json(input, "a JSON object with messages")?;
        let template = self.template(&request)?;
        let given = |value: Option<Value>| value.filter(|value| !value.is_null());
        let messages = given(request.remove("messages")).ok_or_else(|| Error::Input {
            expected: "a JSON object with messages",
            reason: "`messages` is missing".to_owned(),
        })?;
        let chat = ChatInput {
            messages,
            tools: given(request.remove("tools")),
            documents: given(request.remove("documents")),
            add_generation_prompt: request.get("add_generation_prompt").and_then(Value::as_bool).unwrap_or(true),
            extra: match request.remove("chat_template_kwargs") {
                Some(Value::Object(map)) => map,
                _ => Map::new(),
            },
            now: now(request.get("now"))?,
        };
        let prompt = template.render(&chat).map_err(|source| Error::Text { path: self.file.clone(), source })?;
        if self.json {
            return Ok(writeln!(output, "{}", json!({"prompt": prompt}))?);
        }
        Ok(output.write_all(prompt.as_bytes())?)
    }

    fn template(&self, request: &Map<String, Value>) -> Result<ChatTemplate, Error> {
        let token = |key| request.get(key).and_then(Value::as_str);
        let (bos, eos) = (token("bos_token"), token("eos_token"));
        if bos.is_none() && eos.is_none() {
            return open_template(&self.file);
        }
        let source = open_template(&self.file)?;
        ChatTemplate::new(source.source(), bos.unwrap_or_default(), eos.unwrap_or_default())
            .map_err(|source| Error::Text { path: self.file.clone(), source })
    }
}

impl ParseChat {
    /// Runs the command.
    ///
    /// # Errors
    /// Unreadable files and input, unusable templates; the answer itself never fails.
    pub fn run(&self, input: impl Read, mut output: impl Write) -> Result<(), Error> {
        const EXPECTED: &str = "a JSON object with output";
        let case: Map<String, Value> = read_json(input, EXPECTED)?;
        let template = open_template(&self.template)?;
        let text = |key| case.get(key).and_then(Value::as_str);
        let raw = text("output")
            .ok_or_else(|| Error::Input { expected: EXPECTED, reason: "`output` is missing".to_owned() })?;
        let tools = case.get("tools");
        let options = ParseOptions {
            format: OutputFormat::detect(template.source()),
            prompt: text("prompt").or(text("generation_prompt")).unwrap_or_default(),
            split_reasoning: text("reasoning_format") != Some("none"),
            tools: tools.and_then(Value::as_array).is_some_and(|list| !list.is_empty()),
            partial: case.get("is_partial").and_then(Value::as_bool).unwrap_or(false),
        };
        let parsed = parse_output_for_tools(raw, &options, tools);
        let json = serde_json::to_string(&parsed).map_err(std::io::Error::from)?;
        Ok(writeln!(output, "{json}")?)
    }
}

/// The moment a template sees: the request's, or now in local time.
fn now(given: Option<&Value>) -> Result<jiff::civil::DateTime, Error> {
    match given.and_then(Value::as_str) {
        None => Ok(jiff::Zoned::now().datetime()),
        Some(text) => text.parse().map_err(|error: jiff::Error| Error::Input {
            expected: "a request whose `now` is a date and time",
            reason: error.to_string(),
        }),
    }
}

/// Reads a GGUF file's metadata and no more of the file than that.
fn open_metadata(path: &Path) -> Result<gguf::Metadata, Error> {
    let read = |source| Error::Read { path: path.to_owned(), source };
    let mut file = std::fs::File::open(path).map_err(read)?;
    let length = file.metadata().map_err(read)?.len();
    let fetched = gguf::parse_growing(length, FIRST_READ, |buffer, wanted| {
        let missing = wanted.saturating_sub(buffer.len() as u64);
        Read::by_ref(&mut file).take(missing).read_to_end(buffer).map(drop)
    });
    match fetched {
        Ok(parsed) => Ok(parsed.metadata),
        Err(gguf::GrowError::Fetch(source)) => Err(read(source)),
        Err(gguf::GrowError::Parse(source)) => Err(Error::Gguf { path: path.to_owned(), source }),
    }
}

fn open_tokenizer(path: &Path) -> Result<Tokenizer, Error> {
    let tokenizer = Tokenizer::from_metadata(&open_metadata(path)?);
    let tokenizer = tokenizer.map_err(|source| Error::Text { path: path.to_owned(), source })?;
    if let Some(warning) = tokenizer.warning() {
        eprintln!("omnictl: {}: {warning}", path.display());
    }
    Ok(tokenizer)
}

/// The template of a GGUF file, or the one whose source the file is.
fn open_template(path: &Path) -> Result<ChatTemplate, Error> {
    let text_error = |source| Error::Text { path: path.to_owned(), source };
    let read = |source| Error::Read { path: path.to_owned(), source };
    let mut magic = Vec::new();
    std::fs::File::open(path).and_then(|file| file.take(4).read_to_end(&mut magic)).map_err(read)?;
    if magic != b"GGUF" {
        let source = std::fs::read_to_string(path).map_err(read)?;
        return ChatTemplate::new(&source, "", "").map_err(text_error);
    }
    let template = ChatTemplate::from_metadata(&open_metadata(path)?).map_err(text_error)?;
    template.ok_or_else(|| Error::NoTemplate { path: path.to_owned() })
}

fn read_text(mut input: impl Read) -> Result<String, Error> {
    let mut bytes = Vec::new();
    input.read_to_end(&mut bytes)?;
    String::from_utf8(bytes).map_err(|error| Error::Input { expected: "UTF-8 text", reason: error.to_string() })
}

fn read_json<T: serde::de::DeserializeOwned>(input: impl Read, expected: &'static str) -> Result<T, Error> {
    serde_json::from_str(&read_text(input)?).map_err(|error| Error::Input { expected, reason: error.to_string() })
}
