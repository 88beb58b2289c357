//! What must not load does not, with numbers and a remedy; nothing is read beyond the header.

use crate::support::{bundled, collect, eventually, executor, greedy, json, options, request, run, start, unpack};
use omni_inferd::engine::{EngineOptions, OpenError, Opened, Remedy, Request, open, planning};
use omni_inferd::exec::KvType;
use omni_inferd::gguf::{Value, write::Builder};
use omni_inferd::load;
use omni_inferd::model::Architecture;
use omni_inferd::plan::Setting;
use omni_inferd::sample::Params;

fn refusal(path: &std::path::Path, options: &EngineOptions) -> OpenError {
    let mut reads = 0;
    let result = open(path, options, &mut |_| reads += 1);
    assert_eq!(reads, 0, "weights were read");
    result.err().expect("it is refused")
}

#[test]
fn a_model_that_does_not_fit_is_refused_with_the_table() {
    let options = EngineOptions { memory: Some(600 << 20), context: Some(512 * 1024), ..options() };
    let refusal_of = |options: &EngineOptions| refusal(&bundled("f32"), options);
    let error = refusal_of(&options);
    let OpenError::Refused(refusal) = &error else { panic!("{error}") };
    assert!(refusal.context_that_fits.is_some());
    let text = error.to_string();
    for part in ["weights", "KV cache, 4 x 524288 tokens", "available", "600.0 MiB", "what fits: a context of at most"]
    {
        assert!(text.contains(part), "{part} is not in:\n{text}");
    }
    let small = EngineOptions { memory: Some(1 << 20), context: Some(256), parallel: 1, ..options.clone() };
    let small = refusal_of(&small);
    assert_eq!(small.remedy(), Remedy::Later, "the host has as much, if others give it back");
    let huge = refusal_of(&EngineOptions { memory: Some(1 << 30), context: Some(1 << 30), ..options });
    assert_eq!(huge.remedy(), Remedy::None, "no host has as much");
}

#[test]
fn the_longest_context_it_names_does_load() {
    let tight = EngineOptions { memory: Some(600 << 20), context: Some(512 * 1024), ..options() };
    let OpenError::Refused(refusal) = refusal(&bundled("q8_0"), &tight) else { panic!() };
    let context = refusal.context_that_fits.unwrap();
    let opened = open(&bundled("q8_0"), &EngineOptions { context: Some(context), ..tight }, &mut |_| ()).unwrap();
    assert_eq!(opened.handle.context(), context);
    assert!(opened.facts.notes.iter().any(|n| n.contains("trained")), "{:?}", opened.facts.notes);
}

#[test]
fn planned_bytes_are_those_that_are_reserved() {
    let opened = open(&bundled("f16"), &options(), &mut |_| ()).unwrap();
    // 4 sequences of 256 tokens, 3 layers, 4 heads, 32 + 32 dimensions, F16.
    assert_eq!(opened.facts.kv_bytes, 4 * 256 * 3 * 4 * 64 * 2);
    assert!((2_800_000..3_000_000).contains(&opened.facts.parameters), "{}", opened.facts.parameters);
}

/// Step buffers are counted before anything is loaded, to the byte, and never grow: long and short prompts, prompt
/// log-probabilities, several sequences, every way to draw, and threads that share one sequence's attention.
#[test]
fn planned_step_buffers_never_grow() {
    for (kind, threads, prefill_chunk) in [("f16", 1, 512), ("q8_0", 2, 48), ("q4_k_m", 8, 7)] {
        let options = EngineOptions { context: Some(1100), threads: Some(threads), prefill_chunk, ..options() };
        let Opened { handle, facts, .. } = open(&bundled(kind), &options, &mut |_| ()).unwrap();
        let prompt: Vec<u32> = (0..facts.context as u32 - 20).map(|i| 3 + i * 7 % 900).collect();
        let sampled = Params { temperature: 1.0, typical_p: 0.9, top_p: 0.9, logprobs: Some(20), ..Params::default() };
        let requests = [
            request(&prompt, 5, greedy()),
            request(&prompt[7..300], 5, sampled.clone()),
            Request { prompt_logprobs: Some(5), ..request(&prompt[9..200], 2, sampled) },
            request(&[1, 2, 3], 9, greedy()),
        ];
        let streams: Vec<_> = requests.into_iter().map(|request| handle.submit(request).unwrap()).collect();
        for stream in streams {
            collect(stream).end.unwrap().unwrap();
        }
        // Counted again after the last step, together with this.
        eventually("all have ended", || handle.stats().running == 0);
        assert_eq!(handle.stats().scratch_bytes, facts.scratch_bytes, "{kind}");
    }
}

