//! `omnictl selftest` on every architecture, on the bundled model, and on what it must find.

use crate::support::{bundled, executor, root, unpack};
use omni_inferd::ctl::selftest::{Bench, Check, Report, SelftestArgs, Traits, examine};
use omni_inferd::exec::{Executor, KvType};
use omni_inferd::load::Source;
use std::path::Path;

fn args(file: &Path, long: Option<usize>) -> SelftestArgs {
    let mut args = SelftestArgs { model: file.display().to_string(), long, all: false, cpu: Default::default() };
    args.cpu.threads = Some(2);
    args
}

/// Every check passes, none is left out; the report.
fn passes(name: &str, file: &Path, long: Option<usize>) -> Report {
    let report = examine(&args(file, long), &mut |_| Ok(())).unwrap();
    for check in &report.checks {
        println!("{name}: {} ({}): {:?}, bound {}", check.name, check.prompt, check.difference, check.bound);
        assert!(check.ok && check.skipped.is_none(), "{name}: {check:?}");
    }
    assert!(report.ok && report.checks.len() >= 8, "{name}: {report:#?}");
    report
}

/// The bundled model's kinds besides: quantised weights have kernels of their own.
#[test]
fn every_architecture_passes() {
    let mut architectures = Vec::new();
    let models = std::fs::read_dir(root().join("tests/data/hf-tiny")).unwrap();
    let mut names: Vec<String> = models
        .filter_map(|entry| entry.unwrap().file_name().into_string().unwrap().strip_suffix(".gguf.zst").map(Into::into))
        .collect();
    names.sort();
    for name in names {
        let file = unpack(&format!("tests/data/hf-tiny/{name}.gguf.zst"));
        let report = passes(&name, &file.path, None);
        let latent = report.checks.iter().filter(|check| check.name.contains("absorbed")).count();
        assert_eq!(latent, usize::from(["deepseek2", "mistral4"].contains(&&*report.architecture)), "{name}");
        architectures.push(report.architecture);
    }
    for architecture in omni_inferd::model::Architecture::ALL {
        assert!(architectures.iter().any(|tested| tested == architecture.name()), "no tiny {}", architecture.name());
    }
}

#[test]
fn quantised_models_pass() {
    // The reference takes its time: one of them with the full length.
    for (kind, long) in [("f16", Some(300)), ("q8_0", Some(300)), ("q4_k_m", None)] {
        passes(kind, &bundled(kind), long);
    }
    for name in ["tiny-quant/deepseek2-v3-Q4_K_M", "tiny/gpt-oss", "tiny-quant/llama-Q6_K"] {
        passes(name, &unpack(&format!("tests/data/{name}.gguf.zst")).path, None);
    }
}

/// What a test finds when the kernels compute with other numbers than the reference: the matrix `damaged` of the file that
/// they read has other bytes.
fn found(path: &Path, damaged: &str) -> Vec<Check> {
    let bytes = std::fs::read(path).unwrap();
    let file = omni_inferd::gguf::File::parse(&bytes, bytes.len() as u64).unwrap();
    let tensor = file.tensors.iter().find(|tensor| tensor.name == damaged).unwrap();
    let mut other = bytes.clone();
    let data = &mut other[tensor.offset as usize..][..tensor.size as usize];
    let half = data.len() / 2;
    data.rotate_left(half / tensor.dtype.block_bytes() * tensor.dtype.block_bytes());
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("model.gguf");
    std::fs::write(&out, other).unwrap();

    let traits = Traits::of(&Source::open(path).unwrap().bind().unwrap(), KvType::F16);
    let intact = executor(path, KvType::F16, 256);
    let mut exec = executor(&out, KvType::F16, 4 * 256);
    let mut checks = Vec::new();
    let reference = |_: &Executor, tokens: &[u32], rows: &[usize]| intact.reference(tokens, rows, 2);
    Bench::new(&mut exec, traits, 256).run(&reference, false, &mut |check| checks.push(check));
    checks
}

#[test]
fn other_numbers_in_one_matrix_are_found() {
    let bundled = bundled("q4_k_m");
    let tiny = unpack("tests/data/hf-tiny/qwen3moe.gguf.zst");
    for (path, damaged) in [
        (&*bundled, "blk.1.ffn_down.weight"),
        (&*bundled, "blk.0.attn_v.weight"),
        (&tiny.path, "blk.1.ffn_up_exps.weight"),
    ] {
        let checks = found(path, damaged);
        assert!(!checks[0].ok && checks[0].name.contains("reference"), "{damaged}: {:?}", checks[0]);
        println!("{damaged}: {:?}, bound {}", checks[0].difference, checks[0].bound);
        assert!(!checks[1].ok && checks[1].name == checks[0].name, "{damaged}: {:?}", checks[1]);
        // The damaged model agrees with itself.
        assert!(checks[2..].iter().all(|check| check.ok), "{damaged}: {checks:#?}");
    }
}
