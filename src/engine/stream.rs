//! One request on its way through the engine: its channel, its sampler and its times.

use super::shared::Ticket;
use super::{Event, FinishReason, Request, Usage};
use crate::sample::{Draw, Logprobs, SampleError, Sampler, Scratch, logprobs_of};
use crate::sched::{Job, SeqId, Sequence};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::Sender;

/// Events one step may send to a stream (`Prefill`, `PromptLogprobs`, `Token`, `Done`), and one for the last error. The
/// first step's additional `Prefill` meets an empty channel.
const ROOM: usize = 5;

/// A request on its way to the engine thread.
pub(super) struct Submission {
    pub request: Request,
    pub events: Sender<Event>,
    pub ticket: Ticket,
    pub submitted: Instant,
}

/// A request the engine thread knows.
pub(super) struct Stream {
    events: Sender<Event>,
    sampler: Sampler,
    stop_tokens: Vec<u32>,
    max_tokens: usize,
    prompt_logprobs: Option<(usize, Vec<Option<Logprobs>>)>,
    completion: usize,
    submitted: Instant,
    admitted: Option<Instant>,
    first_token: Option<Instant>,
    ticket: Ticket,
}

/// What became of a drawn token.
pub(super) enum Drawn {
    /// It was sent; the sequence goes on if it may grow.
    Token(u32),
    /// It ends the text.
    Stop(u32),
}

impl Stream {
    /// Splits a submission into what the scheduler and what the stream needs.
    pub(super) fn new(id: SeqId, submission: Submission) -> (Stream, Job) {
        let Submission { request, events, ticket, submitted } = submission;
        let stream = Stream {
            events,
            sampler: Sampler::new(request.sampling, &request.prompt),
            stop_tokens: request.stop_tokens,
            max_tokens: request.max_tokens,
            // The first token follows nothing, so it has no probability.
            prompt_logprobs: request.prompt_logprobs.map(|top| (top, vec![None])),
            completion: 0,
            submitted,
            admitted: None,
            first_token: None,
            ticket,
        };
        let job = Job {
            id,
            max_tokens: request.max_tokens,
            cache: request.cache,
            prompt_logits: request.prompt_logprobs.is_some(),
            prompt: request.prompt,
        };
        (stream, job)
    }

    /// True when the reader went away.
    pub(super) fn is_cancelled(&self) -> bool {
        self.events.is_closed()
    }

    /// True when the channel takes all that a step may send. Only the engine sends, so the room cannot shrink meanwhile.
    pub(super) fn has_room(&self) -> bool {
        self.events.capacity() >= ROOM
    }

    /// Tokens sent.
    pub(super) fn completion(&self) -> usize {
        self.completion
    }

    /// The scheduler let it start.
    pub(super) fn admit(&mut self, now: Instant) {
        self.admitted = Some(now);
    }

    pub(super) fn generates(&self) -> bool {
        self.max_tokens > 0
    }

    /// So much of the prompt is in the cache: before its first chunk, and after each.
    pub(super) fn prefilled(&mut self, done: usize, total: usize) {
        self.send(Event::Prefill { done, total });
    }

    /// The logits `[rows, vocab]` of prompt rows `start..`: log-probabilities of the tokens that follow them.
    pub(super) fn add_prompt_logprobs(
        &mut self,
        seq: &Sequence,
        start: usize,
        logits: &[f32],
        vocab: usize,
        scratch: &mut Scratch,
    ) -> Result<(), SampleError> {
        let Some((top, found)) = &mut self.prompt_logprobs else { return Ok(()) };
        let followers = &seq.tokens()[start + 1..seq.prompt_len().max(start + 1)];
        for (row, &next) in logits.chunks_exact(vocab).zip(followers) {
            found.push(Some(logprobs_of(row, next, *top, scratch)?));
        }
        Ok(())
    }

    /// The prompt is evaluated.
    pub(super) fn end_prefill(&mut self, now: Instant) {
        self.first_token = Some(now);
        if let Some((_, found)) = self.prompt_logprobs.take() {
            self.send(Event::PromptLogprobs(found));
        }
    }

    /// Draws a token and sends it unless it ends the text.
    pub(super) fn draw(&mut self, logits: &[f32], scratch: &mut Scratch) -> Result<Drawn, SampleError> {
        let Draw { id, logprobs } = self.sampler.draw(logits, scratch)?;
        if self.stop_tokens.contains(&id) {
            return Ok(Drawn::Stop(id));
        }
        self.completion += 1;
        self.send(Event::Token { id, logprobs, at: Instant::now() });
        Ok(Drawn::Token(id))
    }

    /// The last event.
    pub(super) fn finish(self, reason: FinishReason, prompt: usize, cached: usize, now: Instant) {
        let admitted = self.admitted.unwrap_or(now);
        let first_token = self.first_token.unwrap_or(now);
        let usage = Usage {
            prompt_tokens: prompt,
            cached_tokens: cached,
            completion_tokens: self.completion,
            queued: admitted.saturating_duration_since(self.submitted),
            prefill: first_token.saturating_duration_since(admitted),
            decode: now.saturating_duration_since(first_token),
        };
        self.send(Event::Done { reason, usage });
    }

    /// The last event of a request that failed. Its place is free before anybody hears of it.
    pub(super) fn fail(self, message: String) {
        let Stream { events, ticket, .. } = self;
        drop(ticket);
        let _ = events.try_send(Event::Error(message));
    }

    /// Time since it was admitted.
    pub(super) fn served(&self, now: Instant) -> Duration {
        self.admitted.map_or(Duration::ZERO, |admitted| now.saturating_duration_since(admitted))
    }

    fn send(&self, event: Event) {
        // There is room (see `has_room`); a reader that went away is noticed before the next step.
        let _ = self.events.try_send(event);
    }
}
