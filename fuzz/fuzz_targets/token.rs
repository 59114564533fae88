//! See `greendot::auth::fuzz::token`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| greendot::auth::fuzz::token(data));
