//! What a peer asks a tunnel to: the authority of CONNECT.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tulle_model::fuzz::connect_authority(data));
