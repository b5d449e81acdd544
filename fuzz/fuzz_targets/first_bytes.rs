//! What a stream looks like by its first bytes.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tulle_waypoint::fuzz::first_bytes(data));
