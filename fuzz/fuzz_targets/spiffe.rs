//! Identities as certificates and messages write them.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tulle_model::fuzz::spiffe(data));
