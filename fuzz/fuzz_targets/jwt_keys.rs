//! See `greendot::auth::fuzz::jwt_keys`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| greendot::auth::fuzz::jwt_keys(data));
