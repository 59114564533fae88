//! See `greendot::wire::fuzz::feed_header`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| greendot::wire::fuzz::feed_header(data));
