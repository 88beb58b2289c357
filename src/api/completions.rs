//! `POST /v1/completions`: text or token ids in, their continuation out.

use super::answer::{self, Head, Shape, Totals, offload};
use super::backend::Served;
use super::error::ApiError;
use super::generate::{Generation, News, Piece, Plan};
use super::http::{Body, json, parse_json};
use super::logprobs::push_text;
use super::params::{self, Checked, MAX_CHOICES, MAX_LOGPROBS};
use super::unsupported;
use super::wire::completions::{CompletionChoice, CompletionRequest, CompletionResponse, Prompt, TextLogprobs};
use super::wire::{Timings, Usage};
use crate::engine::Request;
use crate::sample::Logprobs;
use crate::text::Detokenizer;
use bytes::Bytes;
use http::{Response, StatusCode};
use std::sync::Arc;

const DEFAULT_MAX_TOKENS: usize = 16;

/// Answers one request.
#[utoipa::path(post, path = "/v1/completions", tag = "completions", request_body = CompletionRequest, responses(
    (status = 200, description = "The completions; with `stream` as server-sent events, each a chunk of the same shape",
        content((CompletionResponse = "application/json"), (String = "text/event-stream"))),
    super::openapi::Refusals
))]
pub async fn completions(served: Arc<Served>, body: Bytes) -> Result<Response<Body>, ApiError> {
    let context = served.clone();
    let job = offload(body.len(), move || Job::prepare(context, &parse_json(&body)?)).await?;
    let mut totals = Totals::new(job.prompts.iter().map(|prompt| prompt.ids.len()), job.checked.n);
    let generation = Generation::start(served.clone(), job.plans())?;
    let (checked, limits) = (job.checked.clone(), served.limits);
    let mut shape = TextShape::new(served, job);
    if checked.stream {
        return Ok(answer::stream(generation, shape, totals, checked.include_usage, limits.pace));
    }
    let mut choices: Vec<CompletionChoice> = Vec::new();
    answer::whole(generation, &mut shape, &mut totals, |chunk| fold(&mut choices, chunk)).await?;
    choices.sort_by_key(|choice| choice.index);
    let (usage, timings) = (Some(totals.usage()), Some(totals.timings()));
    Ok(json(StatusCode::OK, &CompletionResponse { usage, timings, ..shape.chunk(choices) }))
}

/// A request, valid.
pub(super) struct Job {
    prompts: Vec<PromptTokens>,
    checked: Checked,
    max_tokens: Vec<usize>,
    echo: bool,
    logprobs: Option<usize>,
}

struct PromptTokens {
    ids: Vec<u32>,
    /// As the client wrote it, when it was text.
    text: Option<String>,
}

impl Job {
    /// Checks everything and tokenizes the prompts.
    pub(super) fn prepare(served: Arc<Served>, request: &CompletionRequest) -> Result<Self, ApiError> {
        unsupported::refuse(&request.other)?;
        let logprobs = params::integer("logprobs", request.logprobs, 0..=MAX_LOGPROBS)?;
        let checked = params::check(&request.sampling, logprobs, &served.tokenizer)?;
        let max_tokens = params::integer("max_tokens", request.max_tokens, 0..=i64::from(u32::MAX))?;
        if request.best_of.is_some_and(|best| usize::try_from(best) != Ok(checked.n)) {
            return Err(ApiError::unsupported("best_of", "set it to n or leave it out; all n choices are returned"));
        }
        let prompts = prompts(&served, request.prompt.as_ref())?;
        if prompts.len() * checked.n > MAX_CHOICES {
            let message = format!("{} prompts times {} choices exceed {MAX_CHOICES}", prompts.len(), checked.n);
            return Err(ApiError::invalid("prompt", message));
        }
        let context = served.backend.context();
        let room = |prompt: &PromptTokens| params::room(prompt.ids.len(), max_tokens, DEFAULT_MAX_TOKENS, context);
        let max_tokens = prompts.iter().map(room).collect::<Result<_, _>>()?;
        Ok(Job { prompts, checked, max_tokens, echo: request.echo.unwrap_or(false), logprobs })
    }

