//! The B3 trace that a client names.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tulle_waypoint::fuzz::b3(data));
