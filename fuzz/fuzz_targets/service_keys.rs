//! See `greendot::auth::fuzz::service_keys`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| greendot::auth::fuzz::service_keys(data));
