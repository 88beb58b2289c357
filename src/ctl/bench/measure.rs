//! The measurement itself, on the executor alone: every case in turn, round after round, so that a neighbour that wakes
//! up disturbs all of them alike; and, where there is one, the peer right after each of ours.

use super::peer::Peer;
use super::profile::{self, ProfileRow};
use super::row::{Case, PeerRow, Row, mean_and_deviation, median};
use super::{Error, Subject};
use crate::exec::{self, Batch, CpuOptions, Executor, KV_BLOCK, KvType, Options, SeqSlice, StateUse};
use std::time::{Duration, Instant};

/// Tokens of the unmeasured run before the rounds.
const WARM_UP: usize = 64;

/// How to measure.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Threads, CPUs, instruction sets: one backend each, measured in turns.
    pub backends: Vec<CpuOptions>,
    /// Element type of the KV cache.
    pub kv: KvType,
    /// Most tokens of a step.
    pub ubatch: usize,
    /// Rounds.
    pub repetitions: usize,
    /// Note what each operation takes, in a round of its own.
    pub profile: bool,
}

/// Measures all `cases` with all backends. `progress` is told what is measured next.
///
/// # Errors
/// When a backend is refused, and the peer's.
pub fn measure(
    subject: &Subject,
    settings: &Settings,
    cases: &[Case],
    mut peer: Option<&mut Peer>,
    progress: &mut dyn FnMut(&str),
) -> Result<Vec<Row>, Error> {
    let need = Need::of(cases, settings.ubatch);
    let mut benches = Vec::with_capacity(settings.backends.len());
    for cpu in &settings.backends {
        benches.push(Bench::new(subject, cpu, settings, &need)?);
    }
    let mut runs: Vec<Run> = Vec::new();
    for backend in 0..benches.len() {
        runs.extend(cases.iter().map(|&case| Run { backend, case, ours: Vec::new(), theirs: Vec::new() }));
    }
    for run in &runs {
        progress(&format!("warming up {}", run.case.label()));
        benches[run.backend].prepare(run.case);
        benches[run.backend].time(run.case.shortened(WARM_UP));
    }
    let rounds = settings.repetitions.max(1);
    for round in 1..=rounds {
        for run in &mut runs {
            let bench = &mut benches[run.backend];
            progress(&format!("{round}/{rounds} {} with {} threads", run.case.label(), bench.exec.threads()));
            run.ours.push(run.case.tokens() as f64 / bench.time(run.case).as_secs_f64().max(1e-9));
            if let Some(peer) = &mut peer {
                progress(&format!("{round}/{rounds} {} by {}", run.case.label(), peer.name()));
                run.theirs.extend(peer.measure(run.case, bench.exec.threads(), settings)?);
            }
        }
    }
    let name = peer.map_or(String::new(), |peer| peer.name().to_owned());
    let rows = runs.into_iter().map(|run| {
        let profile = settings.profile.then(|| benches[run.backend].profile(run.case));
        benches[run.backend].row(subject, settings, run, profile, &name)
    });
    Ok(rows.collect())
}

/// One line of the result in the making.
struct Run {
    backend: usize,
    case: Case,
    ours: Vec<f64>,
    theirs: Vec<f64>,
}

/// The largest of all cases.
#[derive(Clone, Copy, Debug)]
pub struct Need {
    /// Tokens of a sequence.
    pub context: usize,
    /// Sequences at once.
    pub batch: usize,
    /// Rows of a step.
    pub rows: usize,
}

impl Need {
    /// Of these cases, prompts in steps of `ubatch` tokens.
    pub fn of(cases: &[Case], ubatch: usize) -> Need {
        let most = |f: fn(&Case) -> usize| cases.iter().map(f).max().unwrap_or(1).max(1);
        let (prompt, batch) = (most(|case| case.n_prompt), most(|case| case.batch));
        Need { context: most(|case| case.context()), batch, rows: ubatch.min(prompt).max(batch) }
    }

    /// How an executor that can run them all is set up.
    pub fn options(&self, cpu: &CpuOptions, kv_type: KvType) -> Options {
        Options {
            cpu: cpu.clone(),
            kv_type,
            context: self.context,
            kv_blocks: self.context.div_ceil(KV_BLOCK) * self.batch,
            state_slots: self.batch,
            max_rows: self.rows,
            max_logit_rows: self.batch,
        }
    }
}

impl Case {
    /// Tokens that are evaluated in the time that is measured.
    fn tokens(self) -> usize {
        self.batch * (self.n_prompt + self.n_gen)
    }

    /// Steps in which every weight is read, when `ubatch` tokens make a step.
    fn steps(self, ubatch: usize) -> usize {
        self.batch * self.n_prompt.div_ceil(ubatch) + self.n_gen
    }

    fn shortened(self, most: usize) -> Case {
        Case { n_prompt: self.n_prompt.min(most), n_gen: self.n_gen.min(2), ..self }
    }
}

