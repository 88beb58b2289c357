//! From what the daemon asks for to a model that can answer: engine, tokenizer, chat template. Reports progress.

use super::Failure;
use super::control::Reporter;
use super::protocol::{Report, Spec};
use super::vault::Vault;
use crate::api::backend::unix_seconds;
use crate::api::control::{ModelInfo, NodeBytes, PageBytes, Progress};
use crate::api::{RequestLimits, Served};
use crate::engine::{self, EngineOptions, Handle, ModelFacts, Opened, Remedy};
use crate::load::Method;
use crate::sys::numa;
use crate::text::{ChatTemplate, OutputFormat, Tokenizer};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Time between two reports of progress.
const INTERVAL: Duration = Duration::from_millis(200);

/// Loads the model and starts its engine.
pub(super) fn load(spec: Spec, vault: &mut Vault, reporter: &Reporter) -> Result<(Handle, Served), Failure> {
    let numa = numa::Wish::parse(&spec.numa).map_err(|error| Failure::Refused(format!("numa: {error}")))?;
    let kv_type = spec.kv_type.parse().map_err(|error: String| Failure::Refused(format!("kv_type: {error}")))?;
    let options = EngineOptions {
        context: spec.context,
        parallel: spec.parallel,
        queue: spec.queue,
        threads: spec.threads,
        cpus: spec.cpus.clone(),
        disable_isa: spec.disable_isa.clone(),
        kv_type,
        prefill_chunk: spec.prefill_chunk,
        numa,
        place: spec.place.clone(),
        ..EngineOptions::default()
    };
    let mut meter = Meter::new(reporter);
    let mut progress = |progress: crate::load::Progress| meter.report(progress.bytes_done, progress.bytes_total);
    let opened = engine::open_kept(&spec.path, &options, vault, &mut progress).map_err(|error| {
        let text = format!("cannot load '{}': {error}", spec.path.display());
        match error.remedy() {
            Remedy::None => Failure::Refused(text),
            Remedy::Later => Failure::Short(text),
            Remedy::Again => Failure::Failed(text),
        }
    })?;
    let ModelFacts { weight_bytes, read_by, .. } = &opened.facts;
    let (seconds, rate) = meter.total();
    let places = places(&opened.facts);
    if *read_by == Method::Kept.to_string() {
        tracing::info!("found {weight_bytes} bytes of weights in the vault{places}");
    } else {
        tracing::info!("read {weight_bytes} bytes of weights in {seconds:.2} s ({rate:.2} GB/s; {read_by}){places}");
    }
    for note in &opened.facts.notes {
        tracing::warn!("{note}");
    }
    let served = serve(spec, &opened)?;
    Ok((opened.handle, served))
}

/// Where the weights lie, in words, as far as it is known.
fn places(facts: &ModelFacts) -> String {
    let nodes = facts.nodes.iter().map(|(node, bytes)| format!("{} MiB on node {node}", bytes >> 20));
    let pages = Some(on_pages(&pages(&facts.pages))).filter(|text| !text.is_empty());
    let places: Vec<String> = pages.into_iter().chain(nodes).collect();
    if places.is_empty() { String::new() } else { format!("; {}", places.join(", ")) }
}

/// Bytes on pages of each size, in words.
pub(super) fn on_pages(pages: &[PageBytes]) -> String {
    let each = pages.iter().map(|on| format!("{} MiB on pages of {} KiB", on.bytes >> 20, on.page >> 10));
    each.collect::<Vec<_>>().join(", ")
}

/// Bytes on pages of each size, as the API has them.
pub(super) fn pages(bytes: &BTreeMap<usize, u64>) -> Vec<PageBytes> {
    bytes.iter().map(|(page, bytes)| PageBytes { page: *page as u64, bytes: *bytes }).collect()
}

