//! The cookies of a client, a session among them.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tulle_waypoint::fuzz::cookie(data));