/// An executor and the cache's blocks of each sequence.
struct Bench {
    exec: Executor,
    blocks: Vec<Vec<u32>>,
    ubatch: usize,
}

impl Bench {
    fn new(subject: &Subject, cpu: &CpuOptions, settings: &Settings, need: &Need) -> Result<Bench, Error> {
        let each = need.context.div_ceil(KV_BLOCK) as u32;
        let exec = Executor::new(subject.model.clone(), &need.options(cpu, settings.kv))?;
        let blocks = (0..need.batch as u32).map(|seq| (seq * each..(seq + 1) * each).collect()).collect();
        Ok(Bench { exec, blocks, ubatch: need.rows.min(settings.ubatch) })
    }

    /// Puts the context in place that a case does not measure.
    fn prepare(&mut self, case: Case) {
        for blocks in &self.blocks[..case.batch] {
            self.exec.pretend(blocks, case.depth);
        }
    }

    /// Evaluates a case behind its depth and takes the time.
    fn time(&mut self, case: Case) -> Duration {
        let vocab = self.exec.hparams().vocab as u64;
        // Any tokens do: the work does not depend on them, but their embeddings lie apart.
        let token = |seq: usize, position: usize| ((seq as u64 * 104_729 + position as u64 * 7919) % vocab) as u32;
        let own = |slot: usize| StateUse { slot, save: None };
        let began = Instant::now();
        for seq in 0..case.batch {
            let end = case.depth + case.n_prompt;
            for start in (case.depth..end).step_by(self.ubatch) {
                let rows = self.ubatch.min(end - start);
                let tokens: Vec<u32> = (start..start + rows).map(|position| token(seq, position)).collect();
                let slice = [SeqSlice { first_row: 0, rows, start, blocks: &self.blocks[seq] }];
                let last = [rows - 1];
                let logit_rows = if start + rows == end { &last[..] } else { &[] };
                self.exec
                    .forward(&Batch { tokens: &tokens, seqs: &slice, states: &[own(seq)], logit_rows }, &mut || ());
            }
        }
        let wanted: Vec<usize> = (0..case.batch).collect();
        let states: Vec<StateUse> = wanted.iter().map(|&seq| own(seq)).collect();
        for start in case.depth + case.n_prompt..case.context() {
            let tokens: Vec<u32> = wanted.iter().map(|&seq| token(seq, start)).collect();
            let slice = |(first_row, blocks)| SeqSlice { first_row, rows: 1, start, blocks };
            let seqs: Vec<SeqSlice<'_>> =
                self.blocks[..case.batch].iter().map(Vec::as_slice).enumerate().map(slice).collect();
            self.exec
                .forward(&Batch { tokens: &tokens, seqs: &seqs, states: &states, logit_rows: &wanted }, &mut || ());
        }
        began.elapsed()
    }

    /// One more run, watched.
    fn profile(&mut self, case: Case) -> Vec<ProfileRow> {
        self.exec.profile(true);
        let took = self.time(case);
        self.exec.profile(false);
        profile::rows(&self.exec.take_profile(), took, case.steps(self.ubatch))
    }

    fn row(
        &self,
        subject: &Subject,
        settings: &Settings,
        run: Run,
        profile: Option<Vec<ProfileRow>>,
        peer: &str,
    ) -> Row {
        let Run { case, ours, theirs, .. } = run;
        let ((avg_ts, stddev_ts), median_ts) = (mean_and_deviation(&ours), median(&ours));
        let (threads, kv) = (self.exec.threads(), settings.kv.name().to_string());
        let seconds = case.tokens() as f64 / median_ts.max(1e-9);
        let cached = exec::kv_bytes(self.exec.hparams(), settings.kv, 1) / KV_BLOCK as u64
            * (case.batch * (case.depth + case.n_gen / 2)) as u64;
        let read = (subject.step_bytes + cached) as f64 * case.n_gen as f64;
        let computed = 2.0 * subject.step_parameters as f64 * case.tokens() as f64;
        Row {
            model: subject.name.clone(),
            model_filename: subject.file.clone(),
            model_size: subject.weight_bytes,
            model_n_params: subject.parameters,
            threads,
            n_threads: threads,
            isa: self.exec.isa().to_string(),
            n_ubatch: settings.ubatch,
            type_k: kv.clone(),
            type_v: kv,
            n_prompt: case.n_prompt,
            n_gen: case.n_gen,
            depth: case.depth,
            n_depth: case.depth,
            batch: case.batch,
            avg_ts,
            stddev_ts,
            median_ts,
            gigabytes_per_second: (case.n_gen > 0).then(|| read / seconds / 1e9),
            gigaoperations_per_second: (case.n_prompt > 0).then(|| computed / seconds / 1e9),
            peer: PeerRow::new(peer, theirs, &ours),
            samples_ts: ours,
            profile,
        }
    }
}
