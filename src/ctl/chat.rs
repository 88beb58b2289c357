//! `chat` and `complete`: streams a model's text to the terminal. Ctrl-C ends the answer that runs, which the daemon
//! notices by the closed connection.

use super::client::{Client, Events};
use super::error::Error;
use super::output::Output;
use crate::api::wire::chat::ChatChunk;
use crate::api::wire::completions::CompletionResponse;
use crate::api::wire::{Timings, Usage};
use clap::Args;
use http::Method;
use serde_json::{Map, Value, json};
use std::io::{self, BufRead, IsTerminal, Read};

/// Options of sampling that `chat` and `complete` share. What is not given is left to the model's defaults.
#[derive(Clone, Debug, Default, Args)]
pub struct Sampling {
    /// Randomness; 0 always takes the likeliest token
    #[arg(long, value_name = "T")]
    pub temperature: Option<f64>,
    /// Draw from the likeliest tokens that make up this share
    #[arg(long, value_name = "P")]
    pub top_p: Option<f64>,
    /// Draw from the K likeliest tokens
    #[arg(long, value_name = "K")]
    pub top_k: Option<i64>,
    /// Leave out tokens less likely than this share of the likeliest
    #[arg(long, value_name = "P")]
    pub min_p: Option<f64>,
    /// Same seed, same text
    #[arg(long, value_name = "N")]
    pub seed: Option<i64>,
    /// End at most after so many tokens
    #[arg(long, value_name = "N")]
    pub max_tokens: Option<i64>,
    /// End before this text; may be given several times
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
}

/// Options of `chat`.
#[derive(Clone, Debug, Args)]
pub struct Chat {
    /// Model id, alias, or auto
    pub model: String,
    /// Say this and end; without it and on a terminal, talk
    pub prompt: Option<String>,
    /// How the model should behave
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub sampling: Sampling,
}

/// Options of `complete`.
#[derive(Clone, Debug, Args)]
pub struct Complete {
    /// Model id, alias, or auto
    pub model: String,
    /// Text to continue [default: standard input]
    pub prompt: Option<String>,
    /// Print the prompt before its continuation
    #[arg(long)]
    pub echo: bool,
    /// Wait for the whole text instead of printing it as it comes
    #[arg(long)]
    pub no_stream: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub sampling: Sampling,
}

impl Sampling {
    /// The fields of a request that were given.
    fn fields(&self) -> Map<String, Value> {
        let given = [
            ("temperature", self.temperature.map(Value::from)),
            ("top_p", self.top_p.map(Value::from)),
            ("top_k", self.top_k.map(Value::from)),
            ("min_p", self.min_p.map(Value::from)),
            ("seed", self.seed.map(Value::from)),
            ("max_tokens", self.max_tokens.map(Value::from)),
            ("stop", (!self.stop.is_empty()).then(|| json!(self.stop))),
        ];
        given.into_iter().filter_map(|(name, value)| Some((name.to_string(), value?))).collect()
    }
}

/// A request: the given sampling and `more` over it.
fn request(sampling: &Sampling, more: Value) -> Value {
    let mut fields = sampling.fields();
    if let Value::Object(more) = more {
        fields.extend(more);
    }
    Value::Object(fields)
}

/// How a stream of text ended.
#[derive(Default)]
struct Streamed {
    text: String,
    usage: Option<Usage>,
    timings: Option<Timings>,
    cancelled: bool,
    /// The terminal's line is not at its beginning.
    in_line: bool,
}

/// Talks with a model, or answers one prompt.
pub async fn chat(client: &Client, args: Chat, out: Output) -> Result<(), Error> {
    let mut talk = Talk { client, out, args: &args, messages: Vec::new() };
    talk.reset();
    let piped = !io::stdin().is_terminal();
    match args
        .prompt
        .clone()
        .map_or_else(|| if piped { read_input().map(Some) } else { Ok(None) }, |text| Ok(Some(text)))?
    {
        Some(prompt) if out.json => talk.whole(prompt).await,
        Some(prompt) => match talk.say(prompt).await?.cancelled {
            true => Err(Error::Interrupted),
            false => Ok(()),
        },
        None if out.json => Err(Error::Usage("--json goes with a PROMPT".into())),
        None => talk.interact().await,
    }
}

