//! Packets between agent and proxy.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tulle_proto::fuzz::zds(data));