/// The same for each architecture: keys and values, the latents of latent attention, recurrent states and step buffers. Cache
/// and state against what was counted in transformers, too; prompts long enough for latent attention's expanded form.
#[test]
fn planned_bytes_of_each_architecture_are_those_that_are_reserved() {
    const CONTEXT: u64 = 256;
    let sizes = json("tests/data/hf-tiny/sizes.json");
    let mut architectures = Vec::new();
    for (nth, (name, counted)) in sizes.as_object().unwrap().iter().enumerate() {
        let file = unpack(&format!("tests/data/hf-tiny/{name}.gguf.zst"));
        let [kv, state] = ["kv_bytes_per_token", "state_bytes"].map(|key| counted[key].as_u64().unwrap_or(0));
        let exec = executor(&file.path, KvType::F16, CONTEXT as usize);
        assert_eq!(exec.kv_bytes() as u64, CONTEXT * kv, "{name}");
        assert_eq!(exec.state_bytes() as u64, 4 * state, "{name}: four slots");
        architectures.push(exec.hparams().architecture);
        for prefill_chunk in [48, 512] {
            let options = EngineOptions { threads: Some(1 + nth % 2), prefill_chunk, ..options() };
            let Opened { handle, facts, .. } = open(&file.path, &options, &mut |_| ()).unwrap();
            assert_eq!(facts.kv_bytes, 4 * CONTEXT * kv, "{name}: four sequences");
            assert_eq!(facts.state_bytes, 16 * state, "{name}: four sequences and twelve snapshots");
            let prompt: Vec<u32> = (0..230).map(|i| 3 + i * 7 % 150).collect();
            let requests =
                [request(&prompt, 5, greedy()), request(&prompt[7..90], 9, greedy()), request(&[3], 9, greedy())];
            let streams: Vec<_> = requests.into_iter().map(|request| handle.submit(request).unwrap()).collect();
            for stream in streams {
                collect(stream).end.unwrap().unwrap();
            }
            eventually("all have ended", || handle.stats().running == 0);
            assert_eq!(handle.stats().scratch_bytes, facts.scratch_bytes, "{name}, chunks of {prefill_chunk}");
        }
    }
    for architecture in Architecture::ALL {
        assert!(architectures.contains(&architecture), "no {}", architecture.name());
    }
}

#[test]
fn an_unknown_architecture_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new.gguf");
    let bytes = Builder::new().key("general.architecture", Value::String("mamba9".into())).build();
    std::fs::write(&path, bytes).unwrap();
    let text = refusal(&path, &options()).to_string();
    assert!(text.contains("mamba9") && text.contains("llama") && text.contains("qwen3"), "{text}");
}

#[test]
fn a_truncated_file_and_a_missing_one_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cut.gguf");
    let whole = unpack("tests/data/tiny/qwen2.gguf.zst");
    let bytes = std::fs::read(&whole.path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() * 2 / 3]).unwrap();
    let error = refusal(&path, &options());
    assert!(matches!(error, OpenError::Load(load::Error::Gguf { .. })), "{error}");
    let error = refusal(&dir.path().join("model-00001-of-00003.gguf"), &options());
    assert!(error.to_string().contains("cannot open"), "{error}");
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    for options in [EngineOptions { parallel: 0, ..options() }, EngineOptions { prefill_chunk: 0, ..options() }] {
        assert!(matches!(refusal(&bundled("f16"), &options), OpenError::Zero { .. }));
    }
    let options = EngineOptions { parallel: usize::MAX, prefill_chunk: usize::MAX, ..options() };
    assert!(matches!(refusal(&bundled("f16"), &options), OpenError::Never(_)));
}

#[test]
fn broken_weights_end_a_request_with_an_error_and_not_the_engine() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nan.gguf");
    let mut bytes = std::fs::read(bundled("q8_0")).unwrap();
    let file = omni_inferd::gguf::File::parse(&bytes, bytes.len() as u64).unwrap();
    let norm = file.tensors.iter().find(|t| t.name == "output_norm.weight").unwrap();
    bytes[norm.offset as usize..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    let handle = start(&path, &options()).handle;
    for _ in 0..2 {
        let end = run(&handle, request(&[1, 2, 3], 5, greedy())).end.unwrap();
        assert!(end.unwrap_err().contains("not finite"));
    }
    assert!(!handle.is_dead());
    assert_eq!(handle.stats().kv_blocks_used, 0);
}

/// What `omnictl plan` counts is what the engine reserves.
#[test]
fn counts_of_plans_are_those_that_are_reserved() {
    let options = EngineOptions { context: Some(300), parallel: 3, prefill_chunk: 100, threads: Some(2), ..options() };
    for model in ["tiny/deepseek2-v3", "tiny/gpt-oss", "hf-tiny/qwen3next", "hf-tiny/qwen3moe"] {
        let file = unpack(&format!("tests/data/{model}.gguf.zst"));
        let bound = load::Source::open(&file.path).unwrap().bind().unwrap();
        let facts = open(&file.path, &options, &mut |_| ()).unwrap().facts;
        let setting = Setting { context: 300, parallel: 3, micro_batch: 100, kv: options.kv_type.name() };
        let counts = planning::counts(&bound, &setting, facts.threads);
        assert_eq!(counts.kv, facts.kv_bytes, "{model}");
        assert_eq!(counts.state, facts.state_bytes, "{model}");
        assert_eq!(counts.made + counts.cpu_buffers + counts.engine, facts.scratch_bytes, "{model}");
    }
}

/// B-7: what is placed by hand is checked, and a GPU that this build cannot use is no silent CPU.
#[test]
fn placements_by_hand_that_cannot_be_are_refused() {
    let place = |tensors: &str, device: &str| vec![(tensors.to_owned(), device.to_owned())];
    for (place, part) in [
        (place("blk.0.ffn", "gpu0"), "no GPU backend"),
        (place("no such tensor", "cpu"), "matches no tensor"),
        (place("a(", "cpu"), "no regular expression"),
    ] {
        let error = refusal(&bundled("q8_0"), &EngineOptions { place, ..options() });
        assert!(error.to_string().contains(part) && error.remedy() == Remedy::None, "{part} is not in: {error}");
    }
    let by_hand = EngineOptions { place: place("blk", "cpu"), ..options() };
    assert!(open(&bundled("q8_0"), &by_hand, &mut |_| ()).is_ok(), "all is on the CPU anyway");
}
