//! From a generation to an answer: streamed as it comes, or folded into one. The endpoints give the shape; streaming is
//! the primitive, and a whole answer is the sum of its chunks.

use super::backend::{fresh_id, unix_seconds};
use super::error::ApiError;
use super::generate::{Generation, News, Output};
use super::http::Body;
use super::sse::{self, Gone, Pace, Sender};
use super::wire::{PromptTokensDetails, Timings, Usage};
use crate::engine;
use http::Response;
use serde::Serialize;
use std::time::Duration;
use tokio::sync::Semaphore;

/// What all chunks of an answer share.
#[derive(Clone, Debug)]
pub struct Head {
    /// `cmpl-…` or `chatcmpl-…`.
    pub id: String,
    /// Unix seconds.
    pub created: u64,
    /// The model that answers.
    pub model: String,
}

impl Head {
    /// A new answer's head.
    pub fn new(prefix: &str, model: &str) -> Self {
        Head { id: fresh_id(prefix), created: unix_seconds(), model: model.into() }
    }
}

/// How an endpoint writes what happens to its choices.
pub trait Shape: Send + 'static {
    /// One event of its stream.
    type Chunk: Serialize + Send + Sync;

    /// Chunks that come before anything is generated.
    fn opening(&mut self) -> Vec<Self::Chunk>;
    /// Chunks that tell the news of choice `index`.
    fn news(&mut self, index: usize, news: News) -> Vec<Self::Chunk>;
    /// The chunk without choices that carries usage.
    fn closing(&mut self, usage: Usage, timings: Timings) -> Self::Chunk;
    /// Adds the times to the last chunk when there is none for usage.
    fn set_timings(chunk: &mut Self::Chunk, timings: Timings);
}

/// Counts and times of a request over all of its choices.
#[derive(Clone, Debug)]
pub struct Totals {
    /// Choices per prompt.
    n: usize,
    left: usize,
    usage: Usage,
    timings: Timings,
}

impl Totals {
    /// For prompts of so many tokens with `n` choices each.
    pub fn new(prompts: impl IntoIterator<Item = usize>, n: usize) -> Self {
        let (count, prompt_tokens) = prompts.into_iter().fold((0, 0), |(count, sum), tokens| (count + 1, sum + tokens));
        let usage = Usage { prompt_tokens, total_tokens: prompt_tokens, ..Usage::default() };
        Totals { n: n.max(1), left: count * n, usage, timings: Timings::default() }
    }

    /// Adds choice `index`, which is complete.
    fn add(&mut self, index: usize, choice: &engine::Usage) {
        self.left = self.left.saturating_sub(1);
        self.usage.completion_tokens += choice.completion_tokens;
        self.usage.total_tokens = self.usage.prompt_tokens + self.usage.completion_tokens;
        if index.is_multiple_of(self.n) {
            // Of several choices the first one tells what was cached before the request.
            self.usage.prompt_tokens_details = PromptTokensDetails {
                cached_tokens: self.usage.prompt_tokens_details.cached_tokens + choice.cached_tokens,
            };
        }
        let longest = |ms: &mut f64, duration: Duration| *ms = ms.max(duration.as_secs_f64() * 1e3);
        longest(&mut self.timings.queue_ms, choice.queued);
        longest(&mut self.timings.prompt_ms, choice.prefill);
        longest(&mut self.timings.predicted_ms, choice.decode);
    }

    /// Tokens.
    pub fn usage(&self) -> Usage {
        self.usage
    }

    /// Times.
    pub fn timings(&self) -> Timings {
        let cache_n = self.usage.prompt_tokens_details.cached_tokens;
        let prompt_n = self.usage.prompt_tokens.saturating_sub(cache_n);
        let predicted_n = self.usage.completion_tokens;
        let rate = |count: usize, ms: f64| if ms > 0.0 { count as f64 * 1e3 / ms } else { 0.0 };
        Timings {
            cache_n,
            prompt_n,
            prompt_per_second: rate(prompt_n, self.timings.prompt_ms),
            predicted_n,
            predicted_per_second: rate(predicted_n, self.timings.predicted_ms),
            ..self.timings
        }
    }
}

