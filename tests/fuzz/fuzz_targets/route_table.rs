#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tidegate_policy::fuzz::route_table(data));
