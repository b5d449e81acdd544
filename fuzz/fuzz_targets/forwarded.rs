//! For whom a peer says it speaks.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tulle_transport::fuzz::forwarded(data));
