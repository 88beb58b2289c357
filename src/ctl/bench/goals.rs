//! The table of goals: each row measured here and now, its limit probed before and after it, and a verdict. A row that cannot
//! be measured says why; nothing is assumed.

use super::args::BenchArgs;
use super::measure::{self, Need, Settings};
use super::peer::{Found, Peer};
use super::probe::{self, Limits};
use super::row::{Case, Row, median};
use super::subject::Subject;
use super::temporary::Temporary;
use super::{Error, Progress, check_room, cold, disk, write_temporary};
use crate::ctl::output::Output;
use crate::exec::KvType;
use comfy_table::{Cell, Color};
use serde::Serialize;
use std::process::{Child, Command, Stdio};

/// Depth of the row at a long context.
const DEEP: usize = 16_384;
/// What loading may take beyond the weights.
const LOAD_EXTRA: f64 = 512.0;

/// How a goal was met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Everything that is asked for holds.
    Ok,
    /// Something does not.
    Missed,
    /// What was measured holds, something could not be measured.
    Open,
}

/// One row.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Goal {
    /// As the list of performance goals names it.
    pub id: &'static str,
    /// What is done.
    pub work: String,
    /// What was measured, in `unit`.
    pub value: Option<f64>,
    /// What the host can do at most, probed in the same minutes.
    pub limit: Option<f64>,
    #[allow(missing_docs)]
    pub unit: &'static str,
    /// Value over limit, or over what the row compares with.
    pub ratio: Option<f64>,
    /// Ours over the peer's, median of pairs.
    pub peer_ratio: Option<f64>,
    /// What is asked for, in words.
    pub goal: String,
    #[allow(missing_docs)]
    pub verdict: Verdict,
    /// Speed in tokens per second, or why something is missing.
    pub note: String,
}

/// What is asked of a row: least ratio to the limit, least ratio to the peer.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Asked {
    ratio: Option<f64>,
    peer: Option<f64>,
}

impl Asked {
    fn words(self, of: &str) -> String {
        let ratio = self.ratio.map(|least| format!("{:.0}% of {of}", 100.0 * least));
        let peer = self.peer.map(|least| format!("{least:.1}x llama.cpp"));
        ratio.into_iter().chain(peer).collect::<Vec<_>>().join(", ")
    }

    fn verdict(self, ratio: Option<f64>, peer: Option<f64>) -> Verdict {
        let pairs = [(self.ratio, ratio), (self.peer, peer)];
        let missed = pairs.iter().any(|pair| matches!(pair, (Some(least), Some(found)) if found < least));
        let unknown = pairs.iter().any(|pair| matches!(pair, (Some(_), None)));
        match (missed, unknown) {
            (true, _) => Verdict::Missed,
            (_, true) => Verdict::Open,
            _ => Verdict::Ok,
        }
    }
}

impl Goal {
    fn new(id: &'static str, work: String, asked: Asked, of: &str) -> Goal {
        let (goal, verdict, unit) = (asked.words(of), Verdict::Open, "");
        let (value, limit, ratio, peer_ratio, note) = (None, None, None, None, String::new());
        Goal { id, work, value, limit, unit, ratio, peer_ratio, goal, verdict, note }
    }

    /// That it could not be measured.
    fn missing(mut self, why: impl ToString) -> Goal {
        self.note = why.to_string();
        self
    }

    fn measured(mut self, asked: Asked, value: f64, limit: f64, unit: &'static str, row: &Row) -> Goal {
        let ratio = value / limit;
        (self.value, self.limit, self.ratio, self.unit) = (Some(value), Some(limit), Some(ratio), unit);
        self.peer_ratio = row.peer.as_ref().map(|peer| peer.ratio);
        self.verdict = asked.verdict(self.ratio, self.peer_ratio);
        self.note = format!("{:.1} tok/s", row.median_ts);
        if let Some(peer) = &row.peer {
            self.note += &format!(", {} {:.1}", peer.name, peer.median_ts);
        }
        self
    }
}

