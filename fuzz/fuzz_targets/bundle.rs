//! See `greendot::wire::fuzz::bundle`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| greendot::wire::fuzz::bundle(data));
