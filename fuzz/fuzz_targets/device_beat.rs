//! See `greendot::wire::fuzz::device_beat`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| greendot::wire::fuzz::device_beat(data));