/// A shape with a recipe and what is asked of it.
struct Plan {
    shape: &'static str,
    quant: &'static str,
    decode: Asked,
    prompt: Asked,
    n_gen: usize,
}

const fn asked(ratio: f64, peer: f64) -> Asked {
    Asked { ratio: Some(ratio), peer: Some(peer) }
}

const PLANS: [Plan; 5] = [
    Plan { shape: "qwen2.5-1.5b", quant: "q4_k_m", decode: asked(0.88, 1.6), prompt: asked(0.7, 1.8), n_gen: 64 },
    Plan { shape: "qwen2.5-1.5b", quant: "q8_0", decode: asked(0.9, 1.3), prompt: asked(0.65, 1.6), n_gen: 48 },
    Plan { shape: "qwen2.5-1.5b", quant: "q6_k", decode: asked(0.9, 1.3), prompt: asked(0.65, 1.6), n_gen: 48 },
    Plan { shape: "qwen2.5-1.5b", quant: "q4_0", decode: asked(0.9, 1.3), prompt: asked(0.65, 1.6), n_gen: 48 },
    Plan { shape: "qwen2.5-7b", quant: "q4_k_m", decode: asked(0.88, 1.6), prompt: asked(0.7, 1.8), n_gen: 24 },
];

/// What every row needs.
struct Bench<'a> {
    args: &'a BenchArgs,
    settings: Settings,
    found: Option<Found>,
    show: &'a Progress,
}

/// Measures every goal. With `--quick` on the smallest shape, once per recipe.
///
/// # Errors
/// When nothing can be measured at all: no backend, no memory to read, a peer that was named and is not there.
pub fn measure(args: &BenchArgs, show: &Progress) -> Result<Vec<Goal>, Error> {
    let found = args.peer_wanted().map(|wanted| wanted.find()).transpose()?;
    let bench = Bench { args, settings: args.settings()?, found, show };
    let mut goals = Vec::new();
    for (index, plan) in PLANS.iter().filter(|plan| !args.quick || plan.shape != "qwen2.5-7b").enumerate() {
        let plan = Plan { shape: if args.quick { "qwen2.5-0.5b" } else { plan.shape }, ..*plan };
        goals.extend(bench.speeds(&plan, index == 0)?);
    }
    goals.extend(bench.loading()?);
    Ok(goals)
}

