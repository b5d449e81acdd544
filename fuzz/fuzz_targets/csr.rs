//! Certificate requests.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tulle_xds::fuzz::csr(data));
