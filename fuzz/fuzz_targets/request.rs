//! See `greendot::wire::fuzz::request`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| greendot::wire::fuzz::request(data));
