//! `POST /v1/chat/completions`: a conversation in, the assistant's answer out.

use super::answer::{self, Head, Shape, Totals, offload};
use super::backend::Served;
use super::conversation;
use super::error::ApiError;
use super::generate::{Generation, News, Piece, Plan};
use super::http::{Body, json, parse_json};
use super::logprobs::push_chat;
use super::params::{self, Checked, MAX_LOGPROBS};
use super::split::{Rules, Splitter};
use super::unsupported;
use super::wire::chat::{AssistantMessage, ChatChoice, ChatChunk, ChatRequest, ChatResponse, ChunkChoice, Delta};
use super::wire::{FinishReason, Timings, Usage};
use crate::engine::Request;
use bytes::Bytes;
use http::{Response, StatusCode};
use std::sync::Arc;

/// Answers one request.
#[utoipa::path(post, path = "/v1/chat/completions", tag = "completions", request_body = ChatRequest, responses(
    (status = 200, description = "The answer; with `stream` as server-sent events, each a chunk",
        content((ChatResponse = "application/json"), (ChatChunk = "text/event-stream"))),
    super::openapi::Refusals
))]
pub async fn chat_completions(served: Arc<Served>, body: Bytes) -> Result<Response<Body>, ApiError> {
    let context = served.clone();
    let job = offload(body.len(), move || Job::prepare(&context, &parse_json(&body)?)).await?;
    let mut totals = Totals::new([job.prompt.len()], job.checked.n);
    let generation = Generation::start(served.clone(), job.plans(&served))?;
    let (checked, limits) = (job.checked.clone(), served.limits);
    let mut shape = ChatShape::new(served, job);
    if checked.stream {
        return Ok(answer::stream(generation, shape, totals, checked.include_usage, limits.pace));
    }
    let mut choices = Vec::new();
    choices.resize_with(checked.n, ChunkChoice::default);
    answer::whole(generation, &mut shape, &mut totals, |chunk| fold(&mut choices, chunk)).await?;
    let Head { id, created, model } = shape.head;
    let response = ChatResponse {
        id,
        object: "chat.completion".into(),
        created,
        model,
        choices: choices.into_iter().map(whole).collect(),
        usage: totals.usage(),
        timings: totals.timings(),
    };
    Ok(json(StatusCode::OK, &response))
}

/// A request, valid.
pub(super) struct Job {
    prompt: Vec<u32>,
    checked: Checked,
    max_tokens: usize,
    rules: Rules,
    /// The answer continues the last message.
    continues: bool,
}

impl Job {
    /// Checks everything, renders and tokenizes the conversation.
    pub(super) fn prepare(served: &Served, request: &ChatRequest) -> Result<Self, ApiError> {
        unsupported::refuse(&request.other)?;
        if let Some(format) = request.response_format.as_ref().filter(|format| format.kind != "text") {
            let remedy = format!("'{}' is not enforced here; ask for it in words and check the answer", format.kind);
            return Err(ApiError::unsupported("response_format", remedy));
        }
        let top = params::integer("top_logprobs", request.top_logprobs, 0..=MAX_LOGPROBS)?;
        let wanted = request.logprobs.unwrap_or(false);
        if top.is_some_and(|top| top > 0) && !wanted {
            return Err(ApiError::invalid("top_logprobs", "needs logprobs: true"));
        }
        let checked = params::check(&request.sampling, wanted.then_some(top.unwrap_or(0)), &served.tokenizer)?;
        let split_reasoning = split_reasoning(request.reasoning_format.as_deref())?;
        let asked = max_tokens(request)?;
        let text = conversation::render(served, request)?;
        let prompt = served.prompt_tokens(&text);
        if prompt.is_empty() {
            return Err(ApiError::invalid("messages", "the chat template made an empty prompt of them"));
        }
        let context = served.backend.context();
        let max_tokens =
            params::room(prompt.len(), asked, context, context).map_err(|error| error.param("messages"))?;
        let rules = Rules {
            format: served.format,
            prompt: text.into(),
            split_reasoning,
            tools: conversation::tools(request)?.map(Arc::new),
            single_call: request.parallel_tool_calls == Some(false),
        };
        let continues = request.continue_final_message.unwrap_or(false);
        Ok(Job { prompt, checked, max_tokens, rules, continues })
    }

    fn plans(&self, served: &Served) -> Vec<Plan> {
        let markup = self.rules.format.markup(self.rules.tools.is_some());
        let shown: Arc<[u32]> = markup.filter_map(|literal| served.tokenizer.token_to_id(literal)).collect();
        let plan = |i: usize| {
            let mut sampling = self.checked.params.clone();
            sampling.seed = sampling.seed.wrapping_add(i as u64);
            let request = Request {
                prompt: self.prompt.clone(),
                max_tokens: self.max_tokens,
                sampling,
                stop_tokens: self.checked.stop_tokens.clone(),
                prompt_logprobs: None,
                cache: self.checked.cache,
            };
            Plan { request, stops: self.checked.stops.clone(), continues: self.continues, shown: shown.clone() }
        };
        (0..self.checked.n).map(plan).collect()
    }
}

fn max_tokens(request: &ChatRequest) -> Result<Option<usize>, ApiError> {
    let range = 1..=i64::from(u32::MAX);
    let older = params::integer("max_tokens", request.max_tokens, range.clone())?;
    Ok(params::integer("max_completion_tokens", request.max_completion_tokens, range)?.or(older))
}

fn split_reasoning(format: Option<&str>) -> Result<bool, ApiError> {
    match format {
        None | Some("auto" | "deepseek") => Ok(true),
        Some("none") => Ok(false),
        Some(other) => {
            Err(ApiError::invalid("reasoning_format", format!("must be none, auto or deepseek, not '{other}'")))
        }
    }
}

