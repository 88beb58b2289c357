//! A model's passes against each other and against the reference operations. Each way to the same logits is a check:
//! kernels, cuts of the prompt, one token at a time, a prefix that is reused, neighbours in the batch.

use super::report::{Check, Measure};
use crate::exec::{Batch, Executor, KV_BLOCK, KvType, SeqSlice, StateUse};
use crate::model::Model;
use crate::quant::DType;
use std::ops::Range;
use std::time::Instant;

/// Tokens of the short prompt.
pub const SHORT: usize = 24;
/// Tokens of the long prompt, where no window is longer.
const LONG: usize = 640;
/// Beyond a window, so many.
const BEYOND: usize = 96;
/// The longest that is chosen by itself.
const LONGEST: usize = 4608;
/// Most rows of a step.
const STEP: usize = 1024;
/// Rows of a pass whose logits are compared, at most; and the most of a step.
const ROWS: usize = 24;
/// Sequences that hold cache at once.
pub const SEQUENCES: usize = 4;
/// Tokens that are evaluated one at a time.
const SINGLE: usize = 12;
/// Chunks that latent attention absorbs: shorter than 128.
const FEW: [usize; 2] = [97, 61];
/// The reference's time in seconds from which on it is left out unless it is asked for.
const PATIENCE: f64 = 120.0;
/// The same for the long prompt, which the short one stands in for.
const LONG_PATIENCE: f64 = 30.0;
/// What the reference takes on one thread, in nanoseconds: to decode an element, to multiply it, and to attend to one of a
/// head's.
const REFERENCE_NS: [f64; 3] = [3.0, 1.0, 2.0];

/// What of a model decides how its passes may differ.
#[derive(Clone, Copy, Debug)]
pub struct Traits {
    /// All weights are F32, F16 or BF16: activations are not rounded.
    pub float: bool,
    /// Has experts: where two are nearly as good, rounding chooses.
    pub routed: bool,
    /// Latent attention, which has two forms.
    pub latent: bool,
    /// Tokens of the window, where some layers have one.
    pub window: Option<usize>,
    /// Elements of all weights, and of those that one token meets.
    pub elements: [f64; 2],
    /// Elements of a position's keys and values that a token's heads meet in all layers.
    pub attended: f64,
    /// Of the cache.
    pub kv: KvType,
}

impl Traits {
    /// Of a bound model.
    pub fn of(model: &Model<crate::gguf::TensorInfo>, kv: KvType) -> Traits {
        let h = &model.hparams;
        let head = h.latent.map_or(h.key_dim + h.value_dim, |latent| latent.key() + latent.value);
        let float = |dtype| matches!(dtype, DType::F32 | DType::F16 | DType::BF16);
        let (mut all, mut used) = (0.0, 0.0);
        model.for_each(|path, tensor| {
            let elements = tensor.elements() as f64;
            let stack = path.starts_with("layers.experts.") && tensor.shape.len() > 2;
            let share = h.routing.filter(|_| stack).map_or(1.0, |r| r.used as f64 / r.experts as f64);
            (all, used) = (all + elements, used + elements * share);
        });
        Traits {
            float: model.tensors().iter().all(|tensor| float(tensor.dtype)),
            routed: h.routing.is_some(),
            latent: h.latent.is_some(),
            window: h.window,
            elements: [all, used],
            attended: (h.kv_layers() * h.heads * head) as f64,
            kv,
        }
    }

    /// Tokens of the long prompt: more than 512, and beyond the window.
    pub fn long(&self) -> usize {
        self.window.map_or(LONG, |window| (window + BEYOND).clamp(LONG, LONGEST)).next_multiple_of(KV_BLOCK)
    }

    /// Rows of a step that a long prompt of `long` tokens needs.
    pub fn rows(&self, long: usize) -> usize {
        long.min(STEP)
    }

    /// Logits of a step that are wanted at most.
    pub fn logit_rows(&self) -> usize {
        ROWS
    }

