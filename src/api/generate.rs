//! The choices of one request on their way: submitted to the engine, their tokens turned into text, cut at stop strings.
//!
//! Dropping a [`Generation`] cancels all of its work. At most as many choices as the model runs at once are in the engine;
//! the others wait here, so that one request cannot fill the queue for everybody. Used by the completion endpoints only.

use super::backend::Served;
use super::error::ApiError;
use super::wire::FinishReason;
use crate::engine::{self, Event, Request, SubmitError};
use crate::sample::Logprobs;
use crate::text::{Detokenizer, StopMatcher, Tokenizer};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::Receiver;

/// Pause before a choice of a running request is offered again to a full queue.
const RETRY: Duration = Duration::from_millis(25);

/// One choice to be made.
#[derive(Clone, Debug)]
pub struct Plan {
    /// For the engine.
    pub request: Request,
    /// Strings that end the text.
    pub stops: Vec<String>,
    /// The text continues the prompt: a leading space is kept.
    pub continues: bool,
    /// Control tokens that are part of the text, as markup of reasoning and tool calls.
    pub shown: Arc<[u32]>,
}

/// What happened to one choice.
#[derive(Clone, Debug)]
pub struct Output {
    /// Which one: its place among the plans.
    pub index: usize,
    /// What.
    pub news: News,
}

/// In this order: `Prefill`*, `Prompt`?, `Text`*, `Finished`.
#[derive(Clone, Debug)]
pub enum News {
    /// Prompt tokens evaluated, of all.
    Prefill(usize, usize),
    /// Log-probabilities of the prompt's tokens.
    Prompt(Vec<Option<Logprobs>>),
    /// More text, with the tokens it came from.
    Text(Piece),
    /// The choice is complete.
    Finished(FinishReason, engine::Usage),
}

/// Text that is certain, and the tokens that made it. Either may be empty.
#[derive(Clone, Debug, Default)]
pub struct Piece {
    /// Text.
    pub text: String,
    /// Tokens.
    pub tokens: Vec<Token>,
}

/// One generated token.
#[derive(Clone, Debug)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// When asked for.
    pub logprobs: Option<Logprobs>,
    /// Where it begins in the choice's text, in characters.
    pub offset: usize,
    /// The same in bytes.
    start: usize,
}

/// The choices of one request.
pub struct Generation {
    served: Arc<Served>,
    waiting: VecDeque<(usize, Plan)>,
    running: Vec<Choice>,
    ready: VecDeque<Output>,
    /// When the queue was last full.
    refused: Option<Instant>,
}

impl Generation {
    /// Submits the first choices. Refused when the engine takes not even one: full, closing, or a bad request.
    pub fn start(served: Arc<Served>, plans: Vec<Plan>) -> Result<Self, ApiError> {
        let waiting = plans.into_iter().enumerate().collect();
        let mut generation = Generation { served, waiting, running: Vec::new(), ready: VecDeque::new(), refused: None };
        match generation.fill() {
            // One has begun; the others may wait their turn.
            Err(SubmitError::QueueFull { .. }) if !generation.running.is_empty() => Ok(generation),
            Err(error) => Err(refused(error)),
            Ok(()) => Ok(generation),
        }
    }

    /// What happens next; `None` when all choices are complete. After an error nothing follows.
    /// Dropping the future between two calls loses nothing.
    pub async fn next(&mut self) -> Option<Result<Output, ApiError>> {
        loop {
            if let Some(output) = self.ready.pop_front() {
                return Some(Ok(output));
            }
            match self.fill() {
                Ok(()) => {}
                Err(SubmitError::QueueFull { .. }) if self.running.is_empty() => tokio::time::sleep(RETRY).await,
                Err(SubmitError::QueueFull { .. }) => {}
                Err(error) => return Some(Err(refused(error))),
            }
            if self.running.is_empty() {
                if self.waiting.is_empty() {
                    return None;
                }
                continue;
            }
            let (at, event) = poll_fn(|cx| self.poll_event(cx)).await;
            if let Err(error) = self.take(at, event) {
                return Some(Err(error));
            }
        }
    }

