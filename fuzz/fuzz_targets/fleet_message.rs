//! See `greendot::fleet::fuzz::message`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| greendot::fleet::fuzz::message(data));
