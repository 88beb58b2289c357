//! From a model, a host and a wish to a [`Plan`], or to the numbers of why there is none ([`Shortage`]). Chooses what the wish
//! leaves open: context, micro-batch, layout. Pure; `omnictl plan` shows the outcome.

use super::cost::{Cost, Terms};
use super::layout::{DeviceBytes, Layout};
use super::overrides::{Fixed, resolve};
use super::prefill::Prefill;
use super::search::{Found, Search, better};
use super::setting::{Ask, Held, Setting};
use super::shortage::Shortage;
use super::{DEFAULT_CONTEXT, Device, LEAST_CONTEXT, largest, reasons};
use serde::Serialize;

/// Most prompt tokens per step where nobody says, and what is tried where fewer make more fit.
const MICRO_BATCHES: [usize; 4] = [512, 256, 128, 64];

/// Prompts that are predicted, in tokens.
const PROMPTS: [usize; 2] = [512, 4096];

/// Where everything of a model goes, what that takes, and how fast it should be.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// The model's name.
    pub model: String,
    /// How it is to be run.
    pub setting: Setting,
    /// Where everything is.
    pub layout: Layout,
    /// Bytes on each device, the CPU first.
    pub devices: Vec<DeviceBytes>,
    /// Predicted time of a token of one sequence, at the beginning and at the end of the context.
    pub decode: [Decode; 2],
    /// Predicted time of prompts.
    pub prefill: Vec<Prefill>,
    /// Why it is so.
    pub reasons: Vec<String>,
    /// What the operator should know.
    pub notes: Vec<String>,
    /// What was placed by hand.
    pub manual: Option<Manual>,
}

/// A token's prediction.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Decode {
    /// Tokens before it.
    pub depth: usize,
    /// Tokens per second.
    pub rate: f64,
    /// What its time is made of.
    pub terms: Terms,
}

/// A placement by hand against the planner's own.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Manual {
    /// What each pattern does.
    pub said: Vec<String>,
    /// Tokens per second by hand.
    pub rate: f64,
    /// The same without; `None` where nothing fits without.
    pub automatic: Option<f64>,
}

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq)]
pub enum NoPlan {
    /// A placement by hand that cannot be.
    Rules(String),
    /// It does not fit.
    Short(Box<Shortage>),
}

impl std::fmt::Display for NoPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            NoPlan::Rules(what) => write!(f, "a placement by hand cannot be: {what}"),
            NoPlan::Short(shortage) => shortage.fmt(f),
        }
    }
}

impl std::error::Error for NoPlan {}

impl Plan {
    /// Adds what the model takes to what is held.
    pub fn claim(&self, held: &mut Held) {
        self.devices.iter().for_each(|bytes| held.add(bytes.device, bytes.taken()));
    }
}

/// Plans.
///
/// # Errors
/// [`NoPlan`]: patterns that cannot be, or the numbers of a model that does not fit, with what would.
pub fn plan(ask: &Ask) -> Result<Plan, NoPlan> {
    let fixed = resolve(&ask.request.rules, ask.parts, ask.host).map_err(NoPlan::Rules)?;
    if let Some((device, _)) = ask.request.limits.iter().find(|(device, _)| !ask.devices().contains(device)) {
        return Err(NoPlan::Rules(format!("there is no {device} whose memory could be limited")));
    }
    let default = ask.parts.trained.clamp(1, DEFAULT_CONTEXT);
    let wanted = ask.request.context.unwrap_or(default).max(1);
    let mut notes = Vec::new();
    let attempt = match attempt(ask, &fixed, wanted) {
        Some(attempt) => attempt,
        None => {
            let shorter = ask.request.context.is_none().then(|| longest(ask, &fixed, wanted)).flatten();
            let Some(shorter) = shorter.filter(|(context, _)| *context >= LEAST_CONTEXT.min(default)) else {
                return Err(NoPlan::Short(Box::new(Shortage::new(ask, &fixed, wanted))));
            };
            notes.push(format!("the context is {} instead of {default} tokens: memory allows no more", shorter.0));
            shorter.1
        }
    };
    if wanted > ask.parts.trained {
        let trained = ask.parts.trained;
        notes.push(format!("the context of {wanted} tokens is beyond the {trained} the model was trained for"));
    }
    notes.extend(attempt.note.clone());
    Ok(finish(ask, &fixed, attempt, notes))
}

/// The longest context that fits, and how.
pub(super) fn longest(ask: &Ask, fixed: &Fixed, wanted: usize) -> Option<(usize, Attempt)> {
    // In steps that nobody would want to see finer.
    const STEP: usize = 256;
    let steps = largest(wanted / STEP, |steps| attempt(ask, fixed, steps * STEP).is_some())?;
    attempt(ask, fixed, steps * STEP).map(|attempt| (steps * STEP, attempt))
}

