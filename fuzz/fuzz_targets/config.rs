//! Any text as a configuration file: an answer or a list of problems, never a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use omni_inferd::config::{Environment, parse};
use std::path::Path;

fuzz_target!(|data: &[u8]| {
    if let Ok(text) = std::str::from_utf8(data) {
        if let Err(error) = parse(text, Path::new("/etc/omni-inferd/config.toml"), &Environment::pure()) {
            assert!(!error.to_string().is_empty());
        }
    }
});