impl Bench<'_> {
    /// Decoding and prompts of one model; of the first also what needs no other one.
    fn speeds(&self, plan: &Plan, first: bool) -> Result<Vec<Goal>, Error> {
        let args = self.of(plan)?;
        let decode = Case { n_prompt: 0, n_gen: plan.n_gen, depth: 0, batch: 1 };
        let prompt = Case { n_prompt: 512, n_gen: 0, ..decode };
        let cases = if first { vec![prompt, decode, Case { batch: 4, ..decode }] } else { vec![prompt, decode] };
        let most = [prompt, Case { depth: DEEP, batch: 4, ..decode }];
        let need = Need::of(if first { &most } else { &cases }, self.settings.ubatch);
        let name = format!("{} {}", plan.shape, plan.quant);
        let goal = |id, what: &str, asked, of| Goal::new(id, format!("{what} {name}"), asked, of);
        let (reading, int8) = ("read bandwidth", "int8 rate");
        let (mut subject, file) = match self.subject(&args, &need) {
            Ok(made) => made,
            Err(why) => {
                let rows = [goal("C1", "decode", plan.decode, reading), goal("C3", "prefill 512", plan.prompt, int8)];
                return Ok(rows.map(|row| row.missing(&why)).into());
            }
        };
        let before = self.limits()?;
        let rows = self.rows(&subject, file.as_ref(), &self.settings, &cases)?;
        let limits = mean(&before, &self.limits()?);
        let rate = |rate: Option<f64>| rate.unwrap_or_default();
        let mut goals = vec![
            goal("C1", "decode", plan.decode, reading).measured(
                plan.decode,
                rate(rows[1].gigabytes_per_second),
                limits.read,
                "GB/s",
                &rows[1],
            ),
            goal("C3", "prefill 512", plan.prompt, int8).measured(
                plan.prompt,
                rate(rows[0].gigaoperations_per_second),
                limits.int8,
                "GOP/s",
                &rows[0],
            ),
        ];
        if first {
            let alone = rows[1].median_ts;
            let asked = Asked { ratio: Some(2.2), peer: None };
            let four = Goal::new("S1", format!("4 sequences at once, {name}"), asked, "one");
            goals.push(Goal {
                goal: "2.2x one".into(),
                ..four.measured(asked, rows[2].median_ts, alone, "tok/s", &rows[2])
            });
            goals.push(self.deep(&subject, file.as_ref(), plan.n_gen, limits.read, &name)?);
            goals.extend(self.threads(&mut subject, decode, &name)?);
        }
        Ok(goals)
    }

    /// The command line as if it had named this plan's model.
    fn of(&self, plan: &Plan) -> Result<BenchArgs, Error> {
        let usage = Error::Usage;
        let shape = Some(plan.shape.parse().map_err(usage)?);
        Ok(BenchArgs { shape, quant: plan.quant.parse().map_err(usage)?, ..self.args.clone() })
    }

    /// The model in memory; from a file where the peer needs one.
    fn subject(&self, args: &BenchArgs, need: &Need) -> Result<(Subject, Option<Temporary>), Error> {
        let Some(shape) = &args.shape else { return Err(Error::Usage("no shape".into())) };
        let file = self.found.as_ref().map(|_| write_temporary(shape, args, self.show)).transpose()?;
        let settings = &self.settings;
        let subject = match &file {
            Some(file) => Subject::open(&file.0, need, settings, self.show)?,
            None => Subject::make(shape, args.quant, need, settings, self.show)?,
        };
        Ok((subject, file))
    }

    fn rows(
        &self,
        subject: &Subject,
        file: Option<&Temporary>,
        settings: &Settings,
        cases: &[Case],
    ) -> Result<Vec<Row>, Error> {
        let mut peer = match (&self.found, file) {
            (Some(found), Some(file)) => Some(Peer::start(found, &file.0)?),
            _ => None,
        };
        measure::measure(subject, settings, cases, peer.as_mut(), &mut |what| self.show.say(what))
    }

    fn limits(&self) -> Result<Limits, Error> {
        self.show.say("probing the limits");
        let limits = probe::limits(&self.settings.backends[..1])?;
        limits.into_iter().next().ok_or_else(|| Error::Usage("no backend".into()))
    }

    /// Decoding behind a long context in a cache of 8 bits.
    fn deep(
        &self,
        subject: &Subject,
        file: Option<&Temporary>,
        n_gen: usize,
        read: f64,
        name: &str,
    ) -> Result<Goal, Error> {
        let asked = Asked { ratio: None, peer: Some(1.5) };
        let goal = Goal::new("C1", format!("decode at 16k depth, Q8_0 KV, {name}"), asked, "read bandwidth");
        let kv: KvType = match "q8_0".parse() {
            Ok(kv) => kv,
            Err(why) => return Ok(goal.missing(why)),
        };
        let case = Case { n_prompt: 0, n_gen: n_gen / 2, depth: DEEP, batch: 1 };
        // The peer computes its whole context before each sample.
        let repetitions = if matches!(self.found, Some(Found::Program(_))) { 1 } else { self.settings.repetitions };
        let settings = Settings { kv, repetitions, ..self.settings.clone() };
        let row = self.rows(subject, file, &settings, &[case])?.remove(0);
        let value = row.gigabytes_per_second.unwrap_or_default();
        Ok(goal.measured(asked, value, read, "GB/s", &row))
    }

    /// Whether another number of threads is faster, and what is left when others burn every core.
    fn threads(&self, subject: &mut Subject, case: Case, name: &str) -> Result<Vec<Goal>, Error> {
        let backends = self.args.backends(true)?;
        let sweep = Settings { backends, profile: false, ..self.settings.clone() };
        let rows = measure::measure(subject, &sweep, &[case], None, &mut |what| self.show.say(what))?;
        let best = rows.iter().map(|row| row.median_ts).fold(0.0, f64::max);
        let asked = Asked { ratio: Some(0.97), peer: None };
        let goal = Goal::new("C5", format!("decode with all threads, {name}"), asked, "the best number of threads");
        let mut goals: Vec<Goal> =
            rows.last().map(|all| goal.measured(asked, all.median_ts, best, "tok/s", all)).into_iter().collect();
        let once = Settings { repetitions: 1, profile: false, ..self.settings.clone() };
        let (mut quiet, mut busy, mut last) = (Vec::new(), Vec::new(), None);
        for _ in 0..self.settings.repetitions.max(3) {
            let mut one = || -> Result<f64, Error> {
                let row = measure::measure(subject, &once, &[case], None, &mut |what| self.show.say(what))?.remove(0);
                let speed = row.median_ts;
                last = Some(row);
                Ok(speed)
            };
            quiet.push(one()?);
            let _burners = Burners::start(crate::sys::topology::Topology::detect().cpus.len())?;
            busy.push(one()?);
        }
        let asked = Asked { ratio: Some(0.4), peer: None };
        let goal =
            Goal::new("C5", format!("decode while others burn every core, {name}"), asked, "the undisturbed speed");
        goals.extend(last.map(|row| goal.measured(asked, median(&busy), median(&quiet), "tok/s", &row)));
        Ok(goals)
    }

    /// Cold loads of a file of some gigabytes, in turns with plain direct reads.
    fn loading(&self) -> Result<Vec<Goal>, Error> {
        let shape = if self.args.quick { "qwen2.5-1.5b" } else { "qwen2.5-7b" };
        let (speed, memory) = (Asked { ratio: Some(0.95), peer: None }, Asked::default());
        let rows = || {
            let load = Goal::new("L1", format!("cold load, {shape} q4_k_m"), speed, "direct reads");
            let peak = Goal::new("L3", format!("memory while loading, {shape} q4_k_m"), memory, "");
            [load, Goal { goal: "weights + 512 MiB".into(), ..peak }]
        };
        let plan = Plan { shape, quant: "q4_k_m", ..PLANS[0] };
        let args = self.of(&plan)?;
        let Some(scaled) = &args.shape else { return Ok(Vec::new()) };
        let measured = check_room(&args.temp_dir(), 0).and_then(|()| write_temporary(scaled, &args, self.show));
        let file = match measured {
            Ok(file) => file,
            Err(why) => return Ok(rows().map(|row| row.missing(&why)).into()),
        };
        let (mut loads, mut disks, mut extra) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..self.settings.repetitions {
            self.show.say("loading and reading in turns");
            let (cold, disk) = match (cold::load_apart(&file.0), disk::probe(Some(&file.0), &args.temp_dir())) {
                (Ok(cold), Ok(disk)) => (cold, disk),
                (Err(why), _) | (_, Err(why)) => return Ok(rows().map(|row| row.missing(&why)).into()),
            };
            extra.push(cold.peak_resident.saturating_sub(cold.bytes) as f64 / f64::from(1 << 20));
            loads.push(cold.gigabytes_per_second);
            disks.push(disk.sequential.max(disk.concurrent));
        }
        let [mut load, mut peak] = rows();
        let (value, limit) = (median(&loads), median(&disks));
        (load.value, load.limit, load.ratio, load.unit) = (Some(value), Some(limit), Some(value / limit), "GB/s");
        load.verdict = speed.verdict(load.ratio, None);
        let most = extra.iter().copied().fold(0.0, f64::max);
        (peak.value, peak.limit, peak.ratio, peak.unit) =
            (Some(most), Some(LOAD_EXTRA), Some(most / LOAD_EXTRA), "MiB");
        peak.verdict = if most <= LOAD_EXTRA { Verdict::Ok } else { Verdict::Missed };
        peak.note = "beyond the weights".into();
        Ok(vec![load, peak])
    }
}

