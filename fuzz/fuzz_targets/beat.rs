//! See `greendot::wire::fuzz::beat`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| greendot::wire::fuzz::beat(data));