    fn plans(&self) -> Vec<Plan> {
        let each = self.prompts.iter().zip(&self.max_tokens);
        let plans = each.flat_map(|(prompt, max_tokens)| {
            (0..self.checked.n).map(|i| {
                let mut sampling = self.checked.params.clone();
                sampling.seed = sampling.seed.wrapping_add(i as u64);
                let request = Request {
                    prompt: prompt.ids.clone(),
                    max_tokens: *max_tokens,
                    sampling,
                    stop_tokens: self.checked.stop_tokens.clone(),
                    prompt_logprobs: self.logprobs.filter(|_| self.echo),
                    cache: self.checked.cache,
                };
                Plan { request, stops: self.checked.stops.clone(), continues: true, shown: Arc::default() }
            })
        });
        plans.collect()
    }
}

fn prompts(served: &Served, prompt: Option<&Prompt>) -> Result<Vec<PromptTokens>, ApiError> {
    let of_text = |text: &String| PromptTokens { ids: served.prompt_tokens(text), text: Some(text.clone()) };
    let of_ids = |ids: &Vec<u32>| PromptTokens { ids: ids.clone(), text: None };
    // Counted before anything is tokenized, so that a body full of empty strings costs nothing.
    let count = match prompt {
        Some(Prompt::Texts(texts)) => texts.len(),
        Some(Prompt::TokenLists(lists)) => lists.len(),
        _ => 1,
    };
    if count > MAX_CHOICES {
        return Err(ApiError::invalid("prompt", format!("at most {MAX_CHOICES} prompts, not {count}")));
    }
    let prompts: Vec<PromptTokens> = match prompt {
        None => return Err(ApiError::invalid("prompt", "is missing; send a text or token ids")),
        Some(Prompt::Text(text)) => vec![of_text(text)],
        Some(Prompt::Tokens(ids)) => vec![of_ids(ids)],
        Some(Prompt::Texts(texts)) => texts.iter().map(of_text).collect(),
        Some(Prompt::TokenLists(lists)) => lists.iter().map(of_ids).collect(),
    };
    if prompts.is_empty() || prompts.iter().any(|prompt| prompt.ids.is_empty()) {
        return Err(ApiError::invalid("prompt", "is empty; this model needs at least one token to start from"));
    }
    let vocab = served.tokenizer.vocab_size();
    let outside = prompts.iter().flat_map(|prompt| &prompt.ids).find(|id| **id as usize >= vocab);
    match outside {
        Some(id) => Err(ApiError::invalid("prompt", format!("token id {id} is outside of the vocabulary of {vocab}"))),
        None => Ok(prompts),
    }
}

/// Writes what happens as `text_completion` chunks.
struct TextShape {
    head: Head,
    served: Arc<Served>,
    job: Job,
}

impl TextShape {
    fn new(served: Arc<Served>, job: Job) -> Self {
        TextShape { head: Head::new("cmpl-", &served.id), served, job }
    }

    fn chunk(&self, choices: Vec<CompletionChoice>) -> CompletionResponse {
        let Head { id, created, model } = self.head.clone();
        CompletionResponse { id, object: "text_completion".into(), created, model, choices, usage: None, timings: None }
    }

    fn prompt(&self, index: usize) -> &PromptTokens {
        &self.job.prompts[index / self.job.checked.n]
    }

    /// The prompt's text as `echo` shows it.
    fn echoed(&self, index: usize) -> String {
        let prompt = self.prompt(index);
        let decoded = || String::from_utf8_lossy(&self.served.tokenizer.decode(&prompt.ids, false)).into_owned();
        prompt.text.clone().unwrap_or_else(decoded)
    }