/// Standard input as one text, without the line break at its end.
fn read_input() -> Result<String, Error> {
    let mut text = String::new();
    io::stdin().lock().read_to_string(&mut text)?;
    text.truncate(text.trim_end_matches(['\n', '\r']).len());
    if text.is_empty() { Err(Error::Usage("the prompt on standard input is empty".into())) } else { Ok(text) }
}

/// A conversation.
struct Talk<'a> {
    client: &'a Client,
    out: Output,
    args: &'a Chat,
    messages: Vec<Value>,
}

impl Talk<'_> {
    const HELP: &'static str = "/reset starts over, /quit or Ctrl-D ends, Ctrl-C cuts an answer short";

    fn reset(&mut self) {
        let system = self.args.system.iter();
        self.messages = system.map(|text| json!({"role": "system", "content": text})).collect();
    }

    /// Reads lines and answers them until the end of input.
    async fn interact(&mut self) -> Result<(), Error> {
        self.out.line(&self.out.dim(&format!("{}: {}", self.args.model, Self::HELP)))?;
        loop {
            self.out.write(&self.out.bold("> "))?;
            let line = tokio::select! {
                line = next_line() => line?,
                _ = tokio::signal::ctrl_c() => None,
            };
            match line.as_deref().map(str::trim) {
                None | Some("/quit" | "/exit") => return self.out.line(""),
                Some("") => {}
                Some("/reset") => self.reset(),
                Some("/help") => self.out.line(&self.out.dim(Self::HELP))?,
                Some(text) => match self.say(text.to_string()).await {
                    // The conversation outlives one bad answer, but not the daemon.
                    Err(Error::Refused { message, .. } | Error::Failed(message)) => {
                        self.out.line(&self.out.red(&message))?;
                    }
                    other => self.out.line(&self.out.dim(&figures(&other?)))?,
                },
            }
        }
    }

    fn body(&self, more: Value) -> Value {
        let mut body = request(&self.args.sampling, json!({"model": self.args.model, "messages": self.messages}));
        if let (Value::Object(body), Value::Object(more)) = (&mut body, more) {
            body.extend(more);
        }
        body
    }

    /// Streams the answer to `text`; both join the conversation unless the answer failed.
    async fn say(&mut self, text: String) -> Result<Streamed, Error> {
        self.messages.push(json!({"role": "user", "content": text}));
        let answer = self.answer().await;
        match &answer {
            Ok(streamed) => self.messages.push(json!({"role": "assistant", "content": streamed.text})),
            Err(_) => _ = self.messages.pop(),
        }
        answer
    }

    async fn answer(&self) -> Result<Streamed, Error> {
        let body = self.body(json!({"stream": true, "stream_options": {"include_usage": true}}));
        let begin = self.client.events(Method::POST, "/v1/chat/completions", &body);
        let mut streamed = Streamed::default();
        let finished = tokio::select! {
            finished = async { self.print(begin.await?, &mut streamed).await } => Some(finished),
            _ = tokio::signal::ctrl_c() => None,
        };
        streamed.cancelled = finished.is_none();
        if streamed.in_line {
            self.out.line("")?;
        }
        finished.unwrap_or(Ok(()))?;
        Ok(streamed)
    }

    /// Writes the text as it comes; what the model thinks before it speaks stands dimmed.
    async fn print(&self, mut events: Events, streamed: &mut Streamed) -> Result<(), Error> {
        let mut thinking = false;
        while let Some(chunk) = events.next_json::<ChatChunk>().await? {
            for delta in chunk.choices.into_iter().map(|choice| choice.delta) {
                if let Some(thought) = delta.reasoning_content.filter(|text| !text.is_empty()) {
                    (thinking, streamed.in_line) = (true, true);
                    self.out.write(&self.out.dim(&thought))?;
                }
                if let Some(text) = delta.content.filter(|text| !text.is_empty()) {
                    if std::mem::take(&mut thinking) {
                        self.out.write("\n\n")?;
                    }
                    self.out.write(&text)?;
                    streamed.in_line = !text.ends_with('\n');
                    streamed.text += &text;
                }
            }
            streamed.usage = chunk.usage.or(streamed.usage);
            streamed.timings = chunk.timings.or(streamed.timings);
        }
        Ok(())
    }

    /// The whole answer as the API gives it.
    async fn whole(&mut self, prompt: String) -> Result<(), Error> {
        self.messages.push(json!({"role": "user", "content": prompt}));
        let answer: Value = self.client.post("/v1/chat/completions", &self.body(json!({}))).await?;
        self.out.value(&answer)
    }
}

