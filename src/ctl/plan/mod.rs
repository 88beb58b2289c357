//! `omnictl plan`: where every layer and every expert of a model would go on a host, what that takes on each device, how fast
//! it should be and why; or the numbers of why it does not fit, with what would. Reads headers only and needs no daemon.
//! Several models are planned one after the other, each beside what those before it hold.
//!
//! This build has no GPU backend: `--host` plans for a host with GPUs, the engine runs on the CPU.

mod args;
#[cfg(test)]
mod tests;

pub use args::PlanArgs;

use super::bench::probe;
use super::error::Error;
use super::output::Output;
use super::{inspect, root::Root, weights};
use crate::engine::planning;
use crate::exec::{CpuOptions, KvType};
use crate::model::{Bound, bind};
use crate::plan::{
    Ask, Counts, Device, Held, Host, NoPlan, Parts, Plan, Rates, Request, Rule, Setting, Shortage, plan,
};
use crate::sys::memory::Memory;
use crate::sys::topology::Topology;
use args::{Target, quantised};
use serde::Serialize;
use std::path::Path;

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report<'a> {
    host: &'a Host,
    /// One for each model that fits, in their order.
    plans: Vec<Plan>,
    /// The first model that does not.
    refused: Option<Shortage>,
}

/// A model to be planned, and what is wanted of it.
struct Wanted {
    model: Bound,
    request: Request,
}

/// Plans and prints to standard output.
///
/// # Errors
/// A model that does not fit, one that cannot be read, a host file or an option that is wrong.
pub fn run(args: &PlanArgs, out: Output) -> Result<(), Error> {
    let wanted = wanted(args)?;
    let host = match &args.host {
        Some(path) => read_host(path)?,
        None => this_host()?,
    };
    let (plans, failed) = plan_all(&host, wanted);
    if out.json {
        let refused = match &failed {
            Some(NoPlan::Short(shortage)) => Some((**shortage).clone()),
            _ => None,
        };
        out.value(&Report { host: &host, plans, refused })?;
    } else {
        out.write(&text(&host, args.host.is_none(), &plans))?;
    }
    match failed {
        None => Ok(()),
        Some(why) => Err(Error::Failed(why.to_string())),
    }
}

/// All plans up to the first model that does not fit, each beside what those before it hold.
fn plan_all(host: &Host, wanted: Vec<Wanted>) -> (Vec<Plan>, Option<NoPlan>) {
    let (mut plans, mut held) = (Vec::new(), Held::default());
    for Wanted { model, request } in wanted {
        match plan_one(host, &model, request, &held) {
            Ok(plan) => {
                plan.claim(&mut held);
                plans.push(plan);
            }
            Err(why) => return (plans, Some(why)),
        }
    }
    (plans, None)
}

fn plan_one(host: &Host, model: &Bound, request: Request, held: &Held) -> Result<Plan, NoPlan> {
    let parts = Parts::new(model);
    let count = |setting: &Setting| -> Counts { planning::counts(model, setting, host.cores) };
    plan(&Ask { parts: &parts, host, count: &count, request, held: held.clone() })
}

/// The plans for people: the host, each plan, and what is left of each device when there are several.
fn text(host: &Host, is_here: bool, plans: &[Plan]) -> String {
    let devices: Vec<String> = (0..host.gpus.len())
        .map(|number| format!("{} {}", Device::Gpu(number), host.name_of(Device::Gpu(number))))
        .collect();
    let mut text = format!("host: {}; {} cores", host.name, host.cores);
    text.extend(devices.iter().map(|device| format!("; {device}")));
    text.push('\n');
    if is_here {
        text.push_str("GPUs are not used: this build has no GPU backend. --host FILE plans for a host with GPUs\n");
    }
    for plan in plans {
        text.push_str(&format!("\n{plan}"));
    }
    if plans.len() > 1 {
        let mut held = Held::default();
        plans.iter().for_each(|plan| plan.claim(&mut held));
        let gpus = (0..host.gpus.len()).map(Device::Gpu);
        let each = std::iter::once(Device::Cpu).chain(gpus);
        let each = each.map(|device| format!("{device} {} MiB", held.on(device) >> 20));
        text.push_str(&format!("\ntogether they hold: {}\n", each.collect::<Vec<_>>().join(", ")));
    }
    text
}

