//! The trace that a peer names.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tulle_transport::fuzz::traceparent(data));
