//! Configuration that an earlier process left.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tulle_xds_client::keep::fuzz(data));
