//! TLS records of the other end of a tunnel.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tulle_transport::fuzz::records(data));