fn serve(spec: Spec, opened: &Opened) -> Result<Served, Failure> {
    let refuse = |error| Failure::Refused(format!("cannot load '{}': {error}", spec.path.display()));
    let tokenizer = Tokenizer::from_metadata(&opened.metadata).map_err(refuse)?;
    if let Some(warning) = tokenizer.warning() {
        tracing::warn!("{warning}");
    }
    if tokenizer.vocab_size() > opened.facts.vocab {
        let (tokens, rows) = (tokenizer.vocab_size(), opened.facts.vocab);
        let what = format!("its vocabulary has {tokens} tokens, its embedding {rows}; convert the model again");
        return Err(Failure::Refused(format!("cannot load '{}': {what}", spec.path.display())));
    }
    let template = template(&spec, opened, &tokenizer)?;
    let format = template.as_ref().map(|template| OutputFormat::detect(template.source())).unwrap_or_default();
    let limits = RequestLimits { max_body_bytes: spec.max_body_bytes, ..RequestLimits::default() };
    Ok(Served {
        id: spec.id,
        aliases: spec.aliases,
        created: unix_seconds(),
        info: info(&opened.facts),
        tokenizer: Arc::new(tokenizer),
        template,
        format,
        backend: Box::new(opened.handle.clone()),
        limits,
    })
}

/// The configured chat template, which must be right, or else the file's own: a broken one of these costs only the chat.
fn template(spec: &Spec, opened: &Opened, tokenizer: &Tokenizer) -> Result<Option<ChatTemplate>, Failure> {
    let Some(path) = &spec.chat_template else {
        return Ok(ChatTemplate::from_metadata(&opened.metadata).unwrap_or_else(|error| {
            tracing::warn!("the model cannot chat until chat_template is configured for it: {error}");
            None
        }));
    };
    let refuse = |error: &dyn std::fmt::Display| {
        Failure::Refused(format!("cannot use the chat_template '{}': {error}", path.display()))
    };
    let source = std::fs::read_to_string(path).map_err(|error| refuse(&error))?;
    let literal = |id: Option<u32>| {
        let bytes = id.and_then(|id| tokenizer.token_bytes(id)).unwrap_or_default();
        String::from_utf8_lossy(bytes).into_owned()
    };
    let template = ChatTemplate::new(&source, &literal(tokenizer.bos()), &literal(tokenizer.eos()));
    template.map(Some).map_err(|error| refuse(&error))
}

fn info(facts: &ModelFacts) -> ModelInfo {
    ModelInfo {
        architecture: facts.architecture.clone(),
        name: facts.name.clone(),
        parameters: facts.parameters,
        weight_bytes: facts.weight_bytes,
        kv_bytes: facts.kv_bytes,
        state_bytes: facts.state_bytes,
        context: facts.context,
        trained_context: facts.trained_context,
        parallel: facts.parallel,
        threads: facts.threads,
        isa: facts.isa.clone(),
        vocab: facts.vocab,
        kv_type: facts.kv_type.clone(),
        read_by: facts.read_by.clone(),
        huge_page_bytes: facts.huge_page_bytes,
        pages: pages(&facts.pages),
        nodes: facts.nodes.iter().map(|(node, bytes)| NodeBytes { node: *node as u64, bytes: *bytes }).collect(),
    }
}

/// Reports progress a few times per second, with the speed since the last report.
struct Meter<'a> {
    reporter: &'a Reporter,
    /// Start and end of reading.
    span: Option<(Instant, Instant)>,
    /// Bytes have come.
    reads: bool,
    bytes: u64,
    last: Option<(Instant, u64)>,
}

impl<'a> Meter<'a> {
    fn new(reporter: &'a Reporter) -> Self {
        Meter { reporter, span: None, reads: false, bytes: 0, last: None }
    }

    /// Seconds of reading and GB/s over them.
    fn total(&self) -> (f64, f64) {
        let seconds = self.span.map_or(0.0, |(start, end)| (end - start).as_secs_f64());
        (seconds, self.bytes as f64 / 1e9 / seconds.max(1e-6))
    }

    fn report(&mut self, bytes_done: u64, bytes_total: u64) {
        let now = Instant::now();
        // Until the first byte is there memory was waited for.
        let start = self.span.filter(|_| self.reads).map_or(now, |(start, _)| start);
        self.span = Some((start, now));
        self.reads |= bytes_done > 0;
        self.bytes = bytes_total;
        let mut bytes_per_second = 0.0;
        if let Some((then, before)) = self.last {
            let passed = now - then;
            if passed < INTERVAL && bytes_done < bytes_total {
                return;
            }
            bytes_per_second = bytes_done.saturating_sub(before) as f64 / passed.as_secs_f64().max(1e-6);
        }
        self.last = Some((now, bytes_done));
        let progress = Progress { bytes_done, bytes_total, bytes_per_second };
        self.reporter.send(&Report::Loading { progress });
    }
}
