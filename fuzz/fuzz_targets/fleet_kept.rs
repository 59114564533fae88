//! See `greendot::fleet::fuzz::kept`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| greendot::fleet::fuzz::kept(data));
