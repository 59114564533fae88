//! See `greendot::shard::tls::fuzz::tls`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| greendot::shard::tls::fuzz::tls(data));
