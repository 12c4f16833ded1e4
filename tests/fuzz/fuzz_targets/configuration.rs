#![no_main]

use std::path::Path;

libfuzzer_sys::fuzz_target!(|text: &str| {
    // Whatever is wrong is told with its place, which lies within the file.
    if let Err(errors) = tidegate_config::parse(text, Path::new("fuzz.toml")) {
        assert!(!errors.is_empty() && errors.to_string().contains("fuzz.toml"));
    }
});
