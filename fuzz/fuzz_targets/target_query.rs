//! See `greendot::wire::fuzz::target_query`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| greendot::wire::fuzz::target_query(data));
