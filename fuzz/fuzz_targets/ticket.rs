//! See `greendot::auth::fuzz::ticket`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| greendot::auth::fuzz::ticket(data));
