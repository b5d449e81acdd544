//! When an endpoint wants to be asked again.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tulle_waypoint::fuzz::retry_after(data));