    /// How far the kernels may be from the reference: normalised mean squared error of the logits. Three to ten times what
    /// was measured on random models, whose activations are the least favourable.
    pub fn noise(&self) -> f64 {
        let weights = match (self.float, self.routed) {
            (true, false) => 1e-5,
            (true, true) => 1e-3,
            (false, false) => 4e-3,
            (false, true) => 1e-1,
        };
        weights
            + match self.kv {
                KvType::F32 => 0.0,
                KvType::F16 => 1e-5,
                KvType::Bf16 => 2e-4,
                KvType::Q8_0 => 2e-3,
                KvType::Q4_1 | KvType::Q4_0 => 2e-1,
            }
    }

    /// Seconds that the reference takes for `tokens` tokens on `threads` threads, roughly.
    fn reference_seconds(&self, tokens: usize, threads: usize) -> f64 {
        let ([decode, multiply, attend], tokens) = (REFERENCE_NS, tokens as f64);
        let products = (self.elements[0] * decode + self.elements[1] * tokens * multiply) / threads.max(1) as f64;
        (products + self.attended * tokens * tokens / 2.0 * attend) * 1e-9
    }
}

/// The reference's logits of some rows of a prompt.
pub type Reference<'a> = &'a dyn Fn(&Executor, &[u32], &[usize]) -> Vec<f32>;

/// A sequence's place in cache and state.
struct Seat {
    blocks: Vec<u32>,
    slot: usize,
}

/// A model under test.
pub struct Bench<'a> {
    exec: &'a mut Executor,
    traits: Traits,
    long: usize,
    vocab: usize,
}

