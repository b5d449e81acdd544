//! Why a peer says it refused.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tulle_transport::fuzz::reason_header(data));
