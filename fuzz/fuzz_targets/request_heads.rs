//! Where the heads of requests begin in what a client sends.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tulle_waypoint::fuzz::request_heads(data));