/// A setting with the layouts that it allows.
pub(super) struct Attempt {
    setting: Setting,
    all: Vec<Found>,
    best: Found,
    note: Option<String>,
}

impl Attempt {
    /// Tokens per second of the best.
    pub fn rate(&self) -> f64 {
        1.0 / self.best.seconds
    }
}

/// Searches with a context of `context` tokens. The micro-batch is the one that was asked for; else it is lowered only
/// where that brings the whole model onto GPUs, or all of it but experts, or lets it fit at all.
pub(super) fn attempt(ask: &Ask, fixed: &Fixed, context: usize) -> Option<Attempt> {
    let asked = ask.request.micro_batch;
    let mut sizes: Vec<usize> = asked.map_or(MICRO_BATCHES.to_vec(), |asked| vec![asked]);
    sizes.iter_mut().for_each(|size| *size = (*size).clamp(1, context));
    sizes.dedup();
    let mut chosen: Option<Attempt> = None;
    for &micro_batch in &sizes {
        if chosen.as_ref().is_some_and(|chosen| !worth_lowering(ask, chosen.best.level())) {
            break;
        }
        let setting = Setting { context, parallel: ask.request.parallel, micro_batch, kv: ask.request.kv };
        let all = search(ask, fixed, &setting, false).run();
        let Some(best) = fastest(&all) else { continue };
        if chosen.as_ref().is_none_or(|chosen| best.level() > chosen.best.level()) {
            let lowered = (micro_batch < sizes[0]).then(|| {
                let what = ["it fits", "all but experts fits on GPUs", "all of it fits on GPUs"][best.level()];
                format!(
                    "the micro-batch is {micro_batch} instead of {} tokens: so {what}; prompts take longer",
                    sizes[0]
                )
            });
            chosen = Some(Attempt { setting, best, all, note: lowered });
        }
    }
    chosen
}

/// Whether a smaller micro-batch could bring more than `level` onto GPUs.
fn worth_lowering(ask: &Ask, level: usize) -> bool {
    let gpus = (0..ask.host.gpus.len()).map(|number| ask.memory(Device::Gpu(number))).sum::<u64>();
    let wanted = match level {
        0 => ask.parts.bytes() - ask.parts.embedding.bytes - ask.parts.expert_bytes(),
        1 => ask.parts.bytes() - ask.parts.embedding.bytes,
        _ => return false,
    };
    wanted <= gpus
}

/// The layout to take.
fn fastest(all: &[Found]) -> Option<Found> {
    all.iter()
        .fold(
            None,
            |best: Option<&Found>, next| if best.is_none_or(|best| better(next, best)) { Some(next) } else { best },
        )
        .cloned()
}

/// The search for one setting.
pub(super) fn search<'a>(ask: &'a Ask<'a>, fixed: &'a Fixed, setting: &Setting, boundless: bool) -> Search<'a> {
    let counts = (ask.count)(setting).bounded();
    let tokens = (setting.context as f64 * setting.parallel as f64).max(1.0);
    let kv_per_token = counts.kv as f64 / ask.parts.cached().max(1) as f64 / tokens;
    Search { ask, counts, fixed, cost: Cost::new(ask.host, ask.parts, kv_per_token), boundless }
}

/// The plan of the best layout.
fn finish(ask: &Ask, fixed: &Fixed, attempt: Attempt, notes: Vec<String>) -> Plan {
    let Attempt { setting, all, best, .. } = &attempt;
    let search = search(ask, fixed, setting, false);
    let decode = |depth| {
        let terms = search.cost.decode(&best.layout, depth);
        Decode { depth, rate: 1.0 / terms.total(), terms }
    };
    let decode = [decode(0), decode(setting.context)];
    let mut prompts: Vec<usize> = PROMPTS.iter().map(|tokens| (*tokens).min(setting.context)).collect();
    prompts.dedup();
    let prefill =
        prompts.iter().map(|tokens| search.cost.prefill(&best.layout, *tokens, setting.micro_batch)).collect();
    let manual = (!ask.request.rules.is_empty()).then(|| {
        let mut automatic = ask.clone();
        automatic.request.rules.clear();
        Manual {
            said: fixed.said.clone(),
            rate: decode[0].rate,
            automatic: plan(&automatic).ok().map(|plan| plan.decode[0].rate),
        }
    });
    Plan {
        model: ask.parts.name.clone(),
        setting: *setting,
        reasons: reasons::reasons(ask, best, all),
        layout: best.layout.clone(),
        devices: best.bytes.clone(),
        decode,
        prefill,
        notes,
        manual,
    }
}