    fn piece(&self, index: usize, piece: Piece) -> CompletionChoice {
        let base = if self.job.echo && self.job.logprobs.is_some() { self.echoed(index).chars().count() } else { 0 };
        let logprobs = self.job.logprobs.map(|_| {
            let mut logprobs = TextLogprobs::default();
            for token in &piece.tokens {
                push_text(&self.served, &mut logprobs, token.id, token.logprobs.as_ref(), base + token.offset);
            }
            logprobs
        });
        let token_ids = self.job.checked.token_ids.then(|| piece.tokens.iter().map(|token| token.id).collect());
        CompletionChoice { index, text: piece.text, logprobs, token_ids, ..CompletionChoice::default() }
    }

    fn prompt_logprobs(&self, index: usize, each: &[Option<Logprobs>]) -> CompletionChoice {
        let mut text = Detokenizer::new(self.served.tokenizer.clone(), false);
        let (mut logprobs, mut offset) = (TextLogprobs::default(), 0);
        for (id, logprob) in self.prompt(index).ids.iter().zip(each) {
            push_text(&self.served, &mut logprobs, *id, logprob.as_ref(), offset);
            offset += text.push(*id).chars().count();
        }
        CompletionChoice { index, text: self.echoed(index), logprobs: Some(logprobs), ..CompletionChoice::default() }
    }
}

impl Shape for TextShape {
    type Chunk = CompletionResponse;

    fn opening(&mut self) -> Vec<CompletionResponse> {
        let echo = self.job.echo && self.job.logprobs.is_none();
        if !echo && !self.job.checked.token_ids {
            return Vec::new();
        }
        let opening = |index| {
            let text = if echo { self.echoed(index) } else { String::new() };
            let prompt_token_ids = self.job.checked.token_ids.then(|| self.prompt(index).ids.clone());
            self.chunk(vec![CompletionChoice { index, text, prompt_token_ids, ..CompletionChoice::default() }])
        };
        (0..self.job.prompts.len() * self.job.checked.n).map(opening).collect()
    }

    fn news(&mut self, index: usize, news: News) -> Vec<CompletionResponse> {
        let choice = match news {
            News::Prefill(..) => return Vec::new(),
            // Control tokens have no text; they are news only to who asked for tokens.
            News::Text(piece)
                if piece.text.is_empty() && self.job.logprobs.is_none() && !self.job.checked.token_ids =>
            {
                return Vec::new();
            }
            News::Prompt(each) => self.prompt_logprobs(index, &each),
            News::Text(piece) => self.piece(index, piece),
            News::Finished(reason, _) => {
                CompletionChoice { index, finish_reason: Some(reason), ..CompletionChoice::default() }
            }
        };
        vec![self.chunk(vec![choice])]
    }

    fn closing(&mut self, usage: Usage, timings: Timings) -> CompletionResponse {
        CompletionResponse { usage: Some(usage), timings: Some(timings), ..self.chunk(Vec::new()) }
    }

    fn set_timings(chunk: &mut CompletionResponse, timings: Timings) {
        chunk.timings = Some(timings);
    }
}

/// Adds a chunk's news to the choices gathered so far.
fn fold(choices: &mut Vec<CompletionChoice>, chunk: CompletionResponse) {
    for news in chunk.choices {
        let Some(choice) = choices.iter_mut().find(|choice| choice.index == news.index) else {
            choices.push(news);
            continue;
        };
        choice.text.push_str(&news.text);
        choice.finish_reason = choice.finish_reason.or(news.finish_reason);
        match (&mut choice.logprobs, news.logprobs) {
            (Some(all), Some(more)) => {
                all.tokens.extend(more.tokens);
                all.token_logprobs.extend(more.token_logprobs);
                all.top_logprobs.extend(more.top_logprobs);
                all.text_offset.extend(more.text_offset);
            }
            (all, more) => *all = all.take().or(more),
        }
        match (&mut choice.token_ids, news.token_ids) {
            (Some(all), Some(more)) => all.extend(more),
            (all, more) => *all = all.take().or(more),
        }
        choice.prompt_token_ids = choice.prompt_token_ids.take().or(news.prompt_token_ids);
    }
}