fn read_host(path: &Path) -> Result<Host, Error> {
    let text = std::fs::read_to_string(path).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => Error::NotFound(format!("cannot read {}: {source}", path.display())),
        _ => Error::Failed(format!("cannot read {}: {source}", path.display())),
    })?;
    Host::parse(&text).map_err(|what| Error::Failed(format!("{}: {what}", path.display())))
}

/// This host as it is now; its CPU is measured, quickly.
fn this_host() -> Result<Host, Error> {
    let memory =
        Memory::now().map_err(|source| Error::Failed(format!("cannot find out how much memory there is: {source}")))?;
    let topology = Topology::detect();
    let limits = probe::quick(&CpuOptions::default())?;
    let cpu = Rates { read: limits.read * 1e9, ops: limits.int8 * 1e9 };
    Ok(Host {
        name: "this host".into(),
        memory: memory.available,
        cores: topology.compute_threads(),
        cpu,
        gpus: Vec::new(),
    })
}

/// Every model that was named, else all that are configured.
fn wanted(args: &PlanArgs) -> Result<Vec<Wanted>, Error> {
    let common = args.request()?;
    let mut all = Vec::new();
    for made in quantised(&args.shape, &args.quant)? {
        all.push(of(made.source().header, made.label, common.clone())?);
    }
    let named_none = args.models.is_empty() && args.shape.is_empty();
    for target in args.targets()? {
        all.push(match target {
            Target::File(file) => of(inspect::header(&file)?, file, common.clone())?,
            Target::Configured(model) => {
                let request = configured(&model, common.clone(), args)?;
                let path = model.path.display().to_string();
                of(inspect::header(&path)?, path, request)?
            }
        });
    }
    match all.is_empty() {
        true if named_none => Err(Error::Usage("no model is named, and none is configured: omnictl plan FILE".into())),
        _ => Ok(all),
    }
}

/// Binds a model, and completes what is wanted by what it allows.
fn of(file: crate::gguf::File, label: String, mut request: Request) -> Result<Wanted, Error> {
    let model = bind(&file).map_err(|error| Error::Failed(format!("{label}: {error}")))?;
    let kv: KvType = request.kv.parse().map_err(Error::Usage)?;
    kv.check(&model.hparams).map_err(|error| Error::Failed(format!("{label}: {error}")))?;
    request.smaller_kv = planning::smaller_kv(&model, kv);
    Ok(Wanted { model, request })
}

/// A configured model's own settings where the command line has none.
fn configured(model: &crate::config::Model, common: Request, args: &PlanArgs) -> Result<Request, Error> {
    let kv = model.kv_type.parse().map(KvType::name).map_err(Error::Failed)?;
    let rules = model.place.iter().map(|place| Rule::parse(&place.tensors, &place.device));
    let rules = rules.collect::<Result<Vec<_>, _>>().map_err(Error::Failed)?;
    // What nobody set may be chosen.
    let chunk = Some(model.prefill_chunk).filter(|chunk| *chunk != crate::config::Model::new("", "").prefill_chunk);
    Ok(Request {
        context: common.context.or(model.context),
        parallel: args.parallel.unwrap_or(model.parallel),
        micro_batch: common.micro_batch.or(chunk),
        kv: if args.kv.is_some() { common.kv } else { kv },
        rules: if common.rules.is_empty() { rules } else { common.rules.clone() },
        ..common
    })
}

/// The configuration that ids are looked up in.
fn configuration(explicit: Option<&Path>) -> Result<crate::config::Config, Error> {
    weights::configuration(&Root::new("/"), explicit.map(Path::to_path_buf))
        .map_err(|error| Error::Failed(error.to_string()))
}
