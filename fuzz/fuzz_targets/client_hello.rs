//! The server name that a TLS client asks for.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tulle_waypoint::fuzz::client_hello(data));