impl<'a> Bench<'a> {
    /// Of an executor with room for [`SEQUENCES`] of `long` tokens, at least 256.
    pub fn new(exec: &'a mut Executor, traits: Traits, long: usize) -> Bench<'a> {
        let vocab = exec.hparams().vocab;
        Bench { exec, traits, long, vocab }
    }

    /// Runs every check; `done` sees each as it ends. `all`: also those that take minutes.
    pub fn run(&mut self, reference: Reference<'_>, all: bool, done: &mut dyn FnMut(Check)) {
        done(self.kernels(reference, all));
        done(self.kernels_far(reference, all));
        done(self.short_steps());
        self.cuts().into_iter().for_each(&mut *done);
        if self.traits.latent {
            done(self.forms());
        }
        done(self.long_steps());
        done(self.turns());
        done(self.neighbours());
    }

    fn prompt(&self, nth: u64, len: usize) -> Vec<u32> {
        super::prompt(nth, len, self.vocab)
    }

    /// The `nth` part of the cache.
    fn seat(&self, nth: usize) -> Seat {
        let blocks = self.long.div_ceil(KV_BLOCK) as u32;
        Seat { blocks: (nth as u32 * blocks..(nth as u32 + 1) * blocks).collect(), slot: nth }
    }

    /// Evaluates positions `range` of a sequence in chunks; the logits of `rows` of these, `[rows, vocab]`.
    fn feed(&mut self, seat: &Seat, tokens: &[u32], range: Range<usize>, chunk: usize, rows: &[usize]) -> Vec<f32> {
        let mut found = Vec::new();
        for start in range.clone().step_by(chunk) {
            let end = range.end.min(start + chunk);
            let seqs = [SeqSlice { first_row: 0, rows: end - start, start, blocks: &seat.blocks }];
            let states = [StateUse { slot: seat.slot, save: None }];
            let wanted: Vec<usize> =
                rows.iter().filter(|row| (start..end).contains(row)).map(|row| row - start).collect();
            let tokens = &tokens[start..end];
            let batch = Batch { tokens, seqs: &seqs, states: &states, logit_rows: &wanted };
            found.extend_from_slice(self.exec.forward(&batch, &mut || ()));
        }
        found
    }

    /// A prompt from its start, in the first seat.
    fn whole(&mut self, tokens: &[u32], chunk: usize, rows: &[usize]) -> Vec<f32> {
        let seat = self.seat(0);
        self.feed(&seat, tokens, 0..tokens.len(), chunk, rows)
    }

    /// Rows where something ends or begins, and the last.
    fn rows(&self, len: usize) -> Vec<usize> {
        let window = self.traits.window.unwrap_or(0);
        let borders = [1, 32, 64, 128, window, 512, STEP, len];
        let mut rows: Vec<usize> =
            borders.iter().flat_map(|border| border.saturating_sub(1)..border + 1).filter(|row| *row < len).collect();
        rows.sort_unstable();
        rows.dedup();
        rows.truncate(ROWS);
        rows
    }

    fn kernels(&mut self, reference: Reference<'_>, all: bool) -> Check {
        let threads = self.exec.threads();
        let seconds = |tokens| self.traits.reference_seconds(tokens, threads);
        let tokens = [SHORT, SHORT / 3, 3].into_iter().find(|&tokens| seconds(tokens) <= PATIENCE);
        let name = "fast kernels and reference";
        let Some(tokens) = tokens.or(all.then_some(3)) else {
            let minutes = seconds(3) / 60.0;
            return Check::skipped(name, format!("it would take some {minutes:.0} minutes; --all runs it"));
        };
        let start = Instant::now();
        let (prompt, rows): (_, Vec<usize>) = (self.prompt(1, tokens), (0..tokens).collect());
        let found = self.whole(&prompt, tokens, &rows);
        let expected = reference(self.exec, &prompt, &rows);
        let measure = Measure::Nmse(self.traits.noise());
        Check::of(name, format!("{tokens} tokens"), start, measure, &found, &expected, self.vocab)
    }

    /// The same beyond every window, where that does not take long.
    fn kernels_far(&mut self, reference: Reference<'_>, all: bool) -> Check {
        let (name, seconds) =
            ("fast kernels and reference", self.traits.reference_seconds(self.long, self.exec.threads()));
        if !all && seconds > LONG_PATIENCE {
            let why = format!("{} tokens would take some {:.0} minutes; --all runs it", self.long, seconds / 60.0);
            return Check::skipped(name, why);
        }
        let start = Instant::now();
        let (prompt, rows) = (self.prompt(2, self.long), self.rows(self.long));
        let found = self.whole(&prompt, self.long.min(STEP), &rows);
        let expected = reference(self.exec, &prompt, &rows);
        let (what, measure) = (format!("{} tokens", self.long), Measure::Nmse(self.traits.noise()));
        Check::of(name, what, start, measure, &found, &expected, self.vocab)
    }

    fn short_steps(&mut self) -> Check {
        let start = Instant::now();
        let (prompt, rows): (_, Vec<usize>) = (self.prompt(1, SHORT), (0..SHORT).collect());
        let (found, expected) = (self.whole(&prompt, 1, &rows), self.whole(&prompt, SHORT, &rows));
        let what = format!("{SHORT} tokens");
        Check::of("token by token and at once", what, start, Measure::Range(0.0), &found, &expected, self.vocab)
    }

    /// The long prompt in chunks and in the largest steps. Latent attention has the same bits within each of its forms.
    fn cuts(&mut self) -> Vec<Check> {
        let (prompt, rows) = (self.prompt(2, self.long), self.rows(self.long));
        let most = self.long.min(STEP);
        let pairs = match self.traits.latent {
            // No chunk of few tokens at the end: it would be absorbed.
            true => [(most, most.div_ceil(2)), (FEW[0], FEW[1])],
            false => [(most, most.div_ceil(2)), (most, FEW[0])],
        };
        let compare = |(whole, chunk): (usize, usize)| {
            let start = Instant::now();
            let expected = self.whole(&prompt, whole, &rows);
            let found = self.whole(&prompt, chunk, &rows);
            let what = format!("{} tokens by {chunk} and {whole}", self.long);
            Check::of("chunks and whole prompt", what, start, Measure::Range(0.0), &found, &expected, self.vocab)
        };
        pairs.into_iter().map(compare).collect()
    }

    fn forms(&mut self) -> Check {
        let start = Instant::now();
        let (prompt, rows) = (self.prompt(2, self.long), self.rows(self.long));
        let (expanded, absorbed) =
            (self.whole(&prompt, self.long.min(STEP), &rows), self.whole(&prompt, FEW[0], &rows));
        // Each form rounds other activations.
        let measure = Measure::Nmse(2.0 * self.traits.noise());
        let what = format!("{} tokens", self.long);
        Check::of("latent attention absorbed and expanded", what, start, measure, &absorbed, &expanded, self.vocab)
    }

    /// Chunks in which this model has one form only.
    fn chunk(&self) -> usize {
        if self.traits.latent { FEW[0] } else { self.long.min(STEP) / 2 }
    }

    fn long_steps(&mut self) -> Check {
        let start = Instant::now();
        let (prompt, seat, chunk) = (self.prompt(2, self.long), self.seat(0), self.chunk());
        let first = self.long - SINGLE;
        let rows: Vec<usize> = (first..self.long).collect();
        let expected = self.whole(&prompt, chunk, &rows);
        self.feed(&seat, &prompt, 0..first, chunk, &[]);
        let found = self.feed(&seat, &prompt, first..self.long, 1, &rows);
        let what = format!("the last {SINGLE} of {} tokens", self.long);
        Check::of("decoding and prefill", what, start, Measure::Range(0.0), &found, &expected, self.vocab)
    }

    /// Two turns: the second shares the first's blocks up to a border, and goes on from its state there, while the first
    /// went on elsewhere. Against the second evaluated from its start.
    fn turns(&mut self) -> Check {
        let start = Instant::now();
        let (chunk, len) = (self.chunk(), self.long.min(LONG));
        let border = len / 2 / KV_BLOCK * KV_BLOCK;
        let second = self.prompt(3, len);
        let first = [&second[..border], &self.prompt(4, KV_BLOCK)].concat();
        let (own, other, alone) = (self.seat(0), self.seat(1), self.seat(2));
        self.feed(&own, &first, 0..border, chunk, &[]);
        self.exec.copy_state(own.slot, SEQUENCES - 1);
        self.feed(&own, &first, border..first.len(), 1, &[]);
        let shared = border / KV_BLOCK;
        let blocks = [&own.blocks[..shared], &other.blocks[shared..]].concat();
        let next = Seat { blocks, slot: other.slot };
        self.exec.copy_state(SEQUENCES - 1, next.slot);
        let rows: Vec<usize> = self.rows(len).into_iter().filter(|row| *row >= border).collect();
        let found = self.feed(&next, &second, border..len, chunk, &rows);
        let expected = self.feed(&alone, &second, 0..len, chunk, &rows);
        let what = format!("{border} of {len} tokens reused");
        Check::of("second turn with cache and without", what, start, Measure::Range(0.0), &found, &expected, self.vocab)
    }

    /// Three sequences of 48, 20 and 1 tokens in one batch, the first in its second chunk, against each alone.
    fn neighbours(&mut self) -> Check {
        let start = Instant::now();
        let prompts = [48, 20, 1].map(|len| self.prompt(len as u64, len));
        let expected: Vec<f32> =
            prompts.iter().flat_map(|prompt| self.whole(prompt, prompt.len(), &[prompt.len() - 1])).collect();
        let seats = [0, 1, 2].map(|nth| self.seat(nth));
        let first = 33;
        self.feed(&seats[0], &prompts[0], 0..first, first, &[]);
        let seq = |nth: usize, first_row, rows, start| SeqSlice { first_row, rows, start, blocks: &seats[nth].blocks };
        let seqs = [seq(0, 0, 48 - first, first), seq(1, 15, 20, 0), seq(2, 35, 1, 0)];
        let tokens = [&prompts[0][first..], &prompts[1], &prompts[2]].concat();
        let states = [0, 1, 2].map(|slot| StateUse { slot, save: None });
        let batch = Batch { tokens: &tokens, seqs: &seqs, states: &states, logit_rows: &[14, 34, 35] };
        let found = self.exec.forward(&batch, &mut || ()).to_vec();
        let what = "48, 20 and 1 tokens".into();
        Check::of("in one batch and alone", what, start, Measure::Range(0.0), &found, &expected, self.vocab)
    }
}
