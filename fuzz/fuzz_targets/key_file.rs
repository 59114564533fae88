//! See `greendot::wire::fuzz::key_file`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| greendot::wire::fuzz::key_file(data));
