//! `GET /metrics`: figures of the daemon and of each model in the OpenMetrics text format, gathered anew at each scrape,
//! so nothing has to be kept up to date in between. Counters of workers that died are kept, so they only grow.

use super::model::Model;
use super::router::App;
use crate::api::control::{ExpertChoices, ModelState, Skew, Stats};
use crate::api::error::ApiError;
use crate::api::http::{Body, with_type};
use http::{Response, StatusCode};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use std::sync::Arc;
use std::sync::atomic::Ordering;

const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

const STATES: [ModelState; 6] = [
    ModelState::Unloaded,
    ModelState::Loading,
    ModelState::Ready,
    ModelState::Draining,
    ModelState::Restarting,
    ModelState::Failed,
];

/// The answer.
///
/// # Errors
/// 500 when the text cannot be built.
pub fn render(app: &Arc<App>) -> Result<Response<Body>, ApiError> {
    let mut registry = Registry::with_prefix("omni");
    registry.register_collector(Box::new(Scrape::of(app)));
    let mut text = String::new();
    encode(&mut text, &registry).map_err(|error| ApiError::internal(format!("the metrics: {error}")))?;
    Ok(with_type(StatusCode::OK, CONTENT_TYPE, text))
}

/// One model at one moment.
#[derive(Debug)]
struct Figures {
    id: String,
    state: ModelState,
    restarts: u64,
    active: u64,
    routed: u64,
    cut: u64,
    weight_bytes: u64,
    kv_bytes: u64,
    state_bytes: u64,
    load_seconds: f64,
    stats: Stats,
    experts: Option<ExpertChoices>,
}

impl Figures {
    fn of(model: &Model) -> Self {
        let status = model.status();
        let info = status.info.unwrap_or_default();
        Self {
            id: status.id,
            state: status.state,
            restarts: status.restarts,
            active: status.active_requests,
            routed: model.routed.load(Ordering::Relaxed),
            cut: model.cut.load(Ordering::Relaxed),
            weight_bytes: info.weight_bytes,
            kv_bytes: info.kv_bytes,
            state_bytes: info.state_bytes,
            load_seconds: status.load_seconds.unwrap_or_default(),
            stats: model.totals(),
            experts: model.experts(),
        }
    }
}

#[derive(Debug)]
struct Scrape {
    uptime: f64,
    requests: u64,
    draining: bool,
    models: Vec<Figures>,
}

type Gauge = (&'static str, &'static str, fn(&Figures) -> f64);
type Counter = (&'static str, &'static str, fn(&Figures) -> f64);

const GAUGES: [Gauge; 10] = [
    ("model_requests_active", "Requests in flight through the daemon", |m| m.active as f64),
    ("model_sequences_running", "Sequences that the engine runs", |m| m.stats.running as f64),
    ("model_requests_waiting", "Requests in the engine's queue", |m| m.stats.waiting as f64),
    ("model_kv_blocks", "KV cache blocks in all", |m| m.stats.kv_blocks_total as f64),
    ("model_kv_blocks_used", "KV cache blocks in use", |m| m.stats.kv_blocks_used as f64),
    ("model_weight_bytes", "Bytes of weights resident", |m| m.weight_bytes as f64),
    ("model_kv_bytes", "Bytes reserved for the KV cache", |m| m.kv_bytes as f64),
    ("model_state_bytes", "Bytes reserved for recurrent state", |m| m.state_bytes as f64),
    ("model_load_seconds", "Duration of the last load", |m| m.load_seconds),
    ("model_engine_beat_age_seconds", "Since the engine last came round its loop", |m| {
        m.stats.beat_age_ms as f64 / 1e3
    }),
];

const COUNTERS: [Counter; 11] = [
    ("model_requests", "Requests routed to the model", |m| m.routed as f64),
    ("model_answers_cut", "Answers cut off by the worker's death", |m| m.cut as f64),
    ("model_restarts", "Workers started again after a death", |m| m.restarts as f64),
    ("model_sequences", "Sequences that the engine took", |m| m.stats.requests_total as f64),
    ("model_sequences_cancelled", "Sequences whose client went away", |m| m.stats.cancelled_total as f64),
    ("model_prompt_tokens", "Prompt tokens", |m| m.stats.prompt_tokens_total as f64),
    ("model_cached_tokens", "Prompt tokens taken from the prefix cache", |m| m.stats.cached_tokens_total as f64),
    ("model_completion_tokens", "Tokens generated", |m| m.stats.completion_tokens_total as f64),
    ("model_steps", "Steps of the engine", |m| m.stats.steps_total as f64),
    ("model_prefill_seconds", "Time spent evaluating prompts", |m| m.stats.prefill_seconds_total),
    ("model_decode_seconds", "Time spent generating", |m| m.stats.decode_seconds_total),
];