/// Writes what happens as `chat.completion.chunk`s.
struct ChatShape {
    head: Head,
    served: Arc<Served>,
    job: Job,
    texts: Vec<Splitter>,
    /// Tokens of chunks that had nothing to say yet, per choice: they go with the next one.
    held: Vec<ChunkChoice>,
}

impl ChatShape {
    fn new(served: Arc<Served>, job: Job) -> Self {
        let n = job.checked.n;
        let texts = (0..n).map(|_| Splitter::new(job.rules.clone())).collect();
        let held = (0..n).map(|index| ChunkChoice { index, ..ChunkChoice::default() }).collect();
        ChatShape { head: Head::new("chatcmpl-", &served.id), served, job, texts, held }
    }

    fn chunk(&self, choices: Vec<ChunkChoice>) -> ChatChunk {
        let Head { id, created, model } = self.head.clone();
        ChatChunk { id, object: "chat.completion.chunk".into(), created, model, choices, usage: None, timings: None }
    }

    /// Adds a piece's tokens to what goes with the choice's next chunk.
    fn hold(&mut self, index: usize, piece: &Piece) {
        let held = &mut self.held[index];
        for token in &piece.tokens {
            if let Some(logprobs) = &token.logprobs {
                push_chat(&self.served, held.logprobs.get_or_insert_default(), token.id, logprobs);
            }
            if self.job.checked.token_ids {
                held.token_ids.get_or_insert_default().push(token.id);
            }
        }
    }

    /// The chunk of a choice with all that was held for it.
    fn send(&mut self, index: usize, delta: Delta, finish_reason: Option<FinishReason>) -> ChatChunk {
        let held = ChunkChoice { index, ..ChunkChoice::default() };
        let choice = std::mem::replace(&mut self.held[index], held);
        self.chunk(vec![ChunkChoice { delta, finish_reason, ..choice }])
    }
}

impl Shape for ChatShape {
    type Chunk = ChatChunk;

    fn opening(&mut self) -> Vec<ChatChunk> {
        let opening = |index| {
            let delta = Delta { role: Some("assistant".into()), content: Some(String::new()), ..Delta::default() };
            let prompt_token_ids = self.job.checked.token_ids.then(|| self.job.prompt.clone());
            self.chunk(vec![ChunkChoice { index, delta, prompt_token_ids, ..ChunkChoice::default() }])
        };
        (0..self.job.checked.n).map(opening).collect()
    }

    fn news(&mut self, index: usize, news: News) -> Vec<ChatChunk> {
        match news {
            News::Prefill(..) | News::Prompt(_) => Vec::new(),
            News::Text(piece) => {
                self.hold(index, &piece);
                let delta = self.texts[index].push(&piece.text);
                if delta == Delta::default() {
                    return Vec::new();
                }
                vec![self.send(index, delta, None)]
            }
            News::Finished(reason, _) => {
                let mut delta = self.texts[index].finish(reason == FinishReason::Length);
                let called = !delta.tool_calls.is_empty();
                let reason = if called && reason == FinishReason::Stop { FinishReason::ToolCalls } else { reason };
                let mut chunks = Vec::new();
                if delta != Delta::default() {
                    chunks.push(self.send(index, std::mem::take(&mut delta), None));
                }
                chunks.push(self.send(index, delta, Some(reason)));
                chunks
            }
        }
    }

    fn closing(&mut self, usage: Usage, timings: Timings) -> ChatChunk {
        ChatChunk { usage: Some(usage), timings: Some(timings), ..self.chunk(Vec::new()) }
    }

    fn set_timings(chunk: &mut ChatChunk, timings: Timings) {
        chunk.timings = Some(timings);
    }
}

/// Adds a chunk's news to the choices gathered so far; `choices[i]` is choice `i`.
fn fold(choices: &mut [ChunkChoice], chunk: ChatChunk) {
    fn join(all: &mut Option<String>, more: Option<String>) {
        match (all.as_mut(), more) {
            (Some(all), Some(more)) => all.push_str(&more),
            (_, more) => *all = all.take().or(more),
        }
    }
    for news in chunk.choices {
        let choice = &mut choices[news.index];
        choice.index = news.index;
        join(&mut choice.delta.content, news.delta.content);
        join(&mut choice.delta.reasoning_content, news.delta.reasoning_content);
        choice.delta.tool_calls.extend(news.delta.tool_calls);
        choice.finish_reason = choice.finish_reason.or(news.finish_reason);
        if let Some(more) = news.logprobs {
            choice.logprobs.get_or_insert_default().content.extend(more.content);
        }
        if let Some(more) = news.token_ids {
            choice.token_ids.get_or_insert_default().extend(more);
        }
        choice.prompt_token_ids = choice.prompt_token_ids.take().or(news.prompt_token_ids);
    }
}

/// The answer a gathered choice stands for.
fn whole(choice: ChunkChoice) -> ChatChoice {
    let Delta { content, reasoning_content, mut tool_calls, .. } = choice.delta;
    tool_calls.iter_mut().for_each(|call| call.index = None);
    // Clients expect a string, unless there are only calls.
    let content = content.or(Some(String::new())).filter(|text| !text.is_empty() || tool_calls.is_empty());
    let message = AssistantMessage { role: "assistant".into(), content, refusal: None, reasoning_content, tool_calls };
    ChatChoice {
        index: choice.index,
        message,
        logprobs: choice.logprobs,
        finish_reason: choice.finish_reason.unwrap_or(FinishReason::Length),
        token_ids: choice.token_ids,
        prompt_token_ids: choice.prompt_token_ids,
    }
}
