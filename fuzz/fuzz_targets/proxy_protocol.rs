//! The header before an application tunnel.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tulle_transport::fuzz::proxy_protocol(data));
