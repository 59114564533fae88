//! See `greendot::wire::fuzz::record_bodies`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| greendot::wire::fuzz::record_bodies(data));