fn mean(a: &Limits, b: &Limits) -> Limits {
    Limits { read: (a.read + b.read) / 2.0, int8: (a.int8 + b.int8) / 2.0, ..b.clone() }
}

/// Processes that use every cycle they get, until this goes.
struct Burners(Vec<Child>);

impl Burners {
    /// One per CPU. They end by themselves when this process is gone.
    fn start(count: usize) -> Result<Burners, Error> {
        let script = "while kill -0 \"$0\" 2>/dev/null; do i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; done";
        let own = std::process::id().to_string();
        let mut burners = Burners(Vec::new());
        for _ in 0..count {
            let mut command = Command::new("sh");
            command.args(["-c", script, &own]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            burners.0.push(command.spawn()?);
        }
        Ok(burners)
    }
}

impl Drop for Burners {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // One that is gone already burns nothing.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The rows for people.
pub fn table(goals: &[Goal], out: Output) -> String {
    let columns = [
        ("ID", false),
        ("WORK", false),
        ("VALUE", true),
        ("LIMIT", true),
        ("RATIO", true),
        ("PEER", true),
        ("GOAL", false),
        ("VERDICT", false),
        ("NOTE", false),
    ];
    let number = |n: Option<f64>, unit: &str| n.map_or("-".into(), |n| format!("{n:.1} {unit}"));
    out.table(
        &columns,
        goals.iter().map(|goal| {
            let (verdict, color) = match goal.verdict {
                Verdict::Ok => ("ok", Color::Green),
                Verdict::Missed => ("missed", Color::Red),
                Verdict::Open => ("open", Color::Yellow),
            };
            vec![
                Cell::new(goal.id),
                Cell::new(&goal.work),
                Cell::new(number(goal.value, goal.unit)),
                Cell::new(number(goal.limit, goal.unit)),
                Cell::new(goal.ratio.map_or("-".into(), |ratio| format!("{ratio:.2}"))),
                Cell::new(goal.peer_ratio.map_or("-".into(), |ratio| format!("{ratio:.2}x"))),
                Cell::new(&goal.goal),
                Cell::new(verdict).fg(color),
                Cell::new(&goal.note),
            ]
        }),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_needs_everything_that_is_asked_for() {
        let both = asked(0.9, 1.5);
        let table = [
            (Some(0.95), Some(1.6), Verdict::Ok),
            (Some(0.85), Some(9.0), Verdict::Missed),
            (Some(0.95), Some(1.4), Verdict::Missed),
            (Some(0.95), None, Verdict::Open),
            (Some(0.85), None, Verdict::Missed),
            (None, None, Verdict::Open),
        ];
        for (ratio, peer, verdict) in table {
            assert_eq!(both.verdict(ratio, peer), verdict, "{ratio:?} {peer:?}");
        }
        assert_eq!(both.words("read bandwidth"), "90% of read bandwidth, 1.5x llama.cpp");
    }

    #[test]
    fn rows_that_could_not_be_measured_say_why() {
        let row = Goal::new("C1", "decode x".into(), asked(0.9, 1.5), "read bandwidth").missing("no memory");
        let text = table(&[row], Output { json: false, color: false });
        assert!(text.contains("open") && text.contains("no memory") && text.contains("90% of read"), "{text}");
    }

    #[test]
    fn burners_burn_and_end() {
        let burners = Burners::start(1).unwrap();
        let pid = burners.0[0].id();
        let running = || std::path::Path::new(&format!("/proc/{pid}")).exists();
        assert!(running());
        drop(burners);
        assert!(!running());
    }
}
