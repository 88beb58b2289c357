//! The checks of a loaded model, through the daemon: what it answers to the same question decoding and at once, with its
//! prefix cache and without, alone and beside others. It takes no second copy of the weights, and tests what is served.

use super::report::{Check, Measure, Report};
use super::{SelftestArgs, conclude};
use crate::api::control::{ModelInfo, ModelState, ModelStatus};
use crate::api::wire::completions::CompletionResponse;
use crate::ctl::client::{Client, segment};
use crate::ctl::error::Error;
use crate::ctl::output::Output;
use serde_json::{Value, json};
use std::time::Instant;
use tokio::task::JoinSet;

/// Tokens of the short prompt, of the long one where the context allows it, and drawn for each.
const SHORT: usize = 24;
const LONG: usize = 640;
const DRAWN: usize = 16;
/// Tokens that a second turn adds.
const TURN: usize = 40;
/// Most requests at once.
const MOST: usize = 4;
/// Sums over logits may be taken in another order.
const ROUNDING: f64 = 1e-4;
/// Latent attention has two forms, chosen by the rows of a step, which depend on the cache and on neighbours.
const FORMS: f64 = 0.5;

/// A loaded model.
struct Loaded<'a> {
    client: &'a Client,
    id: String,
    info: ModelInfo,
}

/// Drawn tokens and their log-probabilities.
#[derive(Clone, Debug, Default)]
struct Answer {
    ids: Vec<u32>,
    logprobs: Vec<f32>,
}

/// Runs the checks on a loaded model and prints a line for each.
///
/// # Errors
/// The daemon cannot be reached, the model is not loaded, or some check failed.
pub async fn run_served(client: &Client, args: &SelftestArgs, out: Output) -> Result<(), Error> {
    let status: ModelStatus = client.get(&format!("/control/v1/models/{}", segment(&args.model))).await?;
    let ready = status.info.filter(|_| status.state == ModelState::Ready);
    let Some(info) = ready else {
        let (id, state) = (&status.id, status.state.name());
        return Err(Error::Failed(format!(
            "model '{id}' is {state}; load it first: omnictl load {id}, or name its file"
        )));
    };
    let model = Loaded { client, id: status.id, info };
    let long = args.long.unwrap_or(LONG).min(model.info.context.saturating_sub(2 * DRAWN + TURN));
    let mut checks = Vec::new();
    for nth in 0..4 {
        let check = match nth {
            0 => model.steps().await?,
            1 => model.again(long).await?,
            2 => model.turns(long).await?,
            _ => model.together().await?,
        };
        if !out.json {
            out.line(&check.line(out))?;
        }
        checks.push(check);
    }
    let ok = checks.iter().all(|check| check.ok);
    let (architecture, isa) = (model.info.architecture, model.info.isa);
    conclude(&Report { model: model.id, architecture, isa, ok, checks }, out)
}

