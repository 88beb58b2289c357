//! The GGUF reader and everything that looks at a header: never a panic, never memory the bytes do not justify.
#![no_main]

use libfuzzer_sys::fuzz_target;
use omni_inferd::gguf::File;
use omni_inferd::model::{self, report::Report};
use omni_inferd::text::Tokenizer;

fuzz_target!(|bytes: &[u8]| {
    // As a whole file, and as a prefix of one whose length nobody knows.
    for file_len in [bytes.len() as u64, u64::MAX] {
        let Ok(file) = File::parse(bytes, file_len) else { continue };
        let _ = file.check_data(file_len);
        if let Ok(model) = model::bind(&file) {
            assert_eq!(model.tensors().len() + model.ignored.len(), file.tensors.len());
        }
        let _ = serde_json::to_string(&Report::new(&file));
        let _ = Tokenizer::from_metadata(&file.metadata);
        let _ = File::merge(vec![file]);
    }
});
