//! Paths of requests.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tulle_model::fuzz::request_path(data));