/// Runs a generation to its end and hands each chunk to `fold`.
pub async fn whole<S: Shape>(
    mut generation: Generation,
    shape: &mut S,
    totals: &mut Totals,
    mut fold: impl FnMut(S::Chunk),
) -> Result<(), ApiError> {
    shape.opening().into_iter().for_each(&mut fold);
    while let Some(output) = generation.next().await {
        let Output { index, news } = output?;
        if let News::Finished(_, usage) = &news {
            totals.add(index, usage);
        }
        shape.news(index, news).into_iter().for_each(&mut fold);
    }
    Ok(())
}

/// Answers with a stream at once and feeds it from a task, which ends with the generation or with its reader.
pub fn stream<S: Shape>(
    generation: Generation,
    shape: S,
    totals: Totals,
    include_usage: bool,
    pace: Pace,
) -> Response<Body> {
    let (sender, response) = sse::channel(pace);
    tokio::spawn(async move {
        let feed = feed(generation, shape, totals, include_usage, &sender);
        tokio::select! {
            result = feed => if result.is_err() { tracing::debug!("a stream's reader has gone; its work is cancelled") },
            () = sender.closed() => tracing::debug!("a stream's reader has gone; its work is cancelled"),
        }
    });
    response
}

async fn feed<S: Shape>(
    mut generation: Generation,
    mut shape: S,
    mut totals: Totals,
    include_usage: bool,
    sender: &Sender,
) -> Result<(), Gone> {
    for chunk in shape.opening() {
        sender.data(&chunk).await?;
    }
    while let Some(output) = generation.next().await {
        let Output { index, news } = match output {
            Ok(output) => output,
            Err(error) => return sender.error(&error).await,
        };
        match &news {
            News::Prefill(done, total) if done < total => sender.comment(&format!("prefill {done}/{total}")).await?,
            News::Finished(_, usage) => totals.add(index, usage),
            _ => {}
        }
        let mut chunks = shape.news(index, news);
        if totals.left == 0
            && !include_usage
            && let Some(last) = chunks.last_mut()
        {
            S::set_timings(last, totals.timings());
        }
        for chunk in &chunks {
            sender.data(chunk).await?;
        }
    }
    if include_usage {
        sender.data(&shape.closing(totals.usage(), totals.timings())).await?;
    }
    sender.done().await
}

/// Bodies from so many bytes on are prepared one at a time: parsed, rendered and tokenized one takes up to fifty times its
/// size (31 MB of one letter: 1 GB).
const LARGE: usize = 1 << 20;
/// The process has one memory, whoever serves.
static LARGE_TURN: Semaphore = Semaphore::const_new(1);

/// Runs work that may take long for large inputs (tokenizing, rendering) off the threads that serve connections.
pub async fn offload<T: Send + 'static>(
    bytes: usize,
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    if bytes < 8 << 10 {
        return work();
    }
    // Never closed. It goes with the work, which goes on when its client leaves.
    let turn = if bytes < LARGE { None } else { LARGE_TURN.acquire().await.ok() };
    let work = move || {
        let _turn = turn;
        work()
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => {
            tracing::error!(%error, "preparing a request failed");
            Err(ApiError::internal("an internal error occurred; the server's log has the details"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test]
    async fn large_requests_are_prepared_one_at_a_time() {
        static NOW: AtomicUsize = AtomicUsize::new(0);
        static DONE: AtomicUsize = AtomicUsize::new(0);
        let large = || {
            offload(LARGE, || {
                assert_eq!(NOW.fetch_add(1, Ordering::SeqCst), 0, "two large ones at once");
                std::thread::sleep(Duration::from_millis(50));
                NOW.fetch_sub(1, Ordering::SeqCst);
                Ok(DONE.fetch_add(1, Ordering::SeqCst))
            })
        };
        let all = futures_util::future::try_join_all((0..4).map(|_| large()));
        let small = async {
            offload(LARGE - 1, || Ok(())).await.unwrap();
            DONE.load(Ordering::SeqCst)
        };
        let (all, small) = tokio::join!(all, small);
        assert_eq!(all.unwrap().len(), 4);
        assert!(small < 4, "smaller ones pass by");
        // One whose client leaves while it runs keeps its turn to its end.
        drop(tokio::time::timeout(Duration::from_millis(10), large()).await);
        large().await.unwrap();
    }
}