/// The next line of standard input, `None` at its end. Read on a thread of its own, so that Ctrl-C is heard.
async fn next_line() -> Result<Option<String>, Error> {
    let read = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        io::stdin().lock().read_line(&mut line).map(|size| (size > 0).then_some(line))
    });
    Ok(read.await.map_err(io::Error::other)??)
}

/// `42 tokens, 31.2 tok/s`.
fn figures(streamed: &Streamed) -> String {
    let mut parts = Vec::new();
    if streamed.cancelled {
        parts.push("cut short".to_string());
    }
    if let Some(usage) = streamed.usage {
        parts.push(format!("{} tokens", usage.completion_tokens));
    }
    if let Some(timings) = streamed.timings {
        parts.push(format!("{:.1} tok/s", timings.predicted_per_second));
    }
    parts.join(", ")
}

/// Continues a text.
pub async fn complete(client: &Client, args: Complete, out: Output) -> Result<(), Error> {
    let prompt = match args.prompt {
        Some(prompt) => prompt,
        None if io::stdin().is_terminal() => {
            return Err(Error::Usage("there is no PROMPT; give one, or pipe it in".into()));
        }
        None => read_input()?,
    };
    let mut body = request(&args.sampling, json!({"model": args.model, "prompt": prompt, "echo": args.echo}));
    if out.json || args.no_stream {
        let answer: CompletionResponse = client.post("/v1/completions", &body).await?;
        let text = answer.choices.first().map_or("", |choice| choice.text.as_str());
        return if out.json { out.value(&answer) } else { out.line(text) };
    }
    body["stream"] = true.into();
    tokio::select! {
        streamed = stream_text(client, &body, out) => streamed.map(drop),
        _ = tokio::signal::ctrl_c() => {
            out.line("")?;
            Err(Error::Interrupted)
        }
    }
}

/// Streams `/v1/completions` to standard output; returns the number of pieces and the times, when told.
pub async fn stream_text(client: &Client, body: &Value, out: Output) -> Result<(usize, Option<Timings>), Error> {
    let mut events = client.events(Method::POST, "/v1/completions", body).await?;
    let (mut pieces, mut timings, mut at_line_start) = (0, None, true);
    while let Some(chunk) = events.next_json::<CompletionResponse>().await? {
        for choice in chunk.choices.iter().filter(|choice| !choice.text.is_empty()) {
            pieces += 1;
            at_line_start = choice.text.ends_with('\n');
            out.write(&choice.text)?;
        }
        timings = chunk.timings.or(timings);
    }
    if !at_line_start {
        out.line("")?;
    }
    Ok((pieces, timings))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_given_is_sent() {
        assert_eq!(Value::Object(Sampling::default().fields()), json!({}));
        let sampling = Sampling { temperature: Some(0.0), stop: vec!["x".into()], ..Sampling::default() };
        assert_eq!(request(&sampling, json!({"model": "m"})), json!({"temperature": 0.0, "stop": ["x"], "model": "m"}));
    }
}