    /// Submits waiting choices while there is room among the running ones.
    fn fill(&mut self) -> Result<(), SubmitError> {
        // An attempt copies the prompt: not at every token of the running choices.
        if !self.running.is_empty() && self.refused.is_some_and(|at| at.elapsed() < RETRY) {
            return Ok(());
        }
        while self.running.len() < self.served.info.parallel.max(1) {
            let Some((index, plan)) = self.waiting.front() else { return Ok(()) };
            let submitted = self.served.backend.submit(plan.request.clone());
            let events = submitted.inspect_err(|_| self.refused = Some(Instant::now()))?;
            self.running.push(Choice::new(&self.served, *index, plan, events));
            self.waiting.pop_front();
        }
        Ok(())
    }

    /// The next event of any running choice; they take turns.
    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<(usize, Option<Event>)> {
        for (at, choice) in self.running.iter_mut().enumerate() {
            if let Poll::Ready(event) = choice.events.poll_recv(cx) {
                return Poll::Ready((at, event));
            }
        }
        Poll::Pending
    }

    fn take(&mut self, at: usize, event: Option<Event>) -> Result<(), ApiError> {
        let mut choice = self.running.remove(at);
        let index = choice.index;
        let finished = match event {
            None => return Err(ApiError::internal("the engine stopped in the midst of the answer; try again")),
            Some(Event::Error(message)) => return Err(ApiError::internal(message)),
            Some(Event::Prefill { done, total }) => {
                choice.prefilling(done);
                self.ready.push_back(Output { index, news: News::Prefill(done, total) });
                false
            }
            Some(Event::PromptLogprobs(logprobs)) => {
                self.ready.push_back(Output { index, news: News::Prompt(logprobs) });
                false
            }
            Some(Event::Token { id, logprobs, at }) => choice.token(id, logprobs, at, &mut self.ready),
            Some(Event::Done { reason, usage }) => {
                choice.done(reason, usage, &mut self.ready);
                true
            }
        };
        if !finished {
            // To the end of the row, so that the others get their turn.
            self.running.push(choice);
        }
        Ok(())
    }
}

/// A choice in the engine.
struct Choice {
    index: usize,
    events: Receiver<Event>,
    tokenizer: Arc<Tokenizer>,
    text: Detokenizer,
    stop: StopMatcher,
    /// Tokens whose text is not sent yet.
    held: Vec<Token>,
    /// Bytes and characters detokenized so far.
    read: (usize, usize),
    /// Bytes sent so far.
    sent: usize,
    clock: Clock,
}

impl Choice {
    fn new(served: &Served, index: usize, plan: &Plan, events: Receiver<Event>) -> Self {
        let tokenizer = served.tokenizer.clone();
        let begin = if plan.continues { Detokenizer::continuing } else { Detokenizer::new };
        let text = begin(tokenizer.clone(), false).showing(plan.shown.clone());
        let stop = StopMatcher::new(plan.stops.clone());
        let clock = Clock::new(plan.request.prompt.len());
        Choice { index, events, tokenizer, text, stop, held: Vec::new(), read: (0, 0), sent: 0, clock }
    }

    fn prefilling(&mut self, done: usize) {
        self.clock.prefill(done);
    }

    /// Takes a token; `true` when a stop string ended the text.
    fn token(&mut self, id: u32, logprobs: Option<Logprobs>, at: Instant, out: &mut VecDeque<Output>) -> bool {
        self.clock.token(at);
        self.held.push(Token { id, logprobs, offset: self.read.1, start: self.read.0 });
        let text = self.text.push(id);
        self.read.0 += text.len();
        self.read.1 += text.chars().count();
        let result = self.stop.push(&text);
        if result.matched.is_some() {
            self.end(result.text, out);
            let finished = News::Finished(FinishReason::Stop, self.clock.usage());
            out.push_back(Output { index: self.index, news: finished });
            return true;
        }
        if text.is_empty() && self.begins_character(id) {
            return false;
        }
        // Tokens go with the text they made: all of them once nothing is held back, else those before what is held.
        self.sent += result.text.len();
        let (sent, all) = (self.sent, self.sent == self.read.0);
        let count = if all { self.held.len() } else { self.held.iter().take_while(|token| token.start < sent).count() };
        let tokens: Vec<Token> = self.held.drain(..count).collect();
        if !tokens.is_empty() || !result.text.is_empty() {
            out.push_back(Output { index: self.index, news: News::Text(Piece { text: result.text, tokens }) });
        }
        false
    }

