//! Keys that an earlier process left.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tulle_identity::ca::fuzz_held(data));
