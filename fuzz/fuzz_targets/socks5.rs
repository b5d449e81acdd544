//! Greetings and requests of SOCKS5 clients.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tulle_transport::fuzz::socks5(data));