impl Loaded<'_> {
    fn prompt(&self, nth: u64, len: usize) -> Vec<u32> {
        super::prompt(nth, len, self.info.vocab)
    }

    fn request(&self, prompt: &[u32], tokens: usize, cache: bool, echo: bool) -> Value {
        json!({
            "model": self.id, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": true, "logprobs": 0,
            "return_token_ids": true, "cache_prompt": cache, "echo": echo,
        })
    }

    async fn ask(&self, prompt: &[u32], cache: bool) -> Result<Answer, Error> {
        answer(self.client, &self.request(prompt, DRAWN, cache, false)).await
    }

    /// Beyond which log-probabilities may not differ.
    fn bound(&self) -> f64 {
        if matches!(&*self.info.architecture, "deepseek2" | "mistral4") { FORMS } else { ROUNDING }
    }

    fn check(&self, name: &'static str, prompt: String, start: Instant, pairs: &[(Answer, Answer)]) -> Check {
        let (mut found, mut expected) = (Vec::new(), Vec::new());
        // Where rounding may differ, a near tie may fall out differently, and all after it.
        let count = if self.bound() == FORMS { 1 } else { DRAWN };
        for (a, b) in pairs {
            let same = a.ids.len() == DRAWN && a.logprobs.len() == DRAWN && a.ids.get(..count) == b.ids.get(..count);
            found.extend(a.logprobs.iter().take(count).map(|&x| if same { x } else { f32::NAN }));
            expected.extend(b.logprobs.iter().take(count));
        }
        Check::of(name, prompt, start, Measure::Logprob(self.bound()), &found, &expected, 1)
    }

    /// What was drawn token by token, evaluated at once.
    async fn steps(&self) -> Result<Check, Error> {
        let (start, prompt) = (Instant::now(), self.prompt(1, SHORT));
        let drawn = self.ask(&prompt, false).await?;
        let whole = [&prompt[..], &drawn.ids].concat();
        let mut at_once = answer(self.client, &self.request(&whole, 0, false, true)).await?;
        at_once.ids.clone_from(&drawn.ids);
        at_once.logprobs.drain(..at_once.logprobs.len().min(SHORT));
        Ok(self.check("decoding and prefill", format!("{SHORT} tokens"), start, &[(drawn, at_once)]))
    }

    /// A long prompt anew, and out of the cache.
    async fn again(&self, long: usize) -> Result<Check, Error> {
        let (start, prompt) = (Instant::now(), self.prompt(2, long));
        let anew = self.ask(&prompt, false).await?;
        self.ask(&prompt, true).await?;
        let again = self.ask(&prompt, true).await?;
        Ok(self.check("prompt with cache and without", format!("{long} tokens"), start, &[(again, anew)]))
    }

    /// A conversation's second turn, which goes on behind the first one's answer.
    async fn turns(&self, long: usize) -> Result<Check, Error> {
        let (start, first) = (Instant::now(), self.prompt(3, long));
        let answer = self.ask(&first, true).await?;
        let second = [&first[..], &answer.ids, &self.prompt(4, TURN)].concat();
        let (found, expected) = (self.ask(&second, true).await?, self.ask(&second, false).await?);
        let what = format!("{} tokens", second.len());
        Ok(self.check("second turn with cache and without", what, start, &[(found, expected)]))
    }

    /// As many at once as run side by side, of mixed lengths.
    async fn together(&self) -> Result<Check, Error> {
        let start = Instant::now();
        let count = self.info.parallel.clamp(1, MOST);
        let most = self.info.context.saturating_sub(2 * DRAWN).max(1);
        let prompt = |nth: usize| self.prompt(5 + nth as u64, (SHORT + 31 * nth).min(most));
        let prompts: Vec<Vec<u32>> = (0..count).map(prompt).collect();
        let mut alone = Vec::new();
        for prompt in &prompts {
            alone.push(self.ask(prompt, false).await?);
        }
        let mut running = JoinSet::new();
        for (nth, prompt) in prompts.iter().enumerate() {
            let (client, body) = (self.client.clone(), self.request(prompt, DRAWN, false, false));
            running.spawn(async move { (nth, answer(&client, &body).await) });
        }
        let mut found = vec![Answer::default(); count];
        while let Some(done) = running.join_next().await {
            let (nth, answer) = done.map_err(|error| Error::Failed(format!("a request ended by a bug: {error}")))?;
            found[nth] = answer?;
        }
        let pairs: Vec<_> = found.into_iter().zip(alone).collect();
        Ok(self.check("at once and alone", format!("{count} requests"), start, &pairs))
    }
}

async fn answer(client: &Client, body: &Value) -> Result<Answer, Error> {
    let response: CompletionResponse = client.post("/v1/completions", body).await?;
    let choice = response.choices.into_iter().next().unwrap_or_default();
    let logprobs = choice.logprobs.unwrap_or_default().token_logprobs;
    // The first token of a prompt has none.
    let logprobs = logprobs.into_iter().map(Option::unwrap_or_default).collect();
    Ok(Answer { ids: choice.token_ids.unwrap_or_default(), logprobs })
}
