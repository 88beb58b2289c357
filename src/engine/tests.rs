//! What only a bug can cause: the engine thread panics, and everybody hears of it.

use super::*;
use std::path::Path;

#[test]
fn a_panic_ends_every_stream_with_an_error_and_marks_the_engine_dead() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/omni-stories-q8_0.gguf");
    let options = EngineOptions { context: Some(256), threads: Some(1), pin: false, ..EngineOptions::default() };
    let handle = open(&path, &options, &mut |_| ()).unwrap().handle;
    let request = |prompt: Vec<u32>| Request {
        prompt,
        max_tokens: 200,
        sampling: Params::default(),
        stop_tokens: vec![],
        prompt_logprobs: None,
        cache: true,
    };
    let mut innocent = handle.submit(request(vec![1, 2, 3])).unwrap();
    // A token that the check at the door would have refused.
    let mut guilty = handle.submit_unchecked(request(vec![4_000_000])).unwrap();
    for events in [&mut innocent, &mut guilty] {
        let mut last = None;
        while let Some(event) = events.blocking_recv() {
            last = Some(event);
        }
        let Some(Event::Error(text)) = last else { panic!("no error: {last:?}") };
        assert!(text.contains("bug") && text.contains("loaded again"), "{text}");
    }
    assert!(handle.is_dead());
    assert!(matches!(handle.submit(request(vec![1])), Err(SubmitError::Closing)));
    let stats = handle.stats();
    assert_eq!((stats.running, stats.waiting, stats.kv_blocks_used), (0, 0, 0));
}