impl Scrape {
    fn of(app: &App) -> Self {
        Self {
            uptime: app.started.elapsed().as_secs_f64(),
            requests: app.requests.load(Ordering::Relaxed),
            draining: app.registry.shared.draining.load(Ordering::Acquire),
            models: app.registry.models().iter().map(|model| Figures::of(model)).collect(),
        }
    }

    fn daemon(&self, encoder: &mut DescriptorEncoder<'_>) -> std::fmt::Result {
        let gauges = [
            ("uptime_seconds", "Since the daemon started", self.uptime),
            ("draining", "1 while the daemon stops", f64::from(u8::from(self.draining))),
            ("models", "Models known", self.models.len() as f64),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        let counter = ConstCounter::new(self.requests);
        counter.encode(encoder.encode_descriptor(
            "http_requests",
            "Requests of all kinds",
            None,
            counter.metric_type(),
        )?)
    }

    fn states(&self, encoder: &mut DescriptorEncoder<'_>) -> std::fmt::Result {
        let kind = ConstGauge::new(0i64).metric_type();
        let mut family = encoder.encode_descriptor("model_state", "1 for the state the model is in", None, kind)?;
        for (model, state) in self.models.iter().flat_map(|model| STATES.map(|state| (model, state))) {
            let gauge = ConstGauge::new(i64::from(model.state == state));
            gauge.encode(family.encode_family(&[("model", model.id.as_str()), ("state", state.name())])?)?;
        }
        Ok(())
    }
}

/// What is shown of each layer's experts: a few numbers, however many experts there are.
type OfLayer = (&'static str, &'static str, fn(&Skew) -> f64);

const EXPERT_GAUGES: [OfLayer; 4] = [
    ("model_expert_share_min", "Share of a layer's choices that its least chosen expert has", |s| s.min),
    ("model_expert_share_median", "Share that its middle expert has", |s| s.median),
    ("model_expert_share_max", "Share that its most chosen expert has", |s| s.max),
    ("model_experts_unused", "Experts of a layer that were never chosen", |s| s.unused as f64),
];

impl Scrape {
    /// By model and layer, since the worker started.
    fn experts(&self, encoder: &mut DescriptorEncoder<'_>) -> std::fmt::Result {
        let known = self.models.iter().filter_map(|model| Some((model.id.as_str(), model.experts.as_ref()?)));
        let rows = || known.clone().flat_map(|(id, experts)| experts.layers.iter().map(move |layer| (id, layer)));
        if rows().next().is_none() {
            return Ok(());
        }
        let help = "Choices of experts in a layer, since the model was loaded";
        let kind = ConstCounter::new(0u64).metric_type();
        let mut family = encoder.encode_descriptor("model_expert_choices", help, None, kind)?;
        for (id, layer) in rows() {
            let labels = [("model", id), ("layer", &*layer.layer.to_string())];
            ConstCounter::new(layer.total()).encode(family.encode_family(&labels)?)?;
        }
        for (name, help, value) in EXPERT_GAUGES {
            let kind = ConstGauge::new(0.0).metric_type();
            let mut family = encoder.encode_descriptor(name, help, None, kind)?;
            for (id, layer) in rows() {
                let labels = [("model", id), ("layer", &*layer.layer.to_string())];
                ConstGauge::new(value(&layer.skew())).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        self.daemon(&mut encoder)?;
        if self.models.is_empty() {
            return Ok(());
        }
        self.states(&mut encoder)?;
        for (name, help, value) in GAUGES {
            let kind = ConstGauge::new(0.0).metric_type();
            let mut family = encoder.encode_descriptor(name, help, None, kind)?;
            for model in &self.models {
                ConstGauge::new(value(model)).encode(family.encode_family(&[("model", model.id.as_str())])?)?;
            }
        }
        for (name, help, value) in COUNTERS {
            let kind = ConstCounter::new(0.0).metric_type();
            let mut family = encoder.encode_descriptor(name, help, None, kind)?;
            for model in &self.models {
                ConstCounter::new(value(model)).encode(family.encode_family(&[("model", model.id.as_str())])?)?;
            }
        }
        self.experts(&mut encoder)
    }
}