    /// Whether a token that made no text is the first part of a character.
    fn begins_character(&self, id: u32) -> bool {
        !self.tokenizer.is_special(id) && self.tokenizer.token_bytes(id).is_some_and(|bytes| !bytes.is_empty())
    }

    /// The engine ended the text: sends what was held back, unless its last characters complete a stop string.
    fn done(&mut self, reason: engine::FinishReason, usage: engine::Usage, out: &mut VecDeque<Output>) {
        let rest = self.text.finish();
        self.read.0 += rest.len();
        let result = self.stop.push(&rest);
        let mut text = result.text;
        if result.matched.is_none() {
            text.push_str(&self.stop.finish());
        }
        let reason = match (result.matched, reason) {
            (Some(_), _) | (None, engine::FinishReason::Stop(_)) => FinishReason::Stop,
            (None, engine::FinishReason::Length) => FinishReason::Length,
        };
        self.end(text, out);
        out.push_back(Output { index: self.index, news: News::Finished(reason, usage) });
    }

    /// Sends the last text. Tokens that begin at its end or later belong to a stop string and are dropped.
    fn end(&mut self, text: String, out: &mut VecDeque<Output>) {
        self.sent += text.len();
        let (sent, whole) = (self.sent, self.sent == self.read.0);
        let mut tokens = std::mem::take(&mut self.held);
        tokens.retain(|token| whole || token.start < sent);
        if !text.is_empty() || !tokens.is_empty() {
            out.push_back(Output { index: self.index, news: News::Text(Piece { text, tokens }) });
        }
    }
}

/// Measures a choice that a stop string ends: the engine is then not asked for its own figures.
struct Clock {
    usage: engine::Usage,
    submitted: Instant,
    started: Option<Instant>,
    first: Option<Instant>,
    last: Option<Instant>,
}

impl Clock {
    fn new(prompt_tokens: usize) -> Self {
        let usage = engine::Usage { prompt_tokens, ..engine::Usage::default() };
        Clock { usage, submitted: Instant::now(), started: None, first: None, last: None }
    }

    fn prefill(&mut self, done: usize) {
        if self.started.is_none() {
            self.started = Some(Instant::now());
            self.usage.cached_tokens = done;
        }
    }

    /// `at` is the engine's time: a busy reader gets many tokens at once.
    fn token(&mut self, at: Instant) {
        self.usage.completion_tokens += 1;
        self.first.get_or_insert(at);
        self.last = Some(at);
    }

    fn usage(&self) -> engine::Usage {
        let first = self.first.unwrap_or(self.submitted);
        let started = self.started.map_or(first, |started| started.min(first));
        engine::Usage {
            queued: started.saturating_duration_since(self.submitted),
            prefill: first.saturating_duration_since(started),
            decode: self.last.unwrap_or(first).saturating_duration_since(first),
            ..self.usage
        }
    }
}

/// The engine's refusal as clients see it.
pub fn refused(error: SubmitError) -> ApiError {
    let message = error.to_string();
    match error {
        SubmitError::QueueFull { retry_after, .. } => ApiError::too_many(message, retry_after),
        SubmitError::TooLong { .. } => ApiError::bad_request(message).param("prompt").code("context_length_exceeded"),
        SubmitError::Empty | SubmitError::BadToken { .. } => ApiError::bad_request(message).param("prompt"),
        SubmitError::Closing => ApiError::unavailable(message, Duration::from_secs(2)),
    }
}
