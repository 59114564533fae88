//! See `greendot::wire::fuzz::sse_reader`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| greendot::wire::fuzz::sse_reader(data));
