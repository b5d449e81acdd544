//! Tokens as clients send them.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tulle_waypoint::policy::jwt::token::fuzz(data));
